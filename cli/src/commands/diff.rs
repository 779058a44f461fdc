//! `intermezzo conflicts diff`: what lost beside what is in the tree.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, bail};
use intermezzo_proto::v1::ConflictRecord;
use rustix::io::Errno;
use similar::TextDiff;

use super::resolve::{Found, Spot, found_on_server};
use crate::Exit;
use crate::args::{DiffArgs, VolumeArgs};
use crate::output::print_text;

/// Lines of larger files are not compared.
const MOST: u64 = 16 << 20;

pub(super) fn run(args: &DiffArgs) -> Result<Exit> {
    let VolumeArgs { volume, agents, .. } = &args.of;
    let Found { mountpoint, cache, conflict, .. } = found_on_server(agents, volume, args.position)?;
    if conflict.content.is_empty() {
        bail!("the conflict at position {} ({}) keeps no content", conflict.position, conflict.kind);
    }
    let kept = File::open(&conflict.content)
        .with_context(|| format!("the losing content {}", conflict.content))
        .and_then(read)?;
    // An agent's container does not see the mount, but what lies below it.
    let tree = if mountpoint.is_dir() { mountpoint } else { cache.join("tree") };
    let spot = Spot::of(&tree, &conflict)?;
    let present = match spot.open() {
        Ok(file) => Some(read(file)?),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno).with_context(|| format!("cannot open {}", spot.shown().display())),
    };
    print_text(&difference(&conflict, present.as_deref(), &kept))?;
    Ok(Exit::Done)
}

fn read(file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        bail!("larger than {} MiB: compare it with `conflicts show --content`", MOST >> 20);
    }
    Ok(bytes)
}

fn difference(conflict: &ConflictRecord, present: Option<&[u8]>, kept: &[u8]) -> String {
    let path = &conflict.path;
    let there = if present.is_some() { "in the tree" } else { "not in the tree any more" };
    let names = [format!("{path} ({there})"), format!("{path} (kept, of node {})", conflict.node)];
    let present = present.unwrap_or_default();
    if present == kept {
        return "the contents are equal\n".to_owned();
    }
    match (text(present), text(kept)) {
        (Some(present), Some(kept)) => {
            let [old, new] = &names;
            TextDiff::from_lines(present, kept).unified_diff().header(old, new).to_string()
        }
        _ => {
            let [old, new] = names;
            format!(
                "{old}: {} bytes\n{new}: {} bytes\nthey differ, and are no text\n",
                present.len(),
                kept.len()
            )
        }
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_compared_by_lines_and_the_rest_by_size() {
        let conflict =
            ConflictRecord { path: "/notes".to_owned(), node: "b".to_owned(), ..ConflictRecord::default() };
        let shown = difference(&conflict, Some(b"one\ntwo\n"), b"one\nthree\n");
        assert!(
            shown.contains("\n-two\n+three\n") && shown.contains("+++ /notes (kept, of node b)"),
            "{shown}"
        );
        let gone = difference(&conflict, None, b"one\n");
        assert!(gone.contains("not in the tree any more") && gone.contains("\n+one\n"), "{gone}");
        assert!(difference(&conflict, Some(b"\xff"), b"x").contains("1 bytes"));
        assert!(difference(&conflict, Some(b"x"), b"x").contains("equal"));
    }
}

//! `intermezzo history`: what happened to a path, and what stood there.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use intermezzo_proto::v1::{Condition, FormerRequest, HistoryLine, HistoryRequest, PastNode};
use rustix::fs::FileType;
use serde::Serialize;

use super::place::{Place, join, shown_path};
use crate::Exit;
use crate::admin::{Admin, Contents, block_on};
use crate::args::{HistoryArgs, When};
use crate::output::{Table, bytes, print_text, print_value, say};

pub(super) fn run(args: &HistoryArgs) -> Result<Exit> {
    let place = Place::find(&args.place)?;
    match args.when.when() {
        Some(when) if args.content => content(&place, when),
        Some(when) => then(&place, when, args),
        None if args.content => bail!("--content needs --at or --before"),
        None => list(&place, args),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LineView {
    position: u64,
    time: String,
    node: String,
    what: String,
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<bool>,
    /// When it was done on its node.
    made: String,
}

fn list(place: &Place, args: &HistoryArgs) -> Result<Exit> {
    let request = HistoryRequest {
        volume: place.volume.clone(),
        path: place.path.iter().cloned().map(Into::into).collect(),
        attributes: args.attributes,
        limit: args.limit,
        before: 0,
    };
    let lines =
        block_on(async { Admin::connect(&place.socket).await?.history(request).await?.collect().await })?;
    let views: Vec<LineView> = lines.into_iter().map(line).collect();
    let format = args.print.output;
    if !format.is_table() {
        print_value(format, &views)?;
        return Ok(Exit::Done);
    }
    if views.is_empty() {
        say(format_args!("nothing is known of {}", place.shown().display()));
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["POSITION", "TIME", "NODE", "WHAT", "SIZE", "CONTENT", "PATH"]);
    for view in views {
        let path = match view.from.as_str() {
            "" => view.path,
            from => format!("{} (from {from})", view.path),
        };
        let size = view.size.map(bytes).unwrap_or_default();
        table.row([view.position.to_string(), view.time, view.node, view.what, size, shown(view.kept), path]);
    }
    print_text(&table.render())?;
    Ok(Exit::Done)
}

fn line(line: HistoryLine) -> LineView {
    let content = line.after.as_ref().and_then(|after| after.content.as_ref());
    let (size, kept) = (content.map(|content| content.size), content.map(|content| content.kept));
    LineView {
        position: line.position,
        time: time(line.time),
        node: line.node,
        what: line.what,
        path: text(&line.path),
        from: if line.from.is_empty() { String::new() } else { text(&line.from) },
        size,
        kept,
        made: time(line.made),
    }
}

fn shown(kept: Option<bool>) -> String {
    match kept {
        Some(true) => "kept",
        Some(false) => "missing",
        None => "",
    }
    .to_owned()
}

fn text(path: &[impl AsRef<[u8]>]) -> String {
    shown_path(&join(Path::new("/"), path))
}

fn time(time: Option<intermezzo_proto::v1::Time>) -> String {
    let time = time.unwrap_or_default();
    // To the second, as a person writes it.
    jiff::Timestamp::new(time.sec, 0).map_or_else(|_| String::new(), |time| time.to_string())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeView {
    path: String,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    target: String,
    unchanged: bool,
}

fn then(place: &Place, when: When, args: &HistoryArgs) -> Result<Exit> {
    let (position, nodes) = place.past(when, false)?;
    if nodes.is_empty() {
        say(format_args!("nothing stood at {} at position {position}", place.shown().display()));
        return Ok(Exit::NotTrue);
    }
    let views: Vec<NodeView> = nodes.into_iter().map(|node| view(place, node)).collect();
    let format = args.print.output;
    if !format.is_table() {
        print_value(format, &views)?;
        return Ok(Exit::Done);
    }
    say(format_args!("{} at position {position}:", place.shown().display()));
    let mut table = Table::new(&["KIND", "MODE", "OWNER", "SIZE", "MODIFIED", "CONTENT", "PATH"]);
    for view in views {
        let path =
            if view.target.is_empty() { view.path } else { format!("{} -> {}", view.path, view.target) };
        table.row([
            view.kind.to_owned(),
            view.mode,
            format!("{}:{}", view.uid, view.gid),
            view.size.map(bytes).unwrap_or_default(),
            view.modified,
            shown(view.kept),
            path,
        ]);
    }
    print_text(&table.render())?;
    Ok(Exit::Done)
}

fn view(place: &Place, node: PastNode) -> NodeView {
    let Condition { attributes, symlink, content, .. } = node.condition.unwrap_or_default();
    let attributes = attributes.unwrap_or_default();
    let mut path = place.path.clone();
    path.extend(node.path.iter().map(|name| name.to_vec()));
    NodeView {
        path: text(&path),
        kind: kind(attributes.mode),
        mode: format!("{:04o}", attributes.mode & 0o7777),
        uid: attributes.uid,
        gid: attributes.gid,
        modified: time(attributes.mtime),
        size: content.as_ref().map(|content| content.size),
        kept: content.as_ref().map(|content| content.kept),
        target: String::from_utf8_lossy(&symlink).into_owned(),
        unchanged: node.is_there,
    }
}

pub(super) fn kind(mode: u32) -> &'static str {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        FileType::Unknown => "unknown",
    }
}

fn content(place: &Place, when: When) -> Result<Exit> {
    let (position, nodes) = place.past(when, false)?;
    let shown = place.shown();
    let node = nodes.into_iter().find(|node| node.path.is_empty());
    let node =
        node.with_context(|| format!("nothing stood at {} at position {position}", shown.display()))?;
    let content = node.condition.and_then(|condition| condition.content);
    let content =
        content.with_context(|| format!("{} was no file at position {position}", shown.display()))?;
    ensure!(
        content.kept,
        "what {} held at position {position} is not kept: see `intermezzo history {}` for what is",
        shown.display(),
        shown.display()
    );
    let mut out = io::stdout().lock();
    let request = FormerRequest { volume: place.volume.clone(), content: Some(content) };
    Contents::connect(&place.socket)?.fetch(request, &mut |data| out.write_all(data))??;
    out.flush()?;
    Ok(Exit::Done)
}

//! What journals tell of a name: for who reads of a failure and has only its output.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use intermezzo::fleet::process::binary;

use crate::cluster::command::output;

/// Newest records that are shown.
const RECORDS: usize = 120;
const DEADLINE: Duration = Duration::from_secs(60);

/// The newest records of a cache's journal about objects that had this name at some time, as `intermezzo kml dump` shows them.
///
/// # Errors
/// The journal cannot be read.
pub fn of(cache: &Path, name: &str) -> Result<String> {
    let mut dump = Command::new(binary("intermezzo")?);
    let text = output(dump.args(["kml", "dump", "--output", "wide"]).arg(cache), DEADLINE)?;
    Ok(about(&text, name).join("\n"))
}

fn about<'a>(dump: &'a str, name: &str) -> Vec<&'a str> {
    let named = [format!(" name=\"{name}\""), format!(" as=\"{name}\"")];
    let objects: BTreeSet<&str> = dump
        .lines()
        .filter(|line| named.iter().any(|named| line.contains(named)))
        .flat_map(objects_of)
        .collect();
    let lines: Vec<&str> =
        dump.lines().filter(|line| objects_of(line).any(|object| objects.contains(object))).collect();
    lines.get(lines.len().saturating_sub(RECORDS)..).unwrap_or_default().to_vec()
}

fn objects_of(line: &str) -> impl Iterator<Item = &str> {
    line.split(' ').filter_map(|word| word.strip_prefix("object=").or_else(|| word.strip_prefix("replaced=")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_the_name_is_followed_under_its_other_names() {
        let dump = "1 create object=5:1 parent=2:1 name=\"f\"\n2 close object=5:1\n3 create object=6:1 name=\"g\"\n\
                    4 rename object=5:1 parent=2:1 name=\"f\" to=2:1 as=\"f~\" replaced=7:1\n5 close object=7:1\n";
        let numbers: Vec<&str> = about(dump, "f~").into_iter().map(|line| &line[..1]).collect();
        assert_eq!(numbers, ["1", "2", "4", "5"]);
    }
}

//! Contents by path: what a directory holds, or ought to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};

use super::describe;

/// Regular files by path relative to the directory. Copies share the contents.
pub type Model = BTreeMap<PathBuf, Content>;
/// What a file contains.
pub type Content = Arc<[u8]>;

/// What an interrupted step may leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// All of it or nothing: a rename.
    Whole,
    /// Each file for itself: as before, as after, or the beginning of what is being written.
    EachFile,
    /// As [`Rule::Whole`], and a temporary file that the program had named (`sed`...).
    Temporary,
}

/// Reads all regular files below `dir`; no directory, no files.
///
/// # Errors
/// Anything that cannot be read.
pub fn read_tree(dir: &Path) -> io::Result<Model> {
    let mut model = Model::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let entries = match std::fs::read_dir(dir.join(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.as_os_str().is_empty() => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let below = path.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(below);
            } else if kind.is_file() {
                let content = std::fs::read(entry.path())?;
                model.insert(below, content.into());
            }
        }
    }
    Ok(model)
}

/// Whether `found` may be what an interrupted step from `before` to `after` left.
pub(super) fn allowed(found: &Model, before: &Model, after: &Model, rule: Rule) -> Result<()> {
    if found == before || found == after {
        return Ok(());
    }
    if rule == Rule::Temporary {
        let is_temporary =
            |path: &PathBuf| !before.contains_key(path) && path.to_string_lossy().starts_with("sed");
        let rest = found.iter().filter(|(path, _)| !is_temporary(path));
        let rest: Model = rest.map(|(path, content)| (path.clone(), content.clone())).collect();
        return allowed(&rest, before, after, Rule::Whole);
    }
    let paths: BTreeSet<&PathBuf> = found.keys().chain(before.keys()).chain(after.keys()).collect();
    for path in paths {
        let (is, was, will) = (found.get(path), before.get(path), after.get(path));
        let partly = match (is, will) {
            (Some(is), Some(will)) => will.starts_with(is),
            _ => false,
        };
        let fine = is == was || is == will || (partly && was != will);
        if !fine {
            bail!("lost: {}", describe(path, is, was));
        }
    }
    if rule == Rule::Whole {
        bail!("lost: a rename was done in part");
    }
    Ok(())
}

/// Whether a node has exactly what was acknowledged.
pub(super) fn same(found: &Model, wanted: &Model) -> Vec<String> {
    let paths: BTreeSet<&PathBuf> = found.keys().chain(wanted.keys()).collect();
    let different = paths.into_iter().filter(|path| found.get(*path) != wanted.get(*path));
    different.map(|path| describe(path, found.get(path), wanted.get(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(files: &[(&str, &str)]) -> Model {
        files.iter().map(|(path, content)| (PathBuf::from(path), content.as_bytes().into())).collect()
    }

    #[test]
    fn an_interrupted_write_may_leave_old_or_a_beginning_of_new() {
        let (before, after) = (model(&[("x", "keep"), ("f", "old")]), model(&[("x", "keep"), ("f", "new!")]));
        for found in ["old", "", "ne", "new!"] {
            allowed(&model(&[("x", "keep"), ("f", found)]), &before, &after, Rule::EachFile).unwrap();
        }
        for bad in [model(&[("f", "old")]), model(&[("x", "keep")]), model(&[("x", ""), ("f", "old")])] {
            assert!(allowed(&bad, &before, &after, Rule::EachFile).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_rename_is_done_or_not() {
        let (before, after) = (model(&[("d/1", "a"), ("d/2", "b")]), model(&[("e/1", "a"), ("e/2", "b")]));
        allowed(&before, &before, &after, Rule::Whole).unwrap();
        allowed(&after, &before, &after, Rule::Whole).unwrap();
        let half = model(&[("d/1", "a"), ("e/2", "b")]);
        assert!(allowed(&half, &before, &after, Rule::Whole).is_err());
        assert!(allowed(&model(&[]), &before, &after, Rule::Whole).is_err());
    }

    #[test]
    fn an_interrupted_edit_may_leave_its_temporary_file_and_nothing_else() {
        let (before, after) = (model(&[("f", "old")]), model(&[("f", "old, new")]));
        let with = |name: &str| model(&[("f", "old"), (name, "ol")]);
        allowed(&with("sedAb12"), &before, &after, Rule::Temporary).unwrap();
        allowed(&after, &before, &after, Rule::Temporary).unwrap();
        assert!(allowed(&with("g"), &before, &after, Rule::Temporary).is_err());
        assert!(allowed(&model(&[("f", "ol")]), &before, &after, Rule::Temporary).is_err());
        assert!(allowed(&model(&[("sedAb12", "ol")]), &before, &after, Rule::Temporary).is_err());
    }

    #[test]
    fn what_was_acknowledged_is_compared_exactly() {
        let wanted = model(&[("a", "1")]);
        assert!(same(&wanted, &wanted).is_empty());
        assert_eq!(same(&model(&[]), &wanted), ["a: absent, acknowledged: 1 bytes \"1\""]);
        assert_eq!(same(&model(&[("a", "1"), ("gone", "")]), &wanted).len(), 1);
    }
}

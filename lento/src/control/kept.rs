//! Files that must be whole or not there: a first line with kind, version and hash, then JSON. Written beside and renamed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What a file is, and in which version of its format.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) file: &'static str,
    pub(super) name: &'static str,
    pub(super) version: u32,
}

impl Kind {
    fn head(&self) -> String {
        format!("intermezzo {} {}", self.name, self.version)
    }

    /// Durable when it returns. Only its owner may read it.
    pub(super) fn write<T: Serialize>(&self, dir: &Path, value: &T) -> Result<(), String> {
        let path = dir.join(self.file);
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let json = serde_json::to_string(value).map_err(|error| fail(&error))?;
        let text = format!("{} {}\n{json}\n", self.head(), blake3::hash(json.as_bytes()).to_hex());
        let beside = dir.join(format!(".{}.new", self.file));
        let write = || -> std::io::Result<()> {
            // One that a crash left may have other permissions.
            match std::fs::remove_file(&beside) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|error| fail(&error))
    }

    /// `None`: there is none.
    ///
    /// # Errors
    /// Text for people: it is there, and cannot be used.
    pub(super) fn read<T: DeserializeOwned>(&self, dir: &Path) -> Result<Option<T>, String> {
        let path = dir.join(self.file);
        let fail = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(&error)),
        };
        let (first, json) = text.split_once('\n').ok_or_else(|| fail(&"it ends in its first line"))?;
        let (head, hash) = first.rsplit_once(' ').ok_or_else(|| fail(&"its first line is not ours"))?;
        if head != self.head() {
            return Err(fail(&format_args!("{:?} is wanted, this is {head:?}", self.head())));
        }
        let json = json.trim_end_matches('\n');
        if blake3::hash(json.as_bytes()).to_hex().as_str() != hash {
            return Err(fail(&"it has been damaged"));
        }
        serde_json::from_str(json).map(Some).map_err(|error| fail(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KIND: Kind = Kind { file: "numbers", name: "numbers", version: 1 };

    #[test]
    fn a_file_is_whole_or_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers");
        assert_eq!(KIND.read::<Vec<u32>>(dir.path()), Ok(None));
        KIND.write(dir.path(), &vec![1, 2, 3]).unwrap();
        KIND.write(dir.path(), &vec![4, 5]).unwrap();
        assert_eq!(KIND.read(dir.path()), Ok(Some(vec![4, 5])));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let whole = std::fs::read_to_string(&path).unwrap();
        for (broken, reason) in [
            (String::new(), "first line"),
            (whole.replace('4', "6"), "damaged"),
            (whole[..whole.len() - 3].to_owned(), "damaged"),
            (whole.replace("numbers 1", "numbers 2"), "wanted"),
        ] {
            std::fs::write(&path, &broken).unwrap();
            let error = KIND.read::<Vec<u32>>(dir.path()).unwrap_err();
            assert!(error.contains(reason) && error.contains("numbers"), "{broken:?}: {error}");
        }
    }
}

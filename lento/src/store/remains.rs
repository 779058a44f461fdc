//! What an agent keeps of one volume, when it is to go: store, redo file, kept conflicts, witness. Nothing else is touched,
//! and no directory is entered but that of the conflicts, which holds files only.

use super::UID;
use super::shell_row;
use std::io::ErrorKind;
use std::path::Path;
use std::path::PathBuf;

/// The files of one volume.
#[derive(Clone, Debug)]
pub struct Remains {
    store: PathBuf,
    witness: PathBuf,
}

fn said(path: &Path) -> impl Fn(std::io::Error) -> String + '_ {
    move |error| format!("{}: {error}", path.display())
}

impl Remains {
    /// Those of `volume` (`namespace/name`).
    #[must_use]
    pub fn new(state: &Path, run: &Path, volume: &str) -> Remains {
        Remains { store: store_path(state, volume), witness: witness_path(run, volume) }
    }

    /// Sets the files aside, after `note` has noted the uid of the cache durably. Nobody else opens the store meanwhile.
    /// `None`: there is no store.
    ///
    /// # Errors
    /// Text for people: it is in use, or cannot be opened or moved.
    pub fn begin<T>(&self, note: impl FnOnce(u64) -> Result<T, String>) -> Result<Option<T>, String> {
        if !self.store.try_exists().map_err(said(&self.store))? {
            return Ok(None);
        }
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.store.display());
        let database = redb::Database::open(&self.store).map_err(|error| failed(&error))?;
        // A store without an id never had a cache; no cache has the id 0.
        let uid = uid_of(&database, &self.store)?.unwrap_or(0);
        let noted = note(uid)?;
        self.move_files(uid)?;
        drop(database);
        Ok(Some(noted))
    }

    /// Goes on with [`Remains::begin`] after a kill. A store of another id is another's.
    ///
    /// # Errors
    /// Text for people.
    pub fn set_aside(&self, uid: u64) -> Result<(), String> {
        if !self.store.try_exists().map_err(said(&self.store))? {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.store.display());
        let database = redb::Database::open(&self.store).map_err(|error| failed(&error))?;
        if uid_of(&database, &self.store)?.unwrap_or(0) != uid {
            return Ok(());
        }
        self.move_files(uid)
    }

    /// Removes what was set aside; what is gone already is right too.
    ///
    /// # Errors
    /// Text for people.
    pub fn remove(&self, uid: u64) -> Result<(), String> {
        let aside = self.aside(uid);
        let conflicts = aside.with_extension("conflicts");
        match std::fs::read_dir(&conflicts) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(said(&conflicts))?.path();
                    gone(&path, std::fs::remove_file(&path))?;
                }
                gone(&conflicts, std::fs::remove_dir(&conflicts))?;
            }
            Err(error) => gone(&conflicts, Err(error))?,
        }
        for file in [aside.with_extension("redo"), aside] {
            gone(&file, std::fs::remove_file(&file))?;
        }
        Ok(())
    }

    /// The store goes last: as long as it has its name, the others may have theirs.
    fn move_files(&self, uid: u64) -> Result<(), String> {
        let aside = self.aside(uid);
        gone(&self.witness, std::fs::remove_file(&self.witness))?;
        for extension in ["conflicts", "redo", "redb"] {
            let (from, to) = (self.store.with_extension(extension), aside.with_extension(extension));
            gone(&from, std::fs::rename(&from, &to))?;
        }
        Ok(())
    }

    /// No volume's name begins with a dot.
    fn aside(&self, uid: u64) -> PathBuf {
        self.store.with_file_name(format!(".discard-{uid:016x}.redb"))
    }
}

fn uid_of(database: &redb::Database, path: &Path) -> Result<Option<u64>, String> {
    let row = shell_row(database, path, UID).map_err(|error| error.to_string())?;
    Ok(row.and_then(|value| value.try_into().ok()).map(u64::from_le_bytes))
}

fn gone(path: &Path, result: std::io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(said(path)(error)),
        _ => Ok(()),
    }
}

/// Where the store of a volume lies.
#[must_use]
pub fn store_path(state: &Path, volume: &str) -> PathBuf {
    state.join(format!("{volume}.redb"))
}

/// Where the witness of a volume's store lies.
#[must_use]
pub fn witness_path(run: &Path, volume: &str) -> PathBuf {
    run.join(format!("{}.life", volume.replace('/', ".")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::VolumeStore;

    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        fn remains(&self) -> Remains {
            Remains::new(self.dir.path(), self.dir.path(), "t/v")
        }

        fn store(&self) -> VolumeStore {
            std::fs::create_dir_all(self.dir.path().join("t")).unwrap();
            let path = store_path(self.dir.path(), "t/v");
            VolumeStore::open(&path, "boot", &witness_path(self.dir.path(), "t/v")).unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.dir.path().join("t")).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    fn world() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        let store = world.store();
        store.set_uid(7).unwrap();
        std::fs::create_dir(store.conflicts()).unwrap();
        std::fs::write(store.conflicts().join("1.2.3"), "lost").unwrap();
        world
    }

    #[test]
    fn a_store_that_is_in_use_stays() {
        let world = world();
        let store = world.store();
        assert!(world.remains().begin(Ok).is_err());
        drop(store);
        assert_eq!(world.remains().begin(Ok), Ok(Some(7)));
        assert_eq!(world.remains().begin(Ok), Ok(None), "there is none any more");
    }

    #[test]
    fn what_is_set_aside_is_removed_and_a_new_store_of_the_name_is_not() {
        let world = world();
        // The note fails: nothing has happened.
        assert!(world.remains().begin(|_| Err::<(), _>("full".to_owned())).is_err());
        assert_eq!(world.names(), ["v.conflicts", "v.redb", "v.redo"]);
        world.remains().begin(Ok).unwrap();
        let store = world.store();
        assert_eq!(store.uid().unwrap(), None);
        store.set_uid(8).unwrap();
        drop(store);
        world.remains().set_aside(7).unwrap();
        world.remains().remove(7).unwrap();
        world.remains().remove(7).unwrap();
        assert_eq!(world.names(), ["v.redb", "v.redo"]);
        assert_eq!(world.store().uid().unwrap(), Some(8));
    }

    #[test]
    fn a_kill_between_note_and_move_is_made_good() {
        let world = world();
        world.remains().set_aside(7).unwrap();
        assert!(!world.names().contains(&"v.redb".to_owned()));
        world.remains().remove(7).unwrap();
        assert!(world.names().is_empty());
    }
}

//! What is in the conflict store and in no row of the store: contents that were kept for a verdict which never came, and those
//! of resolved conflicts that a kill left behind. They go a day later.
//!
//! A content is written before the row that names it, so nothing young is touched; and rows come from the journal, so
//! nothing is before that has been read.

use super::Shared;
use lento_core::Volume;
use lento_core::store::Store;
use lento_core::types::Recno;
use lento_core::volume::Fault;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;
use tracing::info;
use tracing::warn;

/// How often it is looked.
const PAUSE: Duration = Duration::from_secs(24 * 3600);
/// How often, until the journal has been read.
const SOON: Duration = Duration::from_secs(10);
/// Nothing younger goes.
const AGE: Duration = Duration::from_secs(24 * 3600);

/// For as long as the life lasts, which began when the journal ended with this record.
pub(super) async fn run(shared: Shared, journal_end: Recno) {
    loop {
        tokio::time::sleep(SOON).await;
        let read = shared.store.read(|tables| Volume::last_read(tables));
        if read.is_ok_and(|read| read >= journal_end) {
            let (store, dir) = (shared.store.clone(), shared.conflicts.clone());
            let swept = tokio::task::spawn_blocking(move || {
                let needed = store.read(|tables| names(tables)).map_err(io::Error::other)?;
                sweep(&dir, &needed, SystemTime::now())
            });
            match swept.await {
                Ok(Ok(0)) => {}
                Ok(Ok(files)) => info!(target: "volume", volume = &*shared.volume.name, files,
                    "contents that no conflict needs are gone from the conflict store"),
                Ok(Err(error)) => warn!(target: "volume", volume = &*shared.volume.name, %error,
                    path = %shared.conflicts.display(), "the conflict store is not swept"),
                Err(error) => {
                    warn!(target: "volume", volume = &*shared.volume.name, %error, "the conflict store is not swept")
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn names(store: &dyn Store) -> Result<BTreeSet<String>, Fault> {
    Ok(Volume::kept_records(store)?.into_iter().map(|record| record.to_string()).collect())
}

fn sweep(dir: &Path, needed: &BTreeSet<String>, now: SystemTime) -> io::Result<u64> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut swept = 0;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let metadata = entry.metadata()?;
        let age = metadata.modified().ok().and_then(|modified| now.duration_since(modified).ok());
        if is_ours(&name) && !needed.contains(&name) && metadata.is_file() && age.is_some_and(|age| age > AGE)
        {
            std::fs::remove_file(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Named as a record, or as a content that was being written.
fn is_ours(name: &str) -> bool {
    let record = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new")).unwrap_or(name);
    let mut parts = record.split('.');
    let replica = parts.next().is_some_and(|part| part.len() == 16 && u64::from_str_radix(part, 16).is_ok());
    let numbers =
        [parts.next(), parts.next()].iter().flatten().filter(|part| part.parse::<u64>().is_ok()).count();
    replica && numbers == 2 && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_row_needs_and_is_old_goes() {
        let dir = tempfile::tempdir().unwrap();
        let [listed, gone, young] = [1, 2, 3].map(|number| format!("00000000000000aa.1.{number}"));
        let begun = format!(".{gone}.new");
        for name in [&listed, &gone, &young, &begun, &"notes".to_owned()] {
            std::fs::write(dir.path().join(name), "kept").unwrap();
        }
        let tomorrow = SystemTime::now() + AGE * 2;
        let file = std::fs::File::options().write(true).open(dir.path().join(&young)).unwrap();
        file.set_modified(tomorrow).unwrap();
        let needed = BTreeSet::from([listed.clone()]);
        assert_eq!(sweep(dir.path(), &needed, SystemTime::now()).unwrap(), 0, "all of it is young");
        assert_eq!(sweep(dir.path(), &needed, tomorrow).unwrap(), 2);
        let left: BTreeSet<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, BTreeSet::from([listed, young, "notes".to_owned()]));
        assert_eq!(sweep(&dir.path().join("none"), &needed, tomorrow).unwrap(), 0);
    }
}

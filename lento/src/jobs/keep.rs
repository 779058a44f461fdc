//! `Output::Keep`: a conflict's losing content goes to the conflict store and is durable there before the answer.

use super::Shared;
use crate::content::source::read_whole;
use lento_core::io::Input;
use lento_core::io::KeepContent;
use lento_core::types::FileId;
use lento_core::types::OpId;
use lento_core::types::Ticket;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use tracing::error;
use tracing::warn;

/// Somebody resolved the conflict: the content goes.
pub(super) async fn forget(shared: Shared, record: OpId) {
    let path = shared.conflicts.join(record.to_string());
    match tokio::fs::remove_file(&path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(target: "volume", volume = &*shared.volume.name, path = %path.display(), %error,
                "the content of a resolved conflict stays");
        }
        _ => {}
    }
}

enum From {
    Bytes(Vec<u8>),
    File(Arc<File>),
}

pub(super) async fn run(shared: Shared, ticket: Ticket, record: OpId, content: KeepContent) {
    let result = keep(&shared, record, content).await;
    shared.answer(ticket, Input::Kept { ticket, result }).await;
}

async fn keep(shared: &Shared, record: OpId, content: KeepContent) -> Result<(), String> {
    let from = match content {
        KeepContent::Inline(bytes) => From::Bytes(bytes),
        KeepContent::Staged(name) => {
            let staged = shared.open_stage(&name, 0).await.map_err(|error| error.to_string())?;
            From::File(Arc::new(readable(staged).map_err(|error| format!("staged {name}: {error}"))?))
        }
        KeepContent::File(file) => {
            let mut files = super::read::resolve(shared, &[file]).await?;
            match files.pop().flatten() {
                Some(file) => From::File(file),
                None => return gone(shared, record, file).await,
            }
        }
    };
    let dir = shared.conflicts.clone();
    let name = record.to_string();
    tokio::task::spawn_blocking(move || write(&dir, &name, &from))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("conflict store {}: {error}", shared.conflicts.display()))
}

/// It was kept and released before, and a power cut took the note of that; or somebody took it from limbo.
async fn gone(shared: &Shared, record: OpId, file: FileId) -> Result<(), String> {
    let kept = shared.conflicts.join(record.to_string());
    if !tokio::fs::try_exists(&kept).await.map_err(|error| format!("{}: {error}", kept.display()))? {
        error!(target: "volume", volume = &*shared.volume.name, %record, ?file,
            "what a writer left is gone, and its conflict has no content");
    }
    Ok(())
}

/// A staged file comes open for writing; reading it needs another descriptor.
fn readable(file: File) -> io::Result<File> {
    if file.read_at(&mut [0], 0).is_ok() {
        return Ok(file);
    }
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn write(dir: &Path, name: &str, from: &From) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let temporary = dir.join(format!(".{name}.new"));
    let to = File::create(&temporary)?;
    match from {
        From::Bytes(bytes) => to.write_all_at(bytes, 0)?,
        From::File(file) => {
            let whole = read_whole(file, &mut |offset, bytes| {
                to.write_all_at(&bytes, offset).map_err(|error| error.to_string())
            })
            .map_err(io::Error::other)?;
            match whole.inline {
                Some(bytes) => to.write_all_at(&bytes, 0)?,
                None => to.set_len(whole.size)?,
            }
        }
    }
    to.sync_all()?;
    std::fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_whole_and_keeping_twice_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("conflicts");
        write(&store, "a.1.2", &From::Bytes(b"mine".to_vec())).unwrap();
        write(&store, "a.1.2", &From::Bytes(b"mine".to_vec())).unwrap();
        assert_eq!(std::fs::read(store.join("a.1.2")).unwrap(), b"mine");
        let large = dir.path().join("large");
        std::fs::write(&large, vec![5; 200_000]).unwrap();
        let writable = File::options().write(true).open(&large).unwrap();
        let file = From::File(Arc::new(readable(writable).unwrap()));
        write(&store, "a.1.3", &file).unwrap();
        assert_eq!(std::fs::read(store.join("a.1.3")).unwrap(), vec![5; 200_000]);
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 2, "no temporary files stay");
    }
}

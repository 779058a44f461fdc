//! Large contents, copied into the files that lack them before their records begin: journal, other replays and everybody who
//! waits for another file go on meanwhile.
//!
//! The first asking begins the copy and is answered with `Busy`, and so is each one until it is whole; the next one makes the
//! record. Owns the threads that copy. What a kill leaves of one is undone by its note in the LML.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::plan::Item;
use super::{Replayer, Stop, copy};
use crate::filter::Before;
use crate::lower::missing::Hash;
use crate::lower::xattr;

/// Contents up to this size are copied while their record is open.
pub(super) const SMALL: u64 = 1 << 20;
/// Copies at a time.
const MOST: usize = 2;
/// How long a whole one waits for its record.
const UNWANTED: Duration = Duration::from_secs(120);

/// Copies, by their files.
pub(super) type Ahead = Mutex<BTreeMap<FileId, Copied>>;

#[derive(Debug)]
pub(super) struct Copied {
    hash: Hash,
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Running,
    Whole(Instant),
    Failed(Errno),
}

impl Replayer {
    /// Whether the content lies in its file.
    ///
    /// # Errors
    /// `Busy`: it is on its way now. `Refused`: it cannot be copied.
    pub(super) fn ahead(&self, item: &Item, file: FileId, staged: &File, size: u64) -> Result<(), Stop> {
        let mut copies = self.ahead.lock();
        let mut running = 0;
        for (id, copied) in &*copies {
            let state = *copied.state.lock();
            running += usize::from(matches!(state, State::Running));
            if *id != file {
                continue;
            }
            // Otherwise somebody has stopped it.
            if copied.hash == item.origin.hash && self.volume.filling.contains(file) {
                match state {
                    State::Running => return Err(Stop::Busy),
                    State::Whole(_) => return Ok(()),
                    State::Failed(errno) => {
                        copies.remove(&file);
                        drop(copies);
                        self.let_go(file)?;
                        return Err(errno.into());
                    }
                }
            }
        }
        if running >= MOST {
            return Err(Stop::Busy);
        }
        let state = self.begin_copy(item, file, staged, size)?;
        copies.insert(file, Copied { hash: item.origin.hash, state });
        Err(Stop::Busy)
    }

    fn begin_copy(
        &self,
        item: &Item,
        file: FileId,
        staged: &File,
        size: u64,
    ) -> Result<Arc<Mutex<State>>, Stop> {
        let volume = &self.volume;
        let _held = volume.locks.lock(&[file]);
        volume.stop_filling(file)?;
        self.refuse_unfinished(file)?;
        let (stat, fd) = self.lacks_this(item, file, size)?;
        let before =
            Before { mtime: stat.attributes.mtime, capability: xattr::get(&fd, xattr::CAPABILITY).ok() };
        let from = staged.try_clone().map_err(crate::lower::errno_of)?;
        let to = File::from(volume.lower.open_id(file, OFlags::WRONLY)?);
        self.lml.begin_fill(file, &before)?;
        let copying = volume.begin_filling(file, before);
        let state = Arc::new(Mutex::new(State::Running));
        let (told, volume) = (Arc::clone(&state), Arc::clone(volume));
        let copy = move || {
            let step = |step: &mut dyn FnMut() -> Result<(), Errno>| {
                if volume.marks.ended.is_on() { Err(Errno::NOTCONN) } else { copying.step(step) }
            };
            let copied = copy::by_steps(&from, &to, size, step);
            *told.lock() = match copied {
                Ok(()) => State::Whole(Instant::now()),
                Err(errno) => State::Failed(errno),
            };
        };
        if let Err(error) = std::thread::Builder::new().name("fill".to_owned()).spawn(copy) {
            self.volume.stop_filling(file)?;
            return Err(Stop::Refused(Errno::AGAIN, format!("no thread to copy a content: {error}")));
        }
        Ok(state)
    }

    /// Its record is made.
    pub(super) fn told(&self, file: FileId) {
        self.ahead.lock().remove(&file);
        self.end_note(file);
    }

    /// It is not wanted any more, or cannot be had.
    fn let_go(&self, file: FileId) -> Result<(), Errno> {
        let _held = self.volume.locks.lock(&[file]);
        self.volume.stop_filling(file)?;
        self.end_note(file);
        Ok(())
    }

    /// A note that stays means nothing: at the next start the file has its content, or is as it was.
    fn end_note(&self, file: FileId) {
        if let Err(errno) = self.lml.end_fill(file) {
            tracing::warn!(target: "replay", volume = self.volume.name, file = %file, %errno,
                "the note of a content that came stays in lml/ until the next start");
        }
    }

    /// Lets go copies that somebody has stopped, or that nobody makes a record of.
    pub(super) fn look_ahead(&self) {
        let mut copies = self.ahead.lock();
        let unwanted = |id: &FileId, copied: &Copied| match *copied.state.lock() {
            State::Running => false,
            State::Whole(since) => since.elapsed() >= UNWANTED || !self.volume.filling.contains(*id),
            State::Failed(_) => !self.volume.filling.contains(*id),
        };
        let gone: Vec<FileId> =
            copies.extract_if(.., |id, copied| unwanted(id, copied)).map(|(id, _)| id).collect();
        drop(copies);
        for file in gone {
            if let Err(errno) = self.let_go(file) {
                tracing::warn!(target: "replay", volume = self.volume.name, file = %file, %errno,
                    "what was copied of a content stays in its file until the next start");
            }
        }
    }
}

//! The count of a volume with limits: one walk over the tree, in a thread, while users and replays go on.
//!
//! Each object is looked at under the lock of its directory and its own, and counted once, whoever comes first: the walk
//! or a record about it. What moves while the walk is under way is walked again, which changes nothing where it was seen.

use std::sync::Arc;
use std::time::Instant;

use intermezzo_kml::record::FileId;
use rustix::io::Errno;

use super::Phase;
use super::Volume;
use super::length;
use crate::lower::Dir;
use crate::lower::Stat;

/// Starts it. A volume whose thread cannot be had is not limited, which is told.
pub(super) fn start(volume: Arc<Volume>, turn: u64) {
    let name = volume.name.clone();
    let spawned = std::thread::Builder::new().name("count".to_owned()).spawn(move || {
        let begun = Instant::now();
        if (Walk { volume: &volume, turn }).run() {
            let (limits, usage) = volume.quota.report();
            tracing::info!(target: "filter", volume = volume.name, ?limits, ?usage, took = ?begun.elapsed(),
                "what the volume holds is counted: its limits hold from now on");
        }
    });
    if let Err(error) = spawned {
        tracing::error!(target: "filter", volume = name, %error, "no thread to count: the volume's limits do not hold");
    }
}

struct Walk<'a> {
    volume: &'a Volume,
    turn: u64,
}

impl Walk<'_> {
    /// Says whether it came to its end.
    fn run(&self) -> bool {
        let mut dirs = vec![self.volume.lower.root()];
        loop {
            while let Some(dir) = dirs.pop() {
                if !self.goes_on() {
                    return false;
                }
                if let Err(errno) = self.dir(dir, &mut dirs)
                    && !is_gone(errno)
                {
                    tracing::warn!(target: "filter", volume = self.volume.name, directory = %dir, %errno,
                        "a directory cannot be read: what it holds is not counted");
                }
            }
            let Some(again) = self.again() else { return self.goes_on() };
            for object in again {
                self.moved(object, &mut dirs);
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.volume.marks.ended.is_on() && self.volume.quota.state.lock().turn == self.turn
    }

    /// What is to be looked at again; `None`: nothing, and from now on records alone keep the count.
    fn again(&self) -> Option<Vec<FileId>> {
        let mut state = self.volume.quota.state.lock();
        if state.turn != self.turn {
            return None;
        }
        match &mut state.phase {
            Phase::Counting { again, .. } if !again.is_empty() => Some(std::mem::take(again)),
            Phase::Counting { .. } => {
                state.phase = Phase::Known;
                None
            }
            Phase::Known | Phase::Off => None,
        }
    }

    fn dir(&self, id: FileId, dirs: &mut Vec<FileId>) -> Result<(), Errno> {
        let dir = self.volume.lower.dir(id)?;
        let stream = self.volume.opendir(id)?;
        let mut names = Vec::new();
        // No lock of an object is taken while the stream is held.
        let read = self.volume.readdir(stream, 0, |_, entry| {
            if !matches!(entry.name.as_slice(), b"." | b"..") {
                names.push(entry.name.clone());
            }
            true
        });
        self.volume.releasedir(stream)?;
        read?;
        let mut failed = None;
        for name in &names {
            if let Err(errno) = self.entry(&dir, name, dirs)
                && !is_gone(errno)
            {
                failed = Some(errno);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn entry(&self, dir: &Dir, name: &[u8], dirs: &mut Vec<FileId>) -> Result<(), Errno> {
        let object = self.volume.lower.child(dir, name)?;
        let _held = self.volume.locks.lock(&[dir.id, object]);
        // It may have changed hands; whoever did that has told or will be walked again.
        if self.volume.lower.find(dir, name)? == Some(object) {
            let stat = Stat::at(dir, name)?;
            self.look(object, &stat, dirs);
        }
        Ok(())
    }

    fn moved(&self, object: FileId, dirs: &mut Vec<FileId>) {
        let _held = self.volume.locks.lock(&[object]);
        if let Ok(stat) = self.volume.lower.stat(object)
            && !self.volume.is_removed(object, &stat)
        {
            self.look(object, &stat, dirs);
        }
    }

    fn look(&self, object: FileId, stat: &Stat, dirs: &mut Vec<FileId>) {
        if stat.is_dir() {
            dirs.push(object);
        }
        let mut state = self.volume.quota.state.lock();
        if state.has(object) || state.turn != self.turn {
            return;
        }
        let length = length(&stat.attributes);
        state.came(object, length);
        if stat.is_file() && self.volume.writers.is_writing(object) {
            state.written.insert(object, length);
        }
    }
}

fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::XDEV)
}

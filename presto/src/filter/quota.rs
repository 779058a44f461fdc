//! Limits on what a volume's tree may hold: bytes (lengths of files) and inodes. Users meet EDQUOT; others' updates are
//! never refused, so nodes that wrote at the same time may together be above a limit.
//!
//! Owns the count: taken once by a walk (`count.rs`), while users go on, and from then on kept by what is journaled. A
//! volume without limits counts nothing.

mod count;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use parking_lot::Mutex;
use rustix::fs::FileType;
use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::Volume;
use crate::lower::Stat;
use crate::lower::kind;

/// How often it is said that users are refused.
const AGAIN: Duration = Duration::from_secs(60);

/// What the tree may hold; `None`: as much as the lower file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Sum of the lengths of regular files, holes included.
    pub bytes: Option<u64>,
    /// Files, directories and whatever else has an inode, the root not among them.
    pub inodes: Option<u64>,
}

impl Limits {
    fn is_none(self) -> bool {
        self == Limits::default()
    }
}

/// What the tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of the lengths of regular files.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The limits of one volume, and the count.
#[derive(Debug, Default)]
pub struct Quota {
    /// Whether anything is counted: what has no limit must not pay for it.
    on: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    limits: Limits,
    usage: Usage,
    phase: Phase,
    /// Lengths, as counted, of files that are open for writing: their records follow the contents only now and then.
    written: BTreeMap<FileId, u64>,
    /// When it was last said that users are refused.
    told: Option<Instant>,
    /// Number of the count; one that finds another number ends.
    turn: u64,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Off,
    /// A walk is under way.
    Counting {
        /// What is in the count, or gone for good.
        seen: BTreeSet<FileId>,
        /// What has moved or has another name: the walk may have missed it.
        again: Vec<FileId>,
    },
    Known,
}

/// Whether a part of a write is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// As write(2) has it.
    Welcome,
    /// All or nothing.
    Never,
}

impl Quota {
    /// Whether contents must be counted as they are written.
    pub(crate) fn limits_bytes(&self) -> bool {
        self.on.load(Ordering::Acquire) && self.state.lock().limits.bytes.is_some()
    }

    /// Limits and, once it is known, what is used of them.
    #[must_use]
    pub fn report(&self) -> (Limits, Option<Usage>) {
        let state = self.state.lock();
        (state.limits, matches!(state.phase, Phase::Known).then_some(state.usage))
    }

    /// The numbers that statfs(2) tells, within the limits.
    pub(crate) fn limit(&self, mut space: StatVfs) -> StatVfs {
        let (limits, usage) = self.report();
        let used = usage.unwrap_or_default();
        let unit = space.f_frsize.max(1);
        if let Some(bytes) = limits.bytes {
            space.f_blocks = space.f_blocks.min(bytes / unit);
            let left = bytes.saturating_sub(used.bytes) / unit;
            space.f_bfree = space.f_bfree.min(left);
            space.f_bavail = space.f_bavail.min(left);
        }
        if let Some(inodes) = limits.inodes {
            // Some file systems have no number of inodes, and say 0.
            let known = space.f_files > 0;
            let left = inodes.saturating_sub(used.inodes);
            space.f_files = if known { space.f_files.min(inodes) } else { inodes };
            space.f_ffree = if known { space.f_ffree.min(left) } else { left };
            space.f_favail = if known { space.f_favail.min(left) } else { left };
        }
        space
    }

    /// What a record tells about the count. The locks of its objects are held. `is_written`: open for writing.
    pub(crate) fn record(&self, intent: &Intent, outcome: &Outcome, is_written: impl Fn(FileId) -> bool) {
        if !self.on.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let (object, after) = (outcome.object, &outcome.after);
        match intent.opcode {
            Some(Opcode::Create | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink) => {
                state.came(object, length(after));
            }
            Some(Opcode::Unlink | Opcode::Rmdir) if intent.flags.contains(Flags::LAST_LINK) => {
                state.went(intent.object, length(&intent.before));
            }
            // A replay's content comes with an inode of its own.
            Some(Opcode::Close) if intent.object != object => {
                state.went(intent.object, length(&intent.before));
                state.came(object, length(after));
            }
            Some(Opcode::Close | Opcode::Setattr)
                if kind(after) == FileType::RegularFile && !intent.flags.contains(Flags::ORPHAN) =>
            {
                state.resized(object, length(&intent.before), length(after), is_written(object));
            }
            Some(Opcode::Link | Opcode::Rename) => {
                if let Phase::Counting { again, .. } = &mut state.phase {
                    again.push(object);
                    again.extend((!intent.replaced.is_none()).then_some(intent.replaced));
                }
            }
            _ => {}
        }
    }

    /// The last name of an object was given to another one.
    pub(crate) fn replaced(&self, object: FileId, before: &Attributes) {
        if self.on.load(Ordering::Acquire) {
            self.state.lock().went(object, length(before));
        }
    }

    /// Somebody is about to write to a file of this length.
    pub(crate) fn opened(&self, object: FileId, length: u64) {
        if self.on.load(Ordering::Acquire) {
            let mut state = self.state.lock();
            if state.has(object) {
                state.written.entry(object).or_insert(length);
            }
        }
    }

    /// It is in the tree, of which no record tells.
    pub(crate) fn appeared(&self, object: FileId) {
        if self.on.load(Ordering::Acquire) {
            self.state.lock().came(object, 0);
        }
    }

    /// A write that was counted went another way than it was to: this is its length.
    pub(crate) fn settle(&self, object: FileId, length: u64) {
        if self.on.load(Ordering::Acquire) {
            self.state.lock().settle(object, length);
        }
    }

    /// Nobody writes to it any more. `length`: where it has a name; asked only where it is counted.
    pub(crate) fn finished(&self, object: FileId, length: impl FnOnce() -> Option<u64>) {
        if self.on.load(Ordering::Acquire) {
            let length = length();
            let mut state = self.state.lock();
            if let Some(length) = length {
                state.settle(object, length);
            }
            state.written.remove(&object);
        }
    }

    /// EDQUOT where there is no room for another inode.
    pub(crate) fn may_make(&self, volume: &str) -> Result<(), Errno> {
        if !self.on.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.state.lock();
        let full =
            state.left(|limits, usage| limits.inodes.map(|most| most.saturating_sub(usage.inodes))) == 0;
        state.decide(volume, full)
    }

    /// Up to where a write fits that is to end at `end`; it is counted. EDQUOT, and nothing is counted, where it would not
    /// come up to `least`. `present`: length of the file.
    pub(crate) fn grow(
        &self,
        volume: &str,
        object: FileId,
        present: u64,
        (least, end): (u64, u64),
    ) -> Result<u64, Errno> {
        if !self.on.load(Ordering::Acquire) {
            return Ok(end);
        }
        let mut state = self.state.lock();
        if !state.has(object) {
            return Ok(end); // The walk has not come to it.
        }
        let counted = state.written.get(&object).copied().unwrap_or(present);
        if end <= counted {
            return Ok(end);
        }
        let fits = end.min(counted.saturating_add(state.bytes_left()));
        state.decide(volume, fits == counted || fits < least)?;
        state.usage.bytes = state.usage.bytes.saturating_add(fits - counted);
        state.written.insert(object, fits);
        Ok(fits)
    }

    /// EDQUOT where a file of the length `before` cannot become `after` bytes long.
    pub(crate) fn may_resize(
        &self,
        volume: &str,
        object: FileId,
        before: u64,
        after: u64,
    ) -> Result<(), Errno> {
        if !self.on.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut state = self.state.lock();
        if !state.has(object) {
            return Ok(());
        }
        let counted = state.written.get(&object).copied().unwrap_or(before);
        let full = after > counted && after - counted > state.bytes_left();
        state.decide(volume, full)
    }
}

impl State {
    /// Room that is left; without a limit, or as long as the count is not known: as much as there can be.
    fn left(&self, of: impl Fn(&Limits, &Usage) -> Option<u64>) -> u64 {
        match self.phase {
            Phase::Known => of(&self.limits, &self.usage).unwrap_or(u64::MAX),
            Phase::Off | Phase::Counting { .. } => u64::MAX,
        }
    }

    fn bytes_left(&self) -> u64 {
        self.left(|limits, usage| limits.bytes.map(|most| most.saturating_sub(usage.bytes)))
    }

    fn decide(&mut self, volume: &str, full: bool) -> Result<(), Errno> {
        if !full {
            return Ok(());
        }
        let now = Instant::now();
        if self.told.is_none_or(|told| now.duration_since(told) >= AGAIN) {
            self.told = Some(now);
            let (Limits { bytes, inodes }, usage) = (self.limits, self.usage);
            tracing::warn!(target: "filter", volume, ?bytes, ?inodes, ?usage,
                "a limit of the volume is reached: updates that need more get EDQUOT; remove something or raise spec.limits");
        }
        Err(Errno::DQUOT)
    }

    /// Whether it is in the count.
    fn has(&self, object: FileId) -> bool {
        match &self.phase {
            Phase::Off => false,
            Phase::Counting { seen, .. } => seen.contains(&object),
            Phase::Known => true,
        }
    }

    fn came(&mut self, object: FileId, length: u64) {
        let new = match &mut self.phase {
            Phase::Off => false,
            Phase::Counting { seen, .. } => seen.insert(object),
            Phase::Known => true,
        };
        if new {
            self.usage.inodes = self.usage.inodes.saturating_add(1);
            self.usage.bytes = self.usage.bytes.saturating_add(length);
        }
    }

    fn went(&mut self, object: FileId, length: u64) {
        let length = self.written.remove(&object).unwrap_or(length);
        let counted = match &mut self.phase {
            Phase::Off => false,
            // What goes before the walk comes to it must not be counted by a look that was earlier.
            Phase::Counting { seen, .. } => !seen.insert(object),
            Phase::Known => true,
        };
        if counted {
            self.usage.inodes = self.usage.inodes.saturating_sub(1);
            self.usage.bytes = self.usage.bytes.saturating_sub(length);
        }
    }

    /// Counts a file that is open for writing by this length.
    fn settle(&mut self, object: FileId, length: u64) {
        if let Some(counted) = self.written.get_mut(&object) {
            self.usage.bytes = self.usage.bytes.saturating_add(length).saturating_sub(*counted);
            *counted = length;
        }
    }

    fn resized(&mut self, object: FileId, before: u64, after: u64, is_written: bool) {
        if self.has(object) {
            let counted = self.written.get(&object).copied().unwrap_or(before);
            self.usage.bytes = self.usage.bytes.saturating_add(after).saturating_sub(counted);
        } else {
            self.came(object, after);
        }
        if is_written {
            self.written.insert(object, after);
        }
    }
}

impl Volume {
    /// Other limits. Where they are new the tree is counted first; nobody is refused until that is done.
    pub fn set_limits(self: &Arc<Self>, limits: Limits) {
        let counts = {
            let mut state = self.quota.state.lock();
            let counts = !limits.is_none() && matches!(state.phase, Phase::Off);
            state.limits = limits;
            state.told = None;
            if limits.is_none() || counts {
                state.turn = state.turn.wrapping_add(1);
                state.usage = Usage::default();
                state.written.clear();
                let (seen, again) = (BTreeSet::new(), Vec::new());
                state.phase = if counts { Phase::Counting { seen, again } } else { Phase::Off };
            }
            self.quota.on.store(!limits.is_none(), Ordering::Release);
            counts.then_some(state.turn)
        };
        if limits.bytes.is_some() {
            // What is kept of closed files may have the kernel write past presto.
            self.files.let_go_kept();
        }
        if let Some(turn) = counts {
            count::start(Arc::clone(self), turn);
        }
    }

    /// What a record tells about the count.
    pub(crate) fn counted(&self, intent: &Intent, outcome: &Outcome) {
        self.quota.record(intent, outcome, |object| self.writers.is_writing(object));
    }

    /// Runs something that writes up to `length` bytes through presto, with what fits of them: all of it or, where `part` says
    /// that this is of use, less. What it says it has done is what counts in the end.
    pub(crate) fn written(
        &self,
        file: &super::OpenFile,
        (offset, length): (u64, u64),
        part: Part,
        write: impl FnOnce(u64) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        if !self.quota.limits_bytes() {
            return write(length);
        }
        let stat = Stat::of(file)?;
        if self.is_removed(file.id, &stat) {
            return write(length);
        }
        let end = offset.saturating_add(length);
        let least = match part {
            Part::Welcome => end.min(offset.saturating_add(1)),
            Part::Never => end,
        };
        let fits = self.quota.grow(&self.name, file.id, stat.attributes.size, (least, end))?;
        let fits = fits.saturating_sub(offset);
        let done = write(fits);
        if !done.is_ok_and(|count| count as u64 == fits)
            && let Ok(stat) = Stat::of(file)
        {
            self.quota.settle(file.id, stat.attributes.size);
        }
        done
    }
}

/// Length of what counts by length.
fn length(attributes: &Attributes) -> u64 {
    if kind(attributes) == FileType::RegularFile { attributes.size } else { 0 }
}

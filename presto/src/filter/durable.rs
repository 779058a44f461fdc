//! What fsync(2) waits for beside this node's own disk: that the server has it on its disk.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use parking_lot::Mutex;
use parking_lot::RwLock;
use rustix::io::Errno;

use super::Kept;
use super::Volume;
use super::Wait;
use crate::lower::Stat;

/// How long the server may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// A Lento that does not answer may be about to begin again: it is waited for so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile.
const AGAIN: Duration = Duration::from_millis(50);

/// What fsync promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Durability {
    /// It is on this node's disk.
    #[default]
    Local,
    /// It is on the server's disk as well; where that cannot be had in time, it fails.
    Server,
    /// The same, but where it cannot be had in time this node's disk is enough.
    ServerIfThere,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Durable {
    wanted: RwLock<Durability>,
    /// Calls that ended with this node's disk only although more was wanted.
    less: AtomicU64,
    warned: AtomicBool,
    /// Since when nobody has answered.
    unheard: Mutex<Option<Instant>>,
}

impl Durable {
    /// From now on.
    pub fn set(&self, wanted: Durability) {
        *self.wanted.write() = wanted;
    }

    fn wanted(&self) -> Durability {
        *self.wanted.read()
    }

    /// Calls that did not get what is wanted: they failed, or were answered although only this node has it.
    #[must_use]
    pub fn less(&self) -> u64 {
        self.less.load(Ordering::Relaxed)
    }
}

impl Volume {
    /// Whether an fsync may have to wait for Lento.
    #[must_use]
    pub fn syncs_to_server(&self) -> bool {
        self.durable.wanted() != Durability::Local
    }

    /// After the object is on this node's disk: waits until the server has it up to this record, where that is wanted.
    pub(super) fn wait_for_server(&self, caller: Caller, id: FileId, newest: Recno) -> Result<(), Errno> {
        let wanted = self.durable.wanted();
        // What stays on this node, and what has no name any more, goes nowhere.
        if wanted == Durability::Local || self.is_of_nobody_else(id)? {
            return Ok(());
        }
        let errno = match self.until_kept(caller, id, newest) {
            Ok(()) => {
                self.durable.warned.store(false, Ordering::Relaxed);
                return Ok(());
            }
            // Not the server's doing.
            Err(Errno::INTR) => return Err(Errno::INTR),
            Err(errno) => errno,
        };
        self.durable.less.fetch_add(1, Ordering::Relaxed);
        if !self.durable.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(target: "filter", volume = self.name, %errno, goes_on = wanted == Durability::ServerIfThere,
                "fsync: the server has not got what was written");
        }
        if wanted == Durability::ServerIfThere { Ok(()) } else { Err(errno) }
    }

    fn is_of_nobody_else(&self, id: FileId) -> Result<bool, Errno> {
        let object = self.object(id)?;
        Ok(self.is_local(&object)? || self.is_removed(id, &Stat::of(&object)?))
    }

    fn until_kept(&self, caller: Caller, id: FileId, newest: Recno) -> Result<(), Errno> {
        let begin = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(begin.elapsed());
            let kept = self.upcalls.keep(&self.name, id, newest, Wait::firmly(caller, left));
            if kept != Kept::Unheard {
                *self.durable.unheard.lock() = None;
            }
            match kept {
                Kept::AtServer => return Ok(()),
                Kept::Refused(errno) => return Err(errno),
                // Nobody will come before the switch is taken back.
                Kept::Unheard if self.marks.no_filter.is_on() => return Err(Errno::HOSTUNREACH),
                Kept::Unheard => {
                    let since = *self.durable.unheard.lock().get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        return Err(Errno::HOSTUNREACH);
                    }
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }
}

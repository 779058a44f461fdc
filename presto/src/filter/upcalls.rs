//! What the filter asks of Lento. The channel implements it; tests use `Alone`.

use std::time::Duration;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use rustix::io::Errno;

use super::Safety;

/// Answer to `get_permit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermitAnswer {
    /// Updates are let in until then (milliseconds from boot). Larger serials come later.
    Granted {
        /// Serial.
        serial: u64,
        /// End.
        until: u64,
    },
    /// Lento is away and the volume's policy is to go on; ask again next time.
    Stolen,
    /// Lento is away and the volume's policy is to read only.
    ReadOnly,
    /// The update fails with this.
    Refused(Errno),
}

/// Answer to `get_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataAnswer {
    /// The content is there, or the file is another one by now: look again.
    Present,
    /// It is on its way: ask again.
    Coming,
    /// Nobody is there to ask.
    Away,
    /// The open fails with this.
    Refused(Errno),
}

/// Answer to `keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The server has it on its disk.
    AtServer,
    /// It has not, and it is no use to wait longer.
    Refused(Errno),
    /// Nobody is there to ask.
    Unheard,
}

/// How long an answer is waited for, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Longest.
    pub deadline: Duration,
    /// The user's thread: a signal to it ends the wait. 0: nobody's.
    pub thread: u32,
    /// Only a signal does that ends the program.
    pub only_the_end: bool,
}

impl Wait {
    /// For this caller.
    #[must_use]
    pub fn of(caller: Caller, deadline: Duration) -> Wait {
        Wait { deadline, thread: caller.pid, only_the_end: false }
    }

    /// For this caller, who does not expect to be interrupted.
    #[must_use]
    pub fn firmly(caller: Caller, deadline: Duration) -> Wait {
        Wait { only_the_end: true, ..Wait::of(caller, deadline) }
    }

    /// For presto's own sake.
    #[must_use]
    pub fn own(deadline: Duration) -> Wait {
        Wait { deadline, thread: 0, only_the_end: false }
    }
}

/// Presto asks, Lento answers. No call may wait longer than its deadline.
pub trait Upcalls: Send + Sync {
    /// "Records are there", up to this one. Never blocks; a lost one is harmless.
    fn journal(&self, volume: &str, to: Recno);
    /// May users of this node update the volume?
    fn get_permit(&self, volume: &str, wait: Wait) -> PermitAnswer;
    /// Fetch the content of a file.
    fn get_data(&self, volume: &str, object: FileId, wait: Wait) -> DataAnswer;
    /// Where is a file safe, of which this record is the newest (`Recno::NONE`: one that has been forgotten)?
    fn safety(&self, volume: &str, object: FileId, newest: Recno, wait: Wait) -> Safety;
    /// The same, answered when the server has it.
    fn keep(&self, volume: &str, object: FileId, newest: Recno, wait: Wait) -> Kept;
}

/// Nobody to ask: everything is allowed and every content is here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Upcalls for Alone {
    fn journal(&self, _volume: &str, _to: Recno) {}

    fn get_permit(&self, _volume: &str, _wait: Wait) -> PermitAnswer {
        PermitAnswer::Stolen
    }

    fn get_data(&self, _volume: &str, _object: FileId, _wait: Wait) -> DataAnswer {
        DataAnswer::Present
    }

    fn safety(&self, _volume: &str, _object: FileId, _newest: Recno, _wait: Wait) -> Safety {
        Safety::Unknown
    }

    fn keep(&self, _volume: &str, _object: FileId, _newest: Recno, _wait: Wait) -> Kept {
        Kept::Unheard
    }
}

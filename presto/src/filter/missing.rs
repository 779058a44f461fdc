//! Contents that are not here: who opens such a file waits until Lento has brought them.
//!
//! Everything that does not need bytes (names, attributes, extended attributes) goes on as with any other file. What
//! `replay/missing.rs` does to such files happens under their locks.

use std::os::fd::AsFd;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use rustix::io::Errno;

use super::DataAnswer;
use super::ELSEWHERE;
use super::Volume;
use super::Wait;
use super::open_files::OpenFile;
use crate::lower::Stat;
use crate::lower::is_interrupted;
use crate::lower::missing;

/// How long Lento may take for one word. It says `Coming` well before that while a content is on its way.
const WORD: Duration = Duration::from_secs(30);
/// How long a Lento that is away is waited for: it may be starting anew.
const AWAY: Duration = Duration::from_secs(10);
/// Pause before it is asked again.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it may say that a content is here that is not.
const MISTAKES: u32 = 200;

impl Volume {
    /// From now on there may be such files in the tree. Remembered there before the first one is.
    pub(crate) fn may_lack(&self) -> Result<(), Errno> {
        if !self.marks.on_demand.is_on() {
            missing::set_mark(&*self.lower.dir(self.lower.root())?, &missing::Hash::default())?;
            self.marks.on_demand.set(true);
        }
        Ok(())
    }

    /// Whether there may be, as an earlier presto has left it.
    pub(super) fn remember_lacking(&self) -> Result<(), Errno> {
        let mark = missing::mark(&*self.lower.dir(self.lower.root())?)?;
        self.marks.on_demand.set(mark.is_some());
        Ok(())
    }

    /// Which content a file stands for that is not here; `None`: its content is what is in it.
    pub(crate) fn lacking(&self, file: impl AsFd, stat: &Stat) -> Result<Option<missing::Hash>, Errno> {
        if !self.marks.on_demand.is_on() || !stat.is_file() {
            return Ok(None);
        }
        let mark = missing::mark(&file)?;
        if mark.is_some() && stat.attributes.size == 0 {
            // Who emptied it was killed before he could take the mark away.
            missing::take_mark(&file)?;
            return Ok(None);
        }
        Ok(mark)
    }

    /// The same by identity.
    pub(crate) fn lacking_file(&self, id: FileId, stat: &Stat) -> Result<Option<missing::Hash>, Errno> {
        if !self.marks.on_demand.is_on() {
            return Ok(None);
        }
        self.lacking(self.lower.path_fd(id)?, stat)
    }

    /// The same of a file that somebody has open; from the first time that its content is here, it stays.
    pub(super) fn open_lacks(&self, file: &OpenFile) -> Result<bool, Errno> {
        if !self.marks.on_demand.is_on() || file.is_whole() {
            return Ok(false);
        }
        let lacks = self.lacking(file, &Stat::of(file)?)?.is_some();
        if !lacks {
            file.note_whole();
        }
        Ok(lacks)
    }

    /// Whether the content of this file has to be brought here before anybody may have it.
    pub fn must_fetch(&self, id: FileId) -> bool {
        if !self.marks.on_demand.is_on() {
            return false;
        }
        match self.files.find(id) {
            Some(open) => self.open_lacks(&open).unwrap_or(false),
            None => self
                .object(id)
                .and_then(|file| self.lacking(&file, &Stat::of(&file)?))
                .is_ok_and(|hash| hash.is_some()),
        }
    }

    /// The same for presto's own sake. Holds no lock that a replay could want.
    ///
    /// # Errors
    /// As `fetch`.
    pub fn bring(&self, id: FileId) -> Result<(), Errno> {
        self.fetch(Caller::default(), id)
    }

    /// Waits until the content of a file is here.
    ///
    /// # Errors
    /// EHOSTUNREACH: Lento or the server is away. EINTR: the caller has got a signal. EIO: it does not come, for a reason that
    /// Lento has logged. ESTALE: another file has taken its name; the kernel looks again.
    pub(super) fn fetch(&self, caller: Caller, id: FileId) -> Result<(), Errno> {
        let mut away = None::<Instant>;
        let mut mistakes = 0;
        let mut waited = false;
        while self.must_fetch(id) {
            if !Volume::may_wait() {
                return Err(ELSEWHERE);
            }
            waited = true;
            let file = self.object(id)?;
            if self.is_removed(id, &Stat::of(&file)?) {
                return Err(Errno::STALE);
            }
            if self.marks.ended.is_on() {
                return Err(Errno::NOTCONN);
            }
            if self.marks.no_filter.is_on() {
                return Err(Errno::HOSTUNREACH);
            }
            match self.upcalls.get_data(&self.name, id, Wait::of(caller, WORD)) {
                DataAnswer::Coming => (away, mistakes) = (None, 0),
                DataAnswer::Present if mistakes < MISTAKES => mistakes += 1,
                DataAnswer::Present => {
                    tracing::error!(target: "filter", volume = self.name, file = %id,
                        "lento says that a content is here, and the file says that it is not");
                    return Err(Errno::IO);
                }
                DataAnswer::Away if away.get_or_insert_with(Instant::now).elapsed() < AWAY => {}
                DataAnswer::Away => return Err(Errno::HOSTUNREACH),
                DataAnswer::Refused(errno) => return Err(errno),
            }
            if (away.is_some() || mistakes > 0) && self.must_fetch(id) {
                std::thread::sleep(PAUSE);
                if is_interrupted(caller.pid) {
                    return Err(Errno::INTR);
                }
            }
        }
        if waited && let Some(fetched) = self.fetched.get() {
            fetched(id);
        }
        Ok(())
    }
}

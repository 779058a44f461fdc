//! The filter: every operation of a user on a volume, done on the lower tree and journaled in true order.
//!
//! No FUSE here, so all of it is tested on a plain directory. The order is always: locks of the objects concerned,
//! intent, lower operation, outcome; then the locks go and Lento is told.

mod attributes;
mod background;
mod close;
mod dirs;
mod durable;
mod faults;
mod files;
mod filling;
mod found;
pub mod history;
mod ledger;
mod limbo;
mod local;
mod locks;
mod made;
mod make;
mod marks;
mod missing;
mod notifier;
mod open_files;
mod permit;
mod quota;
mod read;
mod remove;
mod rename;
mod resume;
mod safe;
mod taken;
mod touched;
mod unfinished;
mod unseen;
mod upcalls;
mod update;
mod writers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use std::time::SystemTime;

use intermezzo_kml as kml;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Record;
use intermezzo_kml::record::Time;
use parking_lot::Mutex;
use parking_lot::RwLock;
use rustix::io::Errno;

pub use attributes::Changes;
pub use attributes::SetTime;
pub use background::Background;
pub use dirs::Name;
pub use dirs::Streams;
pub use durable::Durability;
pub use durable::Durable;
pub use faults::Fault;
pub use files::Handle;
pub use files::Object;
pub use files::Seek;
pub use filling::Before;
pub use filling::Filling;
pub(crate) use found::Found;
pub use history::History;
pub use limbo::Limbo;
pub use limbo::Why as LimboReason;
pub use local::Exclude;
pub use locks::Held;
pub use locks::Locks;
pub use make::NewMode;
pub use marks::Marks;
pub use marks::Switch;
pub use notifier::Notice;
pub use notifier::Notifier;
pub use open_files::Files;
pub use open_files::OpenFile;
pub(crate) use permit::ELSEWHERE;
pub use permit::Permit;
pub use quota::Limits;
pub use quota::Quota;
pub use quota::Usage;
pub use read::Entry;
pub use rename::Place;
pub use resume::Resumed;
pub use safe::SAFE;
pub use safe::Safety;
pub use taken::Taken;
pub use touched::Touched;
pub use unfinished::Unfinished;
pub use unseen::Seen;
pub use upcalls::Alone;
pub use upcalls::DataAnswer;
pub use upcalls::Kept;
pub use upcalls::PermitAnswer;
pub use upcalls::Upcalls;
pub use upcalls::Wait;
pub use writers::Access;
pub(crate) use writers::PRIVILEGES;
pub use writers::Writer;
pub use writers::Writers;

use crate::lower::Lower;
use crate::lower::LowerError;
use crate::lower::Source;
use crate::session::Memory;
use local::Locals;
use resume::Interrupted;

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its cache directory.
    #[error("volume {volume}: {source}")]
    Lower {
        /// Volume.
        volume: String,
        /// Reason.
        source: LowerError,
    },
    /// Its journal.
    #[error("volume {volume}: {source}")]
    Journal {
        /// Volume.
        volume: String,
        /// Reason.
        source: kml::KmlError,
    },
    /// What an earlier run left in the cache directory.
    #[error("volume {volume}: limbo, history or writers of {path}: {errno}")]
    Left {
        /// Volume.
        volume: String,
        /// Cache directory.
        path: String,
        /// Reason.
        errno: Errno,
    },
}

/// What users' updates do when the journal is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Wait up to this long, then ENOSPC.
    Block(Duration),
    /// EROFS at once, until there is space.
    ReadOnly,
    /// As `Block` with 30 seconds.
    #[default]
    Default,
}

/// How a volume is served.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Sizes of the journal.
    pub journal: kml::Config,
    /// Journal full.
    pub when_full: WhenFull,
    /// The adopted directory that is the tree; `None`: the one in the cache.
    pub source: Option<Source>,
    /// Names of what stays on this node.
    pub exclude: Exclude,
}

/// One served volume.
pub struct Volume {
    /// `namespace/name`.
    pub name: String,
    /// The files.
    pub lower: Lower,
    /// What was done to them.
    pub journal: kml::Journal,
    /// Who may do something now.
    pub locks: Locks,
    /// What users touched last.
    pub touched: Touched,
    /// What replays touched last.
    pub replayed: Touched,
    /// Files being changed.
    pub writers: Writers,
    /// Open files.
    pub files: Files,
    /// Files that others have removed or replaced.
    pub taken: Taken,
    /// Files that others' updates have overwritten in part.
    pub unfinished: Unfinished,
    /// Files into which a content is being copied.
    pub filling: Filling,
    /// Open directories.
    pub streams: Streams,
    /// Contents waiting for a verdict.
    pub limbo: Limbo,
    /// Earlier contents.
    pub history: History,
    /// What stays on this node.
    locals: Locals,
    /// Limits on what the tree may hold.
    pub quota: Quota,
    /// Switches.
    pub marks: Marks,
    /// The right of users to update.
    pub permit: Permit,
    /// What fsync waits for.
    pub durable: Durable,
    /// Kernel caches to be corrected.
    pub notifier: Notifier,
    /// Lento.
    pub upcalls: Arc<dyn Upcalls>,
    /// Each user's update holds it shared; who takes it exclusively has drained them (revoking a permit).
    pub gate: RwLock<()>,
    when_full: RwLock<WhenFull>,
    /// Newest record of which Lento is to be told when the next one comes, or before long; 0: none.
    untold: AtomicU64,
    interrupted: Mutex<Vec<FileId>>,
    /// Times and sizes of files after a power cut that hold what an fsync has promised, though its record was taken back.
    pub promised: Mutex<BTreeMap<FileId, (Time, u64)>>,
    /// What recovery found of files that were open for writing.
    left_open: Mutex<Vec<Interrupted>>,
    /// Where it is noted what must outlive presto, if it is.
    session: OnceLock<Arc<Memory>>,
    /// Finds out, at an update while it is `unnamed`, whether somebody has named it since.
    naming: OnceLock<Naming>,
    fetched: OnceLock<Fetched>,
}

/// Hears of a file whose content somebody has waited for.
pub type Fetched = Box<dyn Fn(FileId) + Send + Sync>;

/// Says whether the root file system may be written.
pub type Naming = Box<dyn Fn() -> bool + Send + Sync>;

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("name", &self.name)
            .field("cache", &self.lower.path)
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// Opens the cache directory and the journal in it. The records are intents whose outcome is not known: recovery
    /// must resolve them before anything else is done with the volume.
    pub fn open(
        name: &str,
        cache: &Path,
        options: Options,
        upcalls: Arc<dyn Upcalls>,
    ) -> Result<(Volume, Vec<Record>), OpenError> {
        let volume = || name.to_owned();
        let lower = Lower::open(cache, options.source.as_ref())
            .map_err(|source| OpenError::Lower { volume: volume(), source })?;
        let left = |errno| OpenError::Left { volume: volume(), path: cache.display().to_string(), errno };
        let limbo = Limbo::open(&lower).map_err(left)?;
        let locals = Locals::open(&lower, options.exclude).map_err(left)?;
        let (writers, interrupted) = Writers::open(&lower).map_err(left)?;
        let (journal, unresolved) =
            kml::Journal::open(Arc::new(kml::fs::Os), &cache.join("kml"), options.journal)
                .map_err(|source| OpenError::Journal { volume: volume(), source })?;
        // What a kill cut short began with the oldest of these or later; a power cut may have taken anything.
        let oldest = unresolved.first().map_or(journal.begun().next(), |record| record.recno);
        let unclean = journal.unclean_boot();
        let history = History::open(&lower, |recno| unclean || recno >= oldest).map_err(left)?;
        let opened = Volume {
            name: volume(),
            lower,
            journal,
            locks: Locks::default(),
            touched: Touched::default(),
            replayed: Touched::default(),
            writers,
            interrupted: Mutex::new(interrupted),
            promised: Mutex::default(),
            left_open: Mutex::default(),
            session: OnceLock::new(),
            durable: Durable::default(),
            files: Files::default(),
            taken: Taken::default(),
            unfinished: Unfinished::default(),
            filling: Filling::default(),
            streams: Streams::default(),
            limbo,
            history,
            locals,
            quota: Quota::default(),
            marks: Marks::default(),
            permit: Permit::default(),
            notifier: Notifier::default(),
            upcalls,
            gate: RwLock::new(()),
            when_full: RwLock::new(options.when_full),
            untold: AtomicU64::new(0),
            naming: OnceLock::new(),
            fetched: OnceLock::new(),
        };
        opened.remember_lacking().map_err(left)?;
        Ok((opened, unresolved))
    }

    /// Where it is noted what must outlive presto, if it is.
    pub(crate) fn session(&self) -> Option<&Arc<Memory>> {
        self.session.get()
    }

    /// Makes it the root file system: unless it was `named` before, for reading only until `naming` says otherwise. Once.
    pub fn is_root(&self, named: bool, naming: Naming) {
        let _ = self.naming.set(naming);
        self.marks.unnamed.set(!named);
    }

    /// From now on this hears of contents that somebody has waited for. Once.
    pub fn on_fetched(&self, fetched: Fetched) {
        let _ = self.fetched.set(fetched);
    }

    /// Whether users may write, as far as marks tell.
    pub(crate) fn is_writable(&self) -> bool {
        let named = || self.naming.get().is_some_and(|naming| naming());
        let marks = &self.marks;
        let refused = marks.read_only.is_on() || marks.resting.is_on() || self.journal.is_broken();
        !refused && (!marks.unnamed.is_on() || named())
    }

    /// Changes what happens when the journal is full.
    pub fn set_when_full(&self, when_full: WhenFull) {
        *self.when_full.write() = when_full;
    }
}

/// The time of day, as the lower file system would stamp it.
#[must_use]
pub fn now() -> Time {
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => {
            Time { sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nsec: since.subsec_nanos() }
        }
        Err(_) => Time::default(),
    }
}

//! Others' changes, applied to the lower tree under the same locks as users', each with its precondition.
//!
//! Owns the order of a batch and the words of its answers. What an item does is in the file of its operation. Nothing
//! here waits for Lento or for a kernel cache.

mod ahead;
mod apply;
mod attr;
mod build;
mod check;
mod copy;
mod entry;
mod in_place;
mod install;
pub mod lml;
mod make;
mod missing;
pub mod plan;
mod rename;
pub mod stage;
mod tags;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_kml::KmlError;
use intermezzo_kml::record::{FileId, Recno, Record};
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::channel::convert;
use crate::filter::Volume;
use ahead::Ahead;
pub(crate) use apply::times;
pub(crate) use attr::get_xattr;
use in_place::Unfinished;
use lml::Lml;
use plan::{By, Item, MAX_ITEMS, Op};
use tags::Tags;
use versions::Versions;

/// How an item came out well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The object it made or concerned.
    pub file: FileId,
    /// Its record.
    pub recno: Recno,
    /// It was so before.
    pub already: bool,
}

/// Why an item touched nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A precondition does not hold; the record that broke it, and an errno where one says more.
    Stale(Option<Recno>, Option<Errno>),
    /// Open for writing.
    Busy,
    /// The lower file system or the journal said no.
    Refused(Errno, String),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Stop {
        match errno {
            // What the item names is not there any more, or not what it was.
            Errno::STALE | Errno::NOENT | Errno::NOTDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR => {
                Stop::Stale(None, Some(errno))
            }
            _ => Stop::Refused(errno, errno.to_string()),
        }
    }
}

impl From<KmlError> for Stop {
    fn from(error: KmlError) -> Stop {
        Stop::Refused(if error.is_full() { Errno::NOSPC } else { Errno::IO }, error.to_string())
    }
}

impl Stop {
    /// The kernel's word, where there is one.
    fn errno(&self) -> Errno {
        match self {
            Stop::Stale(_, errno) => errno.unwrap_or(Errno::IO),
            Stop::Busy => Errno::BUSY,
            Stop::Refused(errno, _) => *errno,
        }
    }
}

/// A stale precondition without a record to blame.
pub(crate) const STALE: Stop = Stop::Stale(None, None);

/// Replays of one volume, one batch at a time.
pub struct Replayer {
    volume: Arc<Volume>,
    lml: Lml,
    tags: Mutex<Tags>,
    versions: Mutex<Versions>,
    /// Overwritings in place that the disk has stopped in the middle.
    unfinished: Mutex<BTreeMap<FileId, Unfinished>>,
    /// Contents that come before their records.
    ahead: Ahead,
}

impl Replayer {
    /// For a volume that recovery has brought in order.
    ///
    /// # Errors
    /// The LML directory cannot be opened.
    pub fn new(volume: Arc<Volume>) -> Result<Replayer, Errno> {
        let lml = Lml::open(&volume.lower)?;
        Ok(Replayer {
            volume,
            lml,
            tags: Mutex::default(),
            versions: Mutex::default(),
            unfinished: Mutex::default(),
            ahead: Ahead::default(),
        })
    }

    /// Runs the items in order; the first that does not come out well ends the batch.
    pub fn run(&self, batch: v1::Replay) -> v1::Replayed {
        self.finish_left();
        let since = Recno(batch.untouched_since);
        let mut outcomes = Vec::with_capacity(batch.items.len().min(MAX_ITEMS));
        for item in batch.items.into_iter().take(MAX_ITEMS) {
            let outcome = match Item::try_from(item) {
                Ok(item) => outcome(self.item(&item, since)),
                Err(malformed) => outcome(Err(Stop::Refused(Errno::INVAL, malformed.to_string()))),
            };
            let ends = !matches!(outcome.result(), Kind::Applied | Kind::Already);
            outcomes.push(outcome);
            if ends {
                break;
            }
        }
        let last = self.volume.journal.published();
        self.volume.notifier.upto(last);
        self.volume.upcalls.journal(&self.volume.name, last);
        v1::Replayed { outcomes, last_recno: last.0 }
    }

    /// What a record, found in the journal at start, says about versions.
    pub fn remember(&self, record: &Record) {
        let outcome = &record.outcome;
        if outcome.after.mode != 0 && !outcome.object.is_none() {
            self.versions.lock().content(outcome.object, outcome.after.version(), record.recno);
        }
    }

    /// Lento has everything up to here in its durable state.
    pub fn forget_upto(&self, recno: Recno) {
        self.versions.lock().forget_upto(recno);
        self.volume.touched.forget_upto(recno);
        self.volume.replayed.forget_upto(recno);
    }

    fn item(&self, item: &Item, since: Recno) -> Result<Applied, Stop> {
        let changes = !matches!(item.op, Op::Fill { .. } | Op::Noop);
        if changes && self.volume.marks.lento_read_only.is_on() {
            let text = "this node's Lento may not change the volume (lentoAccess: ReadOnly)".to_owned();
            return Err(Stop::Refused(Errno::ROFS, text));
        }
        let applied = match &item.op {
            Op::Make { at, give, symlink, content, xattrs } => {
                self.make(item, since, at, &make::What { give, symlink, content: content.as_ref(), xattrs })
            }
            Op::Link { file, at } => self.link(item, since, *file, at),
            Op::Unlink { at, expect, version, busy } => {
                self.unlink(item, since, at, *expect, check::Guard { version: *version, busy: *busy })
            }
            Op::Rename { from, expect, to, replaced, exchange, version, busy } => {
                let target = match (replaced, exchange) {
                    (None, true) => {
                        return Err(Stop::Refused(Errno::INVAL, "exchange with nothing".to_owned()));
                    }
                    (None, false) => rename::Target::Absent,
                    (Some(by), true) => rename::Target::Exchange(self.find(*by)?),
                    (Some(by), false) => rename::Target::Replace(
                        self.find(*by)?,
                        check::Guard { version: *version, busy: *busy },
                    ),
                };
                self.rename(item, since, (from, to), *expect, target)
            }
            Op::SetAttr { file, mask, give } => self.set_attr(item, since, *file, *mask, give),
            Op::Install { file, version, content, give, xattrs, at, busy } => {
                let what = install::What { content, give, xattrs };
                self.install(item, since, *file, at, &what, check::Guard { version: *version, busy: *busy })
            }
            Op::Fill { file, content } => self.fill(item, *file, content),
            Op::SetXattr { file, name, value } => self.set_xattr(item, since, *file, name, Some(value)),
            Op::DelXattr { file, name } => self.set_xattr(item, since, *file, name, None),
            Op::Noop => self.noop(item),
        }?;
        self.tags.lock().learn(item.origin.object, applied.file);
        Ok(applied)
    }

    /// The lower object a reference means.
    fn find(&self, by: By) -> Result<FileId, Stop> {
        self.tags.lock().find(by).filter(|file| !file.is_none()).ok_or(STALE)
    }
}

fn outcome(result: Result<Applied, Stop>) -> v1::Outcome {
    let mut outcome = v1::Outcome::default();
    match result {
        Ok(applied) => {
            outcome.set_result(if applied.already { Kind::Already } else { Kind::Applied });
            outcome.file = (!applied.file.is_none()).then(|| convert::to_file_id(applied.file));
            outcome.recno = applied.recno.0;
        }
        Err(Stop::Stale(recno, errno)) => {
            outcome.set_result(Kind::Stale);
            outcome.recno = recno.unwrap_or_default().0;
            outcome.errno = errno.map_or(0, Errno::raw_os_error);
        }
        Err(Stop::Busy) => outcome.set_result(Kind::Busy),
        Err(Stop::Refused(errno, message)) => {
            outcome.set_result(Kind::Refused);
            outcome.errno = errno.raw_os_error();
            outcome.message = message;
        }
    }
    outcome
}

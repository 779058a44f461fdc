//! The LML: files whose contents are being replaced in place, so that what was interrupted can be finished.
//!
//! Owns `lml/` beside the tree: one small file per install, named after the object, removed when the content is whole. The
//! new content lies in stage/ until then, under a name that follows from the object's. An entry is one line of JSON and
//! the checksum of it in another.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use intermezzo_kml::record::{FileId, Mask, Time};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::attr::set_attributes;
use super::copy;
use super::plan::Give;
use crate::filter::Before;
use crate::lower::{Lower, Stat, errno_of};

/// Names in stage/ of contents that entries speak of. Lento's never look so.
pub(crate) const HELD: &str = "lml.";
/// End of the name of an entry that is damaged and was dealt with. People may look at it and remove it.
const DAMAGED: &str = ".damaged";
/// Beginning of the name of a note about a content that comes into a file which lacks it.
const FILL: &str = "fill.";
/// End of the name of an entry that is being written.
const NEW: &str = ".new";

/// One install in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InPlace {
    object: (u64, u64),
    /// Where it is, for people.
    path: String,
    staged_file: (u64, u64),
    size: u64,
    /// Of the content.
    checksum: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<(i64, u32)>,
}

impl InPlace {
    /// What overwrites `object` by the content that is held for it.
    pub(super) fn new(lower: &Lower, object: FileId, path: String, give: &Give) -> Result<InPlace, Errno> {
        let staged = open_held(lower, object)?;
        let staged_file = lower.identify(&staged)?;
        let size = Stat::of(&staged)?.attributes.size;
        Ok(InPlace {
            object: (object.ino, object.generation),
            path,
            staged_file: (staged_file.ino, staged_file.generation),
            size,
            checksum: copy::checksum(&staged, size)?,
            mode: give.mode,
            uid: give.uid,
            gid: give.gid,
            mtime: give.mtime.map(|time| (time.sec, time.nsec)),
        })
    }

    /// The file that is being overwritten.
    #[must_use]
    pub fn object(&self) -> FileId {
        FileId { ino: self.object.0, generation: self.object.1 }
    }

    /// Where that was, for people.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Bytes of the new content.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Modification time of the new content.
    pub(super) fn mtime(&self) -> Option<Time> {
        self.mtime.map(|(sec, nsec)| Time { sec, nsec })
    }

    fn give(&self) -> Give {
        Give { mode: self.mode, uid: self.uid, gid: self.gid, mtime: self.mtime(), rdev: 0 }
    }

    fn encode(&self) -> Result<String, Errno> {
        let text = serde_json::to_string(self).map_err(|_| Errno::INVAL)?;
        Ok(checked(&text))
    }

    /// The reason says where it is wrong.
    fn decode(bytes: &[u8]) -> Result<InPlace, String> {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (text, sum) = bytes.split_at(end);
        if sum != format!("\n{:08x}\n", crc32c::crc32c(text)).as_bytes() {
            return Err(format!("the checksum at byte {end} is not that of the {end} bytes before it"));
        }
        let entry: InPlace = serde_json::from_slice(text)
            .map_err(|error| format!("at byte {}: {error}", error.column().saturating_sub(1)))?;
        let format = entry.mode & 0o170_000;
        if format != 0 && format != 0o100_000 || entry.mtime.is_some_and(|(_, nsec)| nsec >= 1_000_000_000) {
            return Err("mode or mtime are none of a file".to_owned());
        }
        Ok(entry)
    }
}

/// What a file was like before a content began to come into it.
#[derive(Serialize, Deserialize)]
struct Note {
    mtime: (i64, u32),
    capability: Option<Vec<u8>>,
}

fn checked(text: &str) -> String {
    format!("{text}\n{:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// What an earlier presto left in lml/.
#[derive(Debug)]
pub enum Interrupted {
    /// A content was on its way into this file, which was so before; `None`: the note does not say, since it is damaged.
    Fill(FileId, Option<Before>),
    /// Can be finished, as far as the entry tells.
    Whole(InPlace),
    /// Cannot: which file it was about, and no more.
    Damaged(Damaged),
}

/// An entry that is not what was written.
#[derive(Debug)]
pub struct Damaged {
    /// The file that was being overwritten.
    pub object: FileId,
    /// What is wrong, and where in the entry.
    pub reason: String,
    name: String,
}

impl Damaged {
    /// Its place, for people.
    #[must_use]
    pub fn entry(&self) -> String {
        format!("lml/{}", self.name)
    }
}

/// An entry that cannot be read, or of which nobody knows what it is about.
#[derive(Debug)]
pub struct Unreadable {
    /// What was tried, with the entry's name.
    pub what: String,
    /// The kernel's word.
    pub errno: Errno,
}

/// The directory of entries.
#[derive(Debug)]
pub struct Lml {
    dir: OwnedFd,
}

impl Lml {
    /// Opens the LML of a volume.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(lower: &Lower) -> Result<Lml, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Lml { dir: rustix::fs::openat(lower.home(), "lml", flags, Mode::empty())? })
    }

    /// Durable before the first byte of the object changes: the content under the name by which it will be looked for,
    /// then the entry. After an error there is no entry, or `has` says so.
    pub(super) fn begin(&self, entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        rustix::fs::fsync(source(entry, lower)?)?;
        rustix::fs::fsync(lower.stage())?;
        self.write(&name(entry.object()), &entry.encode()?)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Errno> {
        let temporary = format!("{name}{NEW}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let written = rustix::fs::openat(&self.dir, &temporary, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .and_then(|mut file| {
                file.write_all(text.as_bytes()).map_err(errno_of)?;
                rustix::fs::fsync(&file)?;
                rustix::fs::renameat(&self.dir, &temporary, &self.dir, name)
            });
        if let Err(errno) = written {
            let _ = rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty());
            return Err(errno);
        }
        rustix::fs::fsync(&self.dir).inspect_err(|_| {
            let _ = self.remove(name);
        })
    }

    /// Durable before the first byte of a content comes into this file.
    pub(super) fn begin_fill(&self, file: FileId, before: &Before) -> Result<(), Errno> {
        let mtime = (before.mtime.sec, before.mtime.nsec);
        let note = Note { mtime, capability: before.capability.clone() };
        let text = serde_json::to_string(&note).map_err(|_| Errno::INVAL)?;
        self.write(&format!("{FILL}{}", name(file)), &checked(&text))
    }

    /// The content is whole, or the file is as it was.
    ///
    /// # Errors
    /// The kernel's; the note stands then.
    pub fn end_fill(&self, file: FileId) -> Result<(), Errno> {
        self.remove(&format!("{FILL}{}", name(file)))
    }

    /// Whether there is an entry for this object, or may be.
    #[must_use]
    pub fn has(&self, object: FileId) -> bool {
        let stat = rustix::fs::statat(&self.dir, name(object), AtFlags::SYMLINK_NOFOLLOW);
        !matches!(stat, Err(Errno::NOENT))
    }

    /// The content is whole.
    fn end(&self, object: FileId) -> Result<(), Errno> {
        self.remove(&name(object))
    }

    fn remove(&self, name: &str) -> Result<(), Errno> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        // Before anybody writes to the file: an entry that comes back after a power cut would undo that.
        rustix::fs::fsync(&self.dir)
    }

    /// Installs that were interrupted. Entries that were never complete are removed: nothing had begun.
    ///
    /// # Errors
    /// An entry that cannot be read.
    pub fn interrupted(&self) -> Result<Vec<Interrupted>, Unreadable> {
        let list = |errno| Unreadable { what: "list lml/".to_owned(), errno };
        let mut entries = Vec::new();
        for found in rustix::fs::Dir::read_from(&self.dir).map_err(list)? {
            let found = found.map_err(list)?;
            let name = found.file_name().to_string_lossy();
            if matches!(&*name, "." | "..") || name.ends_with(DAMAGED) {
                continue;
            }
            if name.ends_with(NEW) {
                rustix::fs::unlinkat(&self.dir, found.file_name(), AtFlags::empty())
                    .map_err(|errno| Unreadable { what: format!("remove lml/{name}"), errno })?;
                continue;
            }
            entries.push(self.entry(&name)?);
        }
        Ok(entries)
    }

    fn entry(&self, name: &str) -> Result<Interrupted, Unreadable> {
        let bytes =
            self.read(name).map_err(|errno| Unreadable { what: format!("read lml/{name}"), errno })?;
        if let Some(file) = name.strip_prefix(FILL).and_then(parse) {
            return Ok(Interrupted::Fill(file, note(&bytes)));
        }
        let damaged = |object, reason| Damaged { object, reason, name: name.to_owned() };
        match (InPlace::decode(&bytes), parse(name)) {
            (Ok(entry), Some(object)) if entry.object() == object => Ok(Interrupted::Whole(entry)),
            (Ok(entry), _) => {
                let reason = format!("its name is not that of file {}, of which it speaks", entry.object());
                Ok(Interrupted::Damaged(damaged(entry.object(), reason)))
            }
            (Err(reason), Some(object)) => Ok(Interrupted::Damaged(damaged(object, reason))),
            (Err(reason), None) => {
                let what = format!("tell which file lml/{name} is about ({reason}); move it out of lml/");
                Err(Unreadable { what, errno: Errno::INVAL })
            }
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut bytes = Vec::new();
        File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?)
            .read_to_end(&mut bytes)
            .map_err(errno_of)?;
        Ok(bytes)
    }

    /// The content that is held for the object takes the place of what is in it.
    pub(super) fn copy(entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        let to = File::from(lower.open_id(entry.object(), OFlags::WRONLY)?);
        copy::copy(&source(entry, lower)?, &to, entry.size)?;
        set_attributes(&OwnedFd::from(to), Mask::MODE | Mask::UID | Mask::GID | Mask::MTIME, &entry.give())
    }

    /// Takes the space that `copy` needs.
    ///
    /// # Errors
    /// As `copy::reserve`.
    pub(super) fn reserve(entry: &InPlace, lower: &Lower) -> Result<Option<OwnedFd>, Errno> {
        let to = File::from(lower.open_id(entry.object(), OFlags::RDONLY)?);
        copy::reserve(lower, &source(entry, lower)?, &to, entry.size)
    }

    /// Finishes an interrupted install, but for entry and held content.
    ///
    /// # Errors
    /// The kernel's. ESTALE: the object or its new content is gone.
    pub fn redo(entry: &InPlace, lower: &Lower) -> Result<(), Errno> {
        let room = Lml::reserve(entry, lower)?;
        if copy::checksum(&source(entry, lower)?, entry.size)? != entry.checksum {
            return Err(Errno::STALE);
        }
        drop(room);
        Lml::copy(entry, lower)?;
        crate::lower::missing::take_mark(lower.path_fd(entry.object())?)
    }

    /// Removes the entry, then the held content.
    ///
    /// # Errors
    /// The kernel's; the entry may stand then.
    pub fn finish(&self, object: FileId, lower: &Lower) -> Result<(), Errno> {
        self.end(object)?;
        // What stays is removed at the next start.
        let _ = super::stage::remove(lower, &held_name(object));
        Ok(())
    }

    /// A damaged entry has had its consequences: it stays for people alone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_aside(&self, damaged: &Damaged) -> Result<(), Errno> {
        let Damaged { name, .. } = damaged;
        rustix::fs::renameat(&self.dir, name, &self.dir, format!("{name}{DAMAGED}"))?;
        rustix::fs::fsync(&self.dir)
    }
}

/// Gives a staged file the name by which an entry for this object finds it: Lento does not come by it any more.
pub(super) fn hold(lower: &Lower, staged: &str, object: FileId) -> Result<(), Errno> {
    rustix::fs::renameat(lower.stage(), staged, lower.stage(), held_name(object))
}

/// Takes that back.
pub(super) fn give_back(lower: &Lower, staged: &str, object: FileId) -> Result<(), Errno> {
    rustix::fs::renameat(lower.stage(), held_name(object), lower.stage(), staged)
}

/// Name in stage/ of the content that is held for an object.
pub(crate) fn held_name(object: FileId) -> String {
    format!("{HELD}{}", name(object))
}

fn open_held(lower: &Lower, object: FileId) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    rustix::fs::openat(lower.stage(), held_name(object), flags, Mode::empty()).map(File::from)
}

/// The new content, if it is the one that the entry means.
fn source(entry: &InPlace, lower: &Lower) -> Result<File, Errno> {
    let file = open_held(lower, entry.object())?;
    let (id, stat) = (lower.identify(&file)?, Stat::of(&file)?);
    let same = (id.ino, id.generation) == entry.staged_file && stat.attributes.size == entry.size;
    if same && stat.is_file() { Ok(file) } else { Err(Errno::STALE) }
}

/// `None`: it is damaged.
fn note(bytes: &[u8]) -> Option<Before> {
    let text = std::str::from_utf8(bytes).ok()?.lines().next()?;
    let note: Note = serde_json::from_str(text).ok().filter(|_| checked(text).as_bytes() == bytes)?;
    let (sec, nsec) = note.mtime;
    (nsec < 1_000_000_000).then_some(Before { mtime: Time { sec, nsec }, capability: note.capability })
}

fn name(object: FileId) -> String {
    format!("{}-{}", object.ino, object.generation)
}

fn parse(name: &str) -> Option<FileId> {
    let (ino, generation) = name.split_once('-')?;
    let id = FileId { ino: ino.parse().ok()?, generation: generation.parse().ok()? };
    (self::name(id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_says_where_and_is_never_another_one() {
        let entry = InPlace {
            object: (12, 34),
            path: "a/b".to_owned(),
            staged_file: (56, 78),
            size: 9,
            checksum: 10,
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            mtime: Some((-3, 4)),
        };
        let text = entry.encode().unwrap().into_bytes();
        assert_eq!(InPlace::decode(&text), Ok(entry.clone()));
        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 1;
            assert!(InPlace::decode(&flipped).unwrap_err().contains("byte"), "{at}");
            assert!(InPlace::decode(&text[..at]).is_err(), "{at}");
        }
        let json = |text: &str| format!("{text}\n{:08x}\n", crc32c::crc32c(text.as_bytes()));
        let reason = InPlace::decode(json(r#"{"object": 7}"#).as_bytes()).unwrap_err();
        assert!(reason.contains("at byte 1"), "{reason}");
        let device = InPlace { mode: 0o020_644, ..entry };
        assert!(InPlace::decode(device.encode().unwrap().as_bytes()).is_err());
    }

    #[test]
    fn only_what_presto_writes_is_a_name() {
        assert_eq!(parse("12-34"), Some(FileId { ino: 12, generation: 34 }));
        for bad in ["", "12", "12-", "-12", "012-34", "+12-34", "12-34-5", "../12-34"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

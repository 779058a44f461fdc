//! What stays on this node: names that patterns exclude, and all that is made below them.
//!
//! A pattern decides when a name is made, by creating or renaming; from then on a mark on the object does. So what is
//! replicated already stays so whatever patterns come later, as with `.gitignore`. Such updates are journaled as all
//! others, so that a kill is as exact for them, with a flag by which Lento passes them over.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use ignore::gitignore::Gitignore;
use ignore::gitignore::GitignoreBuilder;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Record;
use parking_lot::RwLock;
use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Volume;
use crate::lower::Dir;
use crate::lower::Local;
use crate::lower::Lower;
use crate::lower::Stat;

/// Patterns of names, in the syntax of `.gitignore`, relative to the volume's root.
#[derive(Clone, Debug, Default)]
pub struct Exclude(Option<Gitignore>);

impl Exclude {
    /// Reads patterns; says which is none.
    pub fn parse(patterns: &[String]) -> Result<Exclude, String> {
        let mut builder = GitignoreBuilder::new("");
        for pattern in patterns {
            let wrong = |error| format!("exclude {pattern:?}: {error}");
            builder.add_line(None, pattern).map_err(wrong)?;
        }
        let built = builder.build().map_err(|error| format!("exclude: {error}"))?;
        Ok(Exclude(Some(built).filter(|built| !built.is_empty())))
    }

    fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(path);
        self.0.as_ref().is_some_and(|patterns| patterns.matched(path, is_dir).is_ignore())
    }

    fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// The patterns of a volume, and whether anything in it may be marked.
#[derive(Debug, Default)]
pub(super) struct Locals {
    patterns: RwLock<Arc<Exclude>>,
    any: AtomicBool,
}

impl Locals {
    /// What an earlier run has marked stays so.
    pub fn open(lower: &Lower, exclude: Exclude) -> Result<Locals, Errno> {
        let locals = Locals::default();
        locals.any.store(lower.local_mark_of(lower.home())?.is_some(), Ordering::Release);
        locals.set(lower, exclude)?;
        Ok(locals)
    }

    fn set(&self, lower: &Lower, exclude: Exclude) -> Result<(), Errno> {
        if !exclude.is_empty() && !self.any.load(Ordering::Acquire) {
            // Before the first mark: without this one nobody looks for others.
            lower.set_local_dir(lower.home(), Local::Excluded)?;
            rustix::fs::fsync(lower.home())?;
            self.any.store(true, Ordering::Release);
        }
        *self.patterns.write() = Arc::new(exclude);
        Ok(())
    }
}

/// What a rename means to others, where only one of its two names is replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crossing {
    /// The object stays on this node from now on.
    Leaves,
    /// It no longer does.
    Joins,
}

/// A rename, as others see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub crossing: Option<Crossing>,
    /// What stood at the target was nobody's business.
    pub replaces_local: bool,
    /// What the record says of it.
    pub told: Flags,
}

impl Volume {
    /// How an object goes from one name to another, which may stand for something now. EXDEV, as between two file systems,
    /// where one rename cannot be a creation or a removal to others: whoever renames copies then.
    pub(super) fn way(
        &self,
        [from, to]: [(&Dir, &[u8]); 2],
        (object, before): (FileId, &Stat),
        replaces: bool,
        flags: RenameFlags,
    ) -> Result<Way, Errno> {
        let is_local = self.is_local_at(from.0, from.1)?;
        let replaces_local = replaces && self.is_local_at(to.0, to.1)?;
        // The name of something replicated is replicated, whatever it is.
        let stays = (!replaces || replaces_local) && self.excludes(to.0, to.1, before.is_dir())?;
        let (crossing, told) = match (is_local, stays) {
            (false, true) => (Some(Crossing::Leaves), Flags::LEFT),
            (true, false) => (Some(Crossing::Joins), Flags::JOINED),
            (true, true) => (None, Flags::LOCAL),
            (false, false) => (None, Flags::empty()),
        };
        // What is not here would leave without its content, and others would take it for removed.
        let is_whole = crossing != Some(Crossing::Leaves) || self.lacking_file(object, before)?.is_none();
        let may_cross = |crossing| {
            let plain = !flags.intersects(RenameFlags::EXCHANGE | RenameFlags::WHITEOUT);
            // Not where all that is in a directory would have to be told of, an object has other names, or the server may
            // still ask for the content of what leaves.
            let asked_for = crossing == Crossing::Leaves && self.limbo.needs(object);
            plain && !before.is_dir() && before.attributes.nlink == 1 && !asked_for && is_whole
        };
        let mixes = flags.contains(RenameFlags::EXCHANGE) && is_local != replaces_local;
        if mixes || !crossing.is_none_or(may_cross) {
            return Err(Errno::XDEV);
        }
        Ok(Way { crossing, replaces_local, told })
    }

    /// Other patterns from now on. What is replicated stays so, and what is not, until a scrub takes it.
    pub fn set_exclude(&self, exclude: Exclude) -> Result<(), Errno> {
        self.locals.set(&self.lower, exclude)
    }

    /// Whether anything may be marked, or will be.
    pub(crate) fn has_locals(&self) -> bool {
        self.locals.any.load(Ordering::Acquire)
    }

    /// Whether what is made by this name stays on this node.
    pub(crate) fn excludes(&self, dir: &Dir, name: &[u8], is_dir: bool) -> Result<bool, Errno> {
        if !self.has_locals() || dir.id == self.lower.staging() {
            return Ok(false);
        }
        if self.lower.local_mark_of(dir)? == Some(Local::Excluded) {
            return Ok(true);
        }
        let patterns = Arc::clone(&self.locals.patterns.read());
        if patterns.is_empty() {
            return Ok(false);
        }
        match self.lower.path_of(dir, name) {
            Ok(path) => Ok(patterns.matches(&path, is_dir)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Whether what this name stands for stays on this node.
    pub(crate) fn is_local_at(&self, dir: &Dir, name: &[u8]) -> Result<bool, Errno> {
        Ok(self.has_locals() && self.lower.local_mark(dir, name)?.is_some_and(Local::stays))
    }

    /// Whether a file stays on this node.
    pub(super) fn is_local(&self, file: impl AsFd) -> Result<bool, Errno> {
        Ok(self.has_locals() && self.lower.local_mark_of(file)?.is_some_and(Local::stays))
    }

    /// Something is about to be made here that does not stay: nor do directories on the way that had been left to this node.
    pub(super) fn rejoin(&self, dir: &Arc<Dir>) -> Result<(), Errno> {
        let mut at = Arc::clone(dir);
        while self.has_locals() && self.lower.local_mark_of(&*at)? == Some(Local::Left) {
            self.lower.set_local_dir(&*at, Local::Wanted)?;
            at = self.lower.dir(self.lower.parent(&at)?)?;
        }
        Ok(())
    }

    /// Decides about what is about to be made by this name.
    pub(super) fn will_be_local(&self, dir: &Arc<Dir>, name: &[u8], is_dir: bool) -> Result<bool, Errno> {
        let local = self.excludes(dir, name, is_dir)?;
        if !local {
            self.rejoin(dir)?;
        }
        Ok(local)
    }

    /// Marks what was just made by an excluded name.
    pub(super) fn mark_made(&self, dir: &Dir, name: &[u8], local: bool) -> Result<(), Errno> {
        if local { self.lower.set_local(dir, name, Some(Local::Excluded)) } else { Ok(()) }
    }

    /// For a scrub: whether what stands here is nobody's business. One whose name is excluded no longer is a find; a
    /// directory that others have removed never is.
    pub(crate) fn stays_here(&self, dir: &Dir, name: &[u8], is_dir: bool) -> Result<bool, Errno> {
        if !self.has_locals() {
            return Ok(false);
        }
        match self.lower.local_mark(dir, name)? {
            None | Some(Local::Wanted) => Ok(false),
            Some(Local::Left) => Ok(true),
            Some(Local::Excluded) => self.excludes(dir, name, is_dir),
        }
    }

    /// For a scrub: whether what is new here is to stay.
    pub(crate) fn will_stay(&self, dir: &Dir, name: &[u8], is_dir: bool) -> Result<bool, Errno> {
        Ok(self.excludes(dir, name, is_dir)? && self.lower.local_mark(dir, name)? != Some(Local::Wanted))
    }

    /// Records tell of what this name stands for.
    pub(crate) fn share(&self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        if self.has_locals() && self.lower.local_mark(dir, name)?.is_some() {
            self.lower.set_local(dir, name, None)?;
        }
        Ok(())
    }

    /// A replay needs this name. What stays here under it is a find from now on, so that it is not lost.
    pub(crate) fn give_up_local(&self, dir: &Dir, name: &[u8]) -> Result<(), Errno> {
        if !self.is_local_at(dir, name)? {
            return Ok(());
        }
        tracing::info!(target: "filter", volume = self.name, path = self.lower.shown(dir.id, name),
            "a name that stayed here is needed for something replicated: what had it becomes an update of this node");
        self.lower.set_local(dir, name, Some(Local::Wanted))
    }

    /// The same for all names in a directory that another object is to replace.
    pub(crate) fn give_up_locals_in(&self, id: FileId) -> Result<(), Errno> {
        if !self.has_locals() {
            return Ok(());
        }
        let dir = self.lower.dir(id)?;
        for name in entries(&dir)? {
            self.give_up_local(&dir, &name)?;
        }
        Ok(())
    }

    /// Others have removed this directory. Where nothing is in it but what stays here, it stays for that. Says whether.
    pub(crate) fn keep_for_locals(&self, parent: &Dir, name: &[u8], id: FileId) -> Result<bool, Errno> {
        if !self.has_locals() {
            return Ok(false);
        }
        let dir = self.lower.dir(id)?;
        for child in entries(&dir)? {
            if !self.is_local_at(&dir, &child)? {
                return Ok(false);
            }
        }
        self.lower.set_local(parent, name, Some(Local::Left))?;
        Ok(true)
    }

    /// Recovery has found that this happened, or did not: the mark is put right.
    pub(crate) fn mark_recovered(&self, record: &Record, happened: bool) -> Result<(), Errno> {
        let intent = &record.intent;
        let makes = matches!(record.opcode, Opcode::Create | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink);
        let (source, target) = ((intent.parent, &intent.name), (intent.target_parent, &intent.target_name));
        let ((dir, name), local) = match (intent.flags, happened) {
            (flags, true) if flags.contains(Flags::LOCAL) && makes => (source, true),
            (flags, false) if flags.contains(Flags::LEFT) => (source, false),
            (flags, true) if flags.contains(Flags::JOINED) => (target, false),
            _ => return Ok(()),
        };
        match self.lower.dir(dir) {
            Ok(dir) if self.lower.find(&*dir, name)?.is_some() => {
                self.lower.set_local(&*dir, name, local.then_some(Local::Excluded))
            }
            Ok(_) | Err(Errno::STALE | Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

fn entries(dir: &Dir) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_gitignore() {
        let lines = ["*.o", "/build/", "logs/**/debug.log", "!keep.o", "# a comment", "a\\ b"];
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let exclude = Exclude::parse(&lines).unwrap();
        for (path, is_dir, excluded) in [
            (&b"x.o"[..], false, true),
            (b"deep/down/x.o", false, true),
            (b"deep/keep.o", false, false),
            (b"build", true, true),
            (b"build", false, false),
            (b"src/build", true, false),
            (b"logs/a/b/debug.log", false, true),
            (b"# a comment", false, false),
            (b"a b", false, true),
            (b"\xff\xfe.o", false, true),
            (b"x.c", false, false),
        ] {
            assert_eq!(exclude.matches(path, is_dir), excluded, "{}", path.escape_ascii());
        }
        assert!(Exclude::parse(&["# nothing".to_owned()]).unwrap().is_empty());
        let wrong = Exclude::parse(&["fine".to_owned(), "[z-a]".to_owned()]).unwrap_err();
        assert!(wrong.contains("[z-a]"), "{wrong}");
    }
}

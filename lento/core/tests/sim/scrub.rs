//! The model of presto's scrub, and changes that presto does not see.

use super::disk::Disk;
use super::disk::STAGING;
use lento_core::io::Listed;
use lento_core::io::Listing;
use lento_core::io::ScrubItem;
use lento_core::io::ScrubOutcome;
use lento_core::record::KmlOrigin;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::scrub::Found;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Mask;
use lento_core::types::Recno;

/// Names in one page: few, so that lists end between changes.
const PAGE: usize = 3;

/// Where a list goes on behind this name. As in a file system, a name that is there all the time is in every list, whatever
/// comes and goes meanwhile.
pub fn cookie(name: &[u8]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = Hash::of(name).0;
    u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
}

impl Disk {
    /// What `act` does, nobody reports.
    pub fn behind<T>(&mut self, act: impl FnOnce(&mut Disk) -> T) -> T {
        let kept = (self.kml.len(), self.touched.clone(), self.last_close.clone(), self.settled);
        self.settled = u64::MAX;
        // A content with the same size and a time that it had elsewhere could not be told apart.
        self.clock += 10_000;
        let result = act(self);
        self.kml.truncate(kept.0);
        (self.touched, self.last_close, self.settled) = (kept.1, kept.2, kept.3);
        result
    }

    pub fn list(&self, dir: FileId, after: u64) -> Listing {
        let Some(inode) = self.inodes.get(&dir) else { return Listing::Gone };
        let listed = |(name, file): (&Vec<u8>, &FileId)| Listed {
            name: name.clone(),
            file: *file,
            attributes: self.inodes[file].attributes,
            version: self.version(*file),
        };
        let mut names: Vec<_> = inode.entries.iter().filter(|(name, _)| cookie(name) > after).collect();
        names.sort_by_key(|(name, _)| cookie(name));
        let entries: Vec<Listed> = names.into_iter().take(PAGE).map(listed).collect();
        let next = entries.last().filter(|_| entries.len() == PAGE).map_or(0, |last| cookie(&last.name));
        Listing::Page { entries, next }
    }

    pub fn scrub(&mut self, item: &ScrubItem, since: Recno, how: Found) -> ScrubOutcome {
        let take = how != Found::Show;
        match item {
            ScrubItem::Entry {
                dir,
                name,
                expect,
                expect_file,
                expect_last,
                listed,
                known,
                left,
                may_exchange,
                given_up,
                ..
            } => {
                let found = self.entry(*dir, name).filter(|_| !left);
                let keys =
                    [Some((*dir, name.clone())), found.map(|f| (f, vec![])), expect.map(|f| (f, vec![]))];
                if let Some(recno) = self.newer(keys.into_iter().flatten(), since) {
                    return ScrubOutcome::Stale { recno };
                }
                if found == *expect || *dir == STAGING && found.is_some() && found != *listed {
                    return ScrubOutcome::Same;
                }
                if found.is_some() && found != *listed {
                    return ScrubOutcome::Stale { recno: Recno(0) };
                }
                let changes_places =
                    match expect.filter(|file| *expect_last && !given_up && self.links(*file) > 0) {
                        Some(_) => {
                            let moved = found.zip(known.as_ref()).filter(|(file, (from, from_name))| {
                                *may_exchange && self.entry(*from, from_name) != Some(*file)
                            });
                            if moved.is_none() {
                                return ScrubOutcome::Stale { recno: Recno(0) };
                            }
                            true
                        }
                        None => false,
                    };
                if !take {
                    return ScrubOutcome::Found { recno: None, what: "entry".into() };
                }
                if let (true, Some(file), Some(known)) = (changes_places, found, known) {
                    self.moved(known, (*dir, name), file, *expect);
                    return ScrubOutcome::Found { recno: Some(self.last()), what: "entry".into() };
                }
                if let Some(file) = found.filter(|_| how == Found::Mend && known.is_none())
                    && let Some(outcome) =
                        self.leftover((*dir, name), *expect, *expect_file && *expect_last, file)
                {
                    return outcome;
                }
                if let Some(file) = *expect {
                    let dir_mtime = self.mtime(*dir);
                    let (dir, name) = (*dir, name.clone());
                    let last = *expect_last;
                    self.found(Update::Remove { dir, name, file, last, limbo: false, dir_mtime });
                }
                if let Some(file) = found {
                    self.appeared(*dir, name, file, known.as_ref());
                }
                ScrubOutcome::Found { recno: Some(self.last()), what: "entry".into() }
            }
            ScrubItem::Object { file, expect, size, xattrs, missing } => {
                let Some(inode) = self.inodes.get(file) else { return ScrubOutcome::Same };
                if let Some(recno) = self.newer([(*file, vec![])], since) {
                    return ScrubOutcome::Stale { recno };
                }
                let is = inode.attributes;
                let theirs: Vec<_> = inode.xattrs.clone().into_iter().collect();
                let content = is.is_file() && (is.mtime != expect.mtime || inode.bytes.len() as u64 != *size);
                let content = content || is.is_file() && inode.missing != *missing;
                let lacks = inode.missing.is_some();
                let mut mask = Mask::default();
                for (bit, differs) in [
                    (Mask::MODE, is.mode != expect.mode),
                    (Mask::UID, is.uid != expect.uid),
                    (Mask::GID, is.gid != expect.gid),
                    (Mask::MTIME, !is.is_file() && is.mtime != expect.mtime),
                ] {
                    mask = if differs { mask.with(bit) } else { mask };
                }
                let busy = content && self.writers.contains(file);
                let content = content && !busy;
                if !content && mask == Mask::default() && theirs == *xattrs {
                    return if busy { ScrubOutcome::Busy } else { ScrubOutcome::Same };
                }
                if !take {
                    return ScrubOutcome::Found { recno: None, what: "object".into() };
                }
                let after = self.after(*file);
                for (name, value) in theirs.iter().filter(|xattr| !xattrs.contains(xattr)) {
                    let (name, value, after) = (name.clone(), value.clone(), after.clone());
                    self.found(Update::SetXattr { file: *file, name, value, after });
                }
                for (name, _) in xattrs.iter().filter(|(name, _)| theirs.iter().all(|(n, _)| n != name)) {
                    self.found(Update::DelXattr { file: *file, name: name.clone(), after: after.clone() });
                }
                if content {
                    self.found(Update::Close {
                        file: *file,
                        replaces: None,
                        after: after.clone(),
                        left: if how == Found::Mend && !lacks { Left::Unvouched } else { Left::Whole },
                    });
                }
                if mask != Mask::default() {
                    self.found(Update::SetAttr { file: *file, mask, truncated: false, after });
                }
                ScrubOutcome::Found { recno: Some(self.last()), what: "object".into() }
            }
        }
    }

    /// After a power cut: an empty file of which nobody knows goes; one in the place of another is that one's content.
    fn leftover(
        &mut self,
        (dir, name): (FileId, &[u8]),
        expect: Option<FileId>,
        was_file: bool,
        file: FileId,
    ) -> Option<ScrubOutcome> {
        let inode = self.inodes.get(&file)?;
        if !inode.attributes.is_file() || self.born.contains(&file) {
            return None;
        }
        let recno = match expect {
            None if inode.missing.is_some()
                || inode.bytes.is_empty() && self.links(file) == 1 && !self.writers.contains(&file) =>
            {
                self.inodes.get_mut(&dir)?.entries.remove(name);
                if self.links(file) == 0 {
                    self.inodes.remove(&file);
                }
                None
            }
            Some(before) if was_file && !self.inodes.contains_key(&before) => {
                let (after, replaces) = (self.after(file), Some(before));
                let left = if after.missing.is_some() { Left::Whole } else { Left::Unvouched };
                self.found(Update::Close { file, replaces, after, left });
                Some(self.last())
            }
            _ => return None,
        };
        Some(ScrubOutcome::Found { recno, what: "leftover".into() })
    }

    fn appeared(&mut self, dir: FileId, name: &[u8], file: FileId, known: Option<&(FileId, Vec<u8>)>) {
        // What a replay was about to put in its place may be torn.
        let left = if dir == STAGING { Left::Unvouched } else { Left::Whole };
        let (after, dir_mtime) = (self.after(file), self.mtime(dir));
        let at = (dir, name);
        let name = name.to_vec();
        match known {
            Some((from, from_name)) if self.entry(*from, from_name) != Some(file) => {
                self.moved(&(*from, from_name.clone()), at, file, None);
            }
            Some(_) => {
                self.found(Update::Link { dir, name, file, after, dir_mtime });
            }
            None => {
                let inode = self.inodes[&file].clone();
                let xattrs = inode.xattrs.into_iter().collect();
                let symlink = inode.symlink;
                let made = Update::Make { dir, name, file, after: after.clone(), symlink, xattrs, dir_mtime };
                self.found(made);
                if inode.attributes.is_file() && !inode.bytes.is_empty() {
                    self.found(Update::Close { file, replaces: None, after, left });
                }
            }
        }
    }

    fn moved(
        &mut self,
        (from, from_name): &(FileId, Vec<u8>),
        (to, to_name): (FileId, &[u8]),
        file: FileId,
        replaced: Option<FileId>,
    ) {
        self.found(Update::Rename {
            from: *from,
            from_name: from_name.clone(),
            to,
            to_name: to_name.to_vec(),
            file,
            after: self.after(file),
            replaced,
            replaced_last: false,
            replaced_limbo: false,
            exchange: replaced.is_some(),
            whiteout: false,
            from_mtime: self.mtime(*from),
            to_mtime: self.mtime(to),
        });
    }

    fn found(&mut self, update: Update) {
        self.record(KmlOrigin::User, update);
    }

    fn mtime(&self, dir: FileId) -> lento_core::types::Time {
        self.inodes.get(&dir).map(|inode| inode.attributes.mtime).unwrap_or_default()
    }

    fn newer(&self, keys: impl IntoIterator<Item = (FileId, Vec<u8>)>, since: Recno) -> Option<Recno> {
        let newest = keys.into_iter().filter_map(|key| self.touched.get(&key).copied()).max();
        newest.filter(|newest| *newest > since)
    }
}

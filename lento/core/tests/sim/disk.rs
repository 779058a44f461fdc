//! A model of presto: a lower tree in memory, its KML and users' operations.

use super::world::Dice;
use lento_core::record::After;
use lento_core::record::KmlOrigin;
use lento_core::record::KmlRecord;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::types::Attributes;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Mask;
use lento_core::types::ObjectId;
use lento_core::types::Recno;
use lento_core::types::Time;
use lento_core::types::Version;
use lento_core::types::mode;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

pub const ROOT: FileId = FileId { ino: 2, generation: 1 };
pub const STAGING: FileId = FileId { ino: 3, generation: 1 };

#[derive(Clone, Debug, Default)]
pub struct Inode {
    pub attributes: Attributes,
    pub bytes: Vec<u8>,
    pub symlink: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub entries: BTreeMap<Vec<u8>, FileId>,
    pub ctime: u64,
    /// It stands for this content, which is not here; `bytes` are as many zeros.
    pub missing: Option<Hash>,
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub inodes: BTreeMap<FileId, Inode>,
    pub kml: Vec<KmlRecord>,
    pub(super) next_ino: u64,
    pub clock: u64,
    /// No two nodes have the same nanosecond.
    pub(super) nsec: u32,
    pub(super) touched: BTreeMap<(FileId, Vec<u8>), Recno>,
    pub(super) last_close: BTreeMap<FileId, Recno>,
    pub settled: u64,
    /// With the newest record about each, and up to where lento needs nothing of it.
    pub(super) limbo: BTreeMap<FileId, (u64, u64)>,
    pub orphans: BTreeSet<FileId>,
    pub writers: BTreeSet<FileId>,
    pub(super) made: BTreeMap<ObjectId, FileId>,
    pub stage: BTreeMap<String, Vec<u8>>,
    /// A name that the file system does not take from a replay.
    pub refuses: Option<Vec<u8>>,
    /// A file whose attributes it does not change for a replay.
    pub refuses_file: Option<FileId>,
    durable: Option<Box<Disk>>,
    /// Made, or written by a replay, since the last power cut.
    pub(super) born: BTreeSet<FileId>,
}

/// What of the time since the last sync is still there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Nothing,
    /// The tree, but not what the log told of it.
    Tree,
}

pub fn errno(text: &str) -> Result<(), String> {
    Err(text.to_string())
}

impl Disk {
    pub fn new() -> Disk {
        let mut disk = Disk { next_ino: 10, clock: 1000, ..Disk::default() };
        let dir = Inode {
            attributes: Attributes { mode: mode::DIR | 0o755, ..Attributes::default() },
            ..Inode::default()
        };
        disk.inodes.insert(ROOT, dir.clone());
        disk.inodes.insert(STAGING, dir);
        disk
    }

    pub fn make_durable(&mut self) {
        let mut copy = self.clone();
        copy.durable = None;
        self.durable = Some(Box::new(copy));
    }

    /// Contents that a power cut leaves.
    pub fn durable_contents(&self) -> BTreeSet<Hash> {
        let durable = self.durable.iter().flat_map(|disk| disk.inodes.values());
        durable.map(|inode| Hash::of(&inode.bytes)).collect()
    }

    /// Power cut: everything since the last sync is gone, from the log as well, or only from there. Of files that were
    /// written since, their size and time may be on the disk, and of the content something else. The answer: what became of
    /// which content.
    pub fn power_cut(&mut self, keeps: Keeps, mut torn: Option<&mut Dice>) -> Vec<(Hash, Hash)> {
        let last = std::mem::take(&mut self.inodes);
        let mut back = self.durable.take().map_or_else(Disk::new, |disk| *disk);
        back.writers.clear();
        let durable = back.inodes.clone();
        if keeps == Keeps::Tree {
            let end = back.last().0;
            back.limbo = self
                .limbo
                .iter()
                .map(|(file, (newest, dealt))| (*file, (end.min(*newest), *dealt)))
                .collect();
            back.orphans = std::mem::take(&mut self.orphans);
            back.inodes.clone_from(&last);
            let nameless = |file: &FileId| {
                ![ROOT, STAGING].contains(file) && !back.limbo.contains_key(file) && back.links(*file) == 0
            };
            let nameless: Vec<FileId> = last.keys().copied().filter(nameless).collect();
            back.inodes.retain(|file, _| !nameless.contains(file));
        }
        // What was stored into a file without a name and never closed is promised to nobody.
        let closed = |file: FileId| {
            back.kml.iter().any(|record| {
                matches!(record.update, Update::Close { file: f, left: Left::Orphan, .. } if f == file)
            })
        };
        let open = back.orphans.iter().copied().filter(|file| !closed(*file) && back.links(*file) == 0);
        for file in open.collect::<Vec<_>>() {
            back.inodes.remove(&file);
            back.limbo.remove(&file);
        }
        back.orphans.clear();
        back.clock = self.clock + 1000;
        back.next_ino = self.next_ino + 1000;
        let mut became = Vec::new();
        for (file, inode) in &mut back.inodes {
            let Some(dice) = &mut torn else { break };
            let Some(last) = last.get(file) else { continue };
            let Some(synced) = durable.get(file) else {
                // The name of a new file comes to the disk before its bytes.
                if dice.roll(2) == 0 {
                    inode.bytes.clear();
                }
                continue;
            };
            if !last.attributes.is_file() || last.bytes == synced.bytes {
                continue;
            }
            // What comes into a file, or leaves it, does so as a whole.
            if last.missing.is_some() || synced.missing.is_some() {
                continue;
            }
            inode.bytes.clone_from(&synced.bytes);
            inode.attributes.mtime = last.attributes.mtime;
            let good = Hash::of(&inode.bytes);
            // A number tells them apart.
            let mut bytes = format!("torn {}.{} ", file.ino, back.clock).into_bytes();
            match dice.roll(4) {
                // The old content with the new time.
                0 => continue,
                1 => bytes.extend(vec![0; last.bytes.len()]),
                2 => bytes.extend(&last.bytes[..last.bytes.len() / 2]),
                _ => bytes.extend(&inode.bytes),
            }
            became.push((good, Hash::of(&bytes)));
            inode.bytes = bytes;
        }
        *self = back;
        self.born.clear();
        self.journal_torn_files();
        self.make_durable();
        became
    }

    /// Inode numbers and times go on from those of another disk, so that a trace tells them apart.
    pub fn go_on_from(&mut self, other: &Disk) {
        self.clock = other.clock + 1000;
        self.next_ino = other.next_ino + 1000;
        self.make_durable();
    }

    pub fn last(&self) -> Recno {
        Recno(self.kml.len() as u64)
    }

    pub(super) fn tick(&mut self) -> Time {
        self.clock += 1;
        Time { sec: self.clock as i64, nsec: self.nsec }
    }

    pub fn after(&self, file: FileId) -> After {
        let inode = &self.inodes[&file];
        After {
            attributes: inode.attributes,
            version: self.version(file),
            nlink: self.links(file) as u32,
            missing: inode.missing,
        }
    }

    pub fn version(&self, file: FileId) -> Version {
        let inode = &self.inodes[&file];
        Version {
            mtime: inode.attributes.mtime,
            ctime: Time { sec: inode.ctime as i64, nsec: 0 },
            size: inode.bytes.len() as u64,
        }
    }

    pub fn links(&self, file: FileId) -> usize {
        self.inodes.values().flat_map(|i| i.entries.values()).filter(|f| **f == file).count()
    }

    pub(super) fn record(&mut self, origin: KmlOrigin, update: Update) -> Recno {
        let recno = Recno(self.kml.len() as u64 + 1);
        if origin == KmlOrigin::User {
            for key in keys(&update) {
                self.touched.insert(key, recno);
            }
            if let Update::Close { file, .. } | Update::SetAttr { file, truncated: true, .. } = &update {
                self.last_close.insert(*file, recno);
            }
        }
        let time = Time { sec: self.clock as i64, nsec: 0 };
        self.kml.push(KmlRecord { recno, time, origin, update });
        recno
    }

    pub(super) fn dir_touched(&mut self, dir: FileId, time: Option<Time>) -> Time {
        let now = self.tick();
        let inode = self.inodes.get_mut(&dir).unwrap();
        if let Some(time) = time {
            inode.attributes.mtime = time;
        }
        let _ = now;
        inode.attributes.mtime
    }

    pub fn entry(&self, dir: FileId, name: &[u8]) -> Option<FileId> {
        self.inodes.get(&dir)?.entries.get(name).copied()
    }

    // --- users -------------------------------------------------------------------------------------------------

    pub fn user_make(&mut self, dir: FileId, name: &[u8], kind: u32) -> Result<FileId, String> {
        if self.entry(dir, name).is_some() {
            return Err("EEXIST".into());
        }
        let now = self.tick();
        let attributes = Attributes { mode: kind | 0o644, mtime: now, ..Attributes::default() };
        let file = self.insert(Inode { attributes, ctime: now.sec as u64, ..Inode::default() });
        self.inodes.get_mut(&dir).ok_or("ENOENT")?.entries.insert(name.to_vec(), file);
        let dir_mtime = self.dir_touched(dir, Some(now));
        let after = self.after(file);
        let update = Update::Make {
            dir,
            name: name.to_vec(),
            file,
            after,
            symlink: vec![],
            xattrs: vec![],
            dir_mtime,
        };
        self.record(KmlOrigin::User, update);
        Ok(file)
    }

    pub(super) fn insert(&mut self, inode: Inode) -> FileId {
        self.next_ino += 1;
        let file = FileId { ino: self.next_ino, generation: 7 };
        self.inodes.insert(file, inode);
        self.born.insert(file);
        file
    }

    /// Stores without a close: the version moves, no record says so.
    pub fn user_store(&mut self, file: FileId, bytes: &[u8]) {
        let now = self.tick();
        let inode = self.inodes.get_mut(&file).unwrap();
        inode.bytes = bytes.to_vec();
        inode.missing = None;
        inode.attributes.mtime = now;
        inode.ctime = now.sec as u64;
    }

    /// Opened to be written anew.
    pub fn user_empty(&mut self, file: FileId) {
        self.user_store(file, b"");
        let after = self.after(file);
        self.record(KmlOrigin::User, Update::SetAttr { file, mask: Mask::MTIME, truncated: true, after });
    }

    pub fn user_close(&mut self, file: FileId) {
        if self.orphans.contains(&file) {
            let after = self.after(file);
            let recno = self
                .record(KmlOrigin::User, Update::Close { file, replaces: None, after, left: Left::Orphan });
            if let Some((newest, _)) = self.limbo.get_mut(&file) {
                *newest = recno.0;
            }
            self.let_go();
            return;
        }
        if self.links(file) == 0 {
            self.let_go();
            return;
        }
        let after = self.after(file);
        self.record(KmlOrigin::User, Update::Close { file, replaces: None, after, left: Left::Whole });
    }

    /// fsync of a file that was written: its record and everything so far are durable.
    pub fn user_fsync(&mut self, file: FileId) {
        let after = self.after(file);
        self.record(KmlOrigin::User, Update::Close { file, replaces: None, after, left: Left::Synced });
        self.make_durable();
    }

    pub fn user_setattr(&mut self, file: FileId, mode_bits: u32) {
        let now = self.tick();
        let inode = self.inodes.get_mut(&file).unwrap();
        inode.attributes.mode = inode.attributes.mode & !0o7777 | mode_bits;
        inode.ctime = now.sec as u64;
        let after = self.after(file);
        self.record(KmlOrigin::User, Update::SetAttr { file, mask: Mask::MODE, truncated: false, after });
    }

    pub fn user_set_time(&mut self, file: FileId, mtime: Time) {
        let now = self.tick();
        let inode = self.inodes.get_mut(&file).unwrap();
        inode.attributes.mtime = mtime;
        inode.ctime = now.sec as u64;
        let after = self.after(file);
        self.record(KmlOrigin::User, Update::SetAttr { file, mask: Mask::MTIME, truncated: false, after });
    }

    pub fn user_setxattr(&mut self, file: FileId, name: &[u8], value: &[u8]) {
        let now = self.tick();
        let inode = self.inodes.get_mut(&file).unwrap();
        inode.xattrs.insert(name.to_vec(), value.to_vec());
        inode.ctime = now.sec as u64;
        let after = self.after(file);
        let update = Update::SetXattr { file, name: name.to_vec(), value: value.to_vec(), after };
        self.record(KmlOrigin::User, update);
    }

    pub fn user_link(&mut self, file: FileId, dir: FileId, name: &[u8]) -> Result<(), String> {
        if self.entry(dir, name).is_some() || self.inodes[&file].attributes.is_dir() {
            return errno("EEXIST");
        }
        let now = self.tick();
        self.inodes.get_mut(&dir).ok_or("ENOENT")?.entries.insert(name.to_vec(), file);
        self.inodes.get_mut(&file).unwrap().ctime = now.sec as u64;
        let dir_mtime = self.dir_touched(dir, Some(now));
        let after = self.after(file);
        self.record(KmlOrigin::User, Update::Link { dir, name: name.to_vec(), file, after, dir_mtime });
        Ok(())
    }

    /// Something that stays on this node is made or removed in a directory.
    pub fn user_touch(&mut self, dir: FileId) {
        let now = self.tick();
        let mtime = self.dir_touched(dir, Some(now));
        self.record(KmlOrigin::User, Update::Touch { dir, mtime });
    }

    pub(super) fn lose(&mut self, file: FileId) -> (bool, bool) {
        let last = self.links(file) == 0;
        if !last {
            let now = self.clock;
            self.inodes.get_mut(&file).unwrap().ctime = now;
        }
        let limbo = last && self.last_close.get(&file).is_some_and(|recno| recno.0 > self.settled);
        if limbo {
            self.limbo.insert(file, (self.last().0 + 1, 0));
        } else if last && !self.orphans.contains(&file) && !self.writers.contains(&file) {
            self.inodes.remove(&file);
        }
        (last, limbo)
    }

    pub fn user_remove(&mut self, dir: FileId, name: &[u8]) -> Result<(), String> {
        let file = self.entry(dir, name).ok_or("ENOENT")?;
        if !self.inodes[&file].entries.is_empty() {
            return errno("ENOTEMPTY");
        }
        let now = self.tick();
        self.inodes.get_mut(&dir).unwrap().entries.remove(name);
        let (last, limbo) = self.lose(file);
        let dir_mtime = self.dir_touched(dir, Some(now));
        self.record(
            KmlOrigin::User,
            Update::Remove { dir, name: name.to_vec(), file, last, limbo, dir_mtime },
        );
        Ok(())
    }

    pub fn is_within(&self, dir: FileId, file: FileId) -> bool {
        dir == file
            || self
                .inodes
                .iter()
                .any(|(id, i)| i.entries.values().any(|f| *f == dir) && self.is_within(*id, file))
    }

    pub fn user_rename(
        &mut self,
        from: FileId,
        from_name: &[u8],
        to: FileId,
        to_name: &[u8],
        exchange: bool,
    ) -> Result<(), String> {
        let file = self.entry(from, from_name).ok_or("ENOENT")?;
        let target = self.entry(to, to_name);
        if target == Some(file) || self.is_within(to, file) {
            return errno("EINVAL");
        }
        let is_dir = self.inodes[&file].attributes.is_dir();
        if let Some(target) = target {
            let t = &self.inodes[&target];
            if exchange {
                if self.is_within(from, target) {
                    return errno("EINVAL");
                }
            } else if t.attributes.is_dir() != is_dir || !t.entries.is_empty() {
                return errno("ENOTEMPTY");
            }
        } else if exchange {
            return errno("ENOENT");
        }
        let now = self.tick();
        self.inodes.get_mut(&from).unwrap().entries.remove(from_name);
        self.inodes.get_mut(&to).unwrap().entries.insert(to_name.to_vec(), file);
        self.inodes.get_mut(&file).unwrap().ctime = now.sec as u64;
        let mut replaced_last = false;
        let mut replaced_limbo = false;
        if let Some(target) = target {
            if exchange {
                self.inodes.get_mut(&from).unwrap().entries.insert(from_name.to_vec(), target);
                self.inodes.get_mut(&target).unwrap().ctime = now.sec as u64;
            } else {
                (replaced_last, replaced_limbo) = self.lose(target);
            }
        }
        let from_mtime = self.dir_touched(from, Some(now));
        let to_mtime = self.dir_touched(to, Some(now));
        let after = self.after(file);
        self.record(
            KmlOrigin::User,
            Update::Rename {
                from,
                from_name: from_name.to_vec(),
                to,
                to_name: to_name.to_vec(),
                file,
                after,
                replaced: target,
                replaced_last,
                replaced_limbo,
                exchange,
                whiteout: false,
                from_mtime,
                to_mtime,
            },
        );
        Ok(())
    }

    /// Downcall `ReleaseLimbo`.
    pub fn release_limbo(&mut self, files: &[FileId], all_but: bool, upto: u64) {
        for (file, (_, dealt_with)) in &mut self.limbo {
            if files.contains(file) != all_but {
                *dealt_with = upto.max(*dealt_with);
            }
        }
        self.let_go();
    }

    /// Files that nobody has let go.
    pub fn in_limbo(&self) -> Vec<FileId> {
        self.limbo.keys().copied().collect()
    }

    pub(super) fn let_go(&mut self) {
        let writers = &self.writers;
        let gone =
            self.limbo.extract_if(.., |file, (newest, dealt)| newest <= dealt && !writers.contains(file));
        for (file, _) in gone {
            self.inodes.remove(&file);
        }
    }

    pub(super) fn take_away(&mut self, file: FileId) -> bool {
        let last = self.links(file) == 0;
        if last && self.orphans.contains(&file) {
            self.limbo.insert(file, (self.last().0 + 1, 0));
        } else if last {
            self.inodes.remove(&file);
        } else {
            let now = self.tick();
            self.inodes.get_mut(&file).unwrap().ctime = now.sec as u64;
        }
        last
    }
}

/// What a record touches: entries by (directory, name), objects by (file, "").
fn keys(update: &Update) -> Vec<(FileId, Vec<u8>)> {
    match update {
        Update::Make { dir, name, file, .. }
        | Update::Link { dir, name, file, .. }
        | Update::Remove { dir, name, file, .. } => {
            vec![(*dir, name.clone()), (*file, vec![])]
        }
        Update::Rename { from, from_name, to, to_name, file, replaced, .. } => {
            let mut keys = vec![(*from, from_name.clone()), (*to, to_name.clone()), (*file, vec![])];
            keys.extend(replaced.map(|r| (r, vec![])));
            keys
        }
        Update::SetAttr { file, .. }
        | Update::Close { file, .. }
        | Update::SetXattr { file, .. }
        | Update::DelXattr { file, .. } => vec![(*file, vec![])],
        Update::Touch { dir, .. } => vec![(*dir, vec![])],
        Update::Nothing => vec![],
    }
}

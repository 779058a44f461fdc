//! The model of presto, continued: replays with their preconditions.

use super::disk::Disk;
use super::disk::Inode;
use lento_core::io::Busy;
use lento_core::io::Ref;
use lento_core::io::ReplayContent;
use lento_core::io::ReplayItem;
use lento_core::io::ReplayOp;
use lento_core::io::ReplayOutcome;
use lento_core::record::KmlOrigin;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Mask;
use lento_core::types::Recno;
use lento_core::types::Time;
use lento_core::types::Version;
use std::collections::BTreeMap;

impl Disk {
    pub fn replay(&mut self, items: &[ReplayItem], since: Recno) -> Vec<ReplayOutcome> {
        let mut outcomes = Vec::new();
        for item in items {
            let outcome = self.replay_one(item, since).unwrap_or_else(|stop| stop);
            let go_on = matches!(outcome, ReplayOutcome::Applied { .. });
            outcomes.push(outcome);
            if !go_on {
                break;
            }
        }
        outcomes
    }

    fn file(&self, reference: Ref) -> Result<FileId, ReplayOutcome> {
        let file = match reference {
            Ref::File(file) => Some(file),
            Ref::Object(object) => self.made.get(&object).copied(),
        };
        file.filter(|file| self.inodes.contains_key(file)).ok_or(ReplayOutcome::Stale { recno: None })
    }

    fn untouched(&self, key: (FileId, &[u8]), since: Recno) -> Result<(), ReplayOutcome> {
        match self.touched.get(&(key.0, key.1.to_vec())) {
            Some(recno) if *recno > since => Err(ReplayOutcome::Stale { recno: Some(*recno) }),
            _ => Ok(()),
        }
    }

    /// The bytes; a staged file is gone then.
    fn content(&mut self, content: &ReplayContent) -> Result<Vec<u8>, ReplayOutcome> {
        match content {
            ReplayContent::Missing(size) => Ok(vec![0; *size as usize]),
            ReplayContent::Inline(bytes) => Ok(bytes.clone()),
            ReplayContent::Staged(name, _) => self.stage.remove(name).ok_or_else(|| ReplayOutcome::Refused {
                errno: 2,
                message: format!("staged file {name} is not there"),
            }),
        }
    }

    /// Writers and unseen stores of a file that is about to lose its content.
    fn may_take(&mut self, file: FileId, expect: Option<Version>, busy: Busy) -> Result<(), ReplayOutcome> {
        if self.inodes[&file].missing.is_some() {
            return Ok(());
        }
        if self.writers.contains(&file) {
            if busy == Busy::Wait {
                return Err(ReplayOutcome::Busy);
            }
            self.orphans.insert(file);
            return Ok(());
        }
        // Lento does not know the ctime of a file that has lost a name.
        let is_known = expect.is_some_and(|expect| expect.ctime != Time::default());
        let present = self.version(file);
        let present = if is_known { present } else { Version { ctime: Time::default(), ..present } };
        if let Some(expect) = expect
            && present != expect
        {
            let after = self.after(file);
            let recno = self
                .record(KmlOrigin::User, Update::Close { file, replaces: None, after, left: Left::Whole });
            return Err(ReplayOutcome::Stale { recno: Some(recno) });
        }
        Ok(())
    }

    fn replay_one(&mut self, item: &ReplayItem, since: Recno) -> Result<ReplayOutcome, ReplayOutcome> {
        let origin = KmlOrigin::Replay {
            record: item.record,
            object: item.object,
            hash: item.hash,
            verdict: item.verdict,
        };
        let stale = || ReplayOutcome::Stale { recno: None };
        let (file, update) = match &item.op {
            ReplayOp::Make { dir, name, attributes, symlink, content, xattrs } => {
                let dir = self.file(*dir)?;
                self.untouched((dir, name), since)?;
                if self.entry(dir, name).is_some() {
                    return Err(stale());
                }
                if self.refuses.as_ref() == Some(name) {
                    return Err(ReplayOutcome::Refused { errno: 22, message: "EINVAL".into() });
                }
                let bytes = content.as_ref().map_or(Ok(Vec::new()), |content| self.content(content))?;
                let lacks = matches!(content, Some(ReplayContent::Missing(_)));
                let ctime = self.tick().sec as u64;
                let file = self.insert(Inode {
                    missing: item.hash.filter(|_| lacks),
                    attributes: *attributes,
                    bytes,
                    symlink: symlink.clone(),
                    xattrs: xattrs.iter().cloned().collect(),
                    entries: BTreeMap::new(),
                    ctime,
                });
                self.inodes.get_mut(&dir).unwrap().entries.insert(name.clone(), file);
                let dir_mtime = self.dir_touched(dir, item.parent_mtime);
                self.made.insert(item.object, file);
                let after = self.after(file);
                let (symlink, xattrs) = (symlink.clone(), xattrs.clone());
                (file, Update::Make { dir, name: name.clone(), file, after, symlink, xattrs, dir_mtime })
            }
            ReplayOp::Link { file, dir, name } => {
                let (file, dir) = (self.file(*file)?, self.file(*dir)?);
                self.untouched((dir, name), since)?;
                self.untouched((file, b""), since)?;
                if self.entry(dir, name).is_some() || self.links(file) == 0 {
                    return Err(stale());
                }
                let now = self.tick();
                self.inodes.get_mut(&dir).unwrap().entries.insert(name.clone(), file);
                self.inodes.get_mut(&file).unwrap().ctime = now.sec as u64;
                let dir_mtime = self.dir_touched(dir, item.parent_mtime);
                let after = self.after(file);
                (file, Update::Link { dir, name: name.clone(), file, after, dir_mtime })
            }
            ReplayOp::Remove { dir, name, expect, expect_version, busy } => {
                let (dir, expect) = (self.file(*dir)?, self.file(*expect)?);
                self.untouched((dir, name), since)?;
                self.untouched((expect, b""), since)?;
                if self.entry(dir, name) != Some(expect) || !self.inodes[&expect].entries.is_empty() {
                    return Err(stale());
                }
                if self.links(expect) == 1 && self.inodes[&expect].attributes.is_file() {
                    self.may_take(expect, *expect_version, *busy)?;
                }
                self.inodes.get_mut(&dir).unwrap().entries.remove(name);
                let last = self.take_away(expect);
                let dir_mtime = self.dir_touched(dir, item.parent_mtime);
                let update =
                    Update::Remove { dir, name: name.clone(), file: expect, last, limbo: false, dir_mtime };
                (expect, update)
            }
            ReplayOp::Rename {
                from,
                from_name,
                expect,
                to,
                to_name,
                replaced,
                replaced_version,
                exchange,
                busy,
            } => {
                let (from, to, expect) = (self.file(*from)?, self.file(*to)?, self.file(*expect)?);
                let replaced = replaced.map(|r| self.file(r)).transpose()?;
                self.untouched((from, from_name), since)?;
                self.untouched((to, to_name), since)?;
                if self.entry(from, from_name) != Some(expect) || self.entry(to, to_name) != replaced {
                    return Err(stale());
                }
                if self.is_within(to, expect) {
                    return Err(ReplayOutcome::Refused { errno: 22, message: "EINVAL".into() });
                }
                if let Some(target) = replaced.filter(|_| !*exchange) {
                    self.untouched((target, b""), since)?;
                    if !self.inodes[&target].entries.is_empty() {
                        return Err(stale());
                    }
                    if self.links(target) == 1 && self.inodes[&target].attributes.is_file() {
                        self.may_take(target, *replaced_version, *busy)?;
                    }
                }
                let now = self.tick();
                self.inodes.get_mut(&from).unwrap().entries.remove(from_name);
                self.inodes.get_mut(&to).unwrap().entries.insert(to_name.clone(), expect);
                self.inodes.get_mut(&expect).unwrap().ctime = now.sec as u64;
                let mut replaced_last = false;
                if let Some(target) = replaced {
                    if *exchange {
                        self.inodes.get_mut(&from).unwrap().entries.insert(from_name.clone(), target);
                        self.inodes.get_mut(&target).unwrap().ctime = now.sec as u64;
                    } else {
                        replaced_last = self.take_away(target);
                    }
                }
                let from_mtime = self.dir_touched(from, item.parent_mtime);
                let to_mtime = self.dir_touched(to, item.target_parent_mtime);
                let after = self.after(expect);
                let (from_name, to_name) = (from_name.clone(), to_name.clone());
                let exchange = *exchange;
                (
                    expect,
                    Update::Rename {
                        from,
                        from_name,
                        to,
                        to_name,
                        file: expect,
                        after,
                        replaced,
                        replaced_last,
                        replaced_limbo: false,
                        exchange,
                        whiteout: false,
                        from_mtime,
                        to_mtime,
                    },
                )
            }
            ReplayOp::SetAttr { file, mask, attributes } => {
                let file = self.file(*file)?;
                self.untouched((file, b""), since)?;
                if self.refuses_file == Some(file) {
                    return Err(ReplayOutcome::Refused { errno: 5, message: "EIO".into() });
                }
                let now = self.tick();
                let inode = self.inodes.get_mut(&file).unwrap();
                let new = &mut inode.attributes;
                if mask.has(Mask::MODE) {
                    new.mode = new.mode & !0o7777 | attributes.mode & 0o7777;
                }
                if mask.has(Mask::UID) {
                    new.uid = attributes.uid;
                }
                if mask.has(Mask::GID) {
                    new.gid = attributes.gid;
                }
                if mask.has(Mask::MTIME) {
                    new.mtime = attributes.mtime;
                }
                inode.ctime = now.sec as u64;
                let after = self.after(file);
                (file, Update::SetAttr { file, mask: *mask, truncated: false, after })
            }
            ReplayOp::Install { file, expect_version, content, attributes, xattrs, dir, name, busy } => {
                let (old, dir) = (self.file(*file)?, self.file(*dir)?);
                self.untouched((old, b""), since)?;
                if self.entry(dir, name) != Some(old) {
                    return Err(stale());
                }
                let in_place = self.links(old) > 1;
                let lacks = matches!(content, ReplayContent::Missing(_));
                if (in_place || self.writers.contains(&old)) && lacks {
                    return Err(ReplayOutcome::Busy);
                }
                if in_place && self.writers.contains(&old) {
                    // The writer's stores and the new content would mix in one inode.
                    return Err(ReplayOutcome::Busy);
                }
                self.may_take(old, *expect_version, *busy)?;
                let bytes = self.content(content)?;
                let ctime = self.tick().sec as u64;
                let inode = Inode {
                    attributes: *attributes,
                    bytes,
                    xattrs: xattrs.iter().cloned().collect(),
                    ctime,
                    missing: item.hash.filter(|_| lacks),
                    ..Inode::default()
                };
                let file = if in_place {
                    self.orphans.remove(&old);
                    self.inodes.insert(old, inode);
                    old
                } else {
                    let file = self.insert(inode);
                    self.inodes.get_mut(&dir).unwrap().entries.insert(name.clone(), file);
                    self.take_away(old);
                    file
                };
                self.made.insert(item.object, file);
                let after = self.after(file);
                let replaces = (!in_place).then_some(old);
                (file, Update::Close { file, replaces, after, left: Left::Whole })
            }
            ReplayOp::Fill { file, content } => {
                let file = self.file(*file)?;
                let lacks = self.inodes[&file].missing;
                if lacks.is_none() || lacks != item.hash || self.links(file) == 0 {
                    return Err(ReplayOutcome::Stale { recno: self.touched.get(&(file, vec![])).copied() });
                }
                let bytes = self.content(content)?;
                assert_eq!(Some(Hash::of(&bytes)), item.hash, "a wrong content comes into a file");
                let now = self.tick();
                let inode = self.inodes.get_mut(&file).unwrap();
                (inode.bytes, inode.missing, inode.ctime) = (bytes, None, now.sec as u64);
                let after = self.after(file);
                (file, Update::Close { file, replaces: None, after, left: Left::Whole })
            }
            ReplayOp::SetXattr { file, name, value } => {
                let file = self.file(*file)?;
                self.untouched((file, b""), since)?;
                let now = self.tick();
                let inode = self.inodes.get_mut(&file).unwrap();
                inode.xattrs.insert(name.clone(), value.clone());
                inode.ctime = now.sec as u64;
                let after = self.after(file);
                (file, Update::SetXattr { file, name: name.clone(), value: value.clone(), after })
            }
            ReplayOp::DelXattr { file, name } => {
                let file = self.file(*file)?;
                self.untouched((file, b""), since)?;
                let now = self.tick();
                let inode = self.inodes.get_mut(&file).unwrap();
                inode.xattrs.remove(name);
                inode.ctime = now.sec as u64;
                let after = self.after(file);
                (file, Update::DelXattr { file, name: name.clone(), after })
            }
            ReplayOp::Noop => (FileId::default(), Update::Nothing),
        };
        let recno = self.record(origin, update);
        Ok(ReplayOutcome::Applied { file, recno })
    }
}

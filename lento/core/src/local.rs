//! Reading the KML: each record moves the local tree and, where it says something new, becomes an operation.
//!
//! Owns the translation from lower identities to objects. The local tree is exact for the record last read, because
//! users' updates and replays alike arrive here, in the one order in which they happened.

use crate::acl;
use crate::apply;
use crate::aside;
use crate::record::After;
use crate::record::KmlOrigin;
use crate::record::KmlRecord;
use crate::record::Left;
use crate::record::Update;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::Stored;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::Attributes;
use crate::types::Content;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Position;
use crate::types::Replaced;
use crate::types::Tag;
use crate::types::Time;
use crate::types::Version;

/// What one record means beyond the local tree.
#[derive(Debug, Default)]
pub struct Absorbed {
    /// The update in terms of objects; `None`: nothing happened.
    pub operation: Option<Operation>,
    /// The content that a user left in the operation's object has to be read.
    pub unread: Option<Unread>,
    /// A program was told that this content is durable.
    pub promised: bool,
    /// A lower file that waits in limbo, with its object.
    pub limbo: Option<(FileId, ObjectId)>,
    /// What no user did: a power cut took the record of a replay that put something aside, or took it from there.
    pub aside: Option<Operation>,
    /// A writer left this lower file, which no longer has a name.
    pub orphan: Option<(FileId, ObjectId)>,
    /// A user's record names this lower file, which no record made: it came to be behind Presto's back.
    pub unknown: Option<FileId>,
}

/// Content on disk that has no hash yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// Where it lies.
    pub file: FileId,
    /// Its version when it was complete.
    pub version: Version,
}

/// Moves the local tree by one record. `me`: replica and incarnation for what users make.
pub fn absorb(store: &mut dyn Store, me: (u64, u32), record: &KmlRecord) -> Result<Absorbed, StoreError> {
    let mut reading = Reading::new(store, me, record);
    match &record.update {
        Update::Make { dir, name, file, after, symlink, xattrs, dir_mtime } => {
            let Some(dir) = reading.object(*dir)? else { return reading.unknown(*dir) };
            if reading.is_user() && reading.view().entry(dir, name)?.is_some() {
                return reading.unknown(*file);
            }
            let object = reading.made(dir, name)?;
            reading.adopt(*file, object)?;
            let content = reading.content_of(after);
            let row = Object {
                attributes: after.attributes,
                symlink: symlink.clone(),
                content: Some(
                    content.as_ref().map_or(Stored::empty(), |c| Stored { hash: c.hash, size: c.size }),
                ),
                xattrs: xattrs.iter().cloned().collect(),
                file: *file,
                version: after.version,
                made: record.recno,
                written: record.recno,
                moved: false,
                missing: after.missing.is_some(),
            };
            let mut tree = reading.tree();
            tree.set_object(object, Some(&row))?;
            tree.set_entry(dir, name, Some(object))?;
            set_mtime(&mut tree, dir, *dir_mtime)?;
            let made = reading.says(
                object,
                OpKind::Create {
                    dir,
                    name: name.clone(),
                    attributes: after.attributes,
                    symlink: symlink.clone(),
                    content,
                    xattrs: xattrs.clone(),
                    dir_mtime: *dir_mtime,
                    seen: Position(0),
                },
            )?;
            Ok(reading.unless_aside(made, &[dir]))
        }
        Update::Link { dir, name, file, after, dir_mtime } => {
            let Some(dir) = reading.object(*dir)? else { return reading.unknown(*dir) };
            let Some(object) = reading.object(*file)? else { return reading.unknown(*file) };
            if reading.is_user()
                && (reading.view().object(object)?.is_none() || reading.view().entry(dir, name)?.is_some())
            {
                return reading.unknown(*file);
            }
            let mut tree = reading.tree();
            tree.set_entry(dir, name, Some(object))?;
            set_mtime(&mut tree, dir, *dir_mtime)?;
            set_version(&mut tree, object, after)?;
            let linked =
                reading.says(object, OpKind::Link { dir, name: name.clone(), dir_mtime: *dir_mtime })?;
            Ok(reading.unless_aside(linked, &[dir]))
        }
        Update::Remove { dir, name, file, last, limbo, dir_mtime } => {
            let Some(dir) = reading.object(*dir)? else { return reading.unknown(*dir) };
            let Some(object) = reading.view().entry(dir, name)? else {
                if reading.is_user() {
                    return reading.unknown(*file);
                }
                // A replay may be journaled once more as what it was: done.
                set_mtime(&mut reading.tree(), dir, *dir_mtime)?;
                return Ok(Absorbed::default());
            };
            // A directory goes when it is empty.
            let holds = !reading.view().children(object, 1)?.is_empty();
            if reading.is_user()
                && (holds
                    || !reading.is_known_as(object, *file)?
                    || reading.has_unknown_names(object, *last)?)
            {
                return reading.unknown(*file);
            }
            let before = reading.known_hash(object)?;
            let mut tree = reading.tree();
            tree.set_entry(dir, name, None)?;
            set_mtime(&mut tree, dir, *dir_mtime)?;
            let unknown = reading.lost_name(object, *last)?;
            let limbo = limbo.then_some((*file, object));
            let op = OpKind::Remove { dir, name: name.clone(), last: *last, before, dir_mtime: *dir_mtime };
            let removed = Absorbed { limbo, unknown, ..reading.says(object, op)? };
            Ok(reading.unless_aside(removed, &[dir]))
        }
        Update::Rename {
            from,
            from_name,
            to,
            to_name,
            after,
            replaced,
            replaced_last,
            replaced_limbo,
            exchange,
            from_mtime,
            to_mtime,
            file,
            ..
        } => {
            let Some(from) = reading.object(*from)? else { return reading.unknown(*from) };
            let Some(to) = reading.object(*to)? else { return reading.unknown(*to) };
            let there = reading.view().entry(to, to_name)?;
            if !reading.is_user() && there.is_some() && there == reading.object(*file)? {
                set_mtime(&mut reading.tree(), from, *from_mtime)?;
                set_mtime(&mut reading.tree(), to, *to_mtime)?;
                return Ok(Absorbed::default());
            }
            let Some(object) = reading.view().entry(from, from_name)? else {
                return reading.unknown(*file);
            };
            let target = reading.view().entry(to, to_name)?.filter(|target| *target != object);
            let replaces = replaced.map(|replaced| reading.object(replaced)).transpose()?.flatten();
            let survives = match target.filter(|_| !*exchange) {
                Some(target) => reading.has_unknown_names(target, *replaced_last)?,
                None => false,
            };
            if reading.is_user()
                && (replaces != target
                    || survives
                    || !reading.is_known_as(object, *file)?
                    || !reading.may_move((from, object), (to, target), *exchange)?)
            {
                return reading.unknown(*file);
            }
            let before = target.map(|t| reading.known_hash(t)).transpose()?.flatten();
            let mut tree = reading.tree();
            tree.set_entry(to, to_name, Some(object))?;
            tree.set_entry(from, from_name, target.filter(|_| *exchange))?;
            set_mtime(&mut tree, from, *from_mtime)?;
            set_mtime(&mut tree, to, *to_mtime)?;
            change(&mut tree, object, after, Mask::default(), |row| row.moved = true)?;
            let last = *replaced_last && !*exchange;
            let unknown = match target {
                Some(target) if *exchange => {
                    set_moved(&mut reading.tree(), target)?;
                    None
                }
                Some(target) => reading.lost_name(target, last)?,
                None => None,
            };
            let limbo = replaced.filter(|_| *replaced_limbo).zip(target);
            let op = OpKind::Rename {
                from,
                from_name: from_name.clone(),
                to,
                to_name: to_name.clone(),
                replaced: target.map(|object| Replaced { object, last, before }),
                exchange: *exchange,
                from_mtime: *from_mtime,
                to_mtime: *to_mtime,
            };
            let moved = Absorbed { limbo, unknown, ..reading.says(object, op)? };
            Ok(reading.unless_aside(moved, &[from, to]))
        }
        // From here on: a file that has lost its last name is nobody's but the descriptors' that still hold it.
        Update::SetAttr { file, mask, truncated, after } => {
            let Some(object) = reading.object(*file)? else { return Ok(Absorbed::default()) };
            if *truncated {
                return reading.content_changed(object, *file, after, Left::Whole);
            }
            set_attributes(&mut reading.tree(), object, *mask, after)?;
            if mask.0 == 0 {
                return Ok(Absorbed::default());
            }
            reading.says(object, OpKind::SetAttr { mask: *mask, attributes: after.attributes })
        }
        Update::Close { file, replaces, after, left } => {
            if *left == Left::Orphan {
                let object = reading.object(*file)?.unwrap_or_default();
                return Ok(Absorbed { orphan: Some((*file, object)), ..Absorbed::default() });
            }
            let Some(object) = reading.object(replaces.unwrap_or(*file))? else {
                return Ok(Absorbed::default());
            };
            if replaces.is_some() {
                // The old identity stays known: a writer may still hold the orphan.
                reading.adopt(*file, object)?;
            }
            reading.content_changed(object, *file, after, *left)
        }
        Update::SetXattr { file, name, value, after } => {
            let Some(object) = reading.object(*file)? else { return Ok(Absorbed::default()) };
            change(&mut reading.tree(), object, after, about_xattr(name), |row| {
                row.xattrs.insert(name.clone(), value.clone());
            })?;
            reading.says(object, OpKind::SetXattr { name: name.clone(), value: value.clone() })
        }
        Update::DelXattr { file, name, after } => {
            let Some(object) = reading.object(*file)? else { return Ok(Absorbed::default()) };
            change(&mut reading.tree(), object, after, about_xattr(name), |row| {
                row.xattrs.remove(name);
            })?;
            reading.says(object, OpKind::DelXattr { name: name.clone() })
        }
        Update::Touch { dir, mtime } => {
            let Some(dir) = reading.object(*dir)? else { return Ok(Absorbed::default()) };
            set_mtime(&mut reading.tree(), dir, *mtime)?;
            let attributes = Attributes { mtime: *mtime, ..Attributes::default() };
            reading.says(dir, OpKind::SetAttr { mask: Mask::MTIME, attributes })
        }
        Update::Nothing => Ok(Absorbed::default()),
    }
}

struct Reading<'a> {
    store: &'a mut dyn Store,
    record: &'a KmlRecord,
    id: OpId,
    replay: Option<(ObjectId, Option<Hash>)>,
}

impl<'a> Reading<'a> {
    fn new(store: &'a mut dyn Store, me: (u64, u32), record: &'a KmlRecord) -> Reading<'a> {
        let (id, replay) = match record.origin {
            KmlOrigin::User => (OpId(Tag { replica: me.0, incarnation: me.1, number: record.recno.0 }), None),
            KmlOrigin::Replay { record, object, hash, .. } => (record, Some((object, hash))),
        };
        Reading { store, record, id, replay }
    }

    fn tree(&mut self) -> Tree<'_> {
        Tree::new(self.store, Which::Local)
    }

    fn view(&self) -> View<'_> {
        View::new(self.store, Which::Local)
    }

    fn object(&self, file: FileId) -> Result<Option<ObjectId>, StoreError> {
        handle::get(self.store, file)
    }

    /// Whether this lower file is the object's, now or before it got another one.
    fn is_known_as(&self, object: ObjectId, file: FileId) -> Result<bool, StoreError> {
        let is_now = self.view().object(object)?.is_some_and(|row| row.file == file);
        Ok(is_now || self.object(file)? == Some(object))
    }

    /// An object loses the only name that is known, and it is not its last one: no record has told of the other, and it
    /// would come back under that as somebody else, with whatever is in its file.
    fn has_unknown_names(&self, object: ObjectId, last: bool) -> Result<bool, StoreError> {
        Ok(!last && self.view().names(object)?.len() <= 1)
    }

    /// A directory that is replaced is empty, and none goes into itself: else what stands between has moved unseen.
    fn may_move(
        &self,
        (from, object): (ObjectId, ObjectId),
        (to, target): (ObjectId, Option<ObjectId>),
        exchange: bool,
    ) -> Result<bool, StoreError> {
        let view = self.view();
        let is_within = |dir, object| {
            let is_dir = view.object(object)?.is_some_and(|row| row.attributes.is_dir());
            Ok::<_, StoreError>(is_dir && view.is_within(dir, object)?)
        };
        let makes_way = match target {
            Some(target) if exchange => !is_within(from, target)?,
            Some(target) => view.children(target, 1)?.is_empty(),
            None => true,
        };
        Ok(makes_way && !is_within(to, object)?)
    }

    fn is_user(&self) -> bool {
        self.replay.is_none()
    }

    fn adopt(&mut self, file: FileId, object: ObjectId) -> Result<(), StoreError> {
        handle::put(self.store, file, object)
    }

    /// Something made by a user is named by its record; something replayed, by the replay.
    fn new_object(&self) -> ObjectId {
        self.replay.map_or(ObjectId(self.id.0), |(object, _)| object)
    }

    /// The same for what is made in this directory under this name. A scrub finds what a replay made aside.
    fn made(&self, dir: ObjectId, name: &Name) -> Result<ObjectId, StoreError> {
        let aside = aside::object_of(name).filter(|_| dir == ObjectId::STAGING && self.is_user());
        let Some(object) = aside else { return Ok(self.new_object()) };
        Ok(if self.view().object(object)?.is_none() { object } else { self.new_object() })
    }

    /// What a scrub finds put aside, or missing there, was moved by a replay: nobody else has it there, and it is no update.
    fn unless_aside(&self, absorbed: Absorbed, dirs: &[ObjectId]) -> Absorbed {
        if !self.is_user() || !dirs.contains(&ObjectId::STAGING) {
            return absorbed;
        }
        Absorbed { aside: absorbed.operation, operation: None, limbo: None, ..absorbed }
    }

    fn says(&self, object: ObjectId, kind: OpKind) -> Result<Absorbed, StoreError> {
        let operation = Operation { id: self.id, time: self.record.time, object, kind };
        Ok(Absorbed { operation: Some(operation), ..Absorbed::default() })
    }

    /// A user's record that does not follow from those before it: something came to be behind Presto's back. It is left
    /// out, and a scrub tells what is there. Replays name only what is known.
    fn unknown(&self, file: FileId) -> Result<Absorbed, StoreError> {
        if self.is_user() {
            return Ok(Absorbed { unknown: Some(file), ..Absorbed::default() });
        }
        Err(StoreError(format!(
            "journal record {} names the lower file {}:{}, which no earlier record made",
            self.record.recno, file.ino, file.generation
        )))
    }

    fn content_of(&self, after: &After) -> Option<Content> {
        let hash = after.missing.or(self.replay.and_then(|(_, hash)| hash))?;
        Some(Content { hash, size: after.version.size, inline: None })
    }

    fn known_hash(&self, object: ObjectId) -> Result<Option<Hash>, StoreError> {
        let row = self.view().object(object)?;
        Ok(row
            .filter(|row| row.attributes.is_file())
            .map(|row| row.content.map_or(UNKNOWN, |content| content.hash)))
    }

    /// An object lost a name: without any it leaves the local tree. The answer: its file, if that has a name of which no
    /// record told, or lacks one.
    fn lost_name(&mut self, object: ObjectId, last: bool) -> Result<Option<FileId>, StoreError> {
        let Some(row) = self.view().object(object)? else { return Ok(None) };
        apply::bury(&mut self.tree(), object)?;
        let gone = self.view().object(object)?.is_none();
        if !gone {
            // That moved its ctime, and the record does not say to what: it is not known any more.
            let version = Version { ctime: Time::default(), ..row.version };
            self.tree().set_object(object, Some(&Object { version, ..row.clone() }))?;
        }
        // A writer may hold what a replay removed; its record then comes by that identity, as an orphan.
        if gone && (self.is_user() || !row.attributes.is_file()) {
            handle::delete(self.store, row.file)?;
        }
        Ok((gone != last && self.is_user()).then_some(row.file))
    }

    fn content_changed(
        &mut self,
        object: ObjectId,
        file: FileId,
        after: &After,
        left: Left,
    ) -> Result<Absorbed, StoreError> {
        let Some(mut row) = self.view().object(object)? else { return Ok(Absorbed::default()) };
        let before = row.content;
        let content = self.content_of(after);
        row.content = content.as_ref().map(|c| Stored { hash: c.hash, size: c.size });
        row.version = after.version;
        row.written = self.record.recno;
        row.file = file;
        row.missing = after.missing.is_some();
        let kept = row.attributes;
        row.attributes = after.attributes;
        apply::drop_privileges(&mut row);
        row.attributes.mode = after.attributes.mode;
        if self.is_user() {
            // It is about the content, and about what a store takes away with it.
            let mode = less_privileged(kept.mode, after.attributes.mode);
            row.attributes = Attributes { mode, mtime: after.attributes.mtime, ..kept };
        }
        self.tree().set_object(object, Some(&row))?;
        let unread = content.is_none().then_some(Unread { file, version: after.version });
        // Where the content before was never read, `Cml` and the log fill in what it turned out to be.
        let before = match left {
            Left::Unvouched => TORN,
            Left::Whole | Left::Orphan | Left::Synced => before.map_or(UNKNOWN, |content| content.hash),
        };
        let content = content.unwrap_or(Content { hash: UNKNOWN, size: after.version.size, inline: None });
        let op = OpKind::Close { before, content, mtime: after.attributes.mtime };
        let absorbed = Absorbed { unread, promised: left == Left::Synced, ..self.says(object, op)? };
        if self.is_user() && after.missing.is_some() {
            // A scrub has found what a replay left: that a content is not here is nobody's update.
            return Ok(Absorbed { aside: absorbed.operation, operation: None, ..absorbed });
        }
        Ok(absorbed)
    }
}

/// Set-user-id and set-group-id.
const PRIVILEGES: u32 = 0o6000;

/// Stands for a hash that is not known. No content is sent with it; that a record found a content which nobody had read is
/// told so.
pub const UNKNOWN: Hash = Hash([0; 32]);

/// What a content that may be torn was written over: nothing that anybody has, so that it never takes the place of a good
/// one. The server keeps it as a conflict, and base comes back (rule 10).
pub const TORN: Hash = Hash([0xff; 32]);

fn set_mtime(tree: &mut Tree<'_>, dir: ObjectId, mtime: Time) -> Result<(), StoreError> {
    let Some(mut row) = tree.view().object(dir)? else { return Ok(()) };
    row.attributes.mtime = mtime;
    tree.set_object(dir, Some(&row))
}

fn set_moved(tree: &mut Tree<'_>, object: ObjectId) -> Result<(), StoreError> {
    let Some(mut row) = tree.view().object(object)? else { return Ok(()) };
    row.moved = true;
    tree.set_object(object, Some(&row))
}

fn set_version(tree: &mut Tree<'_>, object: ObjectId, after: &After) -> Result<(), StoreError> {
    change(tree, object, after, Mask::default(), |_| ())
}

fn set_attributes(
    tree: &mut Tree<'_>,
    object: ObjectId,
    mask: Mask,
    after: &After,
) -> Result<(), StoreError> {
    let owner = mask.has(Mask::UID) || mask.has(Mask::GID);
    change(tree, object, after, mask, |row| {
        let mode = row.attributes.mode;
        apply::set_attributes(row, mask, &after.attributes);
        // A new owner costs privilege bits.
        row.attributes.mode = if owner { less_privileged(mode, after.attributes.mode) } else { mode };
    })
}

/// The mode, less what an operation that is not about it has taken away.
fn less_privileged(mode: u32, after: u32) -> u32 {
    mode & !PRIVILEGES | mode & after & PRIVILEGES
}

/// A record vouches for what it is about: what else differs by then has a record of its own, or is found by a scrub.
fn change(
    tree: &mut Tree<'_>,
    object: ObjectId,
    after: &After,
    about: Mask,
    change: impl FnOnce(&mut Object),
) -> Result<(), StoreError> {
    let Some(mut row) = tree.view().object(object)? else { return Ok(()) };
    change(&mut row);
    let (kept, new) = (row.attributes, after.attributes);
    row.attributes = Attributes {
        mode: if about.has(Mask::MODE) { new.mode } else { kept.mode },
        uid: if about.has(Mask::UID) { new.uid } else { kept.uid },
        gid: if about.has(Mask::GID) { new.gid } else { kept.gid },
        mtime: if about.has(Mask::MTIME) { new.mtime } else { kept.mtime },
        rdev: kept.rdev,
    };
    row.version.ctime = after.version.ctime;
    if about.has(Mask::MTIME) {
        row.version.mtime = after.version.mtime;
    }
    tree.set_object(object, Some(&row))
}

/// What a change of this extended attribute changes besides.
fn about_xattr(name: &Name) -> Mask {
    if name == acl::ACCESS { Mask::MODE } else { Mask::default() }
}

//! One dirty facet becomes at most a few replays that make the lower tree equal to base there.
//!
//! Objects that are in each other's way pass through the hidden staging directory. Nothing is planned for a facet with
//! a pending record: the server's verdict decides about it first.

use super::Client;
use crate::apply;
use crate::aside;
use crate::context::Context;
use crate::facet::Facet;
use crate::facet::pending;
use crate::io::Busy;
use crate::io::FetchItem;
use crate::io::ReplayContent;
use crate::io::ReplayItem;
use crate::io::ReplayOp;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::Tree;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Mask;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::Tag;
use crate::types::Time;
use crate::types::Version;

/// What came of it.
#[derive(Debug)]
pub(super) enum Repair {
    /// Nothing to do.
    Equal,
    /// Replays are planned.
    Planned,
    /// Something pending or another facet comes first.
    Blocked,
    /// Its directory does not exist here yet.
    NeedsDir(ObjectId),
    /// A content must be at hand first.
    NeedsContent(FetchItem),
}

/// What of an object has to be here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// All of it.
    Content,
    /// Everything but its content.
    Tree,
}

/// In what two states of an object agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Same {
    All,
    Content,
    Nothing,
}

/// Compares what travels.
pub(super) fn same_state(here: &Object, base: &Object) -> Same {
    let is_file = base.attributes.is_file();
    if is_file && here.content.map(|c| c.hash) != base.content.map(|c| c.hash) {
        return Same::Nothing;
    }
    if here.attributes == base.attributes && here.xattrs == base.xattrs { Same::All } else { Same::Content }
}

pub(super) type Entry = (ObjectId, Name);

impl Client {
    pub(super) fn repair(&mut self, ctx: &mut Context<'_>, facet: &Facet) -> Result<Repair, StoreError> {
        if pending::any(ctx.store, facet)? {
            return Ok(Repair::Blocked);
        }
        match facet {
            Facet::Entry(dir, name) => self.repair_entry(ctx, *dir, name),
            Facet::Object(object) => self.repair_object(ctx, *object),
        }
    }

    fn planned<'a>(&'a self, ctx: &'a Context<'_>) -> View<'a> {
        View::planned(ctx.store, &self.replaying.overlay)
    }

    fn repair_entry(
        &mut self,
        ctx: &mut Context<'_>,
        dir: ObjectId,
        name: &Name,
    ) -> Result<Repair, StoreError> {
        let base = View::new(ctx.store, Which::Base);
        let want = base.entry(dir, name)?;
        let have = self.planned(ctx).entry(dir, name)?;
        if want == have {
            return Ok(Repair::Equal);
        }
        if [want, have].into_iter().flatten().any(|object| self.work.is_busy(object)) {
            return Ok(Repair::Blocked);
        }
        if want.is_some() && self.planned(ctx).object(dir)?.is_none() && ctx.fixed_file(dir).is_none() {
            return Ok(Repair::NeedsDir(dir));
        }
        match (have, want) {
            (Some(there), want) => self.make_way(ctx, (dir, name.clone()), there, want),
            (None, Some(want)) => self.bring(ctx, (dir, name.clone()), want, None),
            (None, None) => Ok(Repair::Equal),
        }
    }

    /// `there` stands at an entry where base has something else or nothing.
    fn make_way(
        &mut self,
        ctx: &mut Context<'_>,
        at: Entry,
        there: ObjectId,
        want: Option<ObjectId>,
    ) -> Result<Repair, StoreError> {
        let base = View::new(ctx.store, Which::Base);
        let lives = base.object(there)?.is_some();
        let names = self.planned(ctx).names(there)?;
        let state = self.planned(ctx).object(there)?.unwrap_or_default();
        if lives && names.len() == 1 {
            return self.move_on(ctx, at, there);
        }
        // A name goes: with the last one the object goes, which nothing pending may still need.
        if names.len() == 1 && pending::any(ctx.store, &Facet::Object(there))? {
            return Ok(Repair::Blocked);
        }
        if state.attributes.is_dir() && !self.planned(ctx).children(there, 1)?.is_empty() {
            return Ok(Repair::Blocked);
        }
        if let Some(want) = want
            && !state.attributes.is_dir()
            && base.object(want)?.is_some_and(|object| !object.attributes.is_dir())
        {
            return self.bring(ctx, at, want, Some(there));
        }
        self.plan_remove(ctx, &at, there)?;
        match want {
            Some(want) => self.bring(ctx, at, want, None),
            None => Ok(Repair::Planned),
        }
    }

    /// A living object under a name that is not its own any more: to its place if that is free, else aside.
    fn move_on(&mut self, ctx: &mut Context<'_>, at: Entry, object: ObjectId) -> Result<Repair, StoreError> {
        let base = View::new(ctx.store, Which::Base);
        let homes = base.names(object)?;
        for home in homes {
            let free = self.planned(ctx).entry(home.0, &home.1)?.is_none();
            let reachable = ctx.fixed_file(home.0).is_some() || self.planned(ctx).object(home.0)?.is_some();
            let own = pending::any(ctx.store, &Facet::Entry(home.0, home.1.clone()))?;
            let cycle = self.planned(ctx).is_within(home.0, object)?;
            if free && reachable && !own && !cycle {
                self.plan_rename(ctx, &at, &home, object, None)?;
                let facet = Facet::Entry(at.0, at.1);
                return self.repair(ctx, &facet);
            }
        }
        if at.0 == ObjectId::STAGING {
            return Ok(Repair::Blocked);
        }
        let aside = (ObjectId::STAGING, aside::name_of(object));
        self.plan_rename(ctx, &at, &aside, object, None)?;
        let facet = Facet::Entry(at.0, at.1);
        self.repair(ctx, &facet)
    }

    /// Base has `want` at an entry that is free here, or holds `replaced`, which may go.
    fn bring(
        &mut self,
        ctx: &mut Context<'_>,
        at: Entry,
        want: ObjectId,
        replaced: Option<ObjectId>,
    ) -> Result<Repair, StoreError> {
        let base = View::new(ctx.store, Which::Base);
        let Some(state) = base.object(want)? else { return Ok(Repair::Blocked) };
        let names = self.planned(ctx).names(want)?;
        if names.is_empty() {
            return self.make(ctx, at, want, &state, replaced);
        }
        // Nobody sees it under this name before its content is there, least of all in the place of an older one.
        let here = self.planned(ctx).object(want)?;
        if here.is_some_and(|here| same_state(&here, &state) == Same::Nothing) {
            match self.repair(ctx, &Facet::Object(want))? {
                Repair::Equal | Repair::Planned => {}
                later => return Ok(later),
            }
        }
        let base = View::new(ctx.store, Which::Base);
        for from in &names {
            let right = base.entry(from.0, &from.1)? == Some(want);
            let own = pending::any(ctx.store, &Facet::Entry(from.0, from.1.clone()))?;
            if !right && !own && !self.planned(ctx).is_within(at.0, want)? {
                self.plan_rename(ctx, from, &at, want, replaced)?;
                return Ok(Repair::Planned);
            }
        }
        if state.attributes.is_dir() {
            return Ok(Repair::Blocked);
        }
        if let Some(replaced) = replaced {
            self.plan_remove(ctx, &at, replaced)?;
        }
        self.plan_link(ctx, &at, want)?;
        Ok(Repair::Planned)
    }

    fn make(
        &mut self,
        ctx: &mut Context<'_>,
        at: Entry,
        want: ObjectId,
        state: &Object,
        replaced: Option<ObjectId>,
    ) -> Result<Repair, StoreError> {
        let need = self.need(ctx, want, &at)?;
        let content = match self.content(want, state, need) {
            Ok(content) => content,
            Err(item) => return Ok(Repair::NeedsContent(item)),
        };
        let state = &Object { missing: matches!(content, Some(ReplayContent::Missing(_))), ..state.clone() };
        // Over something: whole beside it first, then in one step.
        let first = if replaced.is_some() { (ObjectId::STAGING, aside::name_of(want)) } else { at.clone() };
        let item = self.item(
            ctx,
            want,
            state.content.filter(|_| state.attributes.is_file()).map(|c| c.hash),
            ReplayOp::Make {
                dir: self.replaying.reference(ctx, first.0)?,
                name: first.1.clone(),
                attributes: state.attributes,
                symlink: state.symlink.clone(),
                content,
                xattrs: state.xattrs.clone().into_iter().collect(),
            },
        );
        let item = ReplayItem { parent_mtime: self.dir_time(ctx, first.0)?, ..item };
        self.replaying.push(item);
        let mtime = self.dir_time(ctx, first.0)?;
        let mut tree = Tree::planned(ctx.store, &mut self.replaying.overlay);
        tree.set_object(want, Some(state))?;
        tree.set_entry(first.0, &first.1, Some(want))?;
        set_time(&mut tree, first.0, mtime)?;
        if replaced.is_some() {
            self.plan_rename(ctx, &first, &at, want, replaced)?;
        }
        Ok(Repair::Planned)
    }

    /// Bytes for an object, or what has to be fetched.
    fn content(
        &mut self,
        object: ObjectId,
        state: &Object,
        need: Need,
    ) -> Result<Option<ReplayContent>, FetchItem> {
        let Some(content) = state.content.filter(|content| state.attributes.is_file() && content.size > 0)
        else {
            return Ok(None);
        };
        if need == Need::Tree {
            return Ok(Some(ReplayContent::Missing(content.size)));
        }
        if let Some(bytes) = self.contents.get(&content.hash) {
            return Ok(Some(ReplayContent::Inline(bytes.clone())));
        }
        // It goes into the tree by rename: another object with the same content fetches its own.
        if let Some(name) = self.staged.remove(&(content.hash, object)) {
            return Ok(Some(ReplayContent::Staged(name, content.size)));
        }
        Err(FetchItem { object, hash: content.hash, size: content.size })
    }

    fn repair_object(&mut self, ctx: &mut Context<'_>, object: ObjectId) -> Result<Repair, StoreError> {
        let base = View::new(ctx.store, Which::Base);
        let (Some(want), Some(have)) = (base.object(object)?, self.planned(ctx).object(object)?) else {
            return Ok(Repair::Equal);
        };
        match same_state(&have, &want) {
            Same::All => Ok(Repair::Equal),
            Same::Nothing => self.install(ctx, object, &want),
            Same::Content => {
                self.plan_attributes(ctx, object, &have, &want)?;
                Ok(Repair::Planned)
            }
        }
    }

    fn install(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        want: &Object,
    ) -> Result<Repair, StoreError> {
        if self.work.is_busy(object) {
            return Ok(Repair::Blocked);
        }
        let names = self.planned(ctx).names(object)?;
        let mut several = names.iter();
        let Some((dir, name)) = several.next().cloned() else { return Ok(Repair::Equal) };
        // A file of several names is overwritten in place, under the eyes of those who have it open.
        let need = match several.next() {
            Some(_) => Need::Content,
            None => self.need(ctx, object, &(dir, name.clone()))?,
        };
        let content = match self.content(object, want, need) {
            Ok(content) => content.unwrap_or(ReplayContent::Inline(Vec::new())),
            Err(item) => return Ok(Repair::NeedsContent(item)),
        };
        let want = &Object { missing: matches!(content, ReplayContent::Missing(_)), ..want.clone() };
        let op = ReplayOp::Install {
            file: self.replaying.reference(ctx, object)?,
            expect_version: self.replaying.version(ctx, object)?,
            content,
            attributes: want.attributes,
            xattrs: want.xattrs.clone().into_iter().collect(),
            dir: self.replaying.reference(ctx, dir)?,
            name,
            busy: Busy::Wait,
        };
        let item = self.item(ctx, object, want.content.map(|c| c.hash), op);
        self.replaying.push(item);
        Tree::planned(ctx.store, &mut self.replaying.overlay).set_object(object, Some(want))?;
        Ok(Repair::Planned)
    }

    fn plan_attributes(
        &mut self,
        ctx: &mut Context<'_>,
        object: ObjectId,
        have: &Object,
        want: &Object,
    ) -> Result<(), StoreError> {
        let file = self.replaying.reference(ctx, object)?;
        let mut ops = Vec::new();
        for name in have.xattrs.keys().filter(|name| !want.xattrs.contains_key(*name)) {
            ops.push(ReplayOp::DelXattr { file, name: name.clone() });
        }
        let mut mask = Mask::default();
        let (a, b) = (&have.attributes, &want.attributes);
        for (bit, differs) in [
            (Mask::UID, a.uid != b.uid),
            (Mask::GID, a.gid != b.gid),
            (Mask::MODE, a.mode != b.mode || a.uid != b.uid || a.gid != b.gid),
            (Mask::MTIME, a.mtime != b.mtime),
        ] {
            if differs {
                mask = mask.with(bit);
            }
        }
        if mask != Mask::default() {
            ops.push(ReplayOp::SetAttr { file, mask, attributes: want.attributes });
        }
        for (name, value) in want.xattrs.iter().filter(|(name, value)| have.xattrs.get(*name) != Some(value))
        {
            ops.push(ReplayOp::SetXattr { file, name: name.clone(), value: value.clone() });
        }
        for op in ops {
            let item = self.item(ctx, object, None, op);
            self.replaying.push(item);
        }
        let planned = Object { attributes: want.attributes, xattrs: want.xattrs.clone(), ..have.clone() };
        Tree::planned(ctx.store, &mut self.replaying.overlay).set_object(object, Some(&planned))?;
        self.replaying.changed(object);
        Ok(())
    }

    fn plan_remove(&mut self, ctx: &mut Context<'_>, at: &Entry, object: ObjectId) -> Result<(), StoreError> {
        let op = ReplayOp::Remove {
            dir: self.replaying.reference(ctx, at.0)?,
            name: at.1.clone(),
            expect: self.replaying.reference(ctx, object)?,
            expect_version: self.file_version(ctx, object)?,
            busy: Busy::Wait,
        };
        let time = self.dir_time(ctx, at.0)?;
        let item = ReplayItem { parent_mtime: time, ..self.item(ctx, object, None, op) };
        self.replaying.push(item);
        self.replaying.changed(object);
        let mut tree = Tree::planned(ctx.store, &mut self.replaying.overlay);
        tree.set_entry(at.0, &at.1, None)?;
        apply::bury(&mut tree, object)?;
        set_time(&mut tree, at.0, time)
    }

    fn plan_link(&mut self, ctx: &mut Context<'_>, at: &Entry, object: ObjectId) -> Result<(), StoreError> {
        let op = ReplayOp::Link {
            file: self.replaying.reference(ctx, object)?,
            dir: self.replaying.reference(ctx, at.0)?,
            name: at.1.clone(),
        };
        let time = self.dir_time(ctx, at.0)?;
        let item = ReplayItem { parent_mtime: time, ..self.item(ctx, object, None, op) };
        self.replaying.push(item);
        self.replaying.changed(object);
        let mut tree = Tree::planned(ctx.store, &mut self.replaying.overlay);
        tree.set_entry(at.0, &at.1, Some(object))?;
        set_time(&mut tree, at.0, time)
    }

    fn plan_rename(
        &mut self,
        ctx: &mut Context<'_>,
        from: &Entry,
        to: &Entry,
        object: ObjectId,
        replaced: Option<ObjectId>,
    ) -> Result<(), StoreError> {
        let op = ReplayOp::Rename {
            from: self.replaying.reference(ctx, from.0)?,
            from_name: from.1.clone(),
            expect: self.replaying.reference(ctx, object)?,
            to: self.replaying.reference(ctx, to.0)?,
            to_name: to.1.clone(),
            replaced: replaced.map(|r| self.replaying.reference(ctx, r)).transpose()?,
            replaced_version: match replaced {
                Some(replaced) => self.file_version(ctx, replaced)?,
                None => None,
            },
            exchange: false,
            busy: Busy::Wait,
        };
        let times = (self.dir_time(ctx, from.0)?, self.dir_time(ctx, to.0)?);
        let item = ReplayItem {
            parent_mtime: times.0,
            target_parent_mtime: times.1,
            ..self.item(ctx, object, None, op)
        };
        self.replaying.push(item);
        self.replaying.changed(object);
        let mut tree = Tree::planned(ctx.store, &mut self.replaying.overlay);
        tree.set_entry(to.0, &to.1, Some(object))?;
        tree.set_entry(from.0, &from.1, None)?;
        if let Some(replaced) = replaced {
            apply::bury(&mut tree, replaced)?;
        }
        set_time(&mut tree, from.0, times.0)?;
        set_time(&mut tree, to.0, times.1)
    }

    fn file_version(&self, ctx: &Context<'_>, object: ObjectId) -> Result<Option<Version>, StoreError> {
        if self.planned(ctx).object(object)?.is_some_and(|state| state.attributes.is_file()) {
            return self.replaying.version(ctx, object);
        }
        Ok(None)
    }

    /// The time a directory has in base, unless this node has pending records in it.
    fn dir_time(&self, ctx: &Context<'_>, dir: ObjectId) -> Result<Option<Time>, StoreError> {
        if dir == ObjectId::STAGING || pending::any(ctx.store, &Facet::Object(dir))? {
            return Ok(None);
        }
        Ok(View::new(ctx.store, Which::Base).object(dir)?.map(|state| state.attributes.mtime))
    }

    fn item(
        &self,
        ctx: &Context<'_>,
        object: ObjectId,
        hash: Option<crate::types::Hash>,
        op: ReplayOp,
    ) -> ReplayItem {
        let record = OpId(Tag { replica: 0, incarnation: 0, number: ctx.meta.position.0 });
        ReplayItem { record, object, hash, verdict: 0, parent_mtime: None, target_parent_mtime: None, op }
    }
}

fn set_time(tree: &mut Tree<'_>, dir: ObjectId, time: Option<Time>) -> Result<(), StoreError> {
    let Some(time) = time else { return Ok(()) };
    let Some(mut state) = tree.view().object(dir)? else { return Ok(()) };
    state.attributes.mtime = time;
    tree.set_object(dir, Some(&state))
}

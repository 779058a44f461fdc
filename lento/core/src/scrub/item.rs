//! Questions to Presto about what looks different.

use crate::context::Context;
use crate::io::Listed;
use crate::io::ScrubItem;
use crate::server::torn;
use crate::store::StoreError;
use crate::tree::Object;
use crate::tree::View;
use crate::tree::Which;
use crate::tree::handle;
use crate::types::FileId;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Time;

use super::suspect::Suspect;
use super::suspect::Way;
use super::suspect::What;

/// Whether it is worth a closer look. A directory's change time moves with its names and says nothing.
pub(super) fn looks_different(row: &Object, entry: &Listed) -> bool {
    let (a, b) = (&row.attributes, &entry.attributes);
    let attributes = (a.mode, a.uid, a.gid, a.rdev, a.mtime) != (b.mode, b.uid, b.gid, b.rdev, b.mtime);
    attributes
        || row.version.ctime != entry.version.ctime
        || row.version.size != entry.version.size && a.is_file()
}

/// The lower file of an object.
pub(super) fn file_of(ctx: &Context<'_>, object: ObjectId) -> Result<Option<FileId>, StoreError> {
    if let Some(file) = ctx.fixed_file(object) {
        return Ok(Some(file));
    }
    Ok(View::new(ctx.store, Which::Local).object(object)?.map(|row| row.file))
}

/// The question about an object; `None` where nothing is known of it.
pub(super) fn object(ctx: &Context<'_>, object: ObjectId) -> Result<Option<ScrubItem>, StoreError> {
    let Some(mut row) = View::new(ctx.store, Which::Local).object(object)? else { return Ok(None) };
    // That the content is not the volume's is known.
    if torn::is_torn(ctx.store, object)? {
        row.attributes.mtime = row.version.mtime;
    }
    // The time of a root that nobody has changed is not known; only one that is adopted comes with a meaning.
    if object == ObjectId::ROOT && row.attributes.mtime == Time::default() && !ctx.meta.adopting {
        return Ok(None);
    }
    let file = ctx.fixed_file(object).unwrap_or(row.file);
    let xattrs = row.xattrs.into_iter().collect();
    let missing = row.content.filter(|_| row.missing).map(|content| content.hash);
    Ok(Some(ScrubItem::Object { file, expect: row.attributes, size: row.version.size, xattrs, missing }))
}

/// The question about a name, `None` if what was listed there is what is known; and whether it has to wait, since what is
/// known there may have moved: that is told at its new place first.
pub(super) fn entry(
    ctx: &Context<'_>,
    (dir, name): (ObjectId, &Name),
    listed: Option<FileId>,
    suspect: &Suspect,
) -> Result<(bool, Option<ScrubItem>), StoreError> {
    let view = View::new(ctx.store, Which::Local);
    let Some(dir_file) = file_of(ctx, dir)? else { return Ok((false, None)) };
    let row = view.at(dir, name)?;
    let object = row.as_ref().map(|(object, _)| *object);
    let expect = row.as_ref().map(|(_, row)| row.file);
    let expect_dir = row.as_ref().is_some_and(|(_, row)| row.attributes.is_dir());
    let expect_file = row.as_ref().is_some_and(|(_, row)| row.attributes.is_file());
    let expect_last = match object {
        Some(object) => view.names(object)?.len() <= 1,
        None => false,
    };
    let (mut known, mut may_exchange) = (None, false);
    if let Some(file) = listed.filter(|file| Some(*file) != expect)
        && let Some(elsewhere) = handle::get(ctx.store, file)?
        && view.object(elsewhere)?.is_some_and(|row| row.file == file)
        && let names = view.names(elsewhere)?
        && let Some((from, from_name)) = names.first().cloned()
        && let Some(from_file) = file_of(ctx, from)?
    {
        known = Some((from_file, from_name));
        may_exchange = match object.filter(|_| names.len() == 1 && expect_last) {
            Some(object) => may_change_places(&view, (from, elsewhere), (dir, object))?,
            None => false,
        };
    }
    if expect.is_some() && expect == listed {
        return Ok((false, None));
    }
    let name = name.clone();
    let (dir, left) = (dir_file, suspect.way == Way::Below);
    let item = ScrubItem::Entry {
        dir,
        name,
        expect,
        expect_dir,
        expect_file,
        expect_last,
        listed,
        known,
        left,
        // Whether it is gone is all that is asked then.
        may_exchange: may_exchange && suspect.way != Way::Verify,
        given_up: suspect.is_given_up(),
    };
    Ok((expect_last, Some(item)))
}

/// Whether two objects may change places: neither goes into itself, and replays do not look at what they have put aside.
fn may_change_places(
    view: &View<'_>,
    (from, one): (ObjectId, ObjectId),
    (to, other): (ObjectId, ObjectId),
) -> Result<bool, StoreError> {
    let aside = [from, to].contains(&ObjectId::STAGING);
    Ok(!aside && !view.is_within(from, other)? && !view.is_within(to, one)?)
}

/// For people.
pub(super) fn path(ctx: &Context<'_>, what: &What) -> Result<String, StoreError> {
    let view = View::new(ctx.store, Which::Local);
    match what {
        What::Entry(dir, name, _) => view.path_in(*dir, name),
        What::Object(object) => view.path(*object),
    }
}

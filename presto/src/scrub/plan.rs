//! What a batch asks, checked and typed: nothing past this file reads the wire.

use std::collections::BTreeMap;

use intermezzo_channel::v1;
use intermezzo_channel::v1::scrub_item::What;
use intermezzo_kml::record::{FileId, Time};

use crate::channel::{convert, entry_name};
use crate::lower::missing::Hash;
use crate::lower::xattr::HIDDEN;

/// Most items of one batch.
pub const MAX_ITEMS: usize = 65_536;

/// One checked item.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A name and what it leads to.
    Entry(Entry),
    /// An object and what it is like.
    Object(Object),
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub dir: FileId,
    pub name: Vec<u8>,
}

/// What Lento believes to be at a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub file: FileId,
    pub is_dir: bool,
    pub is_file: bool,
    /// It has no other name.
    pub is_last: bool,
}

/// An entry to compare.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub at: Place,
    pub expect: Option<Expected>,
    /// What was listed here: anything else has to be listed first.
    pub listed: Option<FileId>,
    /// Another name by which Lento knows that.
    pub known: Option<Place>,
    /// The directory has left the tree: nothing is here.
    pub left: bool,
    /// What was listed and what is expected may be told to have changed places.
    pub may_exchange: bool,
    /// What is expected was looked for everywhere, and is gone.
    pub given_up: bool,
}

/// An object to compare.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub file: FileId,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    pub size: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The content that it lacks.
    pub missing: Option<Hash>,
}

/// An item that says nothing that could be compared.
#[derive(Debug, thiserror::Error)]
#[error("malformed item: {0}")]
pub(super) struct Malformed(&'static str);

impl TryFrom<v1::ScrubItem> for Item {
    type Error = Malformed;

    fn try_from(item: v1::ScrubItem) -> Result<Item, Malformed> {
        match item.what.ok_or(Malformed("nothing to compare"))? {
            What::Entry(entry) => Ok(Item::Entry(self::entry(entry)?)),
            What::Object(object) => Ok(Item::Object(self::object(object)?)),
        }
    }
}

fn entry(entry: v1::ScrubEntry) -> Result<Entry, Malformed> {
    let at = place(entry.dir.as_ref(), &entry.name)?;
    let expect = entry.expect.as_ref().map(|expect| {
        Ok(Expected {
            file: file(Some(expect))?,
            is_dir: entry.expect_dir,
            is_file: entry.expect_file,
            is_last: entry.expect_last,
        })
    });
    let listed = entry.listed.as_ref().map(|listed| file(Some(listed))).transpose()?;
    let known = entry.known_dir.as_ref().map(|known_dir| {
        let there = place(Some(known_dir), &entry.known_name)?;
        if (there.dir, &there.name) == (at.dir, &at.name) {
            return Err(Malformed("what is known to be here is what to expect"));
        }
        Ok(there)
    });
    Ok(Entry {
        expect: expect.transpose()?,
        listed,
        known: known.transpose()?,
        left: entry.left,
        may_exchange: entry.may_exchange,
        given_up: entry.given_up,
        at,
    })
}

fn object(object: v1::ScrubObject) -> Result<Object, Malformed> {
    let expect = object.expect.ok_or(Malformed("no attributes to expect"))?;
    let mtime = expect.mtime.as_ref().and_then(convert::time).ok_or(Malformed("no modification time"))?;
    let xattrs = object.xattrs.into_iter().map(|xattr| (xattr.name.to_vec(), xattr.value.to_vec()));
    Ok(Object {
        file: file(object.file.as_ref())?,
        mode: expect.mode,
        uid: expect.uid,
        gid: expect.gid,
        mtime,
        size: object.size,
        xattrs: xattrs.filter(|(name, _)| !name.starts_with(HIDDEN)).collect(),
        missing: missing(&object.missing)?,
    })
}

fn missing(hash: &[u8]) -> Result<Option<Hash>, Malformed> {
    match Hash::try_from(hash) {
        Ok(hash) => Ok(Some(hash)),
        Err(_) if hash.is_empty() => Ok(None),
        Err(_) => Err(Malformed("hash is not 32 bytes")),
    }
}

fn place(dir: Option<&v1::FileId>, name: &[u8]) -> Result<Place, Malformed> {
    if !entry_name(name) {
        return Err(Malformed("not the name of an entry"));
    }
    Ok(Place { dir: file(dir)?, name: name.to_vec() })
}

fn file(id: Option<&v1::FileId>) -> Result<FileId, Malformed> {
    id.map(convert::file_id).filter(|id| !id.is_none()).ok_or(Malformed("no identity"))
}

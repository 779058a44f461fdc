//! The CML: this node's own records that have no verdict yet, in recno order, and their special treatments.
//!
//! A record may be treated only while it is certain that the server has not received it: beyond the *frozen* mark.
//! Treatments fold a later record into an earlier one of the same object, which is sound because no replay touches a
//! facet with a pending record: what the later one found on disk is what the earlier one left there (rule 7).

mod process;
mod read;
mod settle;

pub use read::AfterRead;
pub use settle::Settled;
pub use settle::content_part;

use crate::facet::pending;
use crate::io::Output;
use crate::local::TORN;
use crate::local::UNKNOWN;
use crate::local::Unread;
use crate::promise;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Content;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use crate::types::Recno;
use crate::types::Replaced;
use crate::types::Ticket;
use crate::types::Time;
use crate::types::Version;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;

/// Frozen, as long as nobody has said how far the journal goes.
const ALL: Recno = Recno(u64::MAX);

/// Where the end of what is sealed is noted.
const SEALED: &[u8] = b"sealed";

/// One pending record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What will be sent; contents are filled in when they are read.
    pub op: Operation,
    /// Where its content lies on this node.
    pub slot: Option<Slot>,
}

impl Row {
    /// Bytes of content on this node's disk that it stands for.
    pub fn bytes(&self) -> u64 {
        self.slot.map_or(0, |slot| slot.version.size)
    }

    /// The content that it was last sent with; `None`: this one never was, as far as this store knows.
    fn sent_with(&self) -> Option<Hash> {
        content_of(&self.op).map(|content| content.hash).filter(|hash| *hash != UNKNOWN)
    }

    /// A newer content takes the place of what was sent.
    fn forget_content(&mut self) {
        match &mut self.op.kind {
            OpKind::Create { content, .. } => *content = None,
            OpKind::Close { content, .. } => content.hash = UNKNOWN,
            _ => {}
        }
    }
}

/// How much is pending, so that nobody has to count rows to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// A content on this node's disk that a record stands for. It is read as late as possible, so that the newest content
/// travels in the place of the oldest close (rule 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The lower file, in the tree or in limbo.
    pub file: FileId,
    /// Its version at the newest close that this record stands for; once the record is sent, that of the content that went.
    pub version: Version,
    /// That close.
    pub latest: Recno,
}

impl Slot {
    fn new(unread: Unread, latest: Recno) -> Slot {
        Slot { file: unread.file, version: unread.version, latest }
    }

    /// The version that its newest close left, as this node's journal tells it; `None`: there is a later content.
    fn left(&self, store: &dyn Store, object: ObjectId) -> Result<Option<Version>, StoreError> {
        let row = View::new(store, Which::Local).object(object)?;
        Ok(row.filter(|row| row.written == self.latest).map(|row| row.version))
    }
}

/// What is known in memory about the pending records.
#[derive(Debug, Default)]
pub struct Cml {
    /// Newest record that may have been received by the server: it and all before it stay as they are.
    frozen: Recno,
    /// Newest record sent on this stream.
    sent: Recno,
    /// Records up to here have their contents or a read under way.
    looked: Recno,
    /// Contents read for records not sent yet.
    ready: BTreeMap<Recno, (Content, Version)>,
    /// Reads under way: record, and the record that would have been next in the KML when the read began.
    reads: BTreeMap<Ticket, (Recno, Recno)>,
    /// Bytes that records sent on this stream hold in the server's memory.
    under_way: BTreeMap<Recno, u64>,
    under_way_bytes: u64,
    /// Records whose read goes wrong, with the number of attempts.
    troubled: BTreeMap<Recno, u32>,
    tally: Tally,
}

impl Cml {
    /// Rebuilds what is kept in memory.
    pub fn open(store: &dyn Store) -> Result<Cml, StoreError> {
        let mut tally = Tally::default();
        table::each_with_prefix(store, Table::Pending, &[], |_, value| {
            let row: Row = table::decode(Table::Pending, value)?;
            tally.records += 1;
            tally.bytes = tally.bytes.saturating_add(row.bytes());
            Ok(())
        })?;
        Ok(Cml { tally, frozen: ALL, ..Cml::default() })
    }

    /// How much is pending.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    fn count_bytes(&mut self, before: u64, after: u64) {
        self.tally.bytes = self.tally.bytes.saturating_sub(before).saturating_add(after);
    }

    /// What the journal tells beyond `last` no earlier life can have sent: this one has not been told of it before.
    pub fn begin_after(&mut self, last: Recno) {
        if self.frozen == ALL {
            self.frozen = last;
        }
    }

    /// Nothing before `recno` may be treated any more.
    pub fn freeze(&mut self, recno: Recno) {
        self.frozen = self.frozen.max(recno);
    }

    /// A server of another era may have received the records up to here and forgotten them, and others may bring them
    /// back: they stay as they are, whatever this server says.
    pub fn seal(store: &mut dyn Store, upto: Recno) -> Result<(), StoreError> {
        table::put(store, Table::Meta, SEALED, &upto)
    }

    /// Up to where records are sealed.
    pub fn sealed(store: &dyn Store) -> Result<Recno, StoreError> {
        Ok(table::get(store, Table::Meta, SEALED)?.unwrap_or_default())
    }

    /// The server said what it received: everything after it that is not sealed is ours again, and every content is read
    /// anew.
    pub fn thaw(&mut self, received: Recno, sealed: Recno) {
        self.frozen = received.max(sealed);
        self.sent = received;
        self.ready.clear();
        self.reads.clear();
        self.looked = received;
        self.under_way.clear();
        self.under_way_bytes = 0;
    }

    /// Bytes that the server holds of records without a verdict.
    pub fn under_way(&self) -> u64 {
        self.under_way_bytes
    }

    /// Records up to here have their contents or a read under way.
    pub fn looked(&self) -> Recno {
        self.looked
    }

    /// They have now.
    pub fn look(&mut self, recno: Recno) {
        self.looked = self.looked.max(recno);
    }

    /// Not so from `recno` on.
    pub fn look_again(&mut self, recno: Recno) {
        self.looked = self.looked.min(Recno(recno.0.saturating_sub(1)));
    }

    /// Newest record sent on this stream.
    pub fn sent(&self) -> Recno {
        self.sent
    }

    /// The object whose content this read is for.
    pub fn object_of_read(&self, store: &dyn Store, ticket: Ticket) -> Result<Option<ObjectId>, StoreError> {
        let Some((recno, _)) = self.reads.get(&ticket) else { return Ok(None) };
        Ok(Cml::row(store, *recno)?.map(|row| row.op.object))
    }

    /// The records, oldest first, from `from` on.
    pub fn rows(store: &dyn Store, from: Recno, limit: usize) -> Result<Vec<(Recno, Row)>, StoreError> {
        let mut rows = Vec::new();
        for (key, value) in store.scan(Table::Pending, &table::number_key(from.0), limit)? {
            let Some(recno) = table::recno_from_key(&key) else { continue };
            rows.push((recno, table::decode(Table::Pending, &value)?));
        }
        Ok(rows)
    }

    /// One record.
    pub fn row(store: &dyn Store, recno: Recno) -> Result<Option<Row>, StoreError> {
        table::get(store, Table::Pending, &table::number_key(recno.0))
    }

    /// The first record after this number.
    pub fn next(store: &dyn Store, after: Recno) -> Result<Option<(Recno, Row)>, StoreError> {
        Ok(Cml::rows(store, Recno(after.0.saturating_add(1)), 1)?.pop())
    }

    /// Its number. Most who ask want nothing else of it.
    pub fn number_after(store: &dyn Store, after: Recno) -> Result<Option<Recno>, StoreError> {
        let found = store.scan(Table::Pending, &table::number_key(after.0.saturating_add(1)), 1)?;
        Ok(found.first().and_then(|(key, _)| table::recno_from_key(key)))
    }

    /// Oldest pending record.
    pub fn first(store: &dyn Store) -> Result<Option<Recno>, StoreError> {
        Cml::number_after(store, Recno(0))
    }

    /// When the oldest pending record was made.
    pub fn oldest(store: &dyn Store) -> Result<Option<Time>, StoreError> {
        Ok(Cml::rows(store, Recno(0), 1)?.first().map(|(_, row)| row.op.time))
    }

    /// Writes a changed record back.
    pub fn write(store: &mut dyn Store, recno: Recno, row: &Row) -> Result<(), StoreError> {
        table::put(store, Table::Pending, &table::number_key(recno.0), row)
    }

    fn append(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        mut op: Operation,
        slot: Option<Slot>,
    ) -> Result<(), StoreError> {
        if let Some((before, object)) = before_of(&mut op)
            && *before != TORN
            && Cml::predecessor(store, object, recno)?.is_some()
        {
            *before = UNKNOWN;
        }
        self.look_again(recno);
        pending::insert(store, recno, &op)?;
        let row = Row { op, slot };
        self.tally.records += 1;
        self.count_bytes(0, row.bytes());
        Cml::write(store, recno, &row)
    }

    fn discard(&mut self, store: &mut dyn Store, recno: Recno, row: &Row) -> Result<(), StoreError> {
        pending::remove(store, recno, &row.op)?;
        self.ready.remove(&recno);
        self.troubled.remove(&recno);
        let arrived = self.under_way.remove(&recno).unwrap_or_default();
        self.under_way_bytes = self.under_way_bytes.saturating_sub(arrived);
        self.tally.records = self.tally.records.saturating_sub(1);
        self.count_bytes(row.bytes(), 0);
        store.delete(Table::Pending, &table::number_key(recno.0))
    }

    /// The record as it goes over the wire, if its content is at hand. Freezes it.
    pub fn take_ready(
        &mut self,
        store: &mut dyn Store,
        recno: Recno,
        mut row: Row,
    ) -> Result<Option<Operation>, StoreError> {
        let mut content = None;
        if let Some(slot) = row.slot {
            let Some((read, version)) = self.ready.remove(&recno) else { return Ok(None) };
            fill_content(&mut row.op, Content { inline: None, ..read.clone() });
            // It may be a later content than the close's own; its time tells which one. Of the close's own the record knows
            // better: somebody may have set the time after it was read.
            if version.mtime != slot.version.mtime {
                settle::leave_at(&mut row.op, version.mtime);
            }
            self.count_bytes(slot.version.size, version.size);
            row.slot = Some(Slot { version, ..slot });
            Cml::write(store, recno, &row)?;
            content = Some(read);
        }
        self.freeze(recno);
        self.sent = recno;
        let mut op = row.op;
        if let Some((before, object)) = before_of(&mut op)
            && *before == UNKNOWN
            && let Some(row) = Cml::predecessor(store, object, recno)?
        {
            *before = left_by(&row.op).unwrap_or(UNKNOWN);
        }
        if let OpKind::Close { before, .. } = &mut op.kind
            && content.is_some()
            && Cml::is_torn(store, op.object, recno)?
            && !Cml::is_promised(store, op.object, recno)?
        {
            *before = TORN;
        }
        if let Some(content) = content {
            let bytes = content.inline.as_ref().map_or(0, |bytes| bytes.len() as u64);
            if bytes > 0 && self.under_way.insert(recno, bytes).is_none() {
                self.under_way_bytes = self.under_way_bytes.saturating_add(bytes);
            }
            fill_content(&mut op, content);
        }
        Ok(Some(op))
    }

    /// A later record says that what is in the file now may be torn: it goes in the place of no older record either.
    fn is_torn(store: &dyn Store, object: ObjectId, after: Recno) -> Result<bool, StoreError> {
        let mut at = after;
        while let Some(recno) = pending::own_after(store, object, at)? {
            let torn = |row: &Row| matches!(row.op.kind, OpKind::Close { before: TORN, .. });
            if Cml::row(store, recno)?.as_ref().is_some_and(torn) {
                return Ok(true);
            }
            at = recno;
        }
        Ok(false)
    }

    /// What a power cut left in this object has been removed since, by a record of this node that the power cut took: nobody
    /// needs it any more.
    pub fn give_up_torn(&mut self, store: &mut dyn Store, object: ObjectId) -> Result<(), StoreError> {
        let mut at = Recno(u64::MAX);
        while let Some(recno) = pending::own_before(store, object, at)? {
            at = recno;
            let Some(row) = Cml::row(store, recno)?.filter(|row| row.slot.is_some()) else { continue };
            let is_torn = matches!(row.op.kind, OpKind::Close { before: TORN, .. });
            return if is_torn { self.discard(store, recno, &row) } else { Ok(()) };
        }
        Ok(())
    }

    /// Whether a program was told that what this record left is durable, or something later. The server has that from nobody
    /// else, so what is in the file is the best there is of it, torn or not.
    fn is_promised(store: &dyn Store, object: ObjectId, recno: Recno) -> Result<bool, StoreError> {
        Ok(promise::of(store, object)?.is_some_and(|promise| recno <= promise))
    }

    /// The server has what this record stands for.
    fn end_promise(store: &mut dyn Store, recno: Recno, row: &Row) -> Result<(), StoreError> {
        let Some(slot) = row.slot else { return Ok(()) };
        match promise::of(store, row.op.object)? {
            Some(promise) if recno <= promise && promise <= slot.latest => promise::end(store, row.op.object),
            _ => Ok(()),
        }
    }

    /// The pending record whose content this one found on disk. What that content is, is known when it is sent: until
    /// then, and as often as it is sent anew, a newer content may take its place (rule 1). So a record that has a
    /// predecessor carries no hash of its own.
    fn predecessor(store: &dyn Store, object: ObjectId, before: Recno) -> Result<Option<Row>, StoreError> {
        let mut at = before;
        while let Some(recno) = pending::own_before(store, object, at)? {
            let row = Cml::row(store, recno)?.filter(|row| left_by(&row.op).is_some());
            if row.is_some() {
                return Ok(row);
            }
            at = recno;
        }
        Ok(None)
    }

    /// Whether a pending record about the object, after this one, has a content on this node's disk: it stands for what is in
    /// the file by now.
    pub fn has_content(store: &dyn Store, object: ObjectId, after: Recno) -> Result<bool, StoreError> {
        let mut at = after;
        while let Some(recno) = pending::own_after(store, object, at)? {
            if Cml::row(store, recno)?.is_some_and(|row| row.slot.is_some()) {
                return Ok(true);
            }
            at = recno;
        }
        Ok(false)
    }

    /// Limbo files whose contents no pending record needs any more.
    pub fn release_limbo(
        &mut self,
        store: &mut dyn Store,
        object: ObjectId,
        upto: Recno,
        out: &mut Vec<Output>,
    ) -> Result<(), StoreError> {
        let prefix = table::object_key(object);
        if !table::any_with_prefix(store, Table::Limbo, &prefix)? {
            return Ok(());
        }
        if Cml::has_content(store, object, Recno(0))? {
            return Ok(());
        }
        let mut files = Vec::new();
        let mut keys = Vec::new();
        table::each_with_prefix(store, Table::Limbo, &prefix, |key, value| {
            keys.push(key.to_vec());
            files.push(table::decode(Table::Limbo, value)?);
            Ok(())
        })?;
        for key in keys {
            store.delete(Table::Limbo, &key)?;
        }
        out.push(Output::ReleaseLimbo { files, upto });
        Ok(())
    }

    /// What presto keeps of one object is another's from now on: the two are one.
    pub fn rename_limbo(store: &mut dyn Store, from: ObjectId, to: ObjectId) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        table::each_with_prefix(store, Table::Limbo, &table::object_key(from), |key, value| {
            rows.push((key.to_vec(), table::decode::<FileId>(Table::Limbo, value)?));
            Ok(())
        })?;
        for (key, file) in rows {
            store.delete(Table::Limbo, &key)?;
            Cml::note_limbo(store, file, to)?;
        }
        Ok(())
    }

    /// The lower files that presto keeps for us.
    pub fn limbo(store: &dyn Store) -> Result<Vec<FileId>, StoreError> {
        let mut files = Vec::new();
        table::each_with_prefix(store, Table::Limbo, &[], |_, value| {
            files.push(table::decode(Table::Limbo, value)?);
            Ok(())
        })?;
        Ok(files)
    }

    /// Notes a lower file that presto keeps for us.
    pub fn note_limbo(store: &mut dyn Store, file: FileId, object: ObjectId) -> Result<(), StoreError> {
        let mut key = table::object_key(object);
        key.extend_from_slice(&table::file_key(file));
        table::put(store, Table::Limbo, &key, &file)
    }
}

/// Puts the content where the operation carries one.
pub fn fill_content(op: &mut Operation, new: Content) {
    match &mut op.kind {
        OpKind::Create { content, .. } => *content = Some(new),
        OpKind::Close { content, .. } => *content = new,
        _ => {}
    }
}

/// The content that the record leaves in its object, if it says: a file is born empty.
pub fn left_by(op: &Operation) -> Option<Hash> {
    match &op.kind {
        OpKind::Create { attributes, content, .. } if attributes.is_file() => {
            Some(content.as_ref().map_or_else(Hash::empty, |content| content.hash))
        }
        _ => content_of(op).map(|content| content.hash),
    }
}

/// What the record found on disk, and in which object.
pub fn before_of(op: &mut Operation) -> Option<(&mut Hash, ObjectId)> {
    match &mut op.kind {
        OpKind::Close { before, .. } | OpKind::Remove { before: Some(before), .. } => {
            Some((before, op.object))
        }
        OpKind::Rename { replaced: Some(Replaced { object, before: Some(before), .. }), .. } => {
            Some((before, *object))
        }
        _ => None,
    }
}

/// The content an operation carries.
pub fn content_of(op: &Operation) -> Option<&Content> {
    match &op.kind {
        OpKind::Create { content, .. } => content.as_ref(),
        OpKind::Close { content, .. } => Some(content),
        _ => None,
    }
}

//! What both roles need at hand: the open transaction, the outputs, the clock, the volume's own facts.

use crate::io::Event;
use crate::io::Output;
use crate::io::Ref;
use crate::lineage::Lineage;
use crate::local::Absorbed;
use crate::record::KmlRecord;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::Table;
use crate::table;
use crate::types::FileId;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpId;
use crate::types::OpKind;
use crate::types::Position;
use crate::types::Recno;
use crate::types::Tag;
use crate::types::Ticket;
use crate::volume::Millis;
use serde::Deserialize;
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::VecDeque;

/// Facts of a volume that survive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Random id of this replica.
    pub replica: u64,
    /// Incarnation of its records.
    pub incarnation: u32,
    /// The KML record to read next.
    pub next_recno: Recno,
    /// Server: its eras. Client: those of the log that it follows.
    pub lineage: Lineage,
    /// Client: base position.
    pub position: Position,
    /// Client: its tail holds the log from here on.
    pub tail_from: Position,
    /// Server: log records up to here are gone.
    pub log_floor: Position,
    /// Client: base is a part of a snapshot.
    pub snapshot: Option<Snapshot>,
    /// Whether it was opened as a server.
    pub server: bool,
    /// Server: the tree was there before the volume, and not all of it is known.
    pub adopting: bool,
}

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The objects up to this one are here.
    pub upto: ObjectId,
    /// How many these are.
    pub objects: u64,
    /// About how many there are.
    pub total: u64,
    /// All are here; base is whole when the log has come to this position.
    pub end: Option<Position>,
}

impl Meta {
    /// Reads it.
    pub fn load(store: &dyn Store) -> Result<Option<Meta>, StoreError> {
        table::get(store, Table::Meta, b"meta")
    }

    /// Writes it.
    pub fn save(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        table::put(store, Table::Meta, b"meta", self)
    }

    /// Last record read.
    pub fn last_read(&self) -> Recno {
        Recno(self.next_recno.0.saturating_sub(1))
    }
}

/// One call of the core.
pub struct Context<'a> {
    /// The transaction.
    pub store: &'a mut dyn Store,
    /// What to do afterwards.
    pub out: &'a mut Vec<Output>,
    /// Now.
    pub now: Millis,
    /// The volume's facts; saved by the caller.
    pub meta: &'a mut Meta,
    /// Source of tickets.
    pub tickets: &'a mut u64,
    /// Identity of the lower root.
    pub root: FileId,
    /// Identity of the staging directory.
    pub staging: FileId,
    /// Presto is there.
    pub presto: bool,
    /// A scrub is about to ask: no replays are planned.
    pub scrubbing: bool,
    /// Records have come that are read as soon as no sync runs.
    pub behind: bool,
    /// Objects that replays found other than any record left them, and the directories in which they met them.
    pub doubtful: &'a mut Vec<(ObjectId, Vec<Ref>)>,
    /// Objects that go by the server's name now, which a scrub may have noted by their old ones.
    pub renamed: &'a mut Vec<(ObjectId, ObjectId)>,
    /// Objects that have got another name, where a scrub may have been already.
    pub moved: &'a mut Vec<ObjectId>,
    /// A record names what no record made: the whole tree has to be looked through.
    pub look_through: &'a mut bool,
}

impl Context<'_> {
    /// A user's record may name a file that no record made.
    pub fn unknown(&mut self, record: &KmlRecord, file: Option<FileId>) -> Result<(), StoreError> {
        let Some(file) = file else { return Ok(()) };
        self.out.push(Output::Event(Event::Unknown { recno: record.recno, file }));
        *self.look_through = true;
        crate::scrub::note_unknown(self.store)
    }

    /// A record, a user's or a replay's, may have moved something past a scrub.
    pub fn note_moved(&mut self, absorbed: &Absorbed) {
        let Some(op) = absorbed.operation.as_ref().or(absorbed.aside.as_ref()) else { return };
        match &op.kind {
            OpKind::Link { .. } => self.moved.push(op.object),
            OpKind::Rename { replaced, exchange, .. } => {
                self.moved.push(op.object);
                self.moved.extend(replaced.filter(|_| *exchange).map(|replaced| replaced.object));
            }
            _ => {}
        }
    }

    /// A new ticket.
    pub fn ticket(&mut self) -> Ticket {
        *self.tickets += 1;
        Ticket(*self.tickets)
    }

    /// The name of this life's record with this number.
    pub fn own(&self, number: u64) -> OpId {
        OpId(Tag { replica: self.meta.replica, incarnation: self.meta.incarnation, number })
    }

    /// Directories that exist without a record.
    pub fn fixed_file(&self, object: ObjectId) -> Option<FileId> {
        match object {
            ObjectId::ROOT => Some(self.root),
            ObjectId::STAGING => Some(self.staging),
            _ => None,
        }
    }
}

/// Small contents in memory, oldest forgotten first.
#[derive(Debug, Default)]
pub struct Contents {
    bytes: BTreeMap<Hash, Vec<u8>>,
    order: VecDeque<Hash>,
    total: usize,
}

/// Most bytes kept.
const CONTENTS_MAX: usize = 64 << 20;

impl Contents {
    /// Keeps these bytes.
    pub fn insert(&mut self, hash: Hash, bytes: Vec<u8>) {
        if self.bytes.contains_key(&hash) {
            return;
        }
        self.total += bytes.len();
        self.bytes.insert(hash, bytes);
        self.order.push_back(hash);
        while self.total > CONTENTS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(gone) = self.bytes.remove(&oldest) {
                self.total -= gone.len();
            }
        }
    }

    /// The bytes, if still there.
    pub fn get(&self, hash: &Hash) -> Option<&Vec<u8>> {
        self.bytes.get(hash)
    }
}

/// Group commit: one sync at a time.
#[derive(Debug, Default)]
pub struct Syncing {
    in_flight: Option<(Ticket, Position, Position)>,
    not_before: Millis,
}

impl Syncing {
    /// Asks for a sync that covers `first` and `second` (what the caller wants to know durable), unless one runs or it is
    /// too early. Whether it begins.
    pub fn want(&mut self, ctx: &mut Context<'_>, first: Position, second: Position) -> bool {
        if self.in_flight.is_some() || ctx.now < self.not_before || !ctx.presto {
            return false;
        }
        let ticket = ctx.ticket();
        self.in_flight = Some((ticket, first, second));
        ctx.out.push(Output::Sync { ticket });
        true
    }

    /// When to ask again.
    pub fn wake(&self) -> Option<Millis> {
        self.in_flight.is_none().then_some(self.not_before)
    }

    /// The answer: what is durable now. `pause` until the next one may begin.
    pub fn done(
        &mut self,
        now: Millis,
        ticket: Ticket,
        ok: bool,
        pause: u64,
    ) -> Option<(Position, Position)> {
        let (_, first, second) = self.in_flight.take_if(|(t, _, _)| *t == ticket)?;
        let pause = if ok { pause } else { pause.max(500) };
        self.not_before = Millis(now.0.saturating_add(pause));
        ok.then_some((first, second))
    }

    /// Whether one is under way.
    pub fn is_running(&self) -> bool {
        self.in_flight.is_some()
    }

    /// What the one under way was to show is void.
    pub fn void(&mut self) {
        if let Some((_, first, second)) = &mut self.in_flight {
            (*first, *second) = (Position(0), Position(0));
        }
    }

    /// Presto went away: the answer will not come.
    pub fn forget(&mut self) {
        self.in_flight = None;
    }
}

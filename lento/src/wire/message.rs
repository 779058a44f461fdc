//! Messages of the core to frames and back. A long message becomes several frames that mean the same.

use super::BATCH_MAX;
use super::LINKS_MAX;
use super::MESSAGE_TARGET;
use super::PROTOCOL;
use super::TEXT_MAX;
use super::WireError;
use super::limit;
use super::need;
use super::operation::log_record;
use super::operation::log_record_back;
use super::operation::operation;
use super::operation::operation_back;
use super::words::attributes;
use super::words::attributes_back;
use super::words::content;
use super::words::content_back;
use super::words::entry_name;
use super::words::is_possible;
use super::words::maybe_hash;
use super::words::maybe_hash_bytes;
use super::words::object_id;
use super::words::size;
use super::words::symlink;
use super::words::tag;
use super::words::xattrs;
use super::words::xattrs_back;
use intermezzo_proto::v1;
use intermezzo_proto::v1::backfetched::Holds as HoldsWord;
use intermezzo_proto::v1::client_frame::Body as Client;
use intermezzo_proto::v1::server_frame::Body as Server;
use lento_core::lineage::ERAS_MAX;
use lento_core::lineage::Era;
use lento_core::lineage::Lineage;
use lento_core::message::Ack;
use lento_core::message::Hello;
use lento_core::message::Holds;
use lento_core::message::Message;
use lento_core::message::SnapshotObject;
use lento_core::message::Stored;
use lento_core::message::Welcome;
use lento_core::types::Content;
use lento_core::types::Epoch;
use lento_core::types::LogRecord;
use lento_core::types::ObjectId;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::volume::Millis;

fn position(position: Position) -> Option<v1::Position> {
    Some(v1::Position { epoch: 0, number: position.0 })
}

/// A position of the newest era.
fn position_in(lineage: &Lineage, position: Position) -> Option<v1::Position> {
    Some(v1::Position { epoch: lineage.epoch().0, number: position.0 })
}

fn eras(lineage: &Lineage) -> Vec<v1::Era> {
    lineage.eras().iter().map(|era| v1::Era { epoch: era.epoch.0, from: era.from.0 }).collect()
}

/// Eras with the newest epoch said beside them.
fn lineage(field: &'static str, epoch: u64, eras: Vec<v1::Era>) -> Result<Lineage, WireError> {
    limit(field, eras.len(), ERAS_MAX)?;
    let eras = eras.into_iter().map(|era| Era { epoch: Epoch(era.epoch), from: Position(era.from) });
    let lineage = Lineage::new(eras.collect());
    if lineage.epoch() != Epoch(epoch) {
        return Err(WireError::Wrong { field, reason: "the newest is not the epoch of the position" });
    }
    if !lineage.eras().is_sorted_by_key(|era| era.from)
        || lineage.eras().iter().any(|era| era.epoch == Epoch(0))
    {
        return Err(WireError::Wrong { field, reason: "out of order, or without an epoch" });
    }
    Ok(lineage)
}

fn position_back(field: &'static str, position: Option<v1::Position>) -> Result<Position, WireError> {
    Ok(Position(need(field, position)?.number))
}

/// Items in groups that stay below the target size and the batch limit; at least one group.
fn groups<T, W: prost::Message>(items: &[T], convert: impl Fn(&T) -> W) -> Vec<Vec<W>> {
    let (mut groups, mut group, mut bytes) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let wire = convert(item);
        let length = wire.encoded_len() + 8;
        if !group.is_empty() && (bytes + length > MESSAGE_TARGET || group.len() >= BATCH_MAX) {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes += length;
        group.push(wire);
    }
    groups.push(group);
    groups
}

/// Frames for a message of a client; none if a client never says that.
#[must_use]
pub fn client_frames(volume: &str, message: &Message) -> Vec<v1::ClientFrame> {
    let bodies = match message {
        Message::Hello(hello) => vec![Client::Hello(v1::Hello {
            protocol: PROTOCOL,
            greeting: hello.greeting,
            snapshot: hello.snapshot.map(|object| tag(object.0)),
            replica: hello.replica,
            incarnation: hello.incarnation,
            position: position_in(&hello.lineage, hello.position),
            eras: eras(&hello.lineage),
            applied: hello.applied.0,
            tail_from: hello.tail_from.0,
            has_from: hello.has.0.0,
            has_to: hello.has.1.0,
            partial: hello.partial,
        })],
        Message::Submit(operations) => groups(operations, operation)
            .into_iter()
            .map(|operations| Client::Submit(v1::Submit { operations }))
            .collect(),
        Message::Offer { records, upto } => {
            let frame =
                |(records, upto): (Vec<v1::LogRecord>, u64)| Client::Offer(v1::Offer { records, upto });
            log_groups(records, *upto).into_iter().map(frame).collect()
        }
        Message::Ack(ack) => vec![Client::Ack(v1::Ack {
            position: position(ack.position),
            applied: position(ack.applied),
            durable: position(ack.durable),
        })],
        Message::SnapshotStored(object) => {
            vec![Client::SnapshotStored(v1::SnapshotStored { object: Some(tag(object.0)) })]
        }
        Message::Backfetched { object, holds } => {
            let object = Some(tag(object.0));
            vec![Client::Backfetched(v1::Backfetched { object, holds: Some(holds_word(holds)) })]
        }
        Message::Ahead { removals, upto } => {
            vec![Client::Ahead(v1::Ahead { removals: *removals, upto: upto.0 })]
        }
        Message::PermitAsk { stamp } => vec![Client::PermitAsk(v1::PermitAsk { stamp: stamp.0 })],
        Message::PermitReleased { epoch } => {
            vec![Client::PermitReleased(v1::PermitReleased { epoch: *epoch })]
        }
        Message::Barrier { id, after } => {
            vec![Client::Barrier(v1::Barrier { id: *id, after: after.0 })]
        }
        _ => Vec::new(),
    };
    let frame = |body| v1::ClientFrame { volume: volume.to_owned(), body: Some(body) };
    bodies.into_iter().map(frame).collect()
}

/// What a client said; `None`: it takes its leave of the volume.
///
/// # Errors
/// See [`WireError`].
pub fn from_client(body: Option<Client>) -> Result<Option<Message>, WireError> {
    Ok(Some(match need("frame.body", body)? {
        Client::Hello(hello) => {
            if hello.protocol != PROTOCOL {
                return Err(WireError::Protocol(hello.protocol));
            }
            if hello.has_from > hello.has_to {
                return Err(WireError::Wrong { field: "hello.has", reason: "ends before it begins" });
            }
            if hello.replica == 0 {
                return Err(WireError::Missing("hello.replica"));
            }
            let position = need("hello.position", hello.position)?;
            Message::Hello(Hello {
                greeting: hello.greeting,
                snapshot: hello
                    .snapshot
                    .map(|object| object_id("hello.snapshot", Some(object)))
                    .transpose()?,
                replica: hello.replica,
                incarnation: hello.incarnation,
                lineage: lineage("hello.eras", position.epoch, hello.eras)?,
                position: Position(position.number),
                applied: Position(hello.applied),
                tail_from: Position(hello.tail_from),
                has: (Recno(hello.has_from), Recno(hello.has_to)),
                partial: hello.partial,
            })
        }
        Client::Submit(submit) => {
            limit("submit.operations", submit.operations.len(), BATCH_MAX)?;
            Message::Submit(submit.operations.into_iter().map(operation_back).collect::<Result<_, _>>()?)
        }
        Client::Offer(offer) => {
            let upto = Position(offer.upto);
            Message::Offer { records: log_records("offer.records", offer.records, upto)?, upto }
        }
        Client::Ack(ack) => Message::Ack(Ack {
            position: position_back("ack.position", ack.position)?,
            applied: position_back("ack.applied", ack.applied)?,
            durable: position_back("ack.durable", ack.durable)?,
        }),
        Client::SnapshotStored(stored) => {
            Message::SnapshotStored(object_id("snapshot_stored.object", stored.object)?)
        }
        Client::Backfetched(told) => Message::Backfetched {
            object: object_id("backfetched.object", told.object)?,
            holds: holds_back(need("backfetched.holds", told.holds)?)?,
        },
        Client::Ahead(ahead) => Message::Ahead { removals: ahead.removals, upto: Recno(ahead.upto) },
        Client::PermitAsk(ask) => Message::PermitAsk { stamp: Millis(ask.stamp) },
        Client::PermitReleased(released) => Message::PermitReleased { epoch: released.epoch },
        Client::Barrier(barrier) => Message::Barrier { id: barrier.id, after: Recno(barrier.after) },
        Client::Goodbye(_) => return Ok(None),
    }))
}

/// Frames for a message of a server; none if a server never says that.
#[must_use]
pub fn server_frames(volume: &str, message: &Message) -> Vec<v1::ServerFrame> {
    let bodies = match message {
        Message::Welcome(welcome) => vec![Server::Welcome(v1::Welcome {
            protocol: PROTOCOL,
            greeting: welcome.greeting,
            position: position_in(&welcome.lineage, welcome.position),
            eras: eras(&welcome.lineage),
            received: welcome.received.0,
        })],
        Message::Refused { reason, retry } => {
            let mut reason = reason.clone();
            reason.truncate(reason.floor_char_boundary(TEXT_MAX));
            vec![Server::Refused(v1::Refused { reason, retry: *retry })]
        }
        Message::Records { records, upto, stable } => {
            let frame = |(records, upto): (Vec<v1::LogRecord>, u64)| {
                Server::Records(v1::Records { records, upto: position(Position(upto)), stable: stable.0 })
            };
            log_groups(records, *upto).into_iter().map(frame).collect()
        }
        Message::Offered(upto) => vec![Server::Offered(v1::Offered { upto: upto.0 })],
        Message::Backfetch { object, hash } => {
            let (object, hash) = (Some(tag(object.0)), maybe_hash_bytes(*hash));
            vec![Server::Backfetch(v1::Backfetch { object, hash })]
        }
        Message::SnapshotBegin { position: at, objects } => {
            vec![Server::SnapshotBegin(v1::SnapshotBegin { position: position(*at), objects: *objects })]
        }
        Message::SnapshotChunk(objects) => groups(objects, snapshot_object)
            .into_iter()
            .map(|objects| Server::SnapshotChunk(v1::SnapshotChunk { objects }))
            .collect(),
        Message::SnapshotEnd(at) => {
            vec![Server::SnapshotEnd(v1::SnapshotEnd { position: position(*at) })]
        }
        Message::PermitGranted { epoch, position, stamp } => {
            let granted = v1::PermitGranted { epoch: *epoch, position: position.0, stamp: stamp.0 };
            vec![Server::PermitGranted(granted)]
        }
        Message::PermitRevoked { epoch } => {
            vec![Server::PermitRevoked(v1::PermitRevoked { epoch: *epoch })]
        }
        Message::BarrierReached { id } => {
            vec![Server::BarrierReached(v1::BarrierReached { id: *id, position: None })]
        }
        _ => Vec::new(),
    };
    let frame = |body| v1::ServerFrame { volume: volume.to_owned(), body: Some(body) };
    bodies.into_iter().map(frame).collect()
}

/// Records in groups, each with the position up to which it says everything.
fn log_groups(records: &[LogRecord], upto: Position) -> Vec<(Vec<v1::LogRecord>, u64)> {
    let groups = groups(records, log_record);
    let last = groups.len().saturating_sub(1);
    let claim = |(index, records): (usize, Vec<v1::LogRecord>)| {
        // Only the last frame may claim what stands behind its last record.
        let here = records.last().map_or(upto.0, |record| record.position);
        let upto = if index == last { upto.0 } else { here };
        (records, upto)
    };
    groups.into_iter().enumerate().map(claim).collect()
}

/// Records in the order of their positions, none beyond `upto`.
fn log_records(
    field: &'static str,
    records: Vec<v1::LogRecord>,
    upto: Position,
) -> Result<Vec<LogRecord>, WireError> {
    limit(field, records.len(), BATCH_MAX)?;
    let records = records.into_iter().map(log_record_back).collect::<Result<Vec<_>, _>>()?;
    let rising = records.is_sorted_by(|a, b| a.position < b.position);
    if !rising || records.last().is_some_and(|last| last.position > upto) {
        return Err(WireError::Wrong { field, reason: "positions out of order" });
    }
    Ok(records)
}

/// What a server said.
///
/// # Errors
/// See [`WireError`].
pub fn from_server(body: Option<Server>) -> Result<Message, WireError> {
    Ok(match need("frame.body", body)? {
        Server::Welcome(welcome) => {
            if welcome.protocol != PROTOCOL {
                return Err(WireError::Protocol(welcome.protocol));
            }
            let position = need("welcome.position", welcome.position)?;
            Message::Welcome(Welcome {
                greeting: welcome.greeting,
                lineage: lineage("welcome.eras", position.epoch, welcome.eras)?,
                position: Position(position.number),
                received: Recno(welcome.received),
            })
        }
        Server::Refused(refused) => {
            limit("refused.reason", refused.reason.len(), TEXT_MAX)?;
            Message::Refused { reason: refused.reason, retry: refused.retry }
        }
        Server::Records(records) => {
            let upto = position_back("records.upto", records.upto)?;
            let stable = Position(records.stable);
            Message::Records { records: log_records("records.records", records.records, upto)?, upto, stable }
        }
        Server::Offered(offered) => Message::Offered(Position(offered.upto)),
        Server::Backfetch(asked) => Message::Backfetch {
            object: object_id("backfetch.object", asked.object)?,
            hash: maybe_hash("backfetch.hash", &asked.hash)?,
        },
        Server::SnapshotBegin(begin) => Message::SnapshotBegin {
            position: position_back("snapshot_begin.position", begin.position)?,
            objects: begin.objects,
        },
        Server::SnapshotChunk(chunk) => {
            limit("snapshot_chunk.objects", chunk.objects.len(), BATCH_MAX)?;
            let objects = chunk.objects.into_iter().map(snapshot_object_back);
            Message::SnapshotChunk(objects.collect::<Result<_, _>>()?)
        }
        Server::SnapshotEnd(end) => {
            Message::SnapshotEnd(position_back("snapshot_end.position", end.position)?)
        }
        Server::PermitGranted(granted) => Message::PermitGranted {
            epoch: granted.epoch,
            position: Position(granted.position),
            stamp: Millis(granted.stamp),
        },
        Server::PermitRevoked(revoked) => Message::PermitRevoked { epoch: revoked.epoch },
        Server::BarrierReached(reached) => Message::BarrierReached { id: reached.id },
    })
}

fn holds_word(holds: &Holds) -> HoldsWord {
    let named = |stored: &Stored| content(&Content { hash: stored.hash, size: stored.size, inline: None });
    match holds {
        Holds::Nothing => HoldsWord::Nothing(true),
        Holds::NotNow => HoldsWord::NotNow(true),
        Holds::Named(stored) => HoldsWord::Named(named(stored)),
        Holds::Coming(stored) => HoldsWord::Coming(named(stored)),
        Holds::Whole(whole) => HoldsWord::Whole(content(whole)),
    }
}

fn holds_back(holds: HoldsWord) -> Result<Holds, WireError> {
    let named = |word: &v1::Content| {
        let Content { hash, size, inline } = content_back(word)?;
        if inline.is_some_and(|bytes| !bytes.is_empty()) {
            return Err(WireError::Wrong {
                field: "backfetched.named",
                reason: "bytes where a name was to be",
            });
        }
        Ok(Stored { hash, size })
    };
    Ok(match holds {
        HoldsWord::Nothing(_) => Holds::Nothing,
        HoldsWord::NotNow(_) => Holds::NotNow,
        HoldsWord::Named(word) => Holds::Named(named(&word)?),
        HoldsWord::Coming(word) => Holds::Coming(named(&word)?),
        HoldsWord::Whole(word) => Holds::Whole(content_back(&word)?),
    })
}

fn snapshot_object(object: &SnapshotObject) -> v1::SnapshotObject {
    let entry = |(dir, name): &(lento_core::types::ObjectId, Vec<u8>)| v1::SnapshotEntry {
        dir: Some(tag(dir.0)),
        name: name.clone().into(),
    };
    v1::SnapshotObject {
        object: Some(tag(object.object.0)),
        attributes: attributes(&object.attributes),
        symlink: object.symlink.clone().into(),
        hash: maybe_hash_bytes(object.hash),
        size: object.size,
        xattrs: xattrs(&object.xattrs),
        entries: object.entries.iter().map(entry).collect(),
    }
}

fn snapshot_object_back(object: v1::SnapshotObject) -> Result<SnapshotObject, WireError> {
    limit("snapshot.entries", object.entries.len(), LINKS_MAX)?;
    let entry = |entry: v1::SnapshotEntry| {
        Ok((object_id("snapshot.dir", entry.dir)?, entry_name("snapshot.name", &entry.name)?))
    };
    let back = SnapshotObject {
        object: object_id("snapshot.object", object.object)?,
        attributes: attributes_back("snapshot.attributes", object.attributes)?,
        symlink: symlink("snapshot.symlink", &object.symlink)?,
        hash: maybe_hash("snapshot.hash", &object.hash)?,
        size: size("snapshot.size", object.size)?,
        xattrs: xattrs_back(&object.xattrs)?,
        entries: object.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
    };
    is_possible("snapshot", &back.attributes, &back.symlink, back.hash.is_some())?;
    let root = back.object == ObjectId::ROOT;
    if root && !(back.attributes.is_dir() && back.entries.is_empty()) {
        return Err(WireError::Wrong { field: "snapshot.object", reason: "a root that is none" });
    }
    Ok(back)
}

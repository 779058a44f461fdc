//! Wire conversions: what goes out comes back, in pieces where it is long; what cannot be is an error.

use super::BATCH_MAX;
use super::MESSAGE_MAX;
use super::MESSAGE_TARGET;
use super::PROTOCOL;
use super::WireError;
use super::client_frames;
use super::from_client;
use super::from_server;
use super::server_frames;
use bytes::Bytes;
use intermezzo_proto::v1;
use lento_core::lineage::Era;
use lento_core::lineage::Lineage;
use lento_core::message::Ack;
use lento_core::message::Hello;
use lento_core::message::Holds;
use lento_core::message::Message;
use lento_core::message::SnapshotObject;
use lento_core::message::Stored;
use lento_core::message::Welcome;
use lento_core::types::Attributes;
use lento_core::types::ConflictKind;
use lento_core::types::Content;
use lento_core::types::Epoch;
use lento_core::types::Hash;
use lento_core::types::LogRecord;
use lento_core::types::LogWhat;
use lento_core::types::Mask;
use lento_core::types::ObjectId;
use lento_core::types::OpId;
use lento_core::types::OpKind;
use lento_core::types::Operation;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::types::Replaced;
use lento_core::types::Tag;
use lento_core::types::Time;
use lento_core::types::Verdict;
use lento_core::volume::Millis;
use prost::Message as _;

fn tag(number: u64) -> Tag {
    Tag { replica: u64::MAX - 3, incarnation: 7, number }
}

fn object(number: u64) -> ObjectId {
    ObjectId(tag(number))
}

const BEFORE_1970: Time = Time { sec: -5, nsec: 999_999_999 };

fn attributes() -> Attributes {
    Attributes { mode: 0o104_755, uid: u32::MAX, gid: 8, mtime: BEFORE_1970, rdev: 0x801 }
}

fn content(bytes: &[u8]) -> Content {
    Content { hash: Hash::of(bytes), size: bytes.len() as u64, inline: Some(bytes.to_vec()) }
}

fn create(name: &[u8], content: Option<Content>) -> OpKind {
    OpKind::Create {
        dir: ObjectId::ROOT,
        name: name.to_vec(),
        attributes: attributes(),
        symlink: Vec::new(),
        content,
        xattrs: vec![(b"user.a".to_vec(), vec![0, 255]), (b"user.b".to_vec(), Vec::new())],
        dir_mtime: BEFORE_1970,
        seen: Position(12),
    }
}

fn kinds() -> Vec<OpKind> {
    let replaced = Replaced { object: object(9), last: true, before: Some(Hash::of(b"x")) };
    let rename = |replaced, exchange| OpKind::Rename {
        from: object(1),
        from_name: vec![0xff; 255],
        to: object(2),
        to_name: b"b".to_vec(),
        replaced,
        exchange,
        from_mtime: BEFORE_1970,
        to_mtime: Time::default(),
    };
    let (dir, dir_mtime) = (object(1), BEFORE_1970);
    let remove = |last, before| OpKind::Remove { dir, name: b"a".to_vec(), last, before, dir_mtime };
    let close = |content| OpKind::Close { before: Hash::empty(), content, mtime: BEFORE_1970 };
    vec![
        create(b"a", None),
        create(b"a b\n", Some(content(b"hello"))),
        OpKind::Link { dir, name: b"l".to_vec(), dir_mtime },
        remove(false, None),
        remove(true, Some(Hash::of(b"y"))),
        rename(None, false),
        rename(Some(replaced), true),
        rename(Some(Replaced { before: None, last: false, ..replaced }), false),
        OpKind::SetAttr { mask: Mask::MODE.with(Mask::MTIME), attributes: attributes() },
        close(content(b"")),
        close(Content { hash: Hash::of(b"large"), size: 1 << 40, inline: None }),
        OpKind::SetXattr { name: b"security.x".to_vec(), value: vec![1; 64 << 10] },
        OpKind::DelXattr { name: b"user.gone".to_vec() },
    ]
}

fn operation(number: u64, kind: OpKind) -> Operation {
    Operation { id: OpId(tag(number)), time: BEFORE_1970, object: object(number), kind }
}

fn operations() -> Vec<Operation> {
    kinds().into_iter().zip(1..).map(|(kind, number)| operation(number, kind)).collect()
}

fn records() -> Vec<LogRecord> {
    let verdicts = [
        Verdict::Accepted(None),
        Verdict::Accepted(Some(Hash::of(b"safe"))),
        Verdict::Unified(object(4)),
        Verdict::Conflict(ConflictKind::StoreStore, Some(Hash::of(b"kept"))),
        Verdict::Conflict(ConflictKind::StoreRemove, None),
        Verdict::Conflict(ConflictKind::RemoveUpdate, None),
        Verdict::Conflict(ConflictKind::NameName, None),
        Verdict::Conflict(ConflictKind::ParentGone, None),
        Verdict::Conflict(ConflictKind::TargetTaken, None),
        Verdict::Conflict(ConflictKind::RenameCycle, None),
        Verdict::Conflict(ConflictKind::UpdateRemove, None),
        Verdict::Conflict(ConflictKind::Orphan, None),
        Verdict::Resolved(Position(7)),
        Verdict::Conflict(ConflictKind::MassRemoval, None),
    ];
    let whats =
        operations().into_iter().map(LogWhat::Operation).chain(verdicts.into_iter().map(LogWhat::Verdict));
    whats
        .zip(10..)
        .map(|(what, number)| LogRecord { position: Position(number), origin: OpId(tag(number)), what })
        .collect()
}

fn through_client(message: &Message) -> Vec<Message> {
    let through = |frame: v1::ClientFrame| {
        assert_eq!(frame.volume, "ns/v");
        let bytes = frame.encode_to_vec();
        assert!(bytes.len() < MESSAGE_MAX / 2);
        let frame = v1::ClientFrame::decode(bytes.as_slice()).unwrap();
        from_client(frame.body).unwrap().unwrap()
    };
    client_frames("ns/v", message).into_iter().map(through).collect()
}

fn through_server(message: &Message) -> Vec<Message> {
    let through = |frame: v1::ServerFrame| {
        let bytes = frame.encode_to_vec();
        assert!(bytes.len() < MESSAGE_MAX / 2);
        from_server(v1::ServerFrame::decode(bytes.as_slice()).unwrap().body).unwrap()
    };
    server_frames("ns/v", message).into_iter().map(through).collect()
}

fn eras(eras: &[(u64, u64)]) -> Lineage {
    let era = |(epoch, from): &(u64, u64)| Era { epoch: Epoch(*epoch), from: Position(*from) };
    Lineage::new(eras.iter().map(era).collect())
}

#[test]
fn what_a_power_cut_took_is_asked_for_and_answered() {
    for hash in [None, Some(Hash::of(b"good"))] {
        let asked = Message::Backfetch { object: object(3), hash };
        assert_eq!(through_server(&asked), std::slice::from_ref(&asked));
        assert!(client_frames("ns/v", &asked).is_empty());
    }
    let stored = Stored { hash: Hash::of(b"good"), size: 1 << 40 };
    for holds in [
        Holds::Nothing,
        Holds::NotNow,
        Holds::Named(stored),
        Holds::Named(Stored { hash: Hash::empty(), size: 0 }),
        Holds::Coming(stored),
        Holds::Whole(content(b"good")),
        Holds::Whole(Content { hash: stored.hash, size: stored.size, inline: None }),
    ] {
        let told = Message::Backfetched { object: object(3), holds };
        assert_eq!(through_client(&told), std::slice::from_ref(&told));
        assert!(server_frames("ns/v", &told).is_empty());
    }
    let said = |holds| {
        let object = Some(v1::Tag { replica: 1, incarnation: 1, number: 3 });
        from_client(Some(v1::client_frame::Body::Backfetched(v1::Backfetched { object, holds })))
    };
    let bytes =
        v1::Content { hash: Bytes::copy_from_slice(&Hash::of(b"good").0), size: 4, inline: "good".into() };
    let other = v1::Content { inline: "evil".into(), ..bytes.clone() };
    assert!(said(None).is_err());
    assert!(said(Some(v1::backfetched::Holds::Named(bytes))).is_err(), "a name is no content");
    assert!(said(Some(v1::backfetched::Holds::Whole(other))).is_err(), "not what its hash says");
}

#[test]
fn eras_that_cannot_be_are_refused() {
    let hello = |epoch, eras: &[(u64, u64)]| {
        let eras = eras.iter().map(|(epoch, from)| v1::Era { epoch: *epoch, from: *from }).collect();
        let position = Some(v1::Position { epoch, number: 9 });
        let hello = v1::Hello { protocol: PROTOCOL, replica: 1, position, eras, ..Default::default() };
        from_client(Some(v1::client_frame::Body::Hello(hello)))
    };
    assert!(hello(0, &[]).is_ok(), "followed none yet");
    assert!(hello(2, &[(1, 0), (2, 5)]).is_ok());
    assert!(hello(2, &[(1, 0)]).is_err(), "another newest one");
    assert!(hello(2, &[(1, 6), (2, 5)]).is_err(), "back in time");
    assert!(hello(2, &[(0, 0), (2, 5)]).is_err(), "no epoch");
    assert!(hello(2, &vec![(2, 5); 257]).is_err(), "too many");
}

#[test]
fn what_a_client_says_comes_back() {
    let messages = [
        Message::Hello(Hello {
            greeting: 7,
            snapshot: Some(object(9)),
            replica: u64::MAX,
            incarnation: 3,
            lineage: eras(&[(1, 0), (2, 30)]),
            position: Position(40),
            applied: Position(35),
            tail_from: Position(20),
            has: (Recno(5), Recno(9)),
            partial: true,
        }),
        Message::Submit(operations()),
        Message::Offer { records: records(), upto: Position(99) },
        Message::Ack(Ack { position: Position(3), applied: Position(2), durable: Position(1) }),
        Message::SnapshotStored(object(5)),
        Message::Barrier { id: 4, after: Recno(0) },
        Message::Ahead { removals: 70, upto: Recno(99) },
        Message::PermitAsk { stamp: Millis(u64::MAX) },
        Message::PermitReleased { epoch: 3 },
    ];
    for message in messages {
        assert_eq!(through_client(&message), std::slice::from_ref(&message));
        assert!(server_frames("ns/v", &message).is_empty(), "a server never says {message:?}");
    }
}

#[test]
fn what_a_server_says_comes_back() {
    let snapshot = SnapshotObject {
        object: object(3),
        attributes: attributes(),
        symlink: Vec::new(),
        hash: Some(Hash::of(b"z")),
        size: 77,
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
        entries: vec![(ObjectId::ROOT, b"one".to_vec()), (object(2), b"two".to_vec())],
    };
    let messages = [
        Message::Welcome(Welcome {
            greeting: 7,
            lineage: eras(&[(1, 0)]),
            position: Position(2),
            received: Recno(3),
        }),
        Message::Refused { reason: "not you".to_owned(), retry: true },
        Message::Records { records: records(), upto: Position(99), stable: Position(50) },
        Message::Records { records: Vec::new(), upto: Position(99), stable: Position(0) },
        Message::Offered(Position(70)),
        Message::SnapshotBegin { position: Position(6), objects: 1 << 33 },
        Message::SnapshotChunk(vec![snapshot]),
        Message::SnapshotEnd(Position(8)),
        Message::PermitGranted { epoch: 3, position: Position(4), stamp: Millis(5) },
        Message::PermitRevoked { epoch: 3 },
        Message::BarrierReached { id: 8 },
    ];
    for message in messages {
        assert_eq!(through_server(&message), std::slice::from_ref(&message));
        assert!(client_frames("ns/v", &message).is_empty(), "a client never says {message:?}");
    }
}

#[test]
fn a_long_submit_is_cut_and_keeps_its_order() {
    let large = content(&vec![7; 60_000]);
    let operations: Vec<_> =
        (1..200).map(|number| operation(number, create(b"f", Some(large.clone())))).collect();
    let parts = through_client(&Message::Submit(operations.clone()));
    assert!(parts.len() > 60_000 * 199 / MESSAGE_TARGET, "{}", parts.len());
    let joined: Vec<_> = parts
        .into_iter()
        .flat_map(|part| match part {
            Message::Submit(operations) => operations,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(joined, operations);
}

#[test]
fn only_the_last_part_of_records_claims_the_end() {
    let record = |number| LogRecord {
        position: Position(number),
        origin: OpId(tag(number)),
        what: LogWhat::Verdict(Verdict::Accepted(None)),
    };
    let count = BATCH_MAX as u64 + 5;
    let records: Vec<_> = (1..=count).map(record).collect();
    let parts =
        through_server(&Message::Records { records, upto: Position(count + 50), stable: Position(0) });
    let ends: Vec<_> = parts
        .iter()
        .map(|part| match part {
            Message::Records { records, upto, .. } => (records.len(), upto.0),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ends, [(BATCH_MAX, BATCH_MAX as u64), (5, count + 50)]);
}

fn submit(change: impl FnOnce(&mut v1::Operation)) -> Result<Option<Message>, WireError> {
    let mut frames =
        client_frames("ns/v", &Message::Submit(vec![operation(1, create(b"name", Some(content(b"hello"))))]));
    let Some(v1::client_frame::Body::Submit(mut submit)) = frames.remove(0).body else { panic!() };
    change(&mut submit.operations[0]);
    from_client(Some(v1::client_frame::Body::Submit(submit)))
}

fn submit_create(change: impl FnOnce(&mut v1::Create)) -> Result<Option<Message>, WireError> {
    submit(|operation| {
        let Some(v1::operation::Kind::Create(create)) = &mut operation.kind else { panic!() };
        change(create);
    })
}

#[test]
fn names_that_are_none_are_refused() {
    let long = vec![b'a'; 256];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
        let name = Bytes::copy_from_slice(name);
        assert!(submit_create(|create| create.name = name.clone()).is_err(), "{name:?}");
    }
    assert!(submit_create(|create| create.name = Bytes::from_static(b"...")).is_ok());
}

#[test]
fn lengths_are_limited() {
    let long = Bytes::from(vec![1; (64 << 10) + 1]);
    let xattr =
        |name: &[u8], value: &Bytes| v1::Xattr { name: Bytes::copy_from_slice(name), value: value.clone() };
    assert!(submit_create(|create| create.xattrs = vec![xattr(b"user.a", &long)]).is_err());
    assert!(submit_create(|create| create.xattrs = vec![xattr(b"", &Bytes::new())]).is_err());
    assert!(submit_create(|create| create.symlink = long.clone()).is_err());
    let content = v1::Content {
        hash: Bytes::copy_from_slice(&Hash::of(&long).0),
        size: long.len() as u64,
        inline: long.clone(),
    };
    assert!(submit_create(|create| create.content = Some(content)).is_err());
    let operations = vec![v1::Operation::default(); BATCH_MAX + 1];
    let body = v1::client_frame::Body::Submit(v1::Submit { operations });
    assert!(matches!(from_client(Some(body)), Err(WireError::TooLong { .. })));
}

#[test]
fn hashes_have_32_bytes_and_are_those_of_their_bytes() {
    let content = |hash: &[u8], size, inline: &'static [u8]| v1::Content {
        hash: Bytes::copy_from_slice(hash),
        size,
        inline: Bytes::from_static(inline),
    };
    let right = Hash::of(b"hello").0;
    assert!(submit_create(|create| create.content = Some(content(&right, 5, b"hello"))).is_ok());
    for wrong in [
        content(&right[..31], 5, b"hello"),
        content(&[], 5, b"hello"),
        content(&right, 6, b"hello"),
        content(&right, 5, b"hallo"),
        content(&right, 0, b""),
    ] {
        assert!(submit_create(|create| create.content = Some(wrong.clone())).is_err(), "{wrong:?}");
    }
}

#[test]
fn missing_and_unknown_fields_are_errors() {
    assert_eq!(from_client(None), Err(WireError::Missing("frame.body")));
    assert_eq!(from_server(None), Err(WireError::Missing("frame.body")));
    assert_eq!(submit(|operation| operation.id = None), Err(WireError::Missing("operation.id")));
    assert_eq!(submit(|operation| operation.kind = None), Err(WireError::Missing("operation.kind")));
    assert!(submit_create(|create| create.dir = None).is_err());
    assert!(submit_create(|create| create.attributes = None).is_err());
    let late = Some(v1::Time { sec: 0, nsec: 1_000_000_000 });
    assert!(submit_create(|create| create.dir_mtime = late).is_err());
    let size = v1::operation::Kind::SetAttr(v1::SetAttr {
        mask: 8,
        attributes: Some(v1::Attributes { mtime: Some(v1::Time::default()), ..Default::default() }),
    });
    assert!(matches!(submit(|operation| operation.kind = Some(size)), Err(WireError::Unknown { .. })));
    let verdict = |kind| {
        let what = v1::log_record::What::Verdict(v1::Verdict { kind, ..Default::default() });
        let record = v1::LogRecord { position: 1, origin: Some(v1::Tag::default()), what: Some(what) };
        let upto = Some(v1::Position { epoch: 0, number: 1 });
        from_server(Some(v1::server_frame::Body::Records(v1::Records {
            records: vec![record],
            upto,
            stable: 0,
        })))
    };
    assert!(verdict(0).is_err());
    assert!(verdict(1).is_ok());
    assert!(verdict(2).is_err(), "unified with what?");
    assert!(verdict(77).is_err());
}

#[test]
fn another_protocol_is_named() {
    let hello = v1::Hello { protocol: 9, position: Some(v1::Position::default()), ..Default::default() };
    let error = from_client(Some(v1::client_frame::Body::Hello(hello))).unwrap_err();
    assert!(error.to_string().contains("protocol 9"), "{error}");
}

#[test]
fn records_out_of_order_are_refused() {
    let record = |position| LogRecord {
        position: Position(position),
        origin: OpId(tag(1)),
        what: LogWhat::Verdict(Verdict::Accepted(None)),
    };
    for (positions, upto) in [([2, 1], 3), ([1, 1], 3), ([1, 4], 3)] {
        let records = positions.map(record).to_vec();
        let mut frames =
            server_frames("ns/v", &Message::Records { records, upto: Position(upto), stable: Position(0) });
        assert!(from_server(frames.remove(0).body).is_err(), "{positions:?} up to {upto}");
    }
}

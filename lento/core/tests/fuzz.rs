//! Whatever a peer or a broken shell says: a volume answers with a hang-up or stops with a fault, it never panics.
//! `SIM_RUNS=n`, `SIM_SEED=n`.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::*;
use lento_core::lineage::Era;
use lento_core::lineage::Lineage;
use lento_core::message::*;
use lento_core::record::*;
use lento_core::types::*;
use lento_core::volume::Millis;
use sim::world::Dice;
use sim::world::World;

/// Small numbers, so that they hit something; now and then the largest.
fn number(dice: &mut Dice) -> u64 {
    if dice.roll(20) == 0 { u64::MAX - dice.roll(3) } else { dice.roll(30) }
}

fn tag(dice: &mut Dice) -> Tag {
    let replica = [0, 100, 101, 102, u64::MAX][dice.roll(5) as usize];
    Tag { replica, incarnation: dice.roll(3) as u32, number: number(dice) }
}

fn object(dice: &mut Dice) -> ObjectId {
    match dice.roll(5) {
        0 => ObjectId::ROOT,
        1 => ObjectId::STAGING,
        _ => ObjectId(tag(dice)),
    }
}

fn name(dice: &mut Dice) -> Name {
    match dice.roll(8) {
        0 => Vec::new(),
        1 => vec![0, b'/', 255],
        _ => vec![b'a' + dice.roll(5) as u8],
    }
}

fn time(dice: &mut Dice) -> Time {
    Time { sec: number(dice) as i64, nsec: dice.roll(1_000_000_000) as u32 }
}

fn attributes(dice: &mut Dice) -> Attributes {
    let kind = [mode::FILE, mode::DIR, mode::SYMLINK, 0, u32::MAX][dice.roll(5) as usize];
    Attributes { mode: kind | 0o644, uid: dice.roll(3) as u32, gid: 0, mtime: time(dice), rdev: number(dice) }
}

fn hash(dice: &mut Dice) -> Hash {
    if dice.roll(4) == 0 { Hash([0; 32]) } else { Hash::of(format!("content {}", dice.roll(9)).as_bytes()) }
}

fn content(dice: &mut Dice) -> Content {
    let text = format!("content {}", dice.roll(9)).into_bytes();
    let inline = (dice.roll(3) > 0).then(|| text.clone());
    let hash = if dice.roll(6) == 0 { hash(dice) } else { Hash::of(&text) };
    Content { hash, size: if dice.roll(6) == 0 { number(dice) } else { text.len() as u64 }, inline }
}

fn operation(dice: &mut Dice) -> Operation {
    let dir = object(dice);
    let kind = match dice.roll(8) {
        0 | 1 => OpKind::Create {
            dir,
            name: name(dice),
            attributes: attributes(dice),
            symlink: vec![],
            content: (dice.roll(2) == 0).then(|| content(dice)),
            xattrs: vec![(b"system.posix_acl_access".to_vec(), vec![2; dice.roll(20) as usize])],
            dir_mtime: time(dice),
            seen: Position(number(dice)),
        },
        2 => OpKind::Link { dir, name: name(dice), dir_mtime: time(dice) },
        3 => OpKind::Remove {
            dir,
            name: name(dice),
            last: dice.roll(2) == 0,
            before: (dice.roll(2) == 0).then(|| hash(dice)),
            dir_mtime: time(dice),
        },
        4 => OpKind::Rename {
            from: dir,
            from_name: name(dice),
            to: object(dice),
            to_name: name(dice),
            replaced: (dice.roll(2) == 0).then(|| Replaced {
                object: object(dice),
                last: true,
                before: None,
            }),
            exchange: dice.roll(2) == 0,
            from_mtime: time(dice),
            to_mtime: time(dice),
        },
        5 => OpKind::SetAttr { mask: Mask(dice.roll(64) as u32), attributes: attributes(dice) },
        6 => OpKind::Close { before: hash(dice), content: content(dice), mtime: time(dice) },
        _ if dice.roll(2) == 0 => {
            OpKind::SetXattr { name: name(dice), value: vec![1; dice.roll(40) as usize] }
        }
        _ => OpKind::DelXattr { name: name(dice) },
    };
    Operation { id: OpId(tag(dice)), time: time(dice), object: object(dice), kind }
}

fn verdict(dice: &mut Dice) -> Verdict {
    match dice.roll(3) {
        0 => Verdict::Accepted((dice.roll(2) == 0).then(|| hash(dice))),
        1 => Verdict::Unified(object(dice)),
        _ => Verdict::Conflict(ConflictKind::StoreStore, Some(hash(dice))),
    }
}

fn lineage(dice: &mut Dice) -> Lineage {
    let eras = (0..dice.roll(4)).map(|_| {
        let epoch = Epoch([0, 100, 101, u64::MAX][dice.roll(4) as usize]);
        Era { epoch, from: Position(number(dice)) }
    });
    Lineage::new(eras.collect())
}

fn message(dice: &mut Dice) -> Message {
    match dice.roll(16) {
        0 => Message::Hello(Hello {
            greeting: dice.roll(3),
            snapshot: (dice.roll(4) == 0).then(|| object(dice)),
            replica: [100, 101, 102][dice.roll(3) as usize],
            incarnation: dice.roll(3) as u32,
            lineage: lineage(dice),
            applied: Position(number(dice)),
            tail_from: Position(number(dice)),
            position: Position(number(dice)),
            has: (Recno(number(dice)), Recno(number(dice))),
            partial: dice.roll(2) == 0,
        }),
        1..=3 => {
            let count = dice.roll(5);
            Message::Submit((0..count).map(|_| operation(dice)).collect())
        }
        4 => Message::Ack(Ack {
            position: Position(number(dice)),
            applied: Position(number(dice)),
            durable: Position(number(dice)),
        }),
        // Rubbish.
        5 if dice.roll(2) == 0 => Message::Ahead { removals: number(dice), upto: Recno(number(dice)) },
        5 if dice.roll(2) == 0 => Message::PermitAsk { stamp: Millis(number(dice)) },
        5 if dice.roll(2) == 0 => Message::PermitReleased { epoch: number(dice) },
        5 if dice.roll(2) == 0 => Message::PermitRevoked { epoch: number(dice) },
        5 if dice.roll(2) == 0 => Message::PermitGranted {
            epoch: number(dice),
            position: Position(number(dice)),
            stamp: Millis(number(dice)),
        },
        5 => Message::Barrier { id: number(dice), after: Recno(number(dice)) },
        6 => Message::Welcome(Welcome {
            greeting: dice.roll(3),
            lineage: lineage(dice),
            position: Position(number(dice)),
            received: Recno(number(dice)),
        }),
        7 => Message::Refused { reason: "no".into(), retry: dice.roll(2) == 0 },
        8 | 9 => {
            let count = dice.roll(5);
            let records = (0..count)
                .map(|_| LogRecord {
                    position: Position(number(dice)),
                    origin: OpId(tag(dice)),
                    what: if dice.roll(2) == 0 {
                        LogWhat::Operation(operation(dice))
                    } else {
                        LogWhat::Verdict(verdict(dice))
                    },
                })
                .collect();
            if dice.roll(4) == 0 {
                return Message::Offer { records, upto: Position(number(dice)) };
            }
            Message::Records { records, upto: Position(number(dice)), stable: Position(number(dice)) }
        }
        10 => Message::SnapshotBegin { position: Position(number(dice)), objects: number(dice) },
        11 if dice.roll(3) == 0 => Message::SnapshotEnd(Position(number(dice))),
        11 if dice.roll(3) == 0 => Message::SnapshotStored(object(dice)),
        11 => Message::SnapshotChunk(vec![SnapshotObject {
            object: object(dice),
            attributes: attributes(dice),
            symlink: vec![],
            hash: Some(hash(dice)),
            size: number(dice),
            xattrs: vec![],
            entries: vec![(object(dice), name(dice))],
        }]),
        12 => Message::Offered(Position(number(dice))),
        13 if dice.roll(2) == 0 => {
            Message::Backfetch { object: object(dice), hash: (dice.roll(3) > 0).then(|| hash(dice)) }
        }
        13 => {
            let stored = Stored { hash: hash(dice), size: number(dice) };
            let holds = match dice.roll(5) {
                0 => Holds::Nothing,
                1 => Holds::NotNow,
                2 => Holds::Named(stored),
                3 => Holds::Coming(stored),
                _ => Holds::Whole(content(dice)),
            };
            Message::Backfetched { object: object(dice), holds }
        }
        _ => Message::BarrierReached { id: number(dice) },
    }
}

fn file(dice: &mut Dice) -> FileId {
    FileId { ino: dice.roll(20), generation: [1, 7][dice.roll(2) as usize] }
}

fn input(dice: &mut Dice) -> Input {
    let ticket = Ticket(number(dice));
    match dice.roll(10) {
        0 => {
            let outcome = match dice.roll(4) {
                0 => ReplayOutcome::Applied { file: file(dice), recno: Recno(number(dice)) },
                1 => ReplayOutcome::Stale { recno: Some(Recno(number(dice))) },
                2 => ReplayOutcome::Busy,
                _ => ReplayOutcome::Refused { errno: 5, message: "EIO".into() },
            };
            Input::Replayed { ticket, outcomes: vec![outcome; dice.roll(700) as usize] }
        }
        1 => {
            let result = match dice.roll(3) {
                0 => ReadResult::Gone,
                1 => ReadResult::Unstable,
                _ => ReadResult::Whole {
                    hash: hash(dice),
                    size: number(dice),
                    version: Version::default(),
                    racy: dice.roll(2) == 0,
                    inline: None,
                },
            };
            Input::ContentRead { ticket, result }
        }
        2 => Input::Fetched { ticket, results: vec![FetchResult::Superseded; dice.roll(3) as usize] },
        3 => Input::Kept { ticket, result: if dice.roll(2) == 0 { Ok(()) } else { Err("full".into()) } },
        4 => Input::Synced { ticket, recno: Some(Recno(number(dice))) },
        5 => Input::Staged { node: "b".into(), hash: hash(dice), size: number(dice), name: "x".into() },
        6 => Input::Barrier { id: number(dice), upto: Recno(number(dice)), all: dice.roll(2) == 0 },
        7 => Input::Timeout,
        8 => Input::Resolved(Position(number(dice))),
        _ => {
            let update = match dice.roll(4) {
                0 => Update::Nothing,
                3 => Update::Touch { dir: file(dice), mtime: time(dice) },
                1 => Update::Remove {
                    dir: file(dice),
                    name: name(dice),
                    file: file(dice),
                    last: true,
                    limbo: dice.roll(2) == 0,
                    dir_mtime: time(dice),
                },
                _ => Update::Close {
                    file: file(dice),
                    replaces: (dice.roll(2) == 0).then(|| file(dice)),
                    after: After::default(),
                    left: if dice.roll(2) == 0 { Left::Whole } else { Left::Unvouched },
                },
            };
            let origin = if dice.roll(2) == 0 {
                KmlOrigin::User
            } else {
                let verdict = dice.roll(12) as u8;
                KmlOrigin::Replay {
                    record: OpId(tag(dice)),
                    object: object(dice),
                    hash: Some(hash(dice)),
                    verdict,
                }
            };
            Input::Journal(vec![KmlRecord { recno: Recno(number(dice)), time: time(dice), origin, update }])
        }
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed, 2);
    let mut dice = Dice(seed ^ 0x5eed);
    for _ in 0..150 {
        let index = dice.roll(3) as usize;
        match dice.roll(10) {
            0..=2 => {
                let peer =
                    if index == 0 { format!("n{}", 1 + dice.roll(3)) } else { format!("n{}", dice.roll(2)) };
                let mut message = message(&mut dice);
                if let Message::Welcome(welcome) = &mut message {
                    welcome.greeting = welcome.greeting.wrapping_add(world.entropy(index));
                }
                world.give(index, Input::Message(peer, message));
            }
            3 => {
                let input = input(&mut dice);
                world.give(index, input);
            }
            4 => {
                let file = world.nodes[index].disk.user_make(sim::disk::ROOT, &name(&mut dice), mode::FILE);
                if let Ok(file) = file {
                    world.nodes[index].disk.user_close(file);
                }
            }
            5 if index > 0 => world.connect(index),
            _ => {
                for _ in 0..4 {
                    world.step();
                }
            }
        }
        // A fault stops the volume; the node begins again, as the shell would.
        if world.nodes[index].volume.is_none() {
            world.restart(index);
        }
    }
}

#[test]
fn rubbish_never_panics() {
    let one = std::env::var("SIM_SEED").ok().and_then(|s| s.parse::<u64>().ok());
    let most = std::env::var("SIM_RUNS").ok().and_then(|s| s.parse().ok()).unwrap_or(300);
    let mut bad = Vec::new();
    for seed in one.map_or(0..most, |seed| seed..seed + 1) {
        if std::panic::catch_unwind(|| run(seed)).is_err() {
            bad.push(seed);
        }
    }
    assert!(bad.is_empty(), "panics with seeds {bad:?}");
}

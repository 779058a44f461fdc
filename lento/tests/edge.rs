//! Whatever a peer sends, over the real edge (bytes, wire, core) and in both roles: nobody panics or hangs, and the peers
//! beside it do not notice. Valid messages are changed field by field. `SIM_RUNS=n`, `SIM_SEED=n`.

#![allow(clippy::all, clippy::restriction, missing_docs)]

#[path = "../core/tests/sim/mod.rs"]
mod sim;

use intermezzo_proto::v1;
use lento::wire;
use lento_core::message::Message;
use lento_core::types::mode;
use prost::Message as _;
use sim::disk::ROOT;
use sim::world::Dice;
use sim::world::SERVER;
use sim::world::World;

/// One that lies, and one that does not.
const LIAR: usize = 1;
const HONEST: usize = 2;

/// Fields of an encoded message, as any protobuf message has them.
#[derive(Clone, Debug)]
enum Field {
    Number(u64, u64),
    Bytes(u64, Vec<u8>),
    Other(u64, Vec<u8>),
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        if key >> 3 == 0 {
            return None;
        }
        let taken = match key & 7 {
            0 => {
                fields.push(Field::Number(key, varint(&mut bytes)?));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => varint(&mut bytes)? as usize,
            _ => return None,
        };
        let (taken, rest) = bytes.split_at_checked(taken)?;
        bytes = rest;
        let (key, taken) = (key, taken.to_vec());
        fields.push(if key & 7 == 2 { Field::Bytes(key, taken) } else { Field::Other(key, taken) });
    }
    Some(fields)
}

fn encode(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match field {
            Field::Number(key, number) => {
                prost::encoding::encode_varint(*key, &mut out);
                prost::encoding::encode_varint(*number, &mut out);
            }
            Field::Bytes(key, bytes) => {
                prost::encoding::encode_varint(*key, &mut out);
                prost::encoding::encode_varint(bytes.len() as u64, &mut out);
                out.extend_from_slice(bytes);
            }
            Field::Other(key, bytes) => {
                prost::encoding::encode_varint(*key, &mut out);
                out.extend_from_slice(bytes);
            }
        }
    }
    out
}

fn number(dice: &mut Dice, was: u64) -> u64 {
    match dice.roll(9) {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => u64::MAX,
        4 => 1 << 63,
        5 => was.wrapping_add(1),
        6 => was.wrapping_sub(1),
        7 => 100 + dice.roll(3),
        _ => dice.roll(50),
    }
}

fn bytes(dice: &mut Dice, was: &[u8]) -> Vec<u8> {
    match dice.roll(9) {
        0 => Vec::new(),
        1 => b"..".to_vec(),
        2 => b"a/b".to_vec(),
        3 => vec![b'x'; 256],
        4 => b"trusted.intermezzo.missing".to_vec(),
        5 => was[..was.len() / 2].to_vec(),
        6 => [was, was].concat(),
        7 => vec![0; was.len()],
        _ => vec![b'a' + dice.roll(5) as u8],
    }
}

/// One change somewhere in it.
fn change(dice: &mut Dice, message: &[u8]) -> Vec<u8> {
    let Some(mut fields) = parse(message).filter(|fields| !fields.is_empty()) else {
        return bytes(dice, message);
    };
    let at = dice.roll(fields.len() as u64) as usize;
    match dice.roll(12) {
        0 => drop(fields.remove(at)),
        1 => fields.push(fields[at].clone()),
        2 => {
            let with = dice.roll(fields.len() as u64) as usize;
            fields.swap(at, with);
        }
        _ => match &mut fields[at] {
            Field::Number(_, value) => *value = number(dice, *value),
            Field::Bytes(_, inner) => {
                let deeper = !inner.is_empty() && parse(inner).is_some() && dice.roll(8) > 0;
                *inner = if deeper { change(dice, inner) } else { bytes(dice, inner) };
            }
            Field::Other(_, raw) => raw.iter_mut().for_each(|byte| *byte = dice.roll(256) as u8),
        },
    }
    encode(&fields)
}

/// Over the wire, changed on the way in one of `one_in` cases. `None`: the receiver hangs up.
fn over_the_wire(dice: &mut Dice, to_server: bool, message: &Message, one_in: u64) -> Option<Vec<Message>> {
    let mut arrived = Vec::new();
    let mut through = |frame: Vec<u8>| -> Option<()> {
        let mut frame = frame;
        while dice.roll(one_in) == 0 {
            frame = change(dice, &frame);
        }
        if to_server {
            let frame = v1::ClientFrame::decode(frame.as_slice()).ok()?;
            arrived.extend(wire::from_client(frame.body).ok()?);
        } else {
            arrived.push(wire::from_server(v1::ServerFrame::decode(frame.as_slice()).ok()?.body).ok()?);
        }
        Some(())
    };
    if to_server {
        for frame in wire::client_frames("ns/v", message) {
            through(frame.encode_to_vec())?;
        }
    } else {
        for frame in wire::server_frames("ns/v", message) {
            through(frame.encode_to_vec())?;
        }
    }
    Some(arrived)
}

fn user(world: &mut World, node: usize) {
    let files = world.files(node);
    let name = vec![b'a' + world.dice.roll(6) as u8];
    let picked = (!files.is_empty()).then(|| files[world.dice.roll(files.len() as u64) as usize].clone());
    let bytes = world.content();
    let disk = &mut world.nodes[node].disk;
    match (world.dice.roll(6), picked) {
        (0, _) => drop(disk.user_make(ROOT, &name, mode::DIR)),
        (1 | 2, _) => {
            if let Ok(file) = disk.user_make(ROOT, &name, mode::FILE) {
                world.store(node, file, &bytes);
            }
        }
        (3, Some((_, _, file))) if disk.inodes[&file].attributes.is_file() => {
            world.store(node, file, &bytes);
        }
        (4, Some((dir, old, file))) => {
            world.look_away(node, file);
            drop(world.nodes[node].disk.user_remove(dir, &old));
        }
        (_, Some((dir, old, _))) => drop(disk.user_rename(dir, &old, ROOT, &name, true)),
        _ => {}
    }
}

fn run(seed: u64, liar_serves: bool) {
    let mut world = World::new(seed, 2);
    for _ in 0..6 {
        user(&mut world, SERVER);
    }
    world.rest();
    let mut dice = Dice(seed ^ 0xed6e);
    world.mangle = Some(Box::new(move |from, to, message| {
        let lies = if liar_serves { to == LIAR } else { from == LIAR };
        let one_in = if lies { 3 } else { u64::MAX };
        over_the_wire(&mut dice, to == SERVER, &message, one_in)
    }));
    for _ in 0..120 {
        let node = world.dice.roll(3) as usize;
        match world.dice.roll(6) {
            0 | 1 => user(&mut world, node),
            2 => world.connect(LIAR),
            _ => (0..6).for_each(|_| world.step()),
        }
        // Whom a bad server has brought to a stop begins again.
        if world.nodes[LIAR].volume.is_none() {
            world.restart(LIAR);
        }
    }
    world.cut(LIAR);
    let file = world.nodes[HONEST].disk.user_make(ROOT, b"honest", mode::FILE).unwrap();
    world.store(HONEST, file, b"as ever");
    world.rest_without(&[LIAR]);
    for node in [SERVER, HONEST] {
        assert!(world.nodes[node].faults.is_empty(), "n{node}: {:?}", world.nodes[node].faults);
        let status = world.nodes[node].volume.as_ref().unwrap().status(&world.nodes[node].store).unwrap();
        assert_eq!((status.pending, status.dirty), (0, 0), "n{node} waits: {:?}", status.waiting);
    }
    if liar_serves {
        assert!(
            world.nodes[LIAR].faults.is_empty(),
            "a bad server costs a stream: {:?}",
            world.nodes[LIAR].faults
        );
    }
    assert_eq!(world.nodes[HONEST].disk.tree(), world.nodes[SERVER].disk.tree());
    let there = world.nodes[SERVER].disk.entry(ROOT, b"honest").expect("the honest one's file");
    assert_eq!(world.nodes[SERVER].disk.inodes[&there].bytes, b"as ever");
}

fn many(liar_serves: bool) {
    let one = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let most = std::env::var("SIM_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(150);
    let mut bad = Vec::new();
    for seed in one.map_or(0..most, |seed| seed..seed + 1) {
        if std::panic::catch_unwind(|| run(seed, liar_serves)).is_err() {
            bad.push(seed);
        }
    }
    assert!(bad.is_empty(), "seeds {bad:?} went wrong");
}

#[test]
fn a_client_that_lies_harms_nobody_else() {
    many(false);
}

#[test]
fn a_server_that_lies_harms_nobody_else() {
    many(true);
}

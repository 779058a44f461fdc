//! Permits: one node's users write at a time, nothing conflicts while nodes reach each other, who is cut off is fenced, and nobody
//! waits for ever. `SIM_SEED=n` replays one seed, `SIM_RUNS=n` sets how many, `SIM_TRACE=1` prints what happened.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::Volume;
use lento_core::io::Alone;
use lento_core::io::Input;
use lento_core::io::Writes;
use lento_core::types::mode;
use lento_core::volume::PermitState;
use sim::disk::ROOT;
use sim::steps::CLIENT;
use sim::steps::OTHER;
use sim::steps::SERVER;
use sim::steps::at;
use sim::steps::everywhere;
use sim::steps::read;
use sim::steps::settle;
use sim::steps::store;
use sim::steps::world;
use sim::timing::Timing;
use sim::world::World;

const STEAL: Writes = Writes::Permits(Alone::Steal);
const READ_ONLY: Writes = Writes::Permits(Alone::ReadOnly);

fn under_permits(clients: usize, writes: Writes) -> World {
    let mut world = world(clients);
    world.set_writes(writes);
    world.rest();
    world
}

/// A user adds a line: opens, writes, closes.
fn append(world: &mut World, index: usize, path: &str, line: &str) {
    let text = read(world, index, path).unwrap_or_default() + line + "\n";
    store(world, index, path, &text);
}

fn conflicts(world: &World) -> usize {
    Volume::conflicts(&world.nodes[SERVER].store, 100).unwrap().len()
}

/// All machines and streams go on, in small steps of time; at most one node writes all the while.
fn go_on(world: &mut World, milliseconds: u64, step: u64) {
    let end = world.now + milliseconds;
    while world.now < end {
        world.now += step;
        for index in 0..world.nodes.len() {
            world.read_journal(index, 64);
            while world.run_job(index) {}
            if index > 0 {
                while world.deliver(index, SERVER) || world.deliver(SERVER, index) {}
            }
            world.timeout(index);
        }
        let writers = world.writers();
        assert!(writers.len() <= 1, "{writers:?} write at {}", world.now);
    }
}

/// A user waits until he may write.
fn wait(world: &mut World, index: usize, at_most: u64) -> bool {
    let end = world.now + at_most;
    while world.now < end {
        if world.may_write(index) {
            return true;
        }
        go_on(world, 1, 1);
    }
    false
}

fn state(world: &World, index: usize) -> PermitState {
    let node = &world.nodes[index];
    node.volume.as_ref().unwrap().status(&node.store).unwrap().permit
}

#[test]
fn nodes_that_append_by_turns_lose_nothing() {
    let mut world = under_permits(2, STEAL);
    let mut expected = String::new();
    for turn in 0..60 {
        let index = turn % 3;
        assert!(wait(&mut world, index, 2_000), "turn {turn}");
        append(&mut world, index, "log", &turn.to_string());
        expected += &format!("{turn}\n");
    }
    settle(&mut world);
    everywhere(&world, "log", Some(&expected));
    assert_eq!(conflicts(&world), 0);
}

#[test]
fn whoever_has_just_got_it_is_not_hurried_and_whoever_is_idle_gives_it_back_at_once() {
    let mut world = under_permits(2, STEAL);
    assert!(wait(&mut world, CLIENT, 1_000));
    let began = world.now;
    assert!(!world.may_write(OTHER));
    while world.is_open(CLIENT) {
        append(&mut world, CLIENT, "log", "busy");
        go_on(&mut world, 1, 1);
        assert!(world.now < began + 1_000);
    }
    assert!(world.now >= began + 90, "a user who goes on writing keeps it for a while");
    assert!(wait(&mut world, OTHER, 1_000));
    append(&mut world, OTHER, "log", "once");
    let began = world.now;
    assert!(wait(&mut world, SERVER, 1_000));
    assert!(world.now < began + 60, "who has written and stopped does not keep others waiting");
}

#[test]
fn a_holder_that_is_cut_off_is_fenced_before_the_next_one_writes() {
    for writes in [STEAL, READ_ONLY] {
        let mut world = under_permits(2, writes);
        assert!(wait(&mut world, CLIENT, 1_000));
        append(&mut world, CLIENT, "log", "before");
        go_on(&mut world, 100, 5);
        world.cut(CLIENT);
        // What it still writes on its lease it writes alone.
        assert!(world.may_write(CLIENT));
        let cut = world.now;
        while !world.may_write(OTHER) {
            go_on(&mut world, 10, 10);
            assert!(world.now < cut + 20_000, "the lease ends");
        }
        assert!(world.now > cut + 5_000, "not before");
        assert_eq!(read(&world, OTHER, "log").as_deref(), Some("before\n"));
        append(&mut world, OTHER, "log", "after");
        assert!(!world.is_open(CLIENT));
        go_on(&mut world, 6_000, 10);
        let alone = wait(&mut world, CLIENT, 1_000);
        let expected = if writes == STEAL { PermitState::Stolen } else { PermitState::ReadOnly };
        assert_eq!((alone, state(&world, CLIENT)), (writes == STEAL, expected));
        world.connect(CLIENT);
        go_on(&mut world, 1_000, 5);
        assert!(!world.is_open(CLIENT), "back under the permit");
        settle(&mut world);
        everywhere(&world, "log", Some("before\nafter\n"));
        assert_eq!(conflicts(&world), 0);
    }
}

#[test]
fn lento_of_the_holder_ends_and_its_users_go_on() {
    let mut world = under_permits(2, READ_ONLY);
    assert!(wait(&mut world, CLIENT, 1_000));
    append(&mut world, CLIENT, "log", "one");
    world.kill(CLIENT);
    world.connect(CLIENT);
    assert!(!world.may_write(OTHER));
    assert!(wait(&mut world, OTHER, 25_000));
    append(&mut world, OTHER, "log", "two");
    assert!(wait(&mut world, CLIENT, 1_000));
    append(&mut world, CLIENT, "log", "three");
    settle(&mut world);
    everywhere(&world, "log", Some("one\ntwo\nthree\n"));
    assert_eq!(conflicts(&world), 0);
}

#[test]
fn a_server_that_ends_knows_afterwards_who_holds_it() {
    let mut world = under_permits(2, READ_ONLY);
    assert!(wait(&mut world, CLIENT, 1_000));
    append(&mut world, CLIENT, "log", "one");
    world.kill(SERVER);
    for client in [CLIENT, OTHER] {
        world.connect(client);
    }
    let began = world.now;
    assert!(wait(&mut world, OTHER, 2_000), "the holder is there and gives it back");
    assert!(world.now < began + 2_000);
    append(&mut world, OTHER, "log", "two");
    go_on(&mut world, 100, 5);
    // Without the holder it waits for the lease, also after a power cut that has taken its memory of it.
    world.cut(OTHER);
    world.power(SERVER);
    world.connect(CLIENT);
    let began = world.now;
    assert!(wait(&mut world, CLIENT, 30_000));
    assert!(world.now > began + 9_000);
    world.connect(OTHER);
    settle(&mut world);
    everywhere(&world, "log", Some("one\ntwo\n"));
}

#[test]
fn presto_of_the_holder_ends_and_the_permit_is_asked_for_anew() {
    let mut world = under_permits(1, READ_ONLY);
    assert!(wait(&mut world, CLIENT, 1_000));
    world.kill_presto(CLIENT);
    assert!(wait(&mut world, CLIENT, 1_000), "it still has it");
    assert!(wait(&mut world, SERVER, 1_000), "and gives it back");
    world.kill_presto(SERVER);
    assert!(wait(&mut world, SERVER, 1_000));
    assert!(wait(&mut world, CLIENT, 1_000));
}

#[test]
fn a_file_that_is_open_here_keeps_nobody_from_the_permit() {
    let mut world = under_permits(2, STEAL);
    assert!(wait(&mut world, CLIENT, 1_000));
    store(&mut world, CLIENT, "f", "old");
    assert!(wait(&mut world, OTHER, 1_000));
    go_on(&mut world, 500, 5);
    let file = at(&world, OTHER, "f").unwrap();
    world.nodes[OTHER].disk.writers.insert(file);
    assert!(wait(&mut world, CLIENT, 1_000));
    store(&mut world, CLIENT, "f", "new");
    assert!(wait(&mut world, OTHER, 2_000), "its own open file would be waited for for ever");
    store(&mut world, OTHER, "g", "other");
    world.nodes[OTHER].disk.writers.remove(&file);
    settle(&mut world);
    everywhere(&world, "f", Some("new"));
    assert_eq!(conflicts(&world), 0);
}

#[test]
fn what_is_admitted_may_be_changed_while_it_runs() {
    let mut world = under_permits(1, READ_ONLY);
    assert!(wait(&mut world, CLIENT, 1_000));
    world.set_writes(Writes::Optimistic);
    go_on(&mut world, 100, 5);
    assert!(world.may_write(SERVER) && world.may_write(CLIENT));
    world.set_writes(READ_ONLY);
    go_on(&mut world, 12_000, 10);
    assert!(!world.is_open(SERVER) && !world.is_open(CLIENT));
    assert!(wait(&mut world, SERVER, 15_000));
    assert!(wait(&mut world, CLIENT, 1_000));
}

/// One random step of a user who may write.
fn act(world: &mut World, index: usize, lines: &mut Vec<String>) {
    let name = |dice: u64| vec![b'a' + dice as u8];
    let (one, other) = (name(world.dice.roll(4)), name(world.dice.roll(4)));
    match world.dice.roll(8) {
        0..=3 => {
            let line = format!("{index}.{}", lines.len());
            append(world, index, "log", &line);
            lines.push(line);
        }
        4 => drop(world.nodes[index].disk.user_make(ROOT, &one, mode::FILE)),
        5 => drop(world.nodes[index].disk.user_remove(ROOT, &one)),
        6 => drop(world.nodes[index].disk.user_rename(ROOT, &one, ROOT, &other, false)),
        _ => {
            if let Some(file) = world.nodes[index].disk.entry(ROOT, &one) {
                let text = format!("{index} {}", world.now);
                world.nodes[index].disk.user_store(file, text.as_bytes());
                world.nodes[index].disk.user_close(file);
            }
        }
    }
}

fn history(seed: u64) -> Result<(), String> {
    let clients = 1 + seed as usize % 3;
    let mut world = World::new(seed, clients);
    let mut timing = Timing::new(seed);
    // A file that always changes while it is read keeps the permit from others: it cannot be sent.
    timing.calm();
    world.timing = Some(timing);
    world.set_writes(READ_ONLY);
    let mut lines = Vec::new();
    let mut since = vec![None; clients + 1];
    for _ in 0..3000 {
        let index = world.dice.roll(clients as u64 + 1) as usize;
        if world.dice.roll(6) == 0 && world.may_write(index) {
            since[index] = None;
            let writers = world.writers();
            if writers != [index] {
                return Err(told(&world, format!("{writers:?} write at {}", world.now)));
            }
            act(&mut world, index, &mut lines);
        } else if world.dice.roll(40) == 0 && !world.may_write(index) {
            since[index].get_or_insert(world.now);
        }
        for _ in 0..6 {
            world.step();
        }
        if world.dice.roll(20) == 0 {
            world.now += world.dice.roll(200);
        }
    }
    for index in 0..=clients {
        if !wait(&mut world, index, 20_000) {
            return Err(format!("n{index} never gets it"));
        }
    }
    if !world.settle() {
        return Err("never at rest".into());
    }
    world.check_agreement()?;
    let log = read(&world, SERVER, "log").unwrap_or_default();
    let wanted: String = lines.iter().map(|line| line.clone() + "\n").collect();
    if log != wanted {
        return Err(format!("{log:?} instead of {wanted:?}"));
    }
    match conflicts(&world) {
        0 => Ok(()),
        n => Err(format!("{n} conflicts")),
    }
}

/// Programs, power and streams end all the time: never do two nodes write at once, and all are equal in the end.
fn troubled(seed: u64) -> Result<(), String> {
    let clients = 1 + seed as usize % 3;
    let mut world = World::new(seed, clients);
    world.set_writes(READ_ONLY);
    let mut lines = Vec::new();
    for _ in 0..1500 {
        let index = world.dice.roll(clients as u64 + 1) as usize;
        match world.dice.roll(60) {
            0..=14 if world.may_write(index) => {
                let writers = world.writers();
                if writers != [index] {
                    return Err(told(&world, format!("{writers:?} write at {}", world.now)));
                }
                act(&mut world, index, &mut lines);
            }
            15 => world.kill(index),
            16 => world.kill_presto(index),
            17 => world.power(index),
            18 | 19 if index > 0 => world.cut(index),
            20..=24 if index > 0 => world.connect(index),
            25 => world.now += 3_000,
            26 => world.now += 12_000,
            _ => {
                for _ in 0..6 {
                    world.step();
                }
            }
        }
    }
    if !world.settle() {
        return Err("never at rest".into());
    }
    for index in 0..=clients {
        if !wait(&mut world, index, 60_000) {
            return Err(format!("n{index} never gets it"));
        }
    }
    world.check_agreement()
}

/// What happened, where somebody wants to know.
fn told(world: &World, why: String) -> String {
    if std::env::var_os("SIM_TRACE").is_some() {
        println!("{}", world.log.join("\n"));
    }
    why
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_RUNS").unwrap_or(default),
    }
}

fn all(default: u64, name: &str, run: fn(u64) -> Result<(), String>) {
    for seed in seeds(default) {
        if let Err(why) = run(seed) {
            panic!("seed {seed}: {why}; replay with SIM_SEED={seed} and the test {name}");
        }
    }
}

#[test]
fn nothing_conflicts_while_nodes_reach_each_other() {
    all(60, "nothing_conflicts_while_nodes_reach_each_other", history);
}

#[test]
fn never_do_two_nodes_write_at_once() {
    all(60, "never_do_two_nodes_write_at_once", troubled);
}

#[test]
fn a_stream_that_says_yes_unasked_opens_no_door() {
    use lento_core::message::Message;
    use lento_core::types::Position;
    use lento_core::volume::Millis;
    let mut world = under_permits(1, READ_ONLY);
    for stamp in [0, u64::MAX] {
        let granted = Message::PermitGranted { epoch: 9, position: Position(0), stamp: Millis(stamp) };
        world.give(CLIENT, Input::Message("n0".into(), granted));
        world.give(CLIENT, Input::Message("n0".into(), Message::PermitRevoked { epoch: 9 }));
    }
    world.give(SERVER, Input::Message("n1".into(), Message::PermitReleased { epoch: 77 }));
    go_on(&mut world, 100, 5);
    assert!(world.writers().is_empty());
    // The numbers of such a stream mean nothing to the next one.
    world.cut(CLIENT);
    world.connect(CLIENT);
    assert!(wait(&mut world, CLIENT, 1_000));
    assert!(wait(&mut world, SERVER, 1_000));
}

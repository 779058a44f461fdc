//! Random histories on a server and its clients: after healing all trees are equal and nothing is lost.
//! `SIM_SEED=n` replays one seed, `SIM_RUNS=n` sets how many, `SIM_FROM=n` from which one on, `SIM_TRACE=1` prints what
//! happened.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::Volume;
use lento_core::io::ConflictOptions;
use lento_core::io::Input;
use lento_core::io::LogLimit;
use lento_core::io::MassOptions;
use lento_core::io::Policy;
use lento_core::keeping::Keeping;
use lento_core::keeping::Pin;
use lento_core::types::mode;
use sim::disk::ROOT;
use sim::mix::CALM;
use sim::mix::Mix;
use sim::mix::any;
use sim::past::EVERYTHING;
use sim::timing::Timing;
use sim::world::World;

fn user_action(world: &mut World, index: usize) {
    let files = world.files(index);
    let pick = |world: &mut World| {
        (!files.is_empty()).then(|| files[world.dice.roll(files.len() as u64) as usize].clone())
    };
    let dirs: Vec<_> = files
        .iter()
        .filter(|(_, _, f)| world.nodes[index].disk.inodes[f].attributes.is_dir())
        .map(|(_, _, f)| *f)
        .chain([ROOT])
        .collect();
    let dir = dirs[world.dice.roll(dirs.len() as u64) as usize];
    let name = vec![b'a' + world.dice.roll(5) as u8];
    let is_dir = |world: &World, f| world.nodes[index].disk.inodes[&f].attributes.is_dir();
    let log = |world: &mut World, text: String| world.note(format!("t{} n{index} {text}", world.now));
    match world.dice.roll(14) {
        0 | 1 => {
            if let Ok(file) = world.nodes[index].disk.user_make(dir, &name, mode::FILE) {
                log(world, format!("create {dir:?}/{} = {file:?}", name[0] as char));
                if world.dice.roll(3) > 0 {
                    let bytes = world.content();
                    log(world, format!("store {file:?} {}", String::from_utf8_lossy(&bytes)));
                    world.store(index, file, &bytes);
                }
            }
        }
        2 => {
            if let Ok(file) = world.nodes[index].disk.user_make(dir, &name, mode::DIR) {
                log(world, format!("mkdir {dir:?}/{} = {file:?}", name[0] as char));
            }
        }
        3 | 4 | 5 => {
            if let Some((_, _, file)) = pick(world)
                && !is_dir(world, file)
            {
                let bytes = world.content();
                log(world, format!("store {file:?} {}", String::from_utf8_lossy(&bytes)));
                if world.dice.roll(4) == 0 {
                    world.open_and_store(index, file, &bytes);
                } else {
                    world.store(index, file, &bytes);
                }
            }
        }
        6 | 7 => {
            if let Some((dir, name, file)) = pick(world) {
                let hash = world.nodes[index].disk.hash(file);
                if world.nodes[index].disk.user_remove(dir, &name).is_ok() {
                    log(world, format!("remove {dir:?}/{} = {file:?}", name[0] as char));
                    world.superseded.insert(hash);
                }
            }
        }
        8 | 9 => {
            if let Some((from, from_name, file)) = pick(world) {
                let exchange = world.dice.roll(4) == 0;
                let target = world.nodes[index].disk.entry(dir, &name);
                let hash = target.map(|t| world.nodes[index].disk.hash(t));
                if world.nodes[index].disk.user_rename(from, &from_name, dir, &name, exchange).is_ok() {
                    log(
                        world,
                        format!(
                            "rename {from:?}/{} -> {dir:?}/{} {file:?} over {target:?} {exchange}",
                            from_name[0] as char, name[0] as char
                        ),
                    );
                    if !exchange {
                        world.superseded.extend(hash);
                    }
                }
            }
        }
        10 => {
            // An editor: new content beside the old, then over it.
            if let Some((dir, name, file)) = pick(world)
                && !is_dir(world, file)
            {
                let tmp = b"tmp".to_vec();
                if let Ok(new) = world.nodes[index].disk.user_make(dir, &tmp, mode::FILE) {
                    let bytes = world.content();
                    world.store(index, new, &bytes);
                    let hash = world.nodes[index].disk.hash(file);
                    if world.nodes[index].disk.user_rename(dir, &tmp, dir, &name, false).is_ok() {
                        world.superseded.insert(hash);
                        log(world, format!("save over {dir:?}/{} {new:?}", name[0] as char));
                    }
                }
            }
        }
        11 => {
            if let Some((_, _, file)) = pick(world)
                && !is_dir(world, file)
                && world.nodes[index].disk.user_link(file, dir, &name).is_ok()
            {
                log(world, format!("link {file:?} {dir:?}/{}", name[0] as char));
            }
        }
        12 => {
            if let Some((_, _, file)) = pick(world) {
                let bits = 0o600 + world.dice.roll(0o77) as u32;
                log(world, format!("chmod {file:?} {bits:o}"));
                world.nodes[index].disk.user_setattr(file, bits);
                let value = world.content();
                world.nodes[index].disk.user_setxattr(file, b"user.x", &value);
            }
        }
        _ => {
            let open: Vec<_> = world.nodes[index].disk.writers.iter().copied().collect();
            for file in open {
                if world.dice.roll(3) == 0 {
                    let bytes = world.content();
                    log(world, format!("flush {file:?}, store {}", String::from_utf8_lossy(&bytes)));
                    world.flush(index, file);
                    world.open_and_store(index, file, &bytes);
                } else {
                    log(world, format!("close {file:?}"));
                    world.close(index, file);
                }
            }
        }
    }
}

/// Programs are in the middle of writing.
fn write_a_little(world: &mut World, index: usize) {
    let is_file = |file: &_| world.nodes[index].disk.inodes[file].attributes.is_file();
    let files: Vec<_> = world.files(index).into_iter().map(|(_, _, file)| file).filter(is_file).collect();
    for file in files {
        if world.dice.roll(2) == 0 {
            let bytes = world.content();
            world.open_and_store(index, file, &bytes);
        }
    }
}

/// Somebody removes whatever is there.
fn remove_much(world: &mut World, index: usize) {
    world.note(format!("t{} n{index} removes much", world.now));
    for (dir, name, file) in world.files(index).into_iter().rev() {
        let hash = world.nodes[index].disk.hash(file);
        if world.dice.roll(5) > 0 && world.nodes[index].disk.user_remove(dir, &name).is_ok() {
            world.superseded.insert(hash);
        }
    }
}

/// A person strikes a conflict off, whichever.
fn resolve(world: &mut World) {
    let rows = Volume::conflicts(&world.nodes[0].store, 50).unwrap();
    if !rows.is_empty() && world.nodes[0].volume.is_some() {
        let (position, row) = &rows[world.dice.roll(rows.len() as u64) as usize];
        world.note(format!("resolves {position}: {row:?}"));
        world.give(0, Input::Resolved(*position));
    }
}

/// The owner of the volume wants something else done about conflicts.
fn change_policy(world: &mut World) {
    let all = [Policy::KeepBoth, Policy::ServerWins, Policy::ClientWins, Policy::Manual];
    world.conflicts.policy = all[world.dice.roll(4) as usize];
    world.note(format!("{:?}", world.conflicts));
    world.give(0, Input::Conflicts(world.conflicts));
}

fn any_keeping(world: &mut World) -> Keeping {
    match world.dice.roll(3) {
        0 => Keeping::All,
        1 => Keeping::OnDemand { pins: vec![] },
        _ => Keeping::OnDemand { pins: vec![Pin::new("/a"), Pin::new("/**/b")] },
    }
}

/// Nobody waits, and whatever lacks somewhere can be had.
fn check_on_demand(world: &mut World, waits: usize) -> Result<(), String> {
    if waits > 0 {
        return Err(format!("{waits} wait for contents, and nobody tells them anything"));
    }
    for client in 1..world.nodes.len() {
        (0..5).for_each(|_| world.open_missing(client));
    }
    world.settle();
    let waits = world.nodes.iter().map(|node| node.asks.len()).sum::<usize>();
    if waits > 0 {
        return Err(format!("{waits} opened what is not here, with everybody there, and wait"));
    }
    world.check_agreement()?;
    for client in 1..world.nodes.len() {
        world.keep(client, Keeping::All);
    }
    // It is looked again after a while.
    for _ in 0..4 {
        world.settle();
        world.now += 40_000;
    }
    world.check_agreement()?;
    for node in &world.nodes {
        let missing: Vec<_> = node.disk.inodes.iter().filter(|(_, inode)| inode.missing.is_some()).collect();
        if !missing.is_empty() {
            return Err(format!("{} keeps everything and lacks {missing:?}", node.name));
        }
    }
    Ok(())
}

/// What a history was a test of.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Torn files that the server had back in the end.
    restored: u64,
    /// Times that a person was asked about removals.
    asked: u64,
    /// Times that somebody had a content that had not been there.
    had: u64,
    /// Trees of the past that were looked at again.
    recalled: u64,
}

fn run(seed: u64, mix: Mix) -> Result<Seen, String> {
    let mut world = World::with_tail(seed, mix.clients, mix.tail);
    world.tears = mix.tears;
    world.skews = mix.power;
    world.timing = Some(Timing::new(seed));
    if mix.clocks {
        (0..=mix.clients).for_each(|index| world.set_clock(index));
    }
    world.log_limit = LogLimit { bytes: mix.log, patience: 20 };
    world.give(0, Input::LogLimit(world.log_limit));
    world.conflicts.policy = mix.policy.unwrap_or_default();
    world.conflicts.keep_for = mix.keep_for;
    world.give(0, Input::Conflicts(world.conflicts));
    world.mass = MassOptions { percent: mix.mass, minimum: 2 };
    world.give(0, Input::MassRemoval(world.mass));
    world.set_writes(mix.writes);
    for client in 1..=mix.clients {
        if mix.on_demand && world.dice.roll(2) == 0 {
            world.keep(client, Keeping::OnDemand { pins: vec![] });
        }
    }
    world.keep_history(mix.history.then_some(EVERYTHING));
    for _ in 0..mix.steps {
        let index = world.dice.roll(world.nodes.len() as u64) as usize;
        match world.dice.roll(mix.things) {
            0..=59 if world.may_write(index) => user_action(&mut world, index),
            60..=62 if mix.cuts && index > 0 => world.cut(index),
            71 if mix.cuts && index > 0 => world.greet_again(index),
            63..=67 if index > 0 => world.connect(index),
            68 if mix.kills => world.kill(index),
            69 if mix.kills => world.kill_presto(index),
            70 if mix.power && index > 0 => world.power(index),
            70 if mix.server_power && index == 0 => world.power(index),
            83..=86 if mix.tears && mix.server_power && index == 0 => {
                write_a_little(&mut world, index);
                world.power(index);
            }
            87 | 88 if mix.resolves => resolve(&mut world),
            89 if mix.policy.is_none() => change_policy(&mut world),
            90..=92 if mix.mass.is_some() => drop(world.answer()),
            93 | 94 if mix.mass.is_some() && index > 0 => remove_much(&mut world, index),
            95..=98 if mix.on_demand && index > 0 => world.open_missing(index),
            99 if mix.on_demand && index > 0 => {
                let keeping = any_keeping(&mut world);
                world.keep(index, keeping);
            }
            95..=97 if mix.history => world.remember(),
            79..=82 if mix.clocks => world.set_clock(index),
            72..=75 if mix.backups && index == 0 => world.back_up(),
            76..=78 if mix.backups && index == 0 => world.restore(),
            _ => {
                for _ in 0..mix.pace {
                    world.step();
                }
            }
        }
    }
    world.note(format!("{mix:?}"));
    let mut rested = world.settle();
    // Whoever was silent is asked again after a while, and so is a server whose file was torn.
    let tears_all = mix.tears && mix.server_power;
    for rounds in 0..8 {
        if (tears_all && rounds == 0) || world.is_torn() {
            world.now += 10_000;
            rested = world.settle();
        }
    }
    rested &= !world.is_torn();
    let mut result =
        if tears_all { world.check_agreement().and_then(|()| world.check_torn()) } else { world.check() };
    let waits = world.nodes.iter().map(|node| node.asks.len()).sum::<usize>();
    if mix.on_demand {
        result = result.and_then(|()| check_on_demand(&mut world, waits));
    }
    if world.has_staged() {
        // What a client staged and did not need goes when it greets anew.
        (1..=mix.clients).for_each(|client| world.cut(client));
        rested &= world.settle();
        result = result.and_then(|()| world.check_stage());
    }
    if !mix.power {
        result = result.and_then(|()| world.check_limbo());
    }
    result = result.and_then(|()| world.check_past());
    if world.dropped > 0 && mix.policy == Some(Policy::KeepBoth) {
        result = result.and(Err("what waits for a person was dropped".to_owned()));
    }
    if result.is_err() || !rested {
        if std::env::var_os("SIM_TRACE").is_some() {
            for line in &world.log {
                println!("{line}");
            }
        }
        return Err(format!("seed {seed}: rested {rested}: {}", result.err().unwrap_or_default()));
    }
    let (restored, asked, had) = (world.restored, world.asked, world.had);
    Ok(Seen { restored, asked, had, recalled: world.remembered.compared })
}

fn runs(default: u64) -> std::ops::Range<u64> {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()) {
        return seed..seed + 1;
    }
    let from: u64 = std::env::var("SIM_FROM").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    from..from + std::env::var("SIM_RUNS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// Too few histories to say what they have in common.
fn few() -> bool {
    std::env::var_os("SIM_SEED").is_some() || std::env::var_os("SIM_RUNS").is_some()
}

fn many(mix: Mix, default: u64) -> Seen {
    each(|_| mix, default)
}

fn each(mix: impl Fn(u64) -> Mix, default: u64) -> Seen {
    let mut bad = Vec::new();
    let mut all = Seen::default();
    let range = runs(default);
    let total = range.clone().count();
    for seed in range {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, mix(seed))))
            .unwrap_or_else(|_| Err(format!("seed {seed}: panic")));
        match outcome {
            Ok(seen) => {
                all.restored += seen.restored;
                all.asked += seen.asked;
                all.had += seen.had;
                all.recalled += seen.recalled;
            }
            Err(why) => bad.push(why),
        }
    }
    for why in bad.iter().take(5) {
        println!("{why}");
    }
    assert!(bad.is_empty(), "{} of {total} seeds went wrong", bad.len());
    all
}

#[test]
fn two_nodes_connected() {
    let seen = many(CALM, 1000);
    assert!(few() || seen.recalled > 1000, "{seen:?}");
}

#[test]
fn three_nodes_that_go_away() {
    many(Mix { clients: 2, steps: 200, cuts: true, ..CALM }, 1000);
}

#[test]
fn four_nodes_with_kills() {
    many(Mix { clients: 3, steps: 250, cuts: true, kills: true, ..CALM }, 1000);
}

#[test]
fn three_nodes_with_power_cuts_of_clients() {
    many(Mix { clients: 2, steps: 200, cuts: true, kills: true, power: true, ..CALM }, 1000);
}

#[test]
fn three_nodes_with_power_cuts_that_tear_files() {
    let mix = Mix { clients: 2, steps: 200, cuts: true, kills: true, power: true, tears: true, ..CALM };
    many(mix, 1000);
}

#[test]
fn three_nodes_with_power_cuts_of_all() {
    let mix =
        Mix { clients: 2, steps: 200, cuts: true, kills: true, power: true, server_power: true, ..CALM };
    many(mix, 1000);
}

#[test]
fn three_nodes_with_power_cuts_of_all_that_tear_files() {
    let mix = Mix {
        clients: 2,
        steps: 300,
        cuts: true,
        kills: true,
        power: true,
        server_power: true,
        tears: true,
        ..CALM
    };
    let restored = many(mix, 1500).restored;
    assert!(few() || restored > 100, "only {restored} torn files were restored: what is this a test of?");
}

#[test]
fn three_nodes_and_a_backup_of_the_server() {
    many(Mix { clients: 2, steps: 250, cuts: true, kills: true, backups: true, ..CALM }, 1000);
}

#[test]
fn three_nodes_and_an_old_backup_of_the_server() {
    let mix =
        Mix { clients: 2, steps: 250, cuts: true, kills: true, power: true, backups: true, tail: 5, ..CALM };
    many(mix, 1000);
}

#[test]
fn three_nodes_and_a_log_that_is_kept_for_nobody_who_is_away() {
    let mix = Mix { clients: 2, steps: 300, cuts: true, kills: true, power: true, log: 3000, ..CALM };
    many(mix, 1000);
}

#[test]
fn three_nodes_whose_clocks_are_wrong_by_years_and_jump() {
    let mix = Mix { clients: 2, steps: 250, cuts: true, kills: true, power: true, clocks: true, ..CALM };
    many(mix, 1000);
}

#[test]
fn three_nodes_with_quick_networks_and_backups() {
    let mix = Mix { clients: 2, steps: 250, cuts: true, kills: true, backups: true, pace: 20, ..CALM };
    let power = |seed| seed % 2 == 0;
    each(|seed| Mix { power: power(seed), server_power: power(seed), tears: seed % 4 == 0, ..mix }, 1000);
}

#[test]
fn three_nodes_whose_owner_wants_conflicts_decided() {
    let mix = Mix { clients: 2, steps: 250, cuts: true, kills: true, resolves: true, ..CALM };
    let all = [Policy::ServerWins, Policy::ClientWins, Policy::Manual, Policy::ClientWins];
    let mix = |seed: u64| {
        let power = seed % 3 == 0;
        let policy = (seed % 7 > 0).then(|| all[(seed % 4) as usize]);
        let keep_for = [50, 1000, ConflictOptions::KEEP_FOR][(seed % 3) as usize];
        Mix { policy, keep_for, power, server_power: power, backups: seed % 5 == 0, ..mix }
    };
    each(mix, 1000);
}

#[test]
fn three_nodes_of_which_one_removes_much_at_a_time() {
    let mix = Mix { clients: 2, steps: 250, cuts: true, kills: true, mass: Some(20), ..CALM };
    let power = |seed| seed % 2 == 0;
    let mix = |seed| Mix { power: power(seed), server_power: power(seed), backups: seed % 5 == 0, ..mix };
    let asked = each(mix, 1000).asked;
    assert!(few() || asked > 50, "a person was asked {asked} times only: what is this a test of?");
}

#[test]
fn three_nodes_that_keep_contents_on_demand() {
    let mix = Mix { clients: 2, steps: 250, cuts: true, kills: true, on_demand: true, pace: 10, ..CALM };
    let mix = |seed: u64| {
        let power = seed % 2 == 0;
        Mix { power, server_power: power, tears: seed % 4 == 0, backups: seed % 5 == 0, ..mix }
    };
    let had = each(mix, 1000).had;
    assert!(few() || had > 1000, "somebody had what was not there {had} times only: what is this a test of?");
}

#[test]
fn nodes_to_which_anything_happens() {
    each(any, 1000);
}

#[test]
fn four_nodes_with_long_histories() {
    many(Mix { clients: 3, steps: 600, cuts: true, kills: true, power: true, ..CALM }, 150);
}

//! The server away, the power gone, and clean ends again and again.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use intermezzo::fleet::Daemon;
use rand::Rng;
use rand::rngs::StdRng;

use super::{ARRIVES, LENTO, arrives, equal, rounds};
use crate::boot::world::World;

/// Lento has looked through the whole tree.
const LOOKED: &str = "grep 'the tree was looked through' /run/lento.log";
/// Power cuts in one run.
const CUTS: u32 = 2;

/// The server does not run while the machine boots and works.
pub(super) fn away(world: &World, _: &mut StdRng) -> Result<String> {
    world.stop_here(&world.server, Daemon::Lento)?;
    let begin = Instant::now();
    let mut machine = world.boot()?;
    let booted = begin.elapsed();
    machine.must(LENTO)?;
    machine.must("sleep 3; echo alone >/alone; mkdir /alone.d; ln /alone /alone.d/link")?;
    ensure!(!world.mount().join("alone").exists(), "who brought it to the server?");
    world.start_here(&world.server, Daemon::Lento)?;
    arrives(world, &mut machine, "alone", "alone\n")?;
    equal(world, &mut machine)?;
    machine.power_off()?;
    world.is_clean()?;
    Ok(format!("booted in {:.0} s without its server, which got everything afterwards", booted.as_secs_f64()))
}

/// The power goes while files are written. What was synced is there, and both nodes agree.
pub(super) fn cut(world: &World, random: &mut StdRng) -> Result<String> {
    let (mut lost, mut promised) = (0, 0);
    for round in 0..CUTS {
        let mut machine = world.boot()?;
        // In one round nobody hears of it before the power goes.
        if round % 2 == 0 {
            machine.must(LENTO)?;
        }
        machine.begin(&format!(
            "mkdir /cut{round}; i=0; while :; do i=$((i+1)); echo $i >/cut{round}/$i; sync /cut{round}/$i; \
             echo synced $i >/dev/console; done"
        ))?;
        let begun = Instant::now();
        while !machine.console().contains("synced 12\n") {
            ensure!(begun.elapsed().as_secs() < 120, "nothing is written: {}", machine.console());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        std::thread::sleep(std::time::Duration::from_millis(random.random_range(0..1500)));
        let console = machine.console();
        lost += machine.cut(random)?.0;
        let synced: BTreeSet<u32> =
            console.lines().filter_map(|line| line.trim().strip_prefix("synced ")?.parse().ok()).collect();
        let last = *synced.last().context("nothing was synced")?;
        let mut machine = world.boot()?;
        let check = format!(
            "i=0; while [ $i -lt {last} ]; do i=$((i+1)); [ \"$(cat /cut{round}/$i)\" = $i ] || {{ echo $i is gone or torn; exit 1; }}; done"
        );
        machine.must(&check)?;
        promised += last;
        machine.must(LENTO)?;
        equal(world, &mut machine)?;
        machine.must(&check)?;
        machine.until(LOOKED, ARRIVES)?;
        machine.power_off()?;
        world.is_clean()?;
    }
    Ok(format!("{CUTS} cuts: {promised} synced files are there on both nodes, {lost} sectors were lost"))
}

/// Down and up again. Each time everything is on disk, and nothing hangs.
pub(super) fn shutdown(world: &World, _: &mut StdRng) -> Result<String> {
    let rounds = rounds();
    for round in 0..rounds {
        let mut machine = world.boot()?;
        machine.must(LENTO)?;
        machine.must(&format!("echo {round} >/shutdown; rm -rf /work; cp -r /etc /work"))?;
        let console = machine.power_off()?;
        ensure!(console.contains("everything is on disk"), "round {round}: {console}");
        world.is_clean().with_context(|| format!("round {round}"))?;
    }
    let mut machine = world.boot()?;
    machine.must(LENTO)?;
    arrives(world, &mut machine, "shutdown", &format!("{}\n", rounds.saturating_sub(1)))?;
    equal(world, &mut machine)?;
    ensure!(machine.order(LOOKED)?.0 != 0, "after a clean end the whole tree was looked through");
    machine.power_off()?;
    Ok(format!("{rounds} times down and up, the disk as after an unmount each time"))
}

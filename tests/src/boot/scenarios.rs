//! What is tried with machines that boot from a volume. Each scenario begins with the machine off and in sync, and ends so.

mod cuts;
mod diskless;
mod lines;
mod plain;
mod seed;
mod systemd;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rand::rngs::StdRng;

use super::node::Running;
use super::world::World;
use crate::cluster::command::{DEADLINE, output};

/// For an update to be on the other node. After a boot lento first looks through the tree.
pub const ARRIVES: Duration = Duration::from_secs(400);

/// Starts lento in the machine.
const LENTO: &str = "/etc/lento";
/// Everything in the tree, and the size of files. What is mounted there is left out.
const NAMES: &str = "find . -xdev \\( -path ./dev -o -path ./proc -o -path ./sys -o -path ./run \\) -prune -o -exec stat -c '%n %f %u %g' {} +; \
                     find . -xdev -type f -exec stat -c '%n %s' {} +";
/// Of each file what is in it.
const CONTENTS: &str = "find . -xdev -type f -exec md5sum {} +";

/// What lento has said, and where each of its threads is.
const LENTO_IS: &str = "tail -n 40 /run/lento.log; \
                        for each in /proc/$(cat /run/lento.pid)/task/*; do \
                        echo; cat $each/comm $each/wchan; echo; cat $each/stack; done 2>&1; \
                        grep . /sys/fs/fuse/connections/*/waiting; true";

/// A scenario: its name, and what is done. It gives what is worth knowing afterwards.
pub type Scenario = (&'static str, fn(&World, &mut StdRng) -> Result<String>);

/// With systemd.
pub const DEBIAN: [Scenario; 1] = [("systemd", systemd::systemd)];

/// The same without a disk.
pub const DISKLESS_DEBIAN: [Scenario; 1] = [("diskless-systemd", systemd::without_disk)];

/// With busybox.
pub const BUSYBOX: [Scenario; 9] = [
    ("seed", seed::boot),
    ("helper", seed::helper),
    ("fstab", seed::fstab),
    ("killed", seed::killed),
    ("away", cuts::away),
    ("cut", cuts::cut),
    ("shutdown", cuts::shutdown),
    ("lines", lines::wrong),
    ("plain", plain::beside),
];

/// With busybox, and without a disk.
pub const DISKLESS: [Scenario; 6] = [
    ("diskless", diskless::boot),
    ("diskless-away", diskless::away),
    ("diskless-full", diskless::full),
    ("diskless-twice", diskless::twice),
    ("diskless-read-only", diskless::read_only),
    ("diskless-lines", diskless::lines),
];

/// How often a machine goes down and up where that is the question; `ROUNDS` says it.
fn rounds() -> u32 {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Waits until both nodes show the same.
fn equal(world: &World, machine: &mut Running) -> Result<()> {
    equally(world, machine, &format!("{NAMES}; {CONTENTS}"))
}

fn equally(world: &World, machine: &mut Running, list: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let whole = format!("({list}) | LC_ALL=C sort");
        let short = format!("{whole} | md5sum");
        let there = machine.must(&format!("cd / && {short}"))?;
        if here(world, &short)?.trim() == there.trim() {
            return Ok(());
        }
        if begin.elapsed() > ARRIVES {
            let (there, here) = (machine.must(&format!("cd / && {whole}"))?, here(world, &whole)?);
            let differ = |one: &str, other: &str| {
                let other: BTreeSet<&str> = other.lines().collect();
                one.lines().filter(|line| !other.contains(line)).collect::<Vec<_>>().join("\n")
            };
            let (only_there, only_here) = (differ(&there, &here), differ(&here, &there));
            let log = machine.order("tail -n 20 /run/lento.log")?.1;
            bail!("only the machine has:\n{only_there}\nonly the server has:\n{only_here}\nlento: {log}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn here(world: &World, list: &str) -> Result<String> {
    output(Command::new("busybox").args(["sh", "-c", list]).current_dir(world.mount()), DEADLINE)
}

/// Waits until the server has this.
fn arrives(world: &World, machine: &mut Running, name: &str, content: &str) -> Result<()> {
    let path = world.mount().join(name);
    let begin = Instant::now();
    loop {
        let found = std::fs::read_to_string(&path);
        if found.as_ref().is_ok_and(|found| found == content) {
            return Ok(());
        }
        if begin.elapsed() > ARRIVES {
            let there = machine.must(&format!("cat '/{name}'; {LENTO_IS}"))?;
            let status = world.fleet.fleet.status(&world.server)?;
            bail!(
                "{name} of the server holds {found:?} and not {content:?}\nthe machine: {there}\n{status:#?}"
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

//! Machines without a disk: the tree comes from the server before init starts, contents when they are opened.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use intermezzo::fleet::Daemon;
use intermezzo::fleet::process::binary;
use rand::rngs::StdRng;
use rand::{Rng, RngCore};

use super::{ARRIVES, arrives};
use crate::boot::node::{BOOT, Running};
use crate::boot::world::World;
use crate::cluster::command::{DEADLINE, output};

/// Of a file that nobody opens before it is asked for, in bytes.
const LARGE: usize = 4 << 20;
/// What is written last before the machine goes, in bytes.
const LAST: u32 = 3 << 20;
/// Kills whoever has this name.
const KILL: &str = "for each in /proc/[0-9]*; do case $(tr '\\0' ' ' <$each/cmdline 2>/dev/null) in \"@NAME \"*) kill -9 ${each#/proc/};; esac; done";

/// Brings what ends the machine, with the libraries that it needs; all of it could be pinned as well.
const ENDS: &str = "cat /etc/stop >/dev/null && { /sbin/mount.intermezzo 2>/dev/null; [ $? = 1 ]; }";

/// Boots, works, survives the end of its programs, goes; and boots again with what it had written.
pub(super) fn boot(world: &World, random: &mut StdRng) -> Result<String> {
    fs::write(world.mount().join("large"), content(random))?;
    let mut machine = world.boot()?;
    let mounted = machine.must("cat /run/mounted")?;
    ensure!(mounted.contains(" / fuse.intermezzo ro,"), "at first it is mounted otherwise: {mounted}");
    ensure!(machine.must("cat /run/remounted")? == "0", "the remount failed: {}", machine.console());
    let disks = machine.order("ls /sys/block | grep -v -e loop -e ram -e zram")?.1;
    ensure!(disks.is_empty(), "it has a disk: {disks}");
    let figures = format!(
        "init after {} s, {} free then",
        machine.must("cat /run/up")?.trim(),
        mib(&machine.must("cat /run/memory")?)?
    );
    // All names are here, and contents when somebody opens them.
    ensure!(machine.must("stat -c %s /large")? == LARGE.to_string(), "its size is not known");
    ensure!(here_of(&mut machine, "large")? == 0, "nobody has opened it, and its content is here");
    ensure!(machine.must("md5sum </large")?.contains(&md5(world, "large")?), "its content is another one");
    ensure!(here_of(&mut machine, "large")? > 0, "it was opened, and its content is not here");
    both_ways(world, &mut machine, 0)?;
    // What belongs to this machine stays in it.
    machine.must("echo own >/etc/machine-id && mkdir -p /var/log && echo own >/var/log/messages")?;
    both_ways(world, &mut machine, 1)?;
    for name in ["etc/machine-id", "var/log"] {
        ensure!(!world.mount().join(name).exists(), "{name} is excluded, and the server has it");
    }
    // What serves it comes back, whatever ends it, and needs nothing of the volume for that.
    for (round, name) in ["lento", "presto", "lento"].into_iter().enumerate() {
        machine.must(&KILL.replace("NAME", name))?;
        machine.must("sleep 6")?;
        both_ways(world, &mut machine, round.saturating_add(2))?;
    }
    // What this boot had to wait for, the next one fetches by itself.
    machine.must("mkdir -p /etc/intermezzo && cp /run/intermezzo/opened /etc/intermezzo/boot-profile")?;
    let opened = machine.must("cat /run/intermezzo/opened")?;
    let order = |path: &str| opened.lines().position(|line| line == path);
    ensure!(order("/bin/busybox").is_some() && order("/bin/busybox") < order("/large"), "opened: {opened}");
    machine.must(&format!(
        "dd if=/dev/urandom of=/last bs={LAST} count=1 2>/dev/null; md5sum </last >/last.sum"
    ))?;
    let console = machine.power_off()?;
    ensure!(console.contains("everything is on the server"), "the console: {console}");
    let sum = fs::read_to_string(world.mount().join("last.sum"))?;
    ensure!(sum.contains(&md5(world, "last")?), "what was written last is not as it was written");
    let mut machine = world.boot()?;
    ensure!(machine.must("md5sum </last")?.trim() == sum.trim(), "it does not have what it wrote before");
    machine.until("[ $(du -k /large | cut -f1) -gt 0 ]", ARRIVES)?;
    ensure!(machine.order("cat /etc/machine-id")?.0 != 0, "who kept what was this machine's own?");
    machine.power_off()?;
    Ok(figures)
}

/// The server is not there when the machine is switched on; and goes while it works.
pub(super) fn away(world: &World, random: &mut StdRng) -> Result<String> {
    fs::write(world.mount().join("unopened"), content(random))?;
    fs::write(world.mount().join("opened"), "known\n")?;
    world.stop_here(&world.server, Daemon::Lento)?;
    let mut machine = world.power_on(&world.line(), world.initramfs.clone(), PathBuf::new())?;
    shows(&machine, "waiting for volume")?;
    shows(&machine, "Connection refused")?;
    world.start_here(&world.server, Daemon::Lento)?;
    machine.is_ready()?;
    machine.must("cat /opened")?;
    world.stop_here(&world.server, Daemon::Lento)?;
    // What is here is here, what is not is said so, and what is written waits.
    machine.until("(cat /unopened >/dev/null) 2>&1 | grep 'No route to host'", ARRIVES)?;
    ensure!(machine.must("cat /opened")? == "known", "what was opened before cannot be read");
    machine.must("echo alone >/alone && mkdir /alone.d && mv /opened /alone.d/moved")?;
    world.start_here(&world.server, Daemon::Lento)?;
    arrives(world, &mut machine, "alone", "alone\n")?;
    arrives(world, &mut machine, "alone.d/moved", "known\n")?;
    machine.until("cat /unopened >/dev/null", ARRIVES)?;
    // It ends while the server is away, and that comes back in time.
    machine.must(ENDS)?;
    world.stop_here(&world.server, Daemon::Lento)?;
    machine.must("echo last >/last-word")?;
    machine.begin("poweroff")?;
    shows(&machine, "the machine waits for the server to have its last")?;
    world.start_here(&world.server, Daemon::Lento)?;
    let console = machine.has_ended()?;
    ensure!(console.contains("everything is on the server"), "the console: {console}");
    ensure!(
        fs::read_to_string(world.mount().join("last-word"))? == "last\n",
        "what was written last is not there"
    );
    // And does not.
    let mut machine = world.boot()?;
    machine.must(ENDS)?;
    world.stop_here(&world.server, Daemon::Lento)?;
    machine.must("echo lost >/lost")?;
    let console = machine.power_off()?.replace('\n', "");
    ensure!(console.contains("lost with this machine: volume"), "the console: {console}");
    ensure!(console.contains("nothing has moved for 60 s: not connected"), "the console: {console}");
    world.start_here(&world.server, Daemon::Lento)?;
    Ok("waits for its server and says so, also at its end; without it works with what is here; and sends the rest later"
        .to_owned())
}

/// The memory for the cache is full: what needs none goes on in both directions, what was written before is sent, and deleting helps.
pub(super) fn full(world: &World, _: &mut StdRng) -> Result<String> {
    fs::write(world.mount().join("known"), "old\n")?;
    let mut machine = world.boot()?;
    machine.until("[ \"$(cat /known)\" = old ]", ARRIVES)?;
    machine.must(ENDS)?;
    world.stop_here(&world.server, Daemon::Lento)?;
    machine.must("dd if=/dev/urandom of=/before bs=1M count=2 2>/dev/null; md5sum </before >/before.sum")?;
    // It stays on the machine, so that nothing of it has to be sent.
    machine.must("mkdir -p /var/log; dd if=/dev/zero of=/var/log/filler bs=64k 2>/dev/null; true")?;
    let refused = machine.must("(dd if=/dev/zero of=/refused bs=64k count=4) 2>&1; true")?;
    ensure!(refused.contains("No space left"), "there is still room: {refused}");
    world.start_here(&world.server, Daemon::Lento)?;
    let sum = machine.must("cat /before.sum")?;
    arrives(world, &mut machine, "before.sum", &format!("{}\n", sum.trim_end()))?;
    until(world, "what was written before the cache was full", |world| {
        let there = md5(world, "before");
        Ok(there.is_ok_and(|there| sum.starts_with(&there)))
    })?;
    machine.must("mkdir /names && mv /before /names/moved && chmod 600 /names/moved")?;
    until(world, "a rename", |world| Ok(world.mount().join("names/moved").exists()))?;
    fs::create_dir(world.mount().join("theirs"))?;
    fs::write(world.mount().join("theirs/file"), "new\n")?;
    machine.until("[ \"$(stat -c %s /theirs/file)\" = 4 ]", ARRIVES)?;
    // A content for which there is no room does not come, and whoever asks for it is told why.
    fs::write(world.mount().join("known"), vec![b'n'; 1 << 20])?;
    fs::write(world.mount().join("after-that"), "x")?;
    machine.until("[ \"$(stat -c %s /known)\" = 1048576 ] && [ -e /after-that ]", ARRIVES)?;
    let told = machine.must("timeout 200 cat /known 2>&1 >/dev/null; true")?;
    ensure!(
        told.contains("No space left") || told.contains("Input/output error"),
        "there is no room for it: {told}"
    );
    machine.must("dmesg | grep 'No space left'")?;
    machine.must("rm /var/log/filler")?;
    machine.until("[ $(cat /known | wc -c) = 1048576 ]", ARRIVES)?;
    machine.must("echo room >/room")?;
    arrives(world, &mut machine, "room", "room\n")?;
    machine.must("cat /theirs/file")?;
    let console = machine.power_off()?;
    ensure!(console.contains("everything is on the server"), "the console: {console}");
    Ok("names go on in both directions, what was written before is sent, and deleting helps".to_owned())
}

fn until(world: &World, what: &str, is_so: impl Fn(&World) -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !is_so(world)? {
        ensure!(begun.elapsed() < ARRIVES, "{what} does not arrive at the server");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Two machines with one identity: the second is told why it cannot boot, and the first goes on.
pub(super) fn twice(world: &World, _: &mut StdRng) -> Result<String> {
    let mut machine = world.boot()?;
    let another = world.power_on_another()?;
    shows(&another, "is connected already")?;
    shows(&another, "give each a certificate of its own")?;
    both_ways(world, &mut machine, 77)?;
    drop(another);
    both_ways(world, &mut machine, 78)?;
    machine.power_off()?;
    // And the name is free again.
    let machine = world.boot()?;
    machine.power_off()?;
    Ok("the second one says why on its console, and the first one goes on".to_owned())
}

/// Nothing of it may be written here, and what others write arrives.
pub(super) fn read_only(world: &World, random: &mut StdRng) -> Result<String> {
    let line = format!("{},access=ReadOnly", world.line());
    let mut machine = world.power_on(&line, world.initramfs.clone(), PathBuf::new())?;
    machine.is_ready()?;
    let refused = machine.must("mount -o remount,rw / 2>&1; (echo no >/refused) 2>&1; true")?;
    ensure!(refused.contains("Read-only file system"), "it can be written: {refused}");
    let round: u32 = random.random();
    fs::write(world.mount().join("for-all"), format!("{round}\n"))?;
    machine.until(&format!("grep -qx {round} /for-all"), ARRIVES)?;
    machine.power_off()?;
    Ok("refused here, and others' updates arrive".to_owned())
}

/// What is missing or wrong is said with what to change.
pub(super) fn lines(world: &World, _: &mut StdRng) -> Result<String> {
    let volume = &world.fleet.fleet.config.volume;
    let far = world.far(volume);
    // What never comes is waited for; an emulated machine needs some seconds to find out why.
    let short = |more: &str| format!("{far} rootwait=25 {more}");
    let common = world.with_identity(&nobody(world)?)?;
    let stranger = world.dir.join("stranger");
    fs::rename(&common, &stranger)?;
    let own = world.initramfs.clone();
    let none = world.dir.join("common");
    let lines = [
        (short(""), none, "append what `intermezzo pki archive` makes"),
        (short(""), stranger, "are not from the same CA"),
        (format!("{} rootwait=25", world.far("other/one")), own.clone(), "refuses: volume other/one"),
        (short("rootflags=size=8m"), own.clone(), "too little memory: the cache may take 8 MiB"),
        (
            format!("{far} rootflags=size=60%,nr_inodes=60"),
            own.clone(),
            "needs more names than the cache may take",
        ),
        (short("ip=10.0.2.15::10.0.2.2:255.255.255.0::eth7:off"), own.clone(), "there is no interface eth7"),
        (format!("root=intermezzo:{volume}@a"), own.clone(), "root=intermezzo:NAMESPACE/NAME@NODE=ADDRESS"),
        (
            format!("root=intermezzo:{volume}@other={} rootwait=25", at(&far)),
            own,
            "another node answers there",
        ),
    ];
    for (line, initramfs, sentence) in &lines {
        let console = world.power_on(line, initramfs.clone(), PathBuf::new())?.has_ended()?;
        // Long lines are broken where the terminal ends.
        let console = console.replace('\n', "");
        ensure!(console.contains("intermezzo: cannot boot: "), "{line}: {console}");
        ensure!(console.contains(sentence), "{line}: {sentence:?} is not said: {console}");
    }
    Ok(format!("{} wrong lines, certificates and machines, each with its sentence", lines.len()))
}

fn at(far: &str) -> &str {
    far.split_once('@')
        .and_then(|(_, at)| at.split_once('='))
        .map_or("", |(_, at)| at.split(' ').next().unwrap_or(""))
}

/// The identity of a node of this name, from a CA that nobody knows.
fn nobody(world: &World) -> Result<PathBuf> {
    let pki = world.dir.join("strangers");
    let run = |words: &[&str]| -> Result<()> {
        let mut make = Command::new(binary("intermezzo")?);
        output(make.arg("pki").args(words).arg("--out").arg(&pki), DEADLINE)?;
        Ok(())
    };
    run(&["ca"])?;
    run(&["node", "--ca", &pki.to_string_lossy(), &world.machine.name])?;
    world.identity(&pki)
}

fn content(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; LARGE];
    random.fill_bytes(&mut bytes);
    bytes
}

fn md5(world: &World, name: &str) -> Result<String> {
    let told = output(Command::new("busybox").arg("md5sum").arg(world.mount().join(name)), DEADLINE)?;
    Ok(told.split_whitespace().next().unwrap_or_default().to_owned())
}

/// KiB of a file in the machine's memory.
fn here_of(machine: &mut Running, name: &str) -> Result<u64> {
    let told = machine.must(&format!("du -k /{name} | cut -f1"))?;
    told.trim().parse().context(told)
}

fn both_ways(world: &World, machine: &mut Running, round: usize) -> Result<()> {
    fs::write(world.mount().join("from-the-server"), format!("{round}\n"))?;
    machine.until(&format!("grep -qx {round} /from-the-server"), ARRIVES)?;
    machine.must(&format!("echo {round} >/from-the-machine"))?;
    arrives(world, machine, "from-the-machine", &format!("{round}\n"))
}

fn shows(machine: &Running, what: &str) -> Result<()> {
    let begun = Instant::now();
    while !machine.console().replace('\n', "").contains(what) {
        ensure!(begun.elapsed() < BOOT, "the console does not show {what:?}: {}", machine.console());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn mib(memory: &str) -> Result<String> {
    let free: u64 =
        memory.split_whitespace().nth(1).unwrap_or_default().parse().context(memory.to_owned())?;
    Ok(format!("{} MiB of 512", free / 1024))
}

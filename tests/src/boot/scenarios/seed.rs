//! The boot that the original describes: mounted for reading, remounted with volume and mount point, Lento late.

use std::fs;
use std::time::Instant;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;

use super::{ARRIVES, LENTO, arrives, equal};
use crate::boot::userland;
use crate::boot::world::World;

/// Read-only, then read-write before Lento runs, then Lento; nothing is lost in either direction.
pub(super) fn boot(world: &World, _: &mut StdRng) -> Result<String> {
    // While the machine is off.
    fs::write(world.mount().join("made-meanwhile"), "by the server\n")?;
    let mut machine = world.boot()?;
    let mounted = machine.must("cat /run/mounted")?;
    ensure!(mounted.contains(" / fuse.intermezzo ro,"), "at first it is mounted otherwise: {mounted}");
    let early = machine.must("cat /run/early; ls /early 2>&1; true")?;
    ensure!(early.contains("Read-only file system"), "it can be written before the remount: {early}");
    ensure!(machine.must("cat /run/remounted")? == "0", "the remount failed: {}", machine.console());
    let first = machine.must("cat /run/first /boots")?;
    ensure!(!first.contains("Read-only") && !first.is_empty(), "right after the remount: {first}");
    machine.must(
        "mkdir /early-bird && echo before lento >/early-bird/file && mv /early-bird/file /early-bird/renamed",
    )?;
    ensure!(machine.order("ls /made-meanwhile")?.0 != 0, "who brought this without lento?");
    machine.must(LENTO)?;
    let begin = Instant::now();
    arrives(world, &mut machine, "early-bird/renamed", "before lento\n")?;
    machine.until("grep -q server /made-meanwhile", ARRIVES)?;
    let took = begin.elapsed();
    for round in 0..3 {
        fs::write(world.mount().join("made-meanwhile"), format!("by the server {round}\n"))?;
        machine.until(&format!("grep -q 'server {round}' /made-meanwhile"), ARRIVES)?;
        machine.must(&format!("echo machine {round} >/answer"))?;
        arrives(world, &mut machine, "answer", &format!("machine {round}\n"))?;
    }
    equal(world, &mut machine)?;
    machine.power_off()?;
    world.is_clean()?;
    Ok(format!(
        "what was written before lento and while the machine was off is there {:.1} s after its start",
        took.as_secs_f64()
    ))
}

/// The mount helper, as mount(8) of util-linux calls it.
pub(super) fn helper(world: &World, _: &mut StdRng) -> Result<String> {
    let volume = &world.fleet.fleet.config.volume;
    let disk = world.mount_disk(&world.image)?;
    fs::write(disk.at.join("stay-read-only"), "")?;
    disk.leave()?;
    let mut machine = world.boot()?;
    let call = |options: &str| format!("/sbin/mount.intermezzo {volume} / -o {options}");
    for (options, why) in [
        ("rw,remount", format!("needs volume={volume},mtpt=/")),
        ("rw,remount,volume=other/one,mtpt=/", "names volume other/one".to_owned()),
        ("rw", "only the root file system".to_owned()),
    ] {
        let (code, said) = machine.order(&call(options))?;
        ensure!(code != 0 && said.contains(&why), "{options}: {code} {said}");
        ensure!(machine.order("echo no >/refused")?.0 != 0, "{options}: it can be written");
    }
    machine.must(&call(&format!("rw,noatime,volume={volume},mtpt=/,remount")))?;
    machine.must("echo helped >/helped")?;
    let mounted = machine.must("grep ' / ' /proc/mounts")?;
    ensure!(mounted.contains("rw,noatime"), "{mounted}");
    machine.must(&call("ro,remount"))?;
    ensure!(machine.order("echo no >/refused")?.0 != 0, "after a remount with ro it can be written");
    machine.must(&call(&format!("remount,rw,volume={volume},mtpt=/")))?;
    machine.must(LENTO)?;
    arrives(world, &mut machine, "helped", "helped\n")?;
    equal(world, &mut machine)?;
    machine.must(&format!("rm {}/stay-read-only", intermezzo_channel::ROOT_DISK))?;
    machine.power_off()?;
    world.is_clean()?;
    Ok("refusals, rw, ro and rw again".to_owned())
}

/// A fstab that names another volume, and none: a sentence on the console, and read-only until it is put right.
pub(super) fn fstab(world: &World, _: &mut StdRng) -> Result<String> {
    let right = userland::fstab(&world.fleet.fleet.config.volume);
    let path = world.mount().join("etc/fstab");
    let boot_with = |content: &str, why: &str, next: &str| -> Result<()> {
        let mut machine = world.boot()?;
        let now = machine.must("cat /etc/fstab")?;
        ensure!(now.trim() == content.trim(), "fstab of the machine is {now}");
        let refused = machine.must("cat /run/first; (echo no >/refused) 2>&1; true")?;
        ensure!(refused.matches("Read-only file system").count() == 2, "it can be written: {refused}");
        ensure!(machine.console().contains(why), "the console does not say {why}: {}", machine.console());
        // Others' updates arrive all the same, and this one puts it right, without another boot.
        machine.must(LENTO)?;
        fs::write(&path, next)?;
        let wanted = next.split_whitespace().nth(3).unwrap_or_default().to_owned();
        machine.until(&format!("grep -q '{wanted}' /etc/fstab"), ARRIVES)?;
        if next == right {
            machine.until("echo right >/right", ARRIVES)?;
            arrives(world, &mut machine, "right", "right\n")?;
        }
        equal(world, &mut machine)?;
        machine.power_off()?;
        world.is_clean()
    };
    let other = "x/y / intermezzo volume=other/root,mtpt=/ 0 0\n";
    // It gets there by a boot with the right one.
    let mut machine = world.boot()?;
    machine.must(LENTO)?;
    fs::write(&path, other)?;
    machine.until("grep -q other/root /etc/fstab", ARRIVES)?;
    machine.power_off()?;
    boot_with(other, "names volume other/root", &right)?;
    Ok("read-only with a sentence, and read-write once it is put right".to_owned())
}

/// kill -9 of presto under the root file system.
pub(super) fn killed(world: &World, _: &mut StdRng) -> Result<String> {
    let mut machine = world.boot()?;
    machine.must(LENTO)?;
    machine.must(
        "(i=0; while :; do i=$((i+1)); echo $i >/counting; done) >/run/counted 2>&1 & echo $! >/run/counter",
    )?;
    let victims = "for each in /proc/[0-9]*; do case $(tr '\\0' ' ' <$each/cmdline 2>/dev/null) in \"@NAME \"*) kill -9 ${each#/proc/};; esac; done";
    for name in ["presto", "presto-holder", "presto"] {
        machine.must(&victims.replace("NAME", name))?;
        // It reads and writes after a pause.
        let before = machine.must("cat /counting")?;
        machine.until(&format!("[ \"$(cat /counting)\" != '{before}' ]"), ARRIVES)?;
        // The one comes to know the other again.
        machine.must("sleep 6")?;
    }
    machine.must("kill $(cat /run/counter); cat /run/counted; echo survived >/survived")?;
    let errors = machine.must("cat /run/counted")?;
    ensure!(errors.is_empty(), "a program noticed that presto was killed: {errors}");
    arrives(world, &mut machine, "survived", "survived\n")?;
    equal(world, &mut machine)?;
    machine.power_off()?;
    world.is_clean()?;
    Ok("presto, holder and presto again killed under a program that noticed nothing".to_owned())
}

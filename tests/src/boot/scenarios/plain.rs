//! The same system on the same kernel from plain ext4: what a root file system that is a volume costs.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;

use crate::boot::node::LINE;
use crate::boot::world::World;
use crate::cluster::command::{DEADLINE, output};
use crate::machine::initramfs::{Initramfs, MODULES as MODULE_DIR};
use crate::machine::qemu::MODULES;

/// Boots of each.
const TRIES: u32 = 3;

pub(super) fn beside(world: &World, _: &mut StdRng) -> Result<String> {
    let image = world.dir.join("plain");
    File::create(&image)?.set_len(512 << 20)?;
    let disk = world.mount_disk(&world.image)?;
    let tree = disk.at.join("cache").join(&world.fleet.fleet.config.volume).join("tree");
    output(Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&tree).arg(&image), DEADLINE)?;
    disk.leave()?;
    let initramfs = world.dir.join("plain-initramfs");
    pack(world, &initramfs)?;
    let mut all = Vec::new();
    for _ in 0..TRIES {
        // In turns, so that what else this computer does falls on both.
        all.push((
            measure(world, LINE, &world.initramfs, &world.image)?,
            measure(world, "", &initramfs, &image)?,
        ));
    }
    let least =
        |pick: &dyn Fn(&(Figures, Figures)) -> f64| all.iter().map(pick).fold(f64::INFINITY, f64::min);
    let most = |pick: &dyn Fn(&(Figures, Figures)) -> f64| all.iter().map(pick).fold(0.0, f64::max);
    Ok(format!(
        "init after {:.1} s (plain ext4 {:.1} s), {:.0} MiB of 512 free then (plain ext4 {:.0} MiB)",
        least(&|one| one.0.up),
        least(&|one| one.1.up),
        most(&|one| one.0.free),
        most(&|one| one.1.free),
    ))
}

struct Figures {
    up: f64,
    free: f64,
}

fn measure(world: &World, line: &str, initramfs: &Path, image: &Path) -> Result<Figures> {
    let mut machine = world.power_on(line, initramfs.to_owned(), image.to_owned())?;
    machine.is_ready()?;
    let up = machine.must("cat /run/up")?;
    let memory = machine.must("cat /run/memory")?;
    machine.power_off()?;
    let free: f64 = memory.split_whitespace().nth(1).unwrap_or_default().parse()?;
    ensure!(free > 0.0, "{memory}");
    Ok(Figures { up: up.trim().parse()?, free: free / 1024.0 })
}

/// What an ordinary initramfs does.
fn pack(world: &World, path: &Path) -> Result<()> {
    let mut archive = Initramfs::with_busybox()?;
    archive.modules(&world.kernel, &MODULES)?;
    let init = format!(
        "#!/bin/sh\n\
         /bin/busybox --install -s\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run\n\
         for module in {MODULE_DIR}/*; do insmod $module; done\n\
         mkdir /new\n\
         mount -t ext4 /dev/vda /new\n\
         for dir in dev proc sys run; do mount --move /$dir /new/$dir; done\n\
         exec switch_root -c /dev/console /new /sbin/init\n"
    );
    archive.file("init", init.as_bytes(), 0o755);
    archive.write(path)
}

//! Wrong command lines, and disks that are none: a sentence on the console says what to change.

use std::fs::File;

use anyhow::{Result, ensure};
use rand::rngs::StdRng;

use crate::boot::node::{BOOT, LINE};
use crate::boot::world::World;

pub(super) fn wrong(world: &World, _: &mut StdRng) -> Result<String> {
    let lines = [
        ("ro root=/dev/vda", "has no rootfstype=intermezzo: add it"),
        ("rootfstype=intermezzo", "add root=/dev/NAME, root=UUID=..., root=LABEL=... or root=intermezzo:"),
        (
            "rootfstype=intermezzo root=/dev/vdx rootwait=1",
            "root=/dev/vdx is not there after 1 s; there is vda",
        ),
        ("rootfstype=intermezzo root=LABEL=node-b rootflags=volume=other/one", "has no volume other/one but"),
        (
            "rootfstype=intermezzo root=LABEL=node-b rootflags=wrong=1",
            "the kernel refuses ext4 or one of the options",
        ),
        ("rootfstype=intermezzo root=LABEL=node-b init=/none", "init=/none: the volume has no such file"),
    ];
    for (line, sentence) in lines {
        let console = world.power_on(line, world.initramfs.clone(), world.image.clone())?.has_ended()?;
        // Long lines are broken where the terminal ends.
        let console = console.replace('\n', "");
        ensure!(console.contains("intermezzo: cannot boot: "), "{line}: {console}");
        ensure!(console.replace("/dev/vda", "vda").contains(sentence), "{line}: {console}");
    }
    let empty = world.dir.join("empty");
    File::create(&empty)?.set_len(16 << 20)?;
    let console = world.power_on(LINE, world.initramfs.clone(), empty)?.has_ended()?;
    ensure!(console.contains("root=/dev/vda holds none of ext4, xfs, btrfs"), "{console}");
    let shell = world.power_on("intermezzo.shell", world.initramfs.clone(), world.image.clone())?;
    let begun = std::time::Instant::now();
    while !shell.console().contains("a shell, because of intermezzo.shell")
        || !shell.console().contains("~ # ") && !shell.console().contains("/ # ")
    {
        ensure!(begun.elapsed() < BOOT, "no shell: {}", shell.console());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Ok(format!(
        "{} wrong lines and an empty disk, each with its sentence; a shell where it was asked for",
        lines.len()
    ))
}

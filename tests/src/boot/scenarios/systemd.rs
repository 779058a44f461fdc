//! A Debian with systemd from the volume: the remount by its own unit, our units, and ends that leave the disk in order.

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;

use super::{ARRIVES, LENTO, NAMES, arrives, equally, rounds};
use crate::boot::world::World;

/// Boots, works and ends, several times: something new arrives on both sides each time.
pub(super) fn systemd(world: &World, _: &mut StdRng) -> Result<String> {
    let rounds = rounds();
    let mut told = String::new();
    for round in 0..rounds {
        let mut machine = world.boot()?;
        machine.until("systemctl is-system-running | grep -E 'running|degraded'", ARRIVES)?;
        let state = machine.order("systemctl is-system-running; systemctl --failed --no-legend --plain")?.1;
        ensure!(state.trim() == "running", "round {round}: {state}");
        machine.must("systemctl is-active systemd-remount-fs.service")?;
        let mounted = machine.must("grep ' / ' /proc/mounts")?;
        ensure!(mounted.contains(" / fuse.intermezzo rw,"), "{mounted}");
        machine.must(&format!("echo {round} >/before-lento"))?;
        machine.must(LENTO)?;
        arrives(world, &mut machine, "before-lento", &format!("{round}\n"))?;
        std::fs::write(world.mount().join("from-the-server"), format!("{round}\n"))?;
        machine.until(&format!("grep -qx {round} /from-the-server"), ARRIVES)?;
        // What runs since the initramfs is no second time there, and lento is a service like any other.
        let units =
            machine.must("systemctl show -p ActiveState,ConditionResult presto.service lento.service")?;
        ensure!(
            units.matches("ActiveState=active").count() == 1 && units.contains("ConditionResult=no"),
            "{units}"
        );
        if round == 0 {
            let up = machine.must("systemd-analyze time | head -n 1")?;
            let memory = machine.must("grep MemAvailable /proc/meminfo")?;
            told = format!("{}; {}", up.trim(), memory.trim());
            // An emulated machine takes minutes for the contents.
            equally(world, &mut machine, NAMES)?;
        }
        let console = machine.power_off()?;
        ensure!(console.contains("everything is on disk"), "round {round}: {console}");
        world.is_clean().with_context(|| format!("round {round}"))?;
    }
    Ok(format!("{rounds} times up and down ({told})"))
}

/// Without a disk: Lento runs since the initramfs and after systemd has ended everything, so that what was written last arrives.
pub(super) fn without_disk(world: &World, _: &mut StdRng) -> Result<String> {
    let rounds = rounds();
    let mut told = String::new();
    for round in 0..rounds {
        let mut machine = world.boot()?;
        machine.until("systemctl is-system-running | grep -E 'running|degraded'", ARRIVES)?;
        let state = machine.order("systemctl is-system-running; systemctl --failed --no-legend --plain")?.1;
        ensure!(state.trim() == "running", "round {round}: {state}");
        let mounted = machine.must("grep ' / ' /proc/mounts")?;
        ensure!(mounted.contains(" / fuse.intermezzo rw,"), "{mounted}");
        let units = machine.must(
            "systemctl start lento.service; systemctl show -p ConditionResult presto.service lento.service",
        )?;
        ensure!(units.matches("ConditionResult=no").count() == 2, "they run since the initramfs: {units}");
        machine.must(&format!("echo {round} >/from-the-machine"))?;
        arrives(world, &mut machine, "from-the-machine", &format!("{round}\n"))?;
        std::fs::write(world.mount().join("from-the-server"), format!("{round}\n"))?;
        machine.until(&format!("grep -qx {round} /from-the-server"), ARRIVES)?;
        if round == 0 {
            let up = machine.must("systemd-analyze time | head -n 1")?;
            let memory = machine.must(
                "grep MemAvailable /proc/meminfo; df -m --output=used,iused /run/intermezzo/disk | tail -n 1",
            )?;
            told = format!("{}; {}", up.trim(), memory.replace('\n', ", MiB and names in the cache: "));
        }
        machine.must(&format!("echo {round} >/last"))?;
        let console = machine.power_off()?;
        ensure!(console.contains("everything is on the server"), "round {round}: {console}");
        let last = std::fs::read_to_string(world.mount().join("last"));
        ensure!(last.as_ref().is_ok_and(|last| last.trim() == round.to_string()), "round {round}: {last:?}");
    }
    Ok(format!("{rounds} times up and down ({told})"))
}

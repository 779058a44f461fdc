//! What is in the volume that a machine boots from: busybox, its init, InterMezzo's programs, and a shell that takes orders.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use intermezzo::fleet::process::binary;
use intermezzo_channel::{ROOT_DISK, ROOT_SOCKET};

use super::world::World;
use crate::cluster::command::{DEADLINE, output};
use crate::machine::initramfs::Initramfs;
use crate::machine::qemu::{GUEST, PORT};

/// For a system to be copied into a volume.
const COPY: Duration = Duration::from_secs(300);

/// Line of fstab that names the volume.
#[must_use]
pub fn fstab(volume: &str) -> String {
    format!("{volume} / intermezzo volume={volume},mtpt=/ 0 0\n")
}

/// Which system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Userland {
    /// Busybox, from the kernel's first program to the shell.
    Busybox,
    /// A minimal Debian with systemd, as debootstrap leaves it in this directory.
    Debian(PathBuf),
}

impl Userland {
    /// Puts it into the volume.
    ///
    /// # Errors
    /// A program is missing, or the volume cannot be written.
    pub fn lay_out(&self, world: &World) -> Result<()> {
        match self {
            Userland::Busybox => busybox(world),
            Userland::Debian(tree) => debian(world, tree),
        }
    }
}

fn busybox(world: &World) -> Result<()> {
    let root = &world.mount();
    let mut tree = Initramfs::with_busybox()?;
    tree.program(&binary("intermezzo-boot")?, "sbin/mount.intermezzo")?;
    tree.program(&binary("lento")?, "bin/lento")?;
    unpack(tree, root)?;
    for path in output(Command::new("busybox").arg("--list-full"), DEADLINE)?.lines() {
        let link = root.join(path);
        link.parent().map_or(Ok(()), fs::create_dir_all)?;
        match symlink("/bin/busybox", &link) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made?,
        }
    }
    symlink("mount.intermezzo", root.join("sbin/intermezzo-halt"))?;
    let variables: String =
        world.lento().iter().map(|(name, value)| format!("export {name}={value}\n")).collect();
    let lento = format!("#!/bin/sh\n{variables}/bin/lento >/run/lento.log 2>&1 &\necho $! >/run/lento.pid\n");
    for (path, text) in [
        ("etc/fstab", fstab(&world.fleet.fleet.config.volume)),
        ("etc/inittab", INITTAB.to_owned()),
        ("etc/start", start()),
        ("etc/orders", orders()),
        ("etc/stop", STOP.to_owned()),
        ("etc/lento", lento),
    ] {
        executable(&root.join(path), &text)?;
    }
    Ok(())
}

/// With the units that we ship, and one that takes orders.
fn debian(world: &World, tree: &Path) -> Result<()> {
    let root = &world.mount();
    output(Command::new("cp").arg("-a").arg(tree.join(".")).arg(root), COPY)?;
    for (program, path) in [("intermezzo-boot", "usr/sbin/mount.intermezzo"), ("lento", "usr/bin/lento")] {
        output(Command::new("strip").arg("-o").arg(root.join(path)).arg(binary(program)?), DEADLINE)?;
    }
    let at_the_end = root.join("usr/lib/systemd/system-shutdown");
    fs::create_dir_all(&at_the_end)?;
    symlink("/usr/sbin/mount.intermezzo", at_the_end.join("intermezzo-halt"))?;
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boot/systemd");
    let system = root.join("etc/systemd/system");
    fs::create_dir_all(system.join("multi-user.target.wants"))?;
    for unit in ["presto-holder.service", "presto.service", "lento.service"] {
        fs::copy(units.join(unit), system.join(unit))?;
    }
    for unit in ["presto-holder.service", "presto.service", "orders.service"] {
        let target = Path::new("/etc/systemd/system").join(unit);
        symlink(target, system.join("multi-user.target.wants").join(unit))?;
    }
    let variables: String = world.lento().iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    fs::create_dir_all(root.join("etc/intermezzo"))?;
    fs::write(root.join("etc/intermezzo/lento.env"), variables)?;
    fs::write(root.join("etc/fstab"), fstab(&world.fleet.fleet.config.volume))?;
    fs::write(system.join("orders.service"), ORDERS_UNIT)?;
    executable(&root.join("etc/orders"), &orders())?;
    executable(&root.join("etc/network"), &network())?;
    executable(&root.join("etc/lento"), "#!/bin/sh\nsystemctl start lento.service\n")?;
    // Of this machine, not of the volume: systemd keeps it in memory.
    fs::write(root.join("etc/machine-id"), "")?;
    fs::write(root.join("etc/hostname"), "node-b\n")?;
    Ok(())
}

fn unpack(tree: Initramfs, root: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let archive = scratch.path().join("archive");
    tree.write(&archive)?;
    let mut unpack = Command::new("busybox");
    output(unpack.args(["cpio", "-idmF"]).arg(&archive).current_dir(root), DEADLINE)?;
    Ok(())
}

fn executable(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// After what the test is about, and out of reach of the end of other services.
const ORDERS_UNIT: &str = "[Unit]\nDescription=Takes orders\nAfter=systemd-remount-fs.service local-fs.target\n\n\
     [Service]\nExecStartPre=/etc/network\nExecStart=/etc/orders\n";

/// udev gives it another name than the kernel.
fn network() -> String {
    format!(
        "#!/bin/sh\n\
         card=$(ls /sys/class/net | grep -v '^lo$' | head -n 1)\n\
         ip link set lo up\n\
         ip link set $card up\n\
         ip addr replace {GUEST}/24 dev $card\n"
    )
}

const INITTAB: &str = "::sysinit:/etc/start\n::once:/etc/orders\n::shutdown:/etc/stop\n";

/// What init runs first. It tries to write before the remount and right after it.
fn start() -> String {
    format!(
        "#!/bin/sh\n\
         cut -d' ' -f1 /proc/uptime >/run/up\n\
         grep MemAvailable /proc/meminfo >/run/memory\n\
         grep ' / ' /proc/mounts >/run/mounted\n\
         ip link set lo up\n\
         ip link set eth0 up\n\
         ip addr add {GUEST}/24 dev eth0\n\
         [ -e {ROOT_SOCKET} ] || exit 0\n\
         (echo too early >/early) 2>/run/early || true\n\
         [ -e {ROOT_DISK}/stay-read-only ] && exit 0\n\
         mount -o remount,rw /\n\
         echo $? >/run/remounted\n\
         (date >>/boots) 2>/run/first || true\n"
    )
}

/// One order a line; the answer is its exit code and what it said, in one line.
fn orders() -> String {
    format!(
        "#!/bin/sh\n\
         exec 3<>{PORT}\n\
         echo ready >&3\n\
         while read -r order <&3; do\n\
         \tsaid=$(sh -c \"$order\" 2>&1 </dev/null 3>&-)\n\
         \tprintf '%s %s\\n' \"$?\" \"$(printf %s \"$said\" | tr '\\n' '\\001')\" >&3\n\
         done\n"
    )
}

/// Before init kills everything: the agent, then the root.
const STOP: &str = "#!/bin/sh\n\
     [ -e /run/lento.pid ] && kill $(cat /run/lento.pid)\n\
     for each in 1 2 3 4 5 6 7 8; do\n\
     \tsleep 1\n\
     \t[ -e /run/lento.pid ] && kill -0 $(cat /run/lento.pid) 2>/dev/null || break\n\
     done\n\
     mount -o remount,ro / || echo the root file system is busy\n\
     [ -e /run/intermezzo/root.sock ] && /sbin/intermezzo-halt\n";

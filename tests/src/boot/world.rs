//! A server that runs here, and the disk of a machine that boots from the server's volume.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use intermezzo::admin::Scope;
use intermezzo::fleet::process::{Signal, binary};
use intermezzo::fleet::{Daemon, Node, mounts};
use intermezzo::pki::Files;
use intermezzo_channel::ROOT_DISK;
use rustix::mount::UnmountFlags;

use super::node::LINE;
use super::userland::Userland;
use crate::cluster::command::{DEADLINE, output};
use crate::fleet::Temporary;
use crate::machine::initramfs::found;
use crate::machine::kernel::{Kernel, Release};
use crate::machine::qemu::HOST;

/// Where the machine has its part of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// On a disk, which an agent here fills before the first boot.
    Disk,
    /// In its memory: it has no disk.
    Memory,
}

/// Names that belong to a machine without a disk, and not to the volume.
pub const EXCLUDED: &str = "/etc/machine-id:/var/log/";

/// Of the disk, in bytes.
const SIZE: u64 = 2 << 30;
/// For an agent to end.
const GRACE: Duration = Duration::from_secs(30);
/// For the volume to be on the machine's disk.
const SYNC: Duration = Duration::from_secs(180);

/// All of it.
#[derive(Debug)]
pub struct World {
    /// Node a, which serves the volume, runs here; node b is the machine.
    pub fleet: Temporary,
    /// Here.
    pub server: Node,
    /// The machine.
    pub machine: Node,
    /// What it boots.
    pub kernel: Kernel,
    /// For images, archives, sockets.
    pub dir: PathBuf,
    /// Where the machine has its part of the volume.
    pub storage: Storage,
    /// Its memory, in MiB.
    pub memory: u32,
    /// Made by `intermezzo initramfs`; for a machine without a disk with its identity behind it.
    pub initramfs: PathBuf,
    /// The machine's disk.
    pub image: PathBuf,
}

impl World {
    /// Fills a volume with a small system, and a disk with the volume, by an agent that runs here for that long.
    ///
    /// # Errors
    /// A program is missing, or the fleet does not come up.
    pub fn up(base: &Path, release: Release, userland: &Userland, storage: Storage) -> Result<World> {
        let kernel = Kernel::get(release)?;
        let mut fleet = Temporary::made(base, "intermezzo-boot", 2)?;
        fleet.fleet.take_ports()?;
        let (server, machine) = (fleet.fleet.node("a")?.clone(), fleet.fleet.node("b")?.clone());
        let dir = fleet.fleet.layout.dir.join("machine");
        fs::create_dir(&dir)?;
        let (initramfs, image) = (dir.join("initramfs"), dir.join("image"));
        // What a Debian opens while it starts is in memory where there is no disk.
        let memory = match (storage, userland) {
            (Storage::Memory, Userland::Debian(_)) => 1024,
            _ => 512,
        };
        let world = World { fleet, server, machine, kernel, dir, storage, memory, initramfs, image };
        if storage == Storage::Disk {
            world.make_disk(&world.image)?;
        }
        world.start_here(&world.server, Daemon::Presto)?;
        world.start_here(&world.server, Daemon::Lento)?;
        // Its one Replicator comes later.
        let begin = Instant::now();
        while !mounts::is_mounted(&world.mount()) {
            ensure!(begin.elapsed() < SYNC, "the server does not mount the volume");
            std::thread::sleep(Duration::from_millis(50));
        }
        userland.lay_out(&world)?;
        if storage == Storage::Disk {
            world.fill()?;
        }
        world.pack()?;
        Ok(world)
    }

    /// The volume, on the server.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.fleet.fleet.mountpoint(&self.server)
    }

    /// Starts an agent here.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_here(&self, node: &Node, daemon: Daemon) -> Result<()> {
        self.fleet.fleet.start(node, daemon)?;
        Ok(())
    }

    /// Ends an agent here, as somebody does who stops it.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_here(&self, node: &Node, daemon: Daemon) -> Result<()> {
        let process =
            self.fleet.fleet.running(node, daemon).with_context(|| format!("{daemon} does not run"))?;
        process.signal(Signal::Term);
        ensure!(process.wait(GRACE), "{daemon} of node {} does not end", node.name);
        Ok(())
    }

    fn make_disk(&self, image: &Path) -> Result<()> {
        File::create(image)?.set_len(SIZE)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-L", "node-b", "-J", "size=16", "-E", "nodiscard,lazy_itable_init=0"]);
        output(mkfs.arg(image), DEADLINE)?;
        Ok(())
    }

    /// Node b runs here once, with everything on the disk.
    fn fill(&self) -> Result<()> {
        let disk = self.mount_disk(&self.image)?;
        let own = disk.at.clone();
        for name in ["presto", "lento", "cache", "mounts", "log", "pki", "manifests"] {
            fs::create_dir_all(own.join(name))?;
        }
        let layout = &self.fleet.fleet.layout;
        let (own_files, ca) = (Files::node(&layout.pki(), &self.machine.name), Files::ca(&layout.pki()));
        for file in [&own_files.cert, &own_files.key, &ca.cert, &layout.manifest()] {
            let dir = if file.starts_with(layout.pki()) { "pki" } else { "manifests" };
            fs::copy(file, own.join(dir).join(file.file_name().unwrap_or_default()))?;
        }
        self.start_here(&self.machine, Daemon::Presto)?;
        self.start_here(&self.machine, Daemon::Lento)?;
        let fleet = &self.fleet.fleet;
        fleet.wait_ready_of(&[&self.machine], SYNC, &mut |_| ())?;
        fleet.wait(&self.server, Scope::Everywhere, SYNC)?;
        self.stop_here(&self.machine, Daemon::Lento)?;
        self.stop_here(&self.machine, Daemon::Presto)?;
        disk.leave()
    }

    /// Shows a disk of the machine here, while that is off.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount_disk(&self, image: &Path) -> Result<Shown> {
        let at = self.fleet.fleet.layout.dir.join(format!("node-{}", self.machine.name));
        fs::create_dir_all(&at)?;
        output(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&at), DEADLINE)?;
        Ok(Shown { at })
    }

    /// What the machine's lento has in its environment.
    #[must_use]
    pub fn lento(&self) -> Vec<(&'static str, String)> {
        let disk = |name: &str| format!("{ROOT_DISK}/{name}");
        let node = &self.machine.name;
        vec![
            ("LENTO_NODE", node.clone()),
            ("LENTO_MANIFESTS", disk("manifests")),
            ("LENTO_LISTEN", format!("0.0.0.0:{}", self.machine.port)),
            ("LENTO_STATE", disk("lento")),
            ("LENTO_CACHE", disk("cache")),
            ("LENTO_MOUNTS", "/run/intermezzo/mounts".to_owned()),
            ("LENTO_TLS_CERT", disk(&format!("pki/{node}.crt"))),
            ("LENTO_TLS_KEY", disk(&format!("pki/{node}.key"))),
            ("LENTO_TLS_CA", disk("pki/ca.crt")),
            ("LENTO_PEERS", format!("{}={HOST}:{}", self.server.name, self.server.port)),
        ]
    }

    /// As a user does it.
    fn pack(&self) -> Result<()> {
        let mut pack = Command::new(binary("intermezzo")?);
        pack.arg("initramfs")
            .arg("--kernel-modules")
            .arg(&self.kernel.modules)
            .arg("--out")
            .arg(&self.initramfs);
        if self.storage == Storage::Memory {
            pack.arg("--diskless");
        }
        pack.arg("--programs").arg(self.programs()?).arg("--shell").arg(found("busybox")?);
        for module in ["virtio_net", "virtio_console"] {
            pack.args(["--module", module]);
        }
        output(&mut pack, DEADLINE)?;
        if self.storage == Storage::Memory {
            let identity = self.identity(&self.fleet.fleet.layout.pki())?;
            fs::rename(&self.initramfs, self.common())?;
            fs::rename(self.with_identity(&identity)?, &self.initramfs)?;
        }
        Ok(())
    }

    /// The initramfs of all machines without a disk.
    fn common(&self) -> PathBuf {
        self.dir.join("common")
    }

    /// Who the machine is, with a certificate from this directory.
    ///
    /// # Errors
    /// There is none for it.
    pub fn identity(&self, pki: &Path) -> Result<PathBuf> {
        let out = self.dir.join("identity");
        let mut pack = Command::new(binary("intermezzo")?);
        pack.args(["pki", "archive", "--pki"]).arg(pki).arg("--out").arg(&out).arg(&self.machine.name);
        output(&mut pack, DEADLINE)?;
        Ok(out)
    }

    /// An initramfs that says so, as a boot loader puts it together.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn with_identity(&self, identity: &Path) -> Result<PathBuf> {
        let (out, mut whole) = (self.dir.join("with-identity"), fs::read(self.common())?);
        whole.extend(fs::read(identity)?);
        fs::write(&out, whole)?;
        Ok(out)
    }

    /// What is on the kernel's command line for it to boot from the volume.
    #[must_use]
    pub fn line(&self) -> String {
        match self.storage {
            Storage::Disk => LINE.to_owned(),
            Storage::Memory => {
                format!("{} rootflags=size=60%,exclude={EXCLUDED}", self.far(&self.fleet.fleet.config.volume))
            }
        }
    }

    /// The same of another volume, without flags.
    #[must_use]
    pub fn far(&self, volume: &str) -> String {
        format!("root=intermezzo:{volume}@{}={HOST}:{} ip=dhcp", self.server.name, self.server.port)
    }

    /// Without debug information they are a tenth.
    fn programs(&self) -> Result<PathBuf> {
        let dir = self.dir.join("programs");
        fs::create_dir_all(&dir)?;
        for name in ["intermezzo-boot", "presto", "presto-holder", "lento"] {
            output(Command::new("strip").arg("-o").arg(dir.join(name)).arg(binary(name)?), DEADLINE)?;
        }
        Ok(dir)
    }

    /// The file system on the disk is as it is after an unmount, and without damage.
    ///
    /// # Errors
    /// It is not.
    pub fn is_clean(&self) -> Result<()> {
        let told = output(Command::new("dumpe2fs").arg("-h").arg(&self.image), DEADLINE)?;
        ensure!(
            !told.contains("needs_recovery"),
            "the disk was not brought to rest: its journal needs recovery"
        );
        output(Command::new("e2fsck").arg("-fn").arg(&self.image), DEADLINE)?;
        Ok(())
    }
}

/// A disk that is mounted here; it goes with this.
#[derive(Debug)]
pub struct Shown {
    /// Where.
    pub at: PathBuf,
}

impl Shown {
    /// Unmounts it, with everything on it.
    ///
    /// # Errors
    /// Somebody uses it.
    pub fn leave(self) -> Result<()> {
        rustix::mount::unmount(&self.at, UnmountFlags::empty())
            .with_context(|| format!("{}", self.at.display()))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

//! A fleet of two nodes: one runs here, the other one is a machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use intermezzo::fleet::process::binary;
use intermezzo::fleet::{Daemon, Node};
use rand::rngs::StdRng;

use super::guest::{DISK, SETUP};
use super::observe::Observed;
use super::talk::{Order, PART, Part, Word};
use crate::cluster::command::output;
use crate::fleet::Temporary;
use crate::machine::disk::{Disk, Lost};
use crate::machine::initramfs::{Initramfs, MODULES as MODULE_DIR};
use crate::machine::kernel::Kernel;
use crate::machine::qemu::{GUEST, MODULES, Machine, Spec, TRIES};

/// For a machine to boot, if it is emulated and others work here too.
const BOOT: Duration = Duration::from_secs(180);
/// For it to do what it is told.
pub const PATIENCE: Duration = Duration::from_secs(400);
const DEADLINE: Duration = Duration::from_secs(120);
/// In MiB.
const MEMORY: u32 = 1024;
/// Of the disk, in bytes. Only what is flushed takes space here.
const SIZE: u64 = 4 << 30;

/// What the machine is to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// It serves it.
    Server,
    /// It has a replica.
    Client,
}

/// The archive with all programs that the machine needs.
///
/// # Errors
/// A program is missing.
pub fn programs(kernel: &Kernel, path: &Path) -> Result<()> {
    let mut initramfs = Initramfs::with_busybox()?;
    initramfs.modules(kernel, &MODULES)?;
    for name in ["presto", "presto-holder", "lento", "intermezzo"] {
        initramfs.program(&binary(name)?, &format!("bin/{name}"))?;
    }
    initramfs.program(&std::env::current_exe()?, "bin/power")?;
    let init = format!(
        "#!/bin/sh\n\
         /bin/busybox --install -s\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         for module in {MODULE_DIR}/*; do insmod $module; done\n\
         ip link set lo up\n\
         ip link set eth0 up\n\
         ip addr add {GUEST}/24 dev eth0\n\
         mkdir {DISK}\n\
         mount -t ext4 /dev/vda {DISK}\n\
         exec /bin/power --machine </dev/null >/dev/console 2>&1\n"
    );
    initramfs.file("init", init.as_bytes(), 0o755);
    initramfs.write(path)
}

/// The fleet.
#[derive(Debug)]
pub struct Pair {
    power: Option<(Machine, Disk)>,
    /// With the node that runs here; that of the machine has no processes in it.
    pub fleet: Temporary,
    /// Here.
    pub host: Node,
    kernel: Kernel,
    initramfs: PathBuf,
    dir: PathBuf,
    ports: Vec<u16>,
}

impl Pair {
    /// A fleet whose machine boots for the first time.
    ///
    /// # Errors
    /// Anything that stops it.
    pub fn up(base: &Path, role: Role, kernel: &Kernel, programs: &Path) -> Result<Pair> {
        let mut fleet = Temporary::made(base, "intermezzo-power", 2)?;
        fleet.fleet.take_ports()?;
        let [first, second] = fleet.fleet.config.nodes.as_slice() else { bail!("not two nodes") };
        let (guest, host) = if role == Role::Server { (first, second) } else { (second, first) };
        let (guest, host) = (guest.clone(), host.clone());
        let dir = fleet.fleet.layout.dir.join("machine");
        fs::create_dir(&dir)?;
        let initramfs = dir.join("initramfs");
        archive(&fleet, &guest, programs, &initramfs)?;
        let image = dir.join("image");
        File::create(&image)?.set_len(SIZE)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-N", "16384", "-J", "size=16", "-E", "nodiscard,lazy_itable_init=0"]);
        output(mkfs.arg(&image), DEADLINE)?;
        let ports = vec![guest.port];
        let mut pair = Pair { power: None, fleet, host, kernel: kernel.clone(), initramfs, dir, ports };
        pair.start_here(Daemon::Presto)?;
        pair.start_here(Daemon::Lento)?;
        pair.boot()?;
        Ok(pair)
    }

    /// Starts one of the agents of the node here.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_here(&self, daemon: Daemon) -> Result<()> {
        self.fleet.fleet.start(&self.host, daemon)?;
        Ok(())
    }

    /// Where the volume is mounted here.
    #[must_use]
    pub fn mount(&self) -> PathBuf {
        self.fleet.fleet.mountpoint(&self.host)
    }

    /// Gives the machine power and waits until its program is there.
    ///
    /// # Errors
    /// It does not boot.
    pub fn boot(&mut self) -> Result<()> {
        for _ in 1..TRIES {
            let booted = self.boot_once();
            let is_broken = |(machine, _): &(Machine, Disk)| machine.is_broken_by_the_emulator();
            if booted.is_ok() || !self.power.as_ref().is_some_and(is_broken) {
                return booted;
            }
            // It has not come as far as its disk.
            self.power = None;
        }
        self.boot_once()
    }

    fn boot_once(&mut self) -> Result<()> {
        let socket = self.dir.join("disk.sock");
        let disk = Disk::serve(&self.dir.join("image"), &socket)?;
        let machine = Machine::start(&Spec {
            dir: &self.dir,
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            disks: &[socket],
            append: "",
            cpus: 1,
            memory: MEMORY,
            ports: &self.ports,
        })?;
        self.power = Some((machine, disk));
        match self.answer("the machine to boot", BOOT)? {
            Word::Ready => Ok(()),
            word => bail!("the machine says {word:?}"),
        }
    }

    /// Gives an order without waiting for the answer.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn order(&mut self, order: &Order) -> Result<()> {
        let (machine, _) = self.power.as_mut().context("the machine has no power")?;
        machine.tell(&serde_json::to_string(order)?)
    }

    /// The next word of the machine.
    ///
    /// # Errors
    /// None in time, or that something failed.
    pub fn answer(&mut self, what: &str, deadline: Duration) -> Result<Word> {
        let (machine, _) = self.power.as_mut().context("the machine has no power")?;
        let line = machine.line(what, deadline)?;
        match serde_json::from_str(&line).with_context(|| line)? {
            Word::Failed(why) => bail!("the machine, asked for {what}: {why}"),
            word => Ok(word),
        }
    }

    /// An order that is only done.
    ///
    /// # Errors
    /// It is not, or not in time.
    pub fn done(&mut self, order: &Order, what: &str) -> Result<()> {
        self.order(order)?;
        match self.answer(what, PATIENCE)? {
            Word::Done => Ok(()),
            word => bail!("the machine, asked for {what}, says {word:?}"),
        }
    }

    /// What is on the machine's disk before its agents start.
    ///
    /// # Errors
    /// It does not answer.
    pub fn look(&mut self, workers: &[String]) -> Result<BTreeMap<String, Observed>> {
        self.order(&Order::Look(workers.to_vec()))?;
        match self.answer("a look at the disk", PATIENCE)? {
            Word::Seen(seen) => Ok(seen),
            word => bail!("the machine, asked for its files, says {word:?}"),
        }
    }

    /// Cuts the power, and then that of the disk. Gives what was lost and what the machine had said by then.
    ///
    /// # Errors
    /// The machine does not go.
    pub fn cut(&mut self, random: &mut StdRng) -> Result<(Lost, Vec<Word>)> {
        let (mut machine, disk) = self.power.take().context("the machine has no power")?;
        let said = machine.cut()?;
        let lost = disk.cut(random)?;
        // The last line may be half a line.
        let words = said.iter().map_while(|line| serde_json::from_str(line).ok());
        Ok((lost, words.collect()))
    }

    /// The file system on the disk is what ext4 leaves for its journal to mend, and nothing else.
    ///
    /// # Errors
    /// It is not.
    pub fn fsck(&self) -> Result<()> {
        let copy = self.dir.join("copy");
        output(Command::new("cp").arg("--sparse=always").arg(self.dir.join("image")).arg(&copy), DEADLINE)?;
        // The journal and orphaned inodes are mended; 1 says that something was.
        let mut preen = Command::new("e2fsck");
        let mended = preen.args(["-p"]).arg(&copy).output()?;
        ensure!(matches!(mended.status.code(), Some(0 | 1)), "e2fsck -p: {mended:?}");
        let clean = output(Command::new("e2fsck").args(["-fn"]).arg(&copy), DEADLINE);
        fs::remove_file(&copy)?;
        clean.context("the file system of the machine is damaged")?;
        Ok(())
    }

    /// What is known about a failure: console, agents, journals.
    pub fn explain(&mut self, names: &[String]) -> String {
        let mut text = String::new();
        if let Some((machine, _)) = &self.power {
            text += &format!("the end of the machine's console:\n{}\n", machine.console());
        }
        let asked = self.order(&Order::Explain(names.to_vec()));
        let begin = Instant::now();
        while asked.is_ok() && begin.elapsed() < DEADLINE {
            match self.answer("an explanation", Duration::from_secs(20)) {
                Ok(Word::Explained(told)) => return text + &told,
                Ok(_) => {}
                Err(error) => return format!("{text}the machine explains nothing: {error:#}"),
            }
        }
        text
    }
}

/// The programs, and behind them what this machine is.
fn archive(fleet: &Temporary, guest: &Node, programs: &Path, path: &Path) -> Result<()> {
    let mut own = Initramfs::default();
    let part = Part { config: fleet.fleet.config.clone(), node: guest.name.clone() };
    own.file(PART.trim_start_matches('/'), &serde_json::to_vec(&part)?, 0o644);
    for (name, dir) in [("pki", fleet.fleet.layout.pki()), ("manifests", fleet.fleet.layout.manifests())] {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let to =
                format!("{}/{name}/{}", SETUP.trim_start_matches('/'), entry.file_name().to_string_lossy());
            own.file(&to, &fs::read(entry.path())?, 0o600);
        }
    }
    own.write(path)?;
    let own = fs::read(path)?;
    fs::copy(programs, path)?;
    io::Write::write_all(&mut File::options().append(true).open(path)?, &own)?;
    Ok(())
}

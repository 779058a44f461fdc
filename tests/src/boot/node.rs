//! A machine that runs, and does what it is told.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::world::{Storage, World};
use crate::machine::disk::Disk;
use crate::machine::qemu::{Machine, Spec, TRIES};

/// For a machine to boot, if it is emulated and others work here too.
pub const BOOT: Duration = Duration::from_secs(600);
/// For an order to be carried out.
const ORDER: Duration = Duration::from_secs(300);
/// For a machine to go.
const END: Duration = Duration::from_secs(120);
/// What boots from the volume. An emulated machine needs more patience with its devices than systemd has.
pub const LINE: &str = "root=/dev/vda rootfstype=intermezzo ro systemd.default_device_timeout_sec=600";

/// A machine with power.
#[derive(Debug)]
pub struct Running {
    machine: Machine,
    disk: Option<Disk>,
}

impl World {
    /// Boots, and waits until orders are taken.
    ///
    /// # Errors
    /// It does not boot; with its console.
    pub fn boot(&self) -> Result<Running> {
        let mut tries = 1;
        loop {
            let mut running = self.power_on(&self.line(), self.initramfs.clone(), self.image.clone())?;
            let ready = running.is_ready();
            if ready.is_ok() || tries >= TRIES || !running.machine.is_broken_by_the_emulator() {
                return ready.map(|()| running);
            }
            tries += 1;
        }
    }

    /// Boots with this command line.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn power_on(&self, append: &str, initramfs: PathBuf, image: PathBuf) -> Result<Running> {
        self.power_on_in(&self.dir, append, initramfs, &image, &[self.machine.port])
    }

    /// The same of one more machine, which is the same to everybody else.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn power_on_another(&self) -> Result<Running> {
        let dir = self.dir.join("another");
        std::fs::create_dir_all(&dir)?;
        self.power_on_in(&dir, &self.line(), self.initramfs.clone(), &self.image, &[])
    }

    fn power_on_in(
        &self,
        dir: &Path,
        append: &str,
        initramfs: PathBuf,
        image: &Path,
        ports: &[u16],
    ) -> Result<Running> {
        let socket = dir.join("disk.sock");
        let disk = match self.storage {
            Storage::Disk => Some(Disk::serve(image, &socket)?),
            Storage::Memory => None,
        };
        let machine = Machine::start(&Spec {
            dir,
            kernel: &self.kernel,
            initramfs: &initramfs,
            disks: if disk.is_some() { std::slice::from_ref(&socket) } else { &[] },
            append,
            cpus: 1,
            memory: self.memory,
            ports,
        })?;
        Ok(Running { machine, disk })
    }
}

impl Running {
    /// Waits until orders are taken.
    ///
    /// # Errors
    /// It does not boot; with its console.
    pub fn is_ready(&mut self) -> Result<()> {
        let line = self.machine.line("that it is ready", BOOT);
        let line = line.with_context(|| format!("the console:\n{}", self.machine.console()))?;
        ensure!(line == "ready", "the machine says {line:?}");
        Ok(())
    }

    /// Runs a line of shell; its exit code and what it said.
    ///
    /// # Errors
    /// No answer.
    pub fn order(&mut self, order: &str) -> Result<(i32, String)> {
        self.machine.tell(order)?;
        let answer = self.machine.line(&format!("what came of `{order}`"), ORDER);
        let answer = answer.with_context(|| format!("the console:\n{}", self.machine.console()))?;
        let (code, said) = answer.split_once(' ').unwrap_or((&answer, ""));
        Ok((code.parse().with_context(|| answer.clone())?, said.replace('\u{1}', "\n")))
    }

    /// The same for what must succeed.
    ///
    /// # Errors
    /// It does not.
    pub fn must(&mut self, order: &str) -> Result<String> {
        match self.order(order)? {
            (0, said) => Ok(said),
            (code, said) => {
                bail!("`{order}` ended with {code}: {said}\nthe console:\n{}", self.machine.console())
            }
        }
    }

    /// The same again and again, until it succeeds.
    ///
    /// # Errors
    /// It does not in this time.
    pub fn until(&mut self, order: &str, deadline: Duration) -> Result<String> {
        let begin = Instant::now();
        loop {
            match self.order(order)? {
                (0, said) => return Ok(said),
                (_, said) if begin.elapsed() > deadline => {
                    let log = self.order("tail -n 30 /run/lento.log")?.1;
                    bail!("`{order}` still fails after {} s: {said}\nlento: {log}", deadline.as_secs());
                }
                _ => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }

    /// Gives an order whose answer is not waited for.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn begin(&mut self, order: &str) -> Result<()> {
        self.machine.tell(order)
    }

    /// Switches it off, and the disk with it: what was not flushed is gone. Gives the console.
    ///
    /// # Errors
    /// It hangs.
    pub fn power_off(mut self) -> Result<String> {
        self.machine.tell("poweroff")?;
        self.has_ended()
    }

    /// Waits for its end. Gives the console.
    ///
    /// # Errors
    /// It hangs.
    pub fn has_ended(mut self) -> Result<String> {
        self.machine.ended(END).with_context(|| format!("the console:\n{}", self.machine.console()))?;
        let console = self.machine.whole_console();
        drop(self.machine);
        if let Some(disk) = self.disk {
            disk.cut(&mut StdRng::seed_from_u64(0))?;
        }
        Ok(console)
    }

    /// Cuts its power, and that of the disk. Gives how many sectors were lost, and the lines that came meanwhile.
    ///
    /// # Errors
    /// The machine does not go.
    pub fn cut(mut self, random: &mut StdRng) -> Result<(usize, Vec<String>)> {
        let said = self.machine.cut()?;
        let lost = self.disk.map(|disk| disk.cut(random)).transpose()?.map_or(0, |lost| lost.sectors);
        Ok((lost, said))
    }

    /// All that the console showed so far.
    #[must_use]
    pub fn console(&self) -> String {
        self.machine.whole_console()
    }
}

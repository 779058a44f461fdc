//! A machine that runs: QEMU, its console in a file, one line of talk with the program inside.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::kernel::Kernel;

/// Where a machine reaches the computer it runs on; QEMU's network without privileges has these.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// A machine's own address in it.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The device by which the program inside talks.
pub const PORT: &str = "/dev/vport0p1";
/// What disk, network and talk need.
pub const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "fuse"];

/// For QEMU to open its sockets, and to be gone after kill -9.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a machine is started that its emulator breaks.
pub const TRIES: u32 = 3;

/// Of the console, in an explanation.
const LINES: usize = 60;

/// How a machine is made.
#[derive(Debug)]
pub struct Spec<'a> {
    /// A directory for its sockets and its console.
    pub dir: &'a Path,
    /// What boots.
    pub kernel: &'a Kernel,
    /// The archives that are its first file system.
    pub initramfs: &'a Path,
    /// Sockets of its disks, /dev/vda first.
    pub disks: &'a [PathBuf],
    /// What else is on the kernel's command line.
    pub append: &'a str,
    /// Number of processors. With more than one, the emulator breaks the kernel more often.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Ports of this computer's 127.0.0.1 that lead to the same port inside.
    pub ports: &'a [u16],
}

/// A running machine; killed when this goes.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    talk: UnixStream,
    lines: Receiver<String>,
    console: PathBuf,
}

/// What makes it fast, if this computer has it.
#[must_use]
pub fn accelerator() -> &'static str {
    // A /dev/kvm that opens is no proof: where the processor shows no virtualisation, it runs firmware and no Linux.
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if has && File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        "kvm"
    } else {
        "tcg,thread=multi"
    }
}

impl Machine {
    /// Starts it.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn start(spec: &Spec) -> Result<Machine> {
        let (socket, console, said) =
            (spec.dir.join("talk.sock"), spec.dir.join("console"), spec.dir.join("qemu"));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let mut command = Command::new("setpriv");
        // Without this program nobody would end it.
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        let accelerator = accelerator();
        // TCG gets cmpxchg16b wrong now and then.
        let cpu = if accelerator == "kvm" { "host" } else { "max,-cx16" };
        command.args([
            "-accel",
            accelerator,
            "-cpu",
            cpu,
            "-M",
            "q35",
            "-smp",
            &spec.cpus.to_string(),
            "-m",
            &spec.memory.to_string(),
        ]);
        command.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
        command.arg("-kernel").arg(&spec.kernel.image).arg("-initrd").arg(spec.initramfs);
        // Where the processor is emulated and others keep this one busy, the kernel's test of its timer fails.
        let append = format!("console=ttyS0 panic=-1 loglevel=5 quiet no_timer_check {}", spec.append);
        command.args(["-append", append.trim_end()]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        command.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=talk"]);
        command.args(["-chardev", &format!("socket,id=talk,path={}", socket.display())]);
        for (number, disk) in spec.disks.iter().enumerate() {
            let drive =
                format!("file=nbd+unix:///?socket={},format=raw,if=none,id=d{number}", disk.display());
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=d{number}")]);
        }
        let forwards: String =
            spec.ports.iter().map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-:{port}")).collect();
        command.args(["-netdev", &format!("user,id=n{forwards}")]);
        command.args(["-device", "virtio-net-pci,netdev=n,romfile="]);
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(File::create(&said)?)
            .stderr(File::options().append(true).open(&said)?)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let talk = match accept(&listener, &mut qemu) {
            Ok(talk) => talk,
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                return Err(error.context(fs::read_to_string(said).unwrap_or_default()));
            }
        };
        let lines = lines(talk.try_clone()?);
        Ok(Machine { qemu, talk, lines, console })
    }

    /// Tells the program inside something, as one line.
    ///
    /// # Errors
    /// The machine is gone.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        self.talk.write_all(format!("{line}\n").as_bytes()).context("the machine is gone")
    }

    /// The next line of the program inside.
    ///
    /// # Errors
    /// None within this time, or the machine is gone; `what` was waited for.
    pub fn line(&mut self, what: &str, deadline: Duration) -> Result<String> {
        match self.lines.recv_timeout(deadline) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("waited {} s for {what}", deadline.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.qemu.try_wait().ok().flatten().map(|status| status.to_string());
                bail!(
                    "the machine ended while it should say {what}: {}; QEMU: {}; its console: {}",
                    status.unwrap_or_else(|| "QEMU runs".to_owned()),
                    fs::read_to_string(self.console.with_file_name("qemu")).unwrap_or_default().trim(),
                    self.console()
                )
            }
        }
    }

    /// kill -9. Gives what the program inside had said by then.
    ///
    /// # Errors
    /// QEMU stays.
    pub fn cut(&mut self) -> Result<Vec<String>> {
        self.qemu.kill()?;
        let begin = Instant::now();
        while self.qemu.try_wait()?.is_none() {
            ensure!(begin.elapsed() < PATIENCE, "QEMU survives kill -9");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(self.lines.iter().collect())
    }

    /// Waits until it has switched itself off, or has stopped with a panic.
    ///
    /// # Errors
    /// It runs on.
    pub fn ended(&mut self, deadline: Duration) -> Result<()> {
        let begin = Instant::now();
        while self.qemu.try_wait()?.is_none() {
            ensure!(begin.elapsed() < deadline, "the machine runs on after {} s", deadline.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// All that the console showed.
    #[must_use]
    pub fn whole_console(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&text).replace('\r', "")
    }

    /// The emulator ran code that the kernel had just changed, and the kernel stopped: that says nothing about what is tested.
    #[must_use]
    pub fn is_broken_by_the_emulator(&self) -> bool {
        accelerator() != "kvm" && self.whole_console().contains("Oops: int3")
    }

    /// The console's last lines.
    #[must_use]
    pub fn console(&self) -> String {
        let text = self.whole_console();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn accept(listener: &UnixListener, qemu: &mut Child) -> Result<UnixStream> {
    let begin = Instant::now();
    loop {
        if let Ok((talk, _)) = listener.accept() {
            talk.set_nonblocking(false)?;
            return Ok(talk);
        }
        if let Some(status) = qemu.try_wait()? {
            return Err(anyhow!("QEMU ended: {status}"));
        }
        ensure!(begin.elapsed() < PATIENCE, "QEMU does not open its side of the talk");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn lines(talk: UnixStream) -> Receiver<String> {
    let (tell, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(talk).lines() {
            let Ok(line) = line else { return };
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

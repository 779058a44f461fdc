//! The step into the volume: its `/dev`, `/proc`, `/sys` and `/run`, then its init.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cmdline::Request;
use crate::init::{NEW, RUN, virtual_fs};
use crate::modules;

/// In this order, as the kernel does.
pub const INITS: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];

/// Becomes the volume's init.
///
/// # Errors
/// The volume is no root file system, or its init does not start.
pub fn switch(request: &Request, words: &[OsString]) -> Result<()> {
    let new = Path::new(NEW);
    for name in ["dev", "proc", "sys", "run"] {
        // Looked at without following links: presto serves it, and a link may lead anywhere.
        if !new.join(name).symlink_metadata().is_ok_and(|found| found.is_dir()) {
            bail!(
                "the volume has no directory /{name}: is it a root file system? Make an empty /{name} in it on another node"
            );
        }
    }
    for (kind, name) in [("proc", "proc"), ("sysfs", "sys"), ("devtmpfs", "dev")] {
        virtual_fs(kind, &new.join(name), "")?;
    }
    rustix::mount::mount_move(RUN, new.join("run")).context("/run is not moved into the volume")?;
    modules::forget();
    std::env::set_current_dir(new)?;
    rustix::mount::mount_move(".", "/").context("the volume does not become /")?;
    rustix::process::chroot(".").context("the volume does not become /")?;
    std::env::set_current_dir("/")?;
    let init = init(request)?;
    let console = || File::options().read(true).write(true).open("/dev/console").map(Stdio::from);
    let mut command = Command::new(&init);
    command.args(words);
    // systemd looks for /etc/initrd-release otherwise, at a moment when it has stopped presto: it would wait for ever.
    command.env("SYSTEMD_IN_INITRD", "0");
    if let (Ok(input), Ok(output), Ok(errors)) = (console(), console(), console()) {
        command.stdin(input).stdout(output).stderr(errors);
    }
    Err(command.exec()).with_context(|| format!("{init} of the volume does not start"))
}

fn init(request: &Request) -> Result<String> {
    let is_there = |path: &str| Path::new(path).exists();
    match &request.init {
        Some(init) if is_there(init) => Ok(init.clone()),
        Some(init) => bail!("init={init}: the volume has no such file"),
        None => match INITS.into_iter().find(|path| is_there(path)) {
            Some(init) => Ok(init.to_owned()),
            None => bail!("the volume has none of {}: is it a root file system?", INITS.join(", ")),
        },
    }
}

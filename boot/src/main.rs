//! intermezzo-boot: the first program of a machine whose root file system is a volume, and what such a machine needs later on.
//!
//! One static program with several names. `/init` in the initramfs brings presto up and switches to the volume; there it is
//! the mount helper (`mount.intermezzo`), and what brings the disk to rest when the machine goes (`intermezzo-halt`). It knows
//! presto only by its command line and by the socket of the root file system.

mod client;
mod cmdline;
mod console;
mod device;
mod diskless;
mod halt;
mod helper;
mod init;
mod modules;
mod network;
mod profile;
mod progress;
mod supervise;
mod switch;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "intermezzo-boot, by the name it is called:

  init                 in an initramfs: makes a volume the root file system (`intermezzo initramfs` packs it)
  mount.intermezzo, mount.fuse.intermezzo
                       the mount helper: `mount -o remount,rw,volume=NAMESPACE/NAME,mtpt=/ /`
  intermezzo-halt      when the machine goes: everything on disk, nothing changes any more
";

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    let mut rest: Vec<OsString> = words.collect();
    let mut name = Path::new(&called).file_name().unwrap_or_default().to_string_lossy().into_owned();
    // `intermezzo-boot halt` is the same as `intermezzo-halt`.
    if name == "intermezzo-boot" && !rest.is_empty() {
        name = rest.remove(0).to_string_lossy().into_owned();
    }
    match name.as_str() {
        "init" => init::run(&rest),
        supervise::NAME => supervise::run(&rest),
        profile::NAME => profile::run(&rest),
        "mount.intermezzo" | "mount.fuse.intermezzo" => helper::run(&rest),
        "halt" | "intermezzo-halt" => halt::run(),
        _ => {
            console::print(USAGE);
            ExitCode::from(2)
        }
    }
}

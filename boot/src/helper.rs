//! The mount helper: mount(8) calls it for `mount -o remount,rw /` with what fstab says, because the kernel would not take
//! `volume=` and `mtpt=`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use intermezzo_channel::v1::Remount;
use intermezzo_channel::v1::packet::Body;
use rustix::mount::{MountFlags, mount_remount};

use crate::client::ask;
use crate::console;

/// mount(8): an incorrect invocation, and a mount that failed.
const WRONG: u8 = 1;
const FAILED: u8 = 32;

#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    target: String,
    options: String,
    fake: bool,
}

/// Called as `mount.intermezzo SOURCE TARGET [-fnsv] [-t TYPE] -o OPTIONS`.
pub fn run(words: &[OsString]) -> ExitCode {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let told = |code, error: &anyhow::Error| {
        console::print(&format!("mount.intermezzo: {error:#}\n"));
        ExitCode::from(code)
    };
    let call = match parse(&words) {
        Ok(call) => call,
        Err(error) => return told(WRONG, &error),
    };
    match remount(&call) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => told(FAILED, &error),
    }
}

fn parse(words: &[String]) -> Result<Call> {
    let (mut call, mut places) = (Call::default(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-o" => call.options.clone_from(words.next().context("-o without options")?),
            "-t" | "-N" => drop(words.next()),
            flags if flags.starts_with('-') => call.fake |= flags.contains('f'),
            place => places.push(place.to_owned()),
        }
    }
    let [_, target] = places.as_slice() else { bail!("SOURCE and TARGET are wanted, then -o OPTIONS") };
    call.target.clone_from(target);
    Ok(call)
}

fn remount(call: &Call) -> Result<()> {
    if call.target != "/" || !call.options.split(',').any(|word| word == "remount") {
        bail!(
            "only the root file system is remounted this way; other volumes are mounted by presto on its own"
        );
    }
    if call.fake {
        return Ok(());
    }
    let flags = flags(&call.options);
    let told = || ask(Body::Remount(Remount { options: call.options.clone() }));
    // mount(2) itself: mount(8) would read fstab and call this again.
    let done = || mount_remount("/", flags, c"").context("the kernel does not remount /");
    if flags.contains(MountFlags::RDONLY) {
        done()?;
        told()
    } else {
        told()?;
        done()
    }
}

/// The last word of each kind counts. `noexec` is none of them: nothing would start any more.
fn flags(options: &str) -> MountFlags {
    let mut flags = MountFlags::empty();
    for word in options.split(',') {
        let (flag, on) = match word {
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "lazytime" => (MountFlags::LAZYTIME, true),
            _ => continue,
        };
        flags.set(flag, on);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Result<Call> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_mount_passes_is_understood() {
        let options = "rw,noatime,volume=a/b,mtpt=/,remount";
        for line in [
            format!("a/b / -o {options}"),
            format!("a/b / -n -v -o {options} -t fuse.intermezzo"),
            format!("/dev/vda / -nv -o {options}"),
        ] {
            let expected = Call { target: "/".to_owned(), options: options.to_owned(), fake: false };
            assert_eq!(call(&line).unwrap(), expected);
        }
        assert!(call("a/b / -sf -o remount").unwrap().fake);
        assert!(call("a/b -o remount").is_err());
        assert!(call("a/b / -o").is_err());
    }

    #[test]
    fn the_last_word_of_a_kind_counts_and_nothing_stops_programs() {
        assert_eq!(flags("ro,rw,noexec,volume=a/b"), MountFlags::empty());
        assert_eq!(flags("rw,noatime,remount,ro"), MountFlags::NOATIME | MountFlags::RDONLY);
    }

    #[test]
    fn other_mounts_are_refused_with_a_sentence() {
        for line in ["a/b /mnt -o rw", "a/b /mnt -o remount,rw", "a/b / -o rw"] {
            let error = remount(&call(line).unwrap()).unwrap_err().to_string();
            assert!(error.contains("only the root file system"), "{error}");
        }
        assert!(remount(&call("a/b / -f -o remount,rw").unwrap()).is_ok());
    }
}

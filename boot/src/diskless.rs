//! A root file system without a disk: the cache in memory, the network, this node's identity, and a Lento that fills the cache.
//!
//! What the machine is lies in the initramfs at `/intermezzo` (`intermezzo pki archive` makes it): whoever serves kernels and
//! initramfs gives each machine its own.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use intermezzo_channel::ROOT_DISK;
use rustix::fs::{Mode, OFlags, StatVfs, statvfs};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::cmdline::{Replica, Request, Server};
use crate::console::{complaints, say};
use crate::init::NEW;
use crate::network;
use crate::profile;
use crate::supervise::{Far, Plan};

/// Name, certificate and key of this node, the authorities, and perhaps manifests.
pub const IDENTITY: &str = "/intermezzo";
/// In the new /run: this machine has no disk.
pub const MARK: &str = "diskless";
/// How far Lento is, in the new /run.
pub const PROGRESS: &str = "lento.progress";

/// Of the memory, unless `rootflags=size=` says it.
const SIZE: &str = "size=50%";
/// Less is no place for journal, store and tree.
const LEAST: u64 = 32 << 20;
/// So little left is nothing: whoever writes next gets ENOSPC.
const FULL: u64 = 256 << 10;
/// Journal of a cache in memory, in bytes.
const LOG: u64 = 64 << 20;
/// How often it is looked how far Lento is.
const BREATH: Duration = Duration::from_millis(20);
/// A changed reason is said no more often than this, and an old one again after so long.
const NEWS: Duration = Duration::from_secs(2);
const WORD: Duration = Duration::from_secs(15);

/// Brings network, memory and identity in place; what is to run.
///
/// # Errors
/// One of them is missing, with what to change.
pub fn prepare(request: &Request, server: &Server) -> Result<Plan> {
    let node = identity()?;
    let manifests = manifests(&node, server)?;
    let disk = Path::new(ROOT_DISK);
    mount(server, disk)?;
    for name in ["presto", "lento", "cache"] {
        std::fs::create_dir_all(disk.join(name))?;
    }
    let _ = rustix::system::sethostname(node.as_bytes());
    let lease = network::up(&server.network, &node, request.patience)?;
    let run = crate::init::prepare_run(disk)?;
    std::fs::write(run.join(MARK), "")?;
    if let Some((_, lease)) = &lease {
        let servers: String = lease.dns.iter().map(|address| format!("nameserver {address}\n")).collect();
        std::fs::write(run.join("resolv.conf"), servers)?;
    }
    let (server, volume) = ((server.node.clone(), server.address), server.volume.clone());
    let far = Far { node, server, manifests, lease };
    Ok(Plan {
        disk: disk.to_owned(),
        at: crate::init::directory(NEW)?,
        run,
        volume: Some(volume),
        far: Some(far),
    })
}

/// The name of this node.
fn identity() -> Result<String> {
    let dir = Path::new(IDENTITY);
    let node = std::fs::read_to_string(dir.join("node")).unwrap_or_default().trim().to_owned();
    let missing = ["node.crt", "node.key", "ca.crt"].into_iter().find(|name| !dir.join(name).is_file());
    if node.is_empty() || missing.is_some() {
        bail!(
            "this initramfs does not say which node this machine is ({}/{} is missing): append what `intermezzo pki archive` \
             makes for it, as a second initrd of the boot loader or behind the first one in one file",
            IDENTITY,
            missing.unwrap_or("node")
        );
    }
    Ok(node)
}

/// Where Lento finds what the volume is to be: packed, or as the command line says it.
fn manifests(node: &str, server: &Server) -> Result<PathBuf> {
    let dir = Path::new(IDENTITY).join("manifests");
    if let Ok(parts) = std::fs::read_to_string(Path::new(IDENTITY).join("volumes")) {
        let wanted = format!("{} {}", server.volume, server.node);
        if !parts.lines().any(|line| line == wanted) {
            bail!(
                "root=intermezzo:{}@{}: the manifests that were packed for node {node} say otherwise ({}); correct root=, or pack \
                 others",
                server.volume,
                server.node,
                parts.trim().replace('\n', ", ").replace(' ', "@")
            );
        }
        if server.replica != Replica::default() {
            bail!(
                "rootflags=mode=, access=, exclude= and pin= are said by the manifests that were packed: leave them out"
            );
        }
        return Ok(dir);
    }
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("root.yaml"), manifest(node, server))?;
    Ok(dir)
}

fn manifest(node: &str, server: &Server) -> String {
    let (namespace, name) = server.volume.split_once('/').unwrap_or_default();
    let Replica { mode, access, exclude, pins } = &server.replica;
    let list = |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", ");
    let (mode, access) = (mode.as_deref().unwrap_or("OnDemand"), access.as_deref().unwrap_or("ReadWrite"));
    // Where everything is here there is nothing to pin.
    let pins = if mode == "OnDemand" { pins.as_slice() } else { &[] };
    let metadata =
        |name: &str| format!("metadata: {{name: {}, namespace: {}}}", quoted(name), quoted(namespace));
    format!(
        "apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\n{}\nspec:\n  server: {{nodeName: {}}}\n  log: {{maxBytes: {LOG}}}\n  \
         exclude: [{}]\n---\napiVersion: intermezzo.dev/v1alpha1\nkind: Replicator\n{}\nspec:\n  volume: {}\n  nodeName: {}\n  \
         mode: {mode}\n  access: {access}\n  pins: [{}]\n",
        metadata(name),
        quoted(&server.node),
        list(exclude),
        metadata(&format!("{name}-{node}")),
        quoted(name),
        quoted(node),
        list(pins),
    )
}

/// Of YAML, which has those of JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted + "\""
}

/// The cache, in memory.
fn mount(server: &Server, disk: &Path) -> Result<()> {
    let sized = server.options.iter().any(|option| option.starts_with("size="));
    let mut words: Vec<&str> = vec!["mode=755"];
    words.extend((!sized).then_some(SIZE));
    words.extend(server.options.iter().map(String::as_str));
    let options = words.join(",");
    std::fs::create_dir_all(disk)?;
    let data = std::ffi::CString::new(options.as_str())?;
    match rustix::mount::mount("cache", disk, "tmpfs", MountFlags::NOATIME, &*data) {
        Ok(()) => {}
        Err(Errno::INVAL) => {
            bail!("the kernel refuses one of the options \"{options}\" of a tmpfs (rootflags=)")
        }
        Err(errno) => bail!("no memory for the cache at {}: {errno}", disk.display()),
    }
    let room = statvfs(disk)?;
    let bytes = room.f_blocks.saturating_mul(room.f_frsize);
    if bytes < LEAST {
        bail!(
            "too little memory: the cache may take {} MiB of it (rootflags={options}) and needs {} MiB at least; give the machine \
             more memory, or the cache a larger part: rootflags=size=80%",
            bytes >> 20,
            LEAST >> 20
        );
    }
    Ok(())
}

/// Waits until the tree is here.
///
/// # Errors
/// It does not come, or there is no room for it; with what to change.
pub fn wait_for_tree(request: &Request, server: &Server, run: &Path, supervisor: &mut Child) -> Result<()> {
    let begun = Instant::now();
    // Time runs while nothing comes.
    let mut news = (begun, 0);
    let mut said = (None::<Instant>, String::new());
    let mut why = String::from("lento begins");
    loop {
        if let Ok(text) = std::fs::read_to_string(run.join(PROGRESS)) {
            match state(&text, &server.volume) {
                Some(State::Whole) => {
                    let seconds = begun.elapsed().as_secs_f64();
                    say(format_args!("the tree of volume {} is here ({seconds:.1} s)", server.volume));
                    return Ok(());
                }
                Some(State::Waiting(reason)) => why = reason,
                None => {}
            }
        }
        if supervisor.try_wait()?.is_some() {
            bail!("the root file system is not brought here: {}", last_words());
        }
        let room = statvfs(ROOT_DISK)?;
        if let Some(lacks) = full(&room) {
            bail!(
                "too little memory: volume {} needs more {lacks} than the cache may take ({} MiB of memory); give the machine more \
                 memory, or the cache a larger part: rootflags=size=80%{}",
                server.volume,
                room.f_blocks.saturating_mul(room.f_frsize) >> 20,
                if lacks == "names" { ",nr_inodes=0" } else { "" }
            );
        }
        let objects = room.f_files.saturating_sub(room.f_ffree);
        if objects != news.1 {
            news = (Instant::now(), objects);
        }
        if news.0.elapsed() >= request.patience {
            let last = complaints().pop().map(|last| format!(" ({last})")).unwrap_or_default();
            bail!(
                "volume {} is not here after {} s: {why}{last}. rootwait=SECONDS on the kernel's command line waits longer, rootwait \
                 alone for ever",
                server.volume,
                begun.elapsed().as_secs()
            );
        }
        let pause = if said.1 == why { WORD } else { NEWS };
        if said.0.unwrap_or(begun).elapsed() >= pause {
            let seconds = begun.elapsed().as_secs();
            say(format_args!(
                "waiting for volume {} of {}: {why} ({seconds} s)",
                server.volume, server.address
            ));
            said = (Some(Instant::now()), why.clone());
        }
        std::thread::sleep(BREATH);
    }
}

/// Presto looks into it when the root file system is remounted, and refuses updates until it can.
pub fn bring_fstab(root: &Path) {
    let opened = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|root| profile::open(root, "etc/fstab"));
    // Without one a mount helper may name the volume.
    if let Err(errno) = opened
        && errno != Errno::NOENT
    {
        say(format_args!("/etc/fstab of the volume is not here: {errno}"));
    }
}

fn last_words() -> String {
    let complaints = complaints();
    if complaints.is_empty() {
        return "what should bring it ended and said nothing; look at the kernel's log (dmesg)".to_owned();
    }
    complaints.join("; ")
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Whole,
    Waiting(String),
}

/// What Lento says of the volume.
fn state(text: &str, volume: &str) -> Option<State> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(volume)?.strip_prefix(' '));
    let said = lines.next()?;
    match said.strip_prefix("waiting ") {
        Some(why) => Some(State::Waiting(why.to_owned())),
        None => (said == "whole").then_some(State::Whole),
    }
}

/// What is used up.
fn full(room: &StatVfs) -> Option<&'static str> {
    if room.f_bavail.saturating_mul(room.f_frsize) < FULL {
        return Some("room");
    }
    // 0 of 0: as many as there is memory for.
    (room.f_files > 0 && room.f_ffree < 16).then_some("names")
}

/// Whether the machine that has booted has no disk.
#[must_use]
pub fn is_here() -> bool {
    Path::new("/run/intermezzo").join(MARK).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmdline::{Source, parse};

    fn server(more: &str) -> Server {
        match parse(&format!("root=intermezzo:site/root@a=10.0.0.1 {more}")).unwrap().source {
            Source::Server(server) => server,
            Source::Disk(disk) => panic!("{disk:?}"),
        }
    }

    #[test]
    fn the_command_line_becomes_manifests() {
        let text = manifest("node-7", &server("rootflags=exclude=/etc/machine-id:/a\\b,pin=/lib/**"));
        for line in [
            "metadata: {name: \"root\", namespace: \"site\"}",
            "  server: {nodeName: \"a\"}",
            "  exclude: [\"/etc/machine-id\", \"/a\\\\b\"]",
            "metadata: {name: \"root-node-7\", namespace: \"site\"}",
            "  mode: OnDemand",
            "  access: ReadWrite",
            "  pins: [\"/lib/**\"]",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        let text = manifest("node-7", &server("rootflags=mode=Full,access=ReadOnly,pin=/lib"));
        assert!(text.contains("mode: Full\n  access: ReadOnly\n  pins: []"), "{text}");
    }

    #[test]
    fn what_lento_says_of_the_volume_is_found() {
        let text = "site/rooted whole\nsite/root waiting not connected to a; no route\n";
        let waiting = State::Waiting("not connected to a; no route".to_owned());
        assert_eq!(state(text, "site/root"), Some(waiting));
        assert_eq!(state(text, "site/rooted"), Some(State::Whole));
        assert_eq!(state("", "site/root"), None);
    }
}

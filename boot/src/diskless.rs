//! A root file system without a disk: the cache in memory, the network, this node's identity, and a Lento that fills the cache.
//!
//! What the machine is lies in the initramfs at `/intermezzo` (`intermezzo pki archive` makes it): whoever serves kernels and
//! initramfs gives each machine its own. `arrival` waits for what must be here before init starts.

pub mod arrival;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intermezzo_channel::ROOT_DISK;
use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_bind};

use crate::cmdline::{Replica, Request, Server};
use crate::init::NEW;
use crate::network;
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
/// Journal of a cache in memory, in bytes.
const LOG: u64 = 64 << 20;
/// What presto and Lento keep has room of its own, which contents cannot take: else a full cache would stop the sending of
/// what is in it, and even deleting would not help, since that is journaled as well.
const OWN: &str = "/own";
const OWN_SIZE: &str = "mode=700,size=30%";

/// Brings network, memory and identity in place; what is to run.
///
/// # Errors
/// One of them is missing, with what to change.
pub fn prepare(request: &Request, server: &Server) -> Result<Plan> {
    let node = identity()?;
    let manifests = manifests(&node, server)?;
    let disk = Path::new(ROOT_DISK);
    mount(server, disk)?;
    own_room(disk, &server.volume)?;
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

/// The states of presto and Lento, and the journal.
fn own_room(disk: &Path, volume: &str) -> Result<()> {
    crate::init::virtual_fs("tmpfs", Path::new(OWN), OWN_SIZE)?;
    let journal = Path::new("cache").join(volume).join("kml");
    for (name, at) in [("presto", Path::new("presto")), ("lento", Path::new("lento")), ("kml", &journal)] {
        let (own, shown) = (Path::new(OWN).join(name), disk.join(at));
        std::fs::create_dir_all(&own)?;
        std::fs::create_dir_all(&shown)?;
        mount_bind(&own, &shown).with_context(|| format!("no room of its own for {}", shown.display()))?;
    }
    Ok(())
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
}

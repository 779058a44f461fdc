//! `intermezzo conflicts resolve`: the version that a person wants is written through the mount, as any program would, and
//! only then is the conflict struck off.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use intermezzo_proto::v1::ConflictRecord;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{agents, parts};
use crate::Exit;
use crate::admin;
use crate::args::{AgentArgs, ResolveArgs, Take};
use crate::fleet::layout::volume_id;
use crate::output::say;

pub(super) fn run(args: &ResolveArgs) -> Result<Exit> {
    let volume = volume_id(&args.of.volume)?;
    let Found { socket, mountpoint, conflict, parts, .. } =
        found_on_server(&args.of.agents, &args.of.volume, args.position)?;
    if conflict.group != 0 {
        bail!("conflict {} is a part of conflict {}: resolve that one", conflict.position, conflict.group);
    }
    let name = args.name.as_deref();
    let written = match (args.take, conflict.kept.as_str()) {
        (Take::Drop, _) | (Take::Theirs, "Update" | "") | (Take::Mine, "Tree") => None,
        (Take::Mine | Take::Theirs, _) if parts.is_empty() => {
            Some(done_now(&conflict, Spot::of(&mountpoint, &conflict)?)?)
        }
        (Take::Both, _) if parts.is_empty() => {
            Some(beside(&conflict, Spot::of(&mountpoint, &conflict)?, name)?)
        }
        (Take::Mine | Take::Theirs, _) => Some(parts::restore(&mountpoint, &conflict, &parts, None)?),
        (Take::Both, _) => {
            let name = name.context("--take both needs a --name")?;
            Some(parts::restore(&mountpoint, &conflict, &parts, Some(name))?)
        }
    };
    admin::resolve(&socket, &volume, conflict.position)?;
    let what = match (written, args.take, conflict.kept.as_str()) {
        (Some(path), Take::Theirs, _) | (Some(path), Take::Both, "Tree") => {
            format!("{} is as it was before the update", path.display())
        }
        (Some(path), ..) => format!("{} is as the update wanted that lost", path.display()),
        (None, ..) => "the tree stays as it is".to_owned(),
    };
    say(format_args!("conflict {} of volume {volume} is resolved: {what}", conflict.position));
    Ok(Exit::Done)
}

/// A conflict on its volume's server.
pub(super) struct Found {
    /// The server's socket.
    pub socket: PathBuf,
    /// Where the volume is mounted there.
    pub mountpoint: PathBuf,
    /// Where its tree lies.
    pub cache: PathBuf,
    pub conflict: ConflictRecord,
    /// The conflicts that belong to it, oldest first.
    pub parts: Vec<ConflictRecord>,
}

pub(super) fn found_on_server(agents: &AgentArgs, volume: &str, position: u64) -> Result<Found> {
    let volume = volume_id(volume)?;
    let (socket, mountpoint, cache) = server(agents, &volume)?;
    let mut listed = admin::conflicts(&socket, &volume)?;
    let at = listed.iter().position(|conflict| conflict.position == position);
    let at = at.with_context(|| format!("volume {volume} has no conflict at position {position}"))?;
    let conflict = listed.swap_remove(at);
    let mut parts: Vec<ConflictRecord> = listed.into_iter().filter(|part| part.group == position).collect();
    parts.sort_by_key(|part| part.position);
    Ok(Found { socket, mountpoint, cache, conflict, parts })
}

/// The agent among these that is the volume's server.
pub(super) fn server_of(agents: &AgentArgs, volume: &str) -> Result<PathBuf> {
    Ok(server(agents, &volume_id(volume)?)?.0)
}

/// The agent among these that is the volume's server, where the volume is mounted there, and where it lies.
fn server(agents: &AgentArgs, volume: &str) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let mut servers = Vec::new();
    for agent in agents::find(agents)? {
        let status = admin::status(&agent.socket)?;
        for found in status.volumes.into_iter().filter(|found| found.name == volume) {
            if found.role == "Server" {
                return Ok((agent.socket, PathBuf::from(found.mountpoint), PathBuf::from(found.cache)));
            }
            servers.push(found.server);
        }
    }
    match servers.pop() {
        Some(server) => bail!("this is for the server of volume {volume}, node {server}: run it there"),
        None => bail!("volume {volume} is not on this node"),
    }
}

/// Of a file that must not be there.
pub(super) const NEW: OFlags = OFlags::CREATE.union(OFlags::EXCL);

/// How directories on the way are opened.
pub(super) const DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Nothing that users have put there leads out of the volume.
pub(super) const WITHIN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// The path of a conflict below the volume's root, if it can be written here.
pub(super) fn plain(conflict: &ConflictRecord) -> Result<&Path> {
    let path = Path::new(conflict.path.trim_start_matches('/'));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)))
        && path.file_name().is_some()
        && !conflict.path.contains(char::REPLACEMENT_CHARACTER);
    ensure!(
        is_plain,
        "the conflict at position {} has no name that can be written here: copy its content with \
         `conflicts show --content`, then resolve it with --take drop",
        conflict.position
    );
    Ok(path)
}

/// A name on the volume. What leads to it was not followed out of it: users may have put symbolic links there.
pub(super) struct Spot {
    dir: OwnedFd,
    name: String,
    shown: PathBuf,
}

impl Spot {
    pub(super) fn of(mountpoint: &Path, conflict: &ConflictRecord) -> Result<Spot> {
        let path = plain(conflict)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let shown = mountpoint.join(path);
        let above = path.parent().filter(|above| *above != Path::new("")).unwrap_or(Path::new("."));
        let dir = rustix::fs::open(mountpoint, DIR, Mode::empty())
            .and_then(|root| rustix::fs::openat2(&root, above, DIR, Mode::empty(), WITHIN))
            .with_context(|| format!("cannot open the directory of {}", shown.display()))?;
        Ok(Spot { dir, name, shown })
    }

    /// A name in a directory that is open.
    pub(super) fn in_dir(dir: OwnedFd, name: &str, shown: PathBuf) -> Spot {
        Spot { dir, name: name.to_owned(), shown }
    }

    /// Where it is, for people.
    pub(super) fn shown(&self) -> &Path {
        &self.shown
    }

    /// The file of this name, for reading.
    pub(super) fn open(&self) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, &self.name, flags, Mode::empty()).map(File::from)
    }

    /// Another name in the same directory.
    fn beside(self, name: &str) -> Result<Spot> {
        ensure!(
            !name.contains('/') && ![".", "..", ""].contains(&name),
            "--name {name:?} is no name of a file"
        );
        Ok(Spot { shown: self.shown.with_file_name(name), name: name.to_owned(), ..self })
    }

    /// Writes what was kept into the file of this name, or into a new one.
    pub(super) fn write(&self, conflict: &ConflictRecord, how: OFlags) -> Result<()> {
        let cannot = || format!("cannot write {}", self.shown.display());
        let mut kept = File::open(&conflict.content)
            .with_context(|| format!("the losing content {}", conflict.content))?;
        let flags = how | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.dir, &self.name, flags, Mode::from_raw_mode(0o644));
        let mut file = File::from(opened.with_context(cannot)?);
        ensure!(
            file.metadata()?.is_file(),
            "{} is no file: take both, under another --name",
            self.shown.display()
        );
        file.set_len(0).with_context(cannot)?;
        io::copy(&mut kept, &mut file).with_context(cannot)?;
        file.sync_all().with_context(cannot)
    }
}

/// Does what the update wanted that lost.
fn done_now(conflict: &ConflictRecord, spot: Spot) -> Result<PathBuf> {
    let stat = rustix::fs::statat(&spot.dir, &spot.name, AtFlags::SYMLINK_NOFOLLOW);
    if !conflict.content.is_empty() {
        spot.write(conflict, if stat.is_ok() { OFlags::empty() } else { NEW })?;
    } else if conflict.kind == "RemoveUpdate" {
        let is_dir = stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&spot.dir, &spot.name, flags)
            .with_context(|| format!("cannot remove {}", spot.shown.display()))?;
    } else {
        bail!(
            "a conflict of kind {} keeps no content: do on the volume what is wanted, then resolve it with --take drop",
            conflict.kind
        );
    }
    Ok(spot.shown)
}

/// Puts what was kept beside what is in the tree.
fn beside(conflict: &ConflictRecord, spot: Spot, name: Option<&str>) -> Result<PathBuf> {
    let spot = spot.beside(name.context("--take both needs a --name")?)?;
    ensure!(!conflict.content.is_empty(), "a conflict of kind {} keeps no content", conflict.kind);
    spot.write(conflict, NEW)?;
    Ok(spot.shown)
}

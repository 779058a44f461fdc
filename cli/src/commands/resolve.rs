//! `intermezzo conflicts resolve`: the version that a person wants is written through the mount, as any program would, and
//! only then is the conflict struck off.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use intermezzo_proto::v1::ConflictRecord;

use super::agents;
use crate::Exit;
use crate::admin;
use crate::args::{AgentArgs, ResolveArgs, Take};
use crate::fleet::layout::volume_id;
use crate::output::say;

pub(super) fn run(args: &ResolveArgs) -> Result<Exit> {
    let volume = volume_id(&args.of.volume)?;
    let (socket, mountpoint) = server(&args.of.agents, &volume)?;
    let listed = admin::conflicts(&socket, &volume)?;
    let conflict = listed
        .into_iter()
        .find(|conflict| conflict.position == args.position)
        .with_context(|| format!("volume {volume} has no conflict at position {}", args.position))?;
    let written = match args.take {
        Take::Theirs => None,
        Take::Mine => Some(done_now(&conflict, &place(&mountpoint, &conflict)?)?),
        Take::Both => Some(beside(&conflict, &place(&mountpoint, &conflict)?, args.name.as_deref())?),
    };
    admin::resolve(&socket, &volume, conflict.position)?;
    let what = match written {
        Some(path) => format!("{} has what was kept", path.display()),
        None => "the tree stays as it is".to_owned(),
    };
    say(format_args!("conflict {} of volume {volume} is resolved: {what}", conflict.position));
    Ok(Exit::Done)
}

/// The agent among these that is the volume's server, and where the volume is mounted there.
fn server(agents: &AgentArgs, volume: &str) -> Result<(PathBuf, PathBuf)> {
    let mut servers = Vec::new();
    for agent in agents::find(agents)? {
        let status = super::status::ask(&agent)?;
        for found in status.volumes.into_iter().filter(|found| found.name == volume) {
            if found.role == "Server" {
                return Ok((agent.socket, PathBuf::from(found.mountpoint)));
            }
            servers.push(found.server);
        }
    }
    match servers.pop() {
        Some(server) => bail!("conflicts of volume {volume} are resolved on its server, node {server}"),
        None => bail!("volume {volume} is not on this node"),
    }
}

fn place(mountpoint: &Path, conflict: &ConflictRecord) -> Result<PathBuf> {
    // It begins at the volume's root.
    let path = Path::new(conflict.path.trim_start_matches('/'));
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        path != Path::new("") && is_plain && !conflict.path.contains(char::REPLACEMENT_CHARACTER),
        "the conflict at position {} has no name that can be written here: copy its content with `conflicts show --content`, \
         then resolve it with --take theirs",
        conflict.position
    );
    Ok(mountpoint.join(path))
}

/// Does what the update wanted that lost.
fn done_now(conflict: &ConflictRecord, path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    if !conflict.content.is_empty() {
        let mut options = OpenOptions::new();
        match fs::symlink_metadata(path) {
            Ok(there) if there.is_file() => options.write(true).truncate(true),
            Ok(_) => bail!("{shown} is no file by now: take both, under another --name"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => options.write(true).create_new(true),
            Err(error) => return Err(error).with_context(|| shown.to_string()),
        };
        copy(conflict, &options, path)?;
    } else if conflict.kind == "RemoveUpdate" {
        let there = fs::symlink_metadata(path).with_context(|| shown.to_string())?;
        let removed = if there.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        removed.with_context(|| format!("cannot remove {shown}"))?;
    } else {
        bail!(
            "a conflict of kind {} keeps no content: do on the volume what is wanted, then resolve it with --take theirs",
            conflict.kind
        );
    }
    Ok(path.to_owned())
}

/// Puts what was kept beside what is in the tree.
fn beside(conflict: &ConflictRecord, path: &Path, name: Option<&str>) -> Result<PathBuf> {
    let name = name.context("--take both needs a --name")?;
    ensure!(!name.contains('/') && ![".", "..", ""].contains(&name), "--name {name:?} is no name of a file");
    ensure!(!conflict.content.is_empty(), "a conflict of kind {} keeps no content", conflict.kind);
    let path = path.with_file_name(name);
    copy(conflict, OpenOptions::new().write(true).create_new(true), &path)?;
    Ok(path)
}

fn copy(conflict: &ConflictRecord, options: &OpenOptions, path: &Path) -> Result<()> {
    let shown = path.display();
    let mut kept =
        File::open(&conflict.content).with_context(|| format!("the losing content {}", conflict.content))?;
    let mut file = options.open(path).with_context(|| format!("cannot write {shown}"))?;
    io::copy(&mut kept, &mut file).with_context(|| format!("cannot write {shown}"))?;
    file.sync_all().with_context(|| format!("cannot write {shown}"))
}

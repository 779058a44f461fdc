//! A path as a person gives it: which volume it is in, which agent knows it, and what it is called there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use intermezzo_proto::v1::past_reply::What;
use intermezzo_proto::v1::past_request::At;
use intermezzo_proto::v1::{PastNode, PastRequest, Time};

use super::agents;
use crate::admin::{self, Admin, block_on};
use crate::args::{PlaceArgs, When};
use crate::fleet::layout::volume_id;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The agent's socket.
    pub socket: PathBuf,
    /// `namespace/name`.
    pub volume: String,
    /// Where it is mounted on that node.
    pub mountpoint: PathBuf,
    /// Names from the root on.
    pub path: Vec<Vec<u8>>,
}

/// A volume on an agent.
struct Served {
    socket: PathBuf,
    name: String,
    mountpoint: PathBuf,
    is_server: bool,
}

impl Place {
    pub fn find(args: &PlaceArgs) -> Result<Place> {
        let mut served = served(args)?;
        let Some(volume) = &args.volume else { return Place::by_mount(&args.path, &served) };
        let volume = volume_id(volume)?;
        served.retain(|one| one.name == volume);
        // The server, if there is a choice.
        served.sort_by_key(|one| !one.is_server);
        let one = served.into_iter().next();
        let one = one.with_context(|| format!("volume {volume} is not on this node"))?;
        let given = args.path.strip_prefix(&one.mountpoint).unwrap_or(&args.path);
        Ok(Place { path: names(given)?, socket: one.socket, volume, mountpoint: one.mountpoint })
    }

    fn by_mount(path: &Path, served: &[Served]) -> Result<Place> {
        let path = std::path::absolute(path).with_context(|| path.display().to_string())?;
        // What leads to it may be a symbolic link; the last part may be one that is meant, or gone.
        let real = || {
            let above = path.parent()?.canonicalize().ok()?;
            Some(above.join(path.file_name()?))
        };
        let tries = [Some(path.clone()), real(), path.canonicalize().ok()];
        for path in tries.into_iter().flatten() {
            let found = served.iter().filter(|one| path.starts_with(&one.mountpoint));
            if let Some(one) = found.max_by_key(|one| one.mountpoint.as_os_str().len()) {
                let below = path.strip_prefix(&one.mountpoint).unwrap_or(Path::new(""));
                return Ok(Place {
                    socket: one.socket.clone(),
                    volume: one.name.clone(),
                    mountpoint: one.mountpoint.clone(),
                    path: names(below)?,
                });
            }
        }
        bail!("{} is on no volume of this node: name one with --volume", path.display())
    }

    /// Another path on the same volume.
    pub fn other(&self, path: &Path) -> Result<Place> {
        let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
        let below = match (absolute.strip_prefix(&self.mountpoint), path.is_absolute()) {
            (Ok(below), _) => below.to_owned(),
            // From the volume's root on, as with --volume.
            (Err(_), true) => path.to_owned(),
            (Err(_), false) => bail!("{} is not on volume {}", absolute.display(), self.volume),
        };
        Ok(Place { path: names(&below)?, ..self.clone() })
    }

    /// Where it is, or was, on this node.
    pub fn shown(&self) -> PathBuf {
        join(&self.mountpoint, &self.path)
    }

    /// What stood there then, and what was in it; and which position that is.
    pub fn past(&self, when: When, below: bool) -> Result<(u64, Vec<PastNode>)> {
        let request = PastRequest {
            volume: self.volume.clone(),
            path: self.path.iter().cloned().map(Into::into).collect(),
            below,
            at: Some(match when {
                When::Position(position) => At::Position(position),
                When::Time(time) => At::Time(Time {
                    sec: time.as_second(),
                    // Whoever says a second means all of it.
                    nsec: if time.subsec_nanosecond() == 0 {
                        999_999_999
                    } else {
                        time.subsec_nanosecond().cast_unsigned()
                    },
                }),
            }),
        };
        let replies =
            block_on(async { Admin::connect(&self.socket).await?.past(request).await?.collect().await })?;
        let (mut position, mut nodes) = (0, Vec::new());
        for reply in replies {
            match reply.what {
                Some(What::Position(at)) => position = at,
                Some(What::Node(node)) => nodes.push(node),
                None => {}
            }
        }
        Ok((position, nodes))
    }
}

fn served(args: &PlaceArgs) -> Result<Vec<Served>> {
    let mut served = Vec::new();
    for agent in agents::find(&args.agents)? {
        let volumes = admin::status(&agent.socket)?.volumes;
        served.extend(volumes.into_iter().map(|volume| Served {
            socket: agent.socket.clone(),
            name: volume.name,
            mountpoint: PathBuf::from(volume.mountpoint),
            is_server: volume.role == "Server",
        }));
    }
    Ok(served)
}

fn names(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => names.push(name.as_bytes().to_vec()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                ensure!(names.pop().is_some(), "{} leads out of the volume", path.display());
            }
        }
    }
    Ok(names)
}

/// Names below a directory.
pub(super) fn join(dir: &Path, names: &[impl AsRef<[u8]>]) -> PathBuf {
    let mut path = dir.to_owned();
    path.extend(names.iter().map(|name| OsStr::from_bytes(name.as_ref())));
    path
}

/// A path for a line of text: names are anybody's, and may hold line ends.
pub(super) fn shown_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.into_owned() }
}

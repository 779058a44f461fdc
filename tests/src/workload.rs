//! What people do to a volume while its processes are killed, and the ledger of what was acknowledged to them.
//!
//! Every step is an ordinary program (cp, mv, dd, sed, tar, rm, git, make), because those report errors at close; its exit code 0 is the
//! acknowledgement. A step that failed is looked at: only what it was about to change may be in between. Nothing else may.

mod model;
mod private;
mod project;
mod shared;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub use model::{Content, Model, read_tree};
pub use private::Worker;
pub use project::Project;
pub use shared::{Appender, Lines, prepare};

/// A program that takes longer hangs.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// What workers and killer of one node know of its mount.
#[derive(Debug)]
pub struct Mount {
    /// Name of the node.
    pub node: String,
    /// Where.
    pub path: PathBuf,
    kills: AtomicU64,
    down: AtomicBool,
}

impl Mount {
    /// A mount that works.
    #[must_use]
    pub fn new(node: &str, path: PathBuf) -> Mount {
        Mount { node: node.to_owned(), path, kills: AtomicU64::new(0), down: AtomicBool::new(false) }
    }

    /// Presto is about to be killed.
    pub fn going(&self) {
        self.down.store(true, Ordering::SeqCst);
        self.kills.fetch_add(1, Ordering::SeqCst);
    }

    /// It is there again.
    pub fn back(&self) {
        self.down.store(false, Ordering::SeqCst);
    }

    /// Changes whenever an operation may fail for good reason; `None` while it may at any time.
    fn quiet(&self) -> Option<u64> {
        let kills = self.kills.load(Ordering::SeqCst);
        (!self.down.load(Ordering::SeqCst)).then_some(kills)
    }

    /// Whether a FUSE file system answers there.
    #[must_use]
    pub fn works(&self) -> bool {
        const FUSE: u64 = 0x6573_5546;
        rustix::fs::statfs(&self.path).is_ok_and(|stat| stat.f_type as u64 == FUSE)
            && self.path.read_dir().is_ok()
    }

    /// Waits until it works.
    fn wait(&self) -> Result<()> {
        let begin = Instant::now();
        while !self.works() {
            if begin.elapsed() > DEADLINE {
                bail!("the mount of node {} did not come back in {} s", self.node, DEADLINE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Says which paths differ and how, for a message.
pub(crate) fn describe(path: &Path, found: Option<&Content>, wanted: Option<&Content>) -> String {
    let one = |content: Option<&Content>| match content {
        None => "absent".to_owned(),
        Some(content) => {
            let begin: Vec<u8> = content.iter().copied().take(24).collect();
            format!("{} bytes \"{}\"", content.len(), begin.escape_ascii())
        }
    };
    format!("{}: {}, acknowledged: {}", path.display(), one(found), one(wanted))
}

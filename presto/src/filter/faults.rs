//! Deaths on purpose, for tests: presto ends itself, as kill -9 would, when an operation comes to one of its points.

use std::str::FromStr;
use std::sync::OnceLock;

use intermezzo_kml::record::Opcode;
use rustix::process::Signal;

/// Where in an operation, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// The intent is in the journal.
    Intent,
    /// The lower operation has happened.
    Operation,
    /// Its outcome is in the journal.
    Record,
    /// The answer is known to the next presto, and not yet to the user.
    Answer,
}

/// The first user's operation of this kind that comes to this point ends presto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    opcode: Opcode,
    point: Point,
}

static ARMED: OnceLock<Fault> = OnceLock::new();

impl Fault {
    /// From now on, once and for all.
    pub fn arm(self) {
        let _ = ARMED.set(self);
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        let wrong = || {
            format!(
                "{text:?}: write OPERATION@POINT, such as rename@record; points are intent, operation, record, answer"
            )
        };
        let (opcode, point) = text.split_once('@').ok_or_else(wrong)?;
        let opcode = match opcode {
            "create" => Opcode::Create,
            "mkdir" => Opcode::Mkdir,
            "mknod" => Opcode::Mknod,
            "symlink" => Opcode::Symlink,
            "link" => Opcode::Link,
            "unlink" => Opcode::Unlink,
            "rmdir" => Opcode::Rmdir,
            "rename" => Opcode::Rename,
            "setattr" => Opcode::Setattr,
            "close" => Opcode::Close,
            "setxattr" => Opcode::Setxattr,
            "delxattr" => Opcode::Delxattr,
            _ => return Err(wrong()),
        };
        let point = match point {
            "intent" => Point::Intent,
            "operation" => Point::Operation,
            "record" => Point::Record,
            "answer" => Point::Answer,
            _ => return Err(wrong()),
        };
        Ok(Fault { opcode, point })
    }
}

/// An operation has come to this point.
pub(super) fn reached(point: Point, opcode: Option<Opcode>) {
    let Some(armed) = ARMED.get() else { return };
    if armed.point == point && Some(armed.opcode) == opcode {
        tracing::warn!(target: "filter", ?opcode, ?point, "presto ends itself, as it was told (--fail-at)");
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    }
}

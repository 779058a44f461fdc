//! A record as one line for people: what `intermezzo kml dump` prints.

use std::fmt;

use crate::record::{Attributes, FileId, Flags, Opcode, Origin, OriginKind, Record, State, Tag, Time};

impl fmt::Display for Opcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Opcode::Create => "create",
            Opcode::Mkdir => "mkdir",
            Opcode::Mknod => "mknod",
            Opcode::Symlink => "symlink",
            Opcode::Link => "link",
            Opcode::Unlink => "unlink",
            Opcode::Rmdir => "rmdir",
            Opcode::Rename => "rename",
            Opcode::Setattr => "setattr",
            Opcode::Close => "close",
            Opcode::Setxattr => "setxattr",
            Opcode::Delxattr => "delxattr",
            Opcode::Noop => "noop",
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Prepared => "prepared",
            State::Done => "done",
            State::Failed => "failed",
        })
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}", self.sec, self.nsec)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}.{}", self.replica, self.incarnation, self.number)
    }
}

/// Recno, state, opcode; then `key=value` for whatever the record says, and nothing for what it does not.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let intent = &self.intent;
        write!(f, "{:>10} {:<8} {:<8} {}", self.recno, self.state, self.opcode, intent.time)?;
        let object = if self.outcome.object.is_none() { intent.object } else { self.outcome.object };
        file(f, "object", object)?;
        if !intent.object.is_none() && intent.object != object {
            file(f, "was", intent.object)?;
        }
        entry(f, "at", intent.parent, &intent.name)?;
        entry(f, "to", intent.target_parent, &intent.target_name)?;
        file(f, "replaced", intent.replaced)?;
        match (self.opcode, intent.flags.contains(Flags::XATTRS)) {
            (Opcode::Symlink, false) => write!(f, " value=\"{}\"", intent.value.escape_ascii())?,
            (_, _) if intent.value.is_empty() => {}
            (_, _) => write!(f, " value={}B", intent.value.len())?,
        }
        bits(f, "mask", intent.mask.iter_names().map(|(name, _)| name))?;
        let flags = if self.state == State::Done { self.outcome.flags } else { intent.flags };
        bits(f, "flags", flags.iter_names().map(|(name, _)| name))?;
        attributes(f, "before", &intent.before)?;
        attributes(f, "after", &self.outcome.after)?;
        write!(f, " by={}:{}/{}", intent.caller.uid, intent.caller.gid, intent.caller.pid)?;
        origin(f, &intent.origin, flags)
    }
}

fn file(f: &mut fmt::Formatter<'_>, key: &str, id: FileId) -> fmt::Result {
    if id.is_none() { Ok(()) } else { write!(f, " {key}={id}") }
}

fn entry(f: &mut fmt::Formatter<'_>, key: &str, parent: FileId, name: &[u8]) -> fmt::Result {
    if name.is_empty() && parent.is_none() {
        return Ok(());
    }
    write!(f, " {key}=\"{}\"", name.escape_ascii())?;
    if parent.is_none() { Ok(()) } else { write!(f, "@{parent}") }
}

fn bits(f: &mut fmt::Formatter<'_>, key: &str, names: impl Iterator<Item = &'static str>) -> fmt::Result {
    let mut separator = "";
    for name in names {
        if separator.is_empty() {
            write!(f, " {key}=")?;
        }
        write!(f, "{separator}{name}")?;
        separator = "|";
    }
    Ok(())
}

fn attributes(f: &mut fmt::Formatter<'_>, key: &str, a: &Attributes) -> fmt::Result {
    if a.mode == 0 {
        return Ok(());
    }
    write!(
        f,
        " {key}={:o},{}:{},{}B,links={},mtime={},ctime={}",
        a.mode, a.uid, a.gid, a.size, a.nlink, a.mtime, a.ctime
    )
}

fn origin(f: &mut fmt::Formatter<'_>, origin: &Origin, flags: Flags) -> fmt::Result {
    if origin.kind == OriginKind::User {
        return Ok(());
    }
    write!(f, " replays={} named={}", origin.record, origin.object)?;
    if origin.verdict != 0 {
        write!(f, " verdict={}", origin.verdict)?;
    }
    if flags.contains(Flags::HASHED) {
        write!(f, " hash=")?;
        for byte in origin.hash {
            write!(f, "{byte:02x}")?;
        }
    }
    Ok(())
}

//! A file that nobody has told of: the records of its making, as if a user had made it now.

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Intent;
use intermezzo_kml::record::Mask;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Outcome;
use intermezzo_kml::record::xattr as list;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::Found;
use super::PRIVILEGES;
use super::Place;
use super::Volume;
use crate::lower::Dir;
use crate::lower::Stat;
use crate::lower::xattr;

impl Volume {
    /// The making itself; then, where it has content, the close, and what readers of a close take away.
    pub(crate) fn made(&self, file: FileId, dir: &Dir, at: Place<'_>) -> Result<Vec<Found>, Errno> {
        let fd = self.lower.path_fd(file)?;
        let stat = Stat::of(&fd)?;
        let present = stat.attributes;
        let opcode = match stat.kind() {
            FileType::RegularFile => Opcode::Create,
            FileType::Directory => Opcode::Mkdir,
            FileType::Symlink => Opcode::Symlink,
            FileType::Unknown => return Err(Errno::STALE),
            _ => Opcode::Mknod,
        };
        let xattrs = xattr::all(&fd)?;
        let mut making = Found::of(opcode, file, present);
        let mut records = Vec::new();
        let set = |(name, value): &(Vec<u8>, Vec<u8>)| Found::xattr(file, present, name, Some(value));
        if opcode == Opcode::Symlink {
            making.intent.value = rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes();
            records.extend(xattrs.iter().map(set));
        } else if !xattrs.is_empty() {
            making.intent.value = list::encode(&xattrs);
            making = making.flag(Flags::XATTRS);
        }
        let parent_mtime = Stat::of(dir)?.attributes.mtime;
        making = Found {
            intent: Intent { parent: at.dir, name: at.name.to_vec(), ..making.intent },
            outcome: Outcome { parent_mtime, ..making.outcome },
        };
        records.insert(0, making);
        if stat.is_file() && present.size > 0 {
            records.push(Found::of(Opcode::Close, file, present));
            if present.mode & PRIVILEGES != 0 {
                records.push(Found::setattr(file, present, Mask::MODE));
            }
            records.extend(xattrs.iter().filter(|(name, _)| name == xattr::CAPABILITY).map(set));
        }
        Ok(records)
    }
}

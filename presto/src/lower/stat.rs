//! Attributes of lower files, in the journal's words.

use std::os::fd::AsFd;

use intermezzo_kml::record::Attributes;
use intermezzo_kml::record::Time;
use rustix::fs::FileType;
use rustix::io::Errno;

/// What fstat(2) says about a lower file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Lower inode number.
    pub ino: u64,
    /// What the journal records.
    pub attributes: Attributes,
    /// Last access; local, never journaled.
    pub atime: Time,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred unit of transfer in bytes.
    pub block_size: u32,
}

impl Stat {
    /// fstat(2); works on O_PATH descriptors.
    pub fn of(fd: impl AsFd) -> Result<Stat, Errno> {
        rustix::fs::fstat(fd).map(|raw| Stat::from_raw(&raw))
    }

    /// fstatat(2) of an entry, symbolic links not followed.
    pub fn at(dir: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
        rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map(|raw| Stat::from_raw(&raw))
    }

    /// From what rustix returns.
    #[must_use]
    pub fn from_raw(raw: &rustix::fs::Stat) -> Stat {
        // The widths of these fields differ between architectures.
        #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
        Stat {
            ino: raw.st_ino as u64,
            attributes: Attributes {
                mode: raw.st_mode,
                uid: raw.st_uid,
                gid: raw.st_gid,
                nlink: u32::try_from(raw.st_nlink).unwrap_or(u32::MAX),
                rdev: raw.st_rdev as u64,
                size: u64::try_from(raw.st_size).unwrap_or(0),
                mtime: Time { sec: raw.st_mtime as i64, nsec: nanoseconds(raw.st_mtime_nsec as i64) },
                ctime: Time { sec: raw.st_ctime as i64, nsec: nanoseconds(raw.st_ctime_nsec as i64) },
            },
            atime: Time { sec: raw.st_atime as i64, nsec: nanoseconds(raw.st_atime_nsec as i64) },
            blocks: u64::try_from(raw.st_blocks).unwrap_or(0),
            block_size: u32::try_from(raw.st_blksize).unwrap_or(4096),
        }
    }

    /// Type of file.
    #[must_use]
    pub fn kind(&self) -> FileType {
        kind(&self.attributes)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.kind() == FileType::RegularFile
    }
}

/// Type of file that the mode bits name.
#[must_use]
pub fn kind(attributes: &Attributes) -> FileType {
    FileType::from_raw_mode(attributes.mode)
}

fn nanoseconds(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

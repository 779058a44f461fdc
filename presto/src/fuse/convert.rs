//! fuser's words in the filter's, and back.

use std::time::Duration;
use std::time::SystemTime;

use fuser::FileAttr;
use fuser::FileType;
use fuser::INodeNo;
use fuser::OpenAccMode;
use fuser::OpenFlags;
use fuser::Request;
use fuser::TimeOrNow;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::Time;
use rustix::io::Errno;

use crate::filter::Access;
use crate::filter::SetTime;
use crate::lower::Stat;

pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

/// What is left of a request when it is served later: which one it is, and whose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub unique: u64,
    pub caller: Caller,
}

pub(crate) fn asked(request: &Request) -> Asked {
    Asked { unique: request.unique().0, caller: caller(request) }
}

pub(crate) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

pub(crate) fn access(flags: OpenFlags) -> Access {
    match flags.acc_mode() {
        OpenAccMode::O_RDONLY => Access::Read,
        OpenAccMode::O_WRONLY => Access::Write,
        OpenAccMode::O_RDWR => Access::ReadWrite,
    }
}

pub(crate) fn attr(node: u64, stat: &Stat) -> FileAttr {
    let attributes = &stat.attributes;
    FileAttr {
        ino: INodeNo(node),
        size: attributes.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(attributes.mtime),
        ctime: system_time(attributes.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(stat.kind()),
        perm: u16::try_from(attributes.mode & 0o7777).unwrap_or(0),
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: encode_device(attributes.rdev),
        blksize: stat.block_size,
        flags: 0,
    }
}

/// The attributes of no file: a reply with them says that the name is free.
pub(crate) fn nothing() -> FileAttr {
    attr(0, &Stat::default())
}

pub(crate) fn kind(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::RegularFile | rustix::fs::FileType::Unknown => FileType::RegularFile,
    }
}

/// The kernel's new_encode_dev().
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// The kernel's new_decode_dev().
pub(crate) fn decode_device(device: u32) -> u64 {
    rustix::fs::makedev((device & 0xf_ff00) >> 8, (device & 0xff) | (device >> 12 & 0xf_ff00))
}

fn system_time(time: Time) -> SystemTime {
    let base = SystemTime::UNIX_EPOCH;
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { base.checked_sub(seconds) } else { base.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(base)
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(wire_time(time)),
    }
}

/// Undoes what fuser did to the kernel's numbers: for times before 1970 it subtracts seconds and nanoseconds alike.
fn wire_time(time: SystemTime) -> Time {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Time { sec: seconds(after), nsec: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { sec: seconds(before).wrapping_neg(), nsec: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_the_wire() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(device)), device);
        }
    }

    #[test]
    fn times_before_1970_go_out_as_they_are() {
        let time = system_time(Time { sec: -2, nsec: 800_000_000 });
        assert_eq!(time, SystemTime::UNIX_EPOCH - Duration::from_millis(1200));
    }
}

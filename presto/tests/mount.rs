//! Real mounts: what programs do, what they see, and what the journal says about it. Needs root and /dev/fuse.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "common/calls.rs"]
mod calls;
#[path = "common/mounted.rs"]
mod common;

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use calls::acl;
use calls::as_user;
use common::Mounted;
use common::mounted;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Mask;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Recno;
use presto::fuse::MountOptions;
use rustix::fs::RenameFlags;
use rustix::fs::XattrFlags;

fn start() -> Mounted {
    mounted(&MountOptions::default())
}

/// Both ways of data: through the kernel and through presto.
fn both(test: impl Fn(&Mounted)) {
    for passthrough in [true, false] {
        let options = MountOptions { passthrough, suid: true, dev: true, ..MountOptions::default() };
        test(&mounted(&options));
    }
}

#[test]
fn a_written_file_is_journaled_as_create_and_close() {
    both(|m| {
        fs::write(m.path("hello"), b"hello").unwrap();
        assert_eq!(fs::read(m.path("hello")).unwrap(), b"hello");
        assert_eq!(fs::read(m.lower("hello")).unwrap(), b"hello");
        let records = m.records();
        let opcodes: Vec<Opcode> = records.iter().map(|record| record.opcode).collect();
        assert_eq!(opcodes, [Opcode::Create, Opcode::Close]);
        assert_eq!(records[0].intent.name, b"hello");
        assert_eq!(records[0].intent.parent, m.volume.lower.root());
        assert_eq!(records[1].intent.object, records[0].outcome.object);
        assert_eq!(records[1].outcome.after.size, 5);
        assert_eq!(fs::metadata(m.path("hello")).unwrap().len(), 5);
        // Nothing more comes by itself.
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(m.records().len(), 2);
    });
}

#[test]
fn names_are_journaled_in_order() {
    both(|m| {
        fs::create_dir(m.path("d")).unwrap();
        fs::write(m.path("d/a"), b"a").unwrap();
        fs::hard_link(m.path("d/a"), m.path("d/b")).unwrap();
        fs::rename(m.path("d/a"), m.path("c")).unwrap();
        std::os::unix::fs::symlink("c", m.path("s")).unwrap();
        fs::remove_file(m.path("c")).unwrap();
        fs::remove_file(m.path("d/b")).unwrap();
        fs::remove_dir(m.path("d")).unwrap();
        assert_eq!(fs::read_link(m.path("s")).unwrap().to_str(), Some("c"));
        use Opcode::*;
        assert_eq!(m.opcodes(), [Mkdir, Create, Close, Link, Rename, Symlink, Unlink, Unlink, Rmdir]);
        let records = m.records();
        assert_eq!(records[5].intent.value, b"c");
        assert!(!records[6].outcome.flags.contains(Flags::LAST_LINK));
        assert_eq!(records[6].outcome.after.nlink, 1);
        // Its content was closed after the settled mark, so it waits in limbo.
        assert!(records[7].outcome.flags.contains(Flags::LAST_LINK | Flags::LIMBO));
        assert_eq!(m.volume.limbo.len(), 1);
        let (object, removal) = (records[7].intent.object, records[7].recno);
        let release = |upto| m.volume.limbo.release(&m.volume.lower, object, upto, false).unwrap();
        release(Recno(removal.0 - 1));
        assert_eq!(m.volume.limbo.len(), 1, "released by somebody who has not read of it");
        release(removal);
        assert!(m.volume.limbo.is_empty());
        assert!(fs::read_dir(m.cache.join("limbo")).unwrap().next().is_none());
    });
}

#[test]
fn rename_flags_work() {
    both(|m| {
        fs::write(m.path("a"), b"a").unwrap();
        fs::write(m.path("b"), b"b").unwrap();
        let rename = |flags| {
            rustix::fs::renameat_with(rustix::fs::CWD, m.path("a"), rustix::fs::CWD, m.path("b"), flags)
        };
        assert_eq!(rename(RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
        rename(RenameFlags::EXCHANGE).unwrap();
        assert_eq!(fs::read(m.path("a")).unwrap(), b"b");
        rename(RenameFlags::WHITEOUT).unwrap();
        assert_eq!(fs::read(m.path("b")).unwrap(), b"b");
        assert_eq!(fs::metadata(m.path("a")).unwrap().rdev(), 0);
        let renames: Vec<Flags> =
            m.records().iter().filter(|r| r.opcode == Opcode::Rename).map(|r| r.outcome.flags).collect();
        assert_eq!(
            renames,
            [Flags::EXCHANGE, Flags::WHITEOUT | Flags::REPLACED_LAST_LINK | Flags::REPLACED_LIMBO]
        );
    });
}

#[test]
fn an_unlinked_open_file_stays_usable() {
    both(|m| {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
        file.write_all(b"before").unwrap();
        fs::remove_file(m.path("f")).unwrap();
        file.write_all(b" after").unwrap();
        file.rewind().unwrap();
        let mut all = String::new();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "before after");
        file.set_len(3).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.sync_all().unwrap();
        drop(file);
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(m.opcodes(), [Opcode::Create, Opcode::Unlink]);
        assert!(m.volume.writers.is_empty());
    });
}

#[test]
fn extended_attributes_and_acls_travel() {
    both(|m| {
        fs::create_dir(m.path("d")).unwrap();
        rustix::fs::setxattr(m.path("d"), c"user.a", b"value", XattrFlags::empty()).unwrap();
        let mut buffer = [0; 64];
        let size = rustix::fs::getxattr(m.path("d"), c"user.a", &mut buffer).unwrap();
        assert_eq!(&buffer[..size], b"value");
        rustix::fs::removexattr(m.path("d"), c"user.a").unwrap();
        assert!(
            rustix::fs::setxattr(m.path("d"), c"trusted.intermezzo.x", b"", XattrFlags::empty()).is_err()
        );
        // user::rwx, user:7:rwx, group::r-x, mask::rwx, other::---
        let acl =
            acl(&[(1, 7, u32::MAX), (2, 7, 7), (4, 5, u32::MAX), (0x10, 7, u32::MAX), (0x20, 0, u32::MAX)]);
        rustix::fs::setxattr(m.path("d"), c"system.posix_acl_default", &acl, XattrFlags::empty()).unwrap();
        fs::write(m.path("d/f"), b"").unwrap();
        fs::create_dir(m.path("d/sub")).unwrap();
        for record in m.records().iter().filter(|r| r.intent.parent != m.volume.lower.root()) {
            if !matches!(record.opcode, Opcode::Create | Opcode::Mkdir) {
                continue;
            }
            let name = String::from_utf8(record.intent.name.clone()).unwrap();
            assert!(record.outcome.flags.contains(Flags::XATTRS), "{name}");
            let mut said = intermezzo_kml::xattr::decode(&record.intent.value).unwrap();
            let fd = File::open(m.lower(&format!("d/{name}"))).unwrap();
            let mut real = presto::lower::xattr::all(&fd).unwrap();
            said.sort();
            real.sort();
            assert_eq!(said, real, "{name}: what the journal says is what the file was born with");
        }
    });
}

#[test]
fn stores_into_a_mapping_are_journaled_also_after_the_last_close() {
    both(|m| {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(m.path("f")).unwrap();
        file.set_len(8192).unwrap();
        // SAFETY: a fresh shared mapping of a file that stays that long; it is unmapped below.
        let map = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                8192,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
                &file,
                0,
            )
            .unwrap()
        }
        .cast::<u8>();
        // SAFETY: inside the mapping.
        unsafe { map.write_volatile(1) };
        drop(file);
        let first = m.wait_for(Opcode::Close, 1).len();
        std::thread::sleep(Duration::from_millis(100));
        // SAFETY: inside the mapping. The same page, which may be dirty still.
        unsafe { map.write_volatile(2) };
        if m.mount.as_ref().unwrap().has_passthrough() {
            m.wait_for(Opcode::Close, first + 1);
            assert_eq!(fs::read(m.lower("f")).unwrap()[0], 2);
        }
        // SAFETY: mapped above, not used afterwards.
        unsafe { rustix::mm::munmap(map.cast(), 8192).unwrap() };
        for _ in 0..200 {
            if m.volume.writers.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(m.volume.writers.is_empty(), "nobody maps it any more");
        let last = m.wait_for(Opcode::Close, 2).pop().unwrap();
        let now = fs::metadata(m.lower("f")).unwrap();
        assert_eq!(last.outcome.after.ctime.nsec, u32::try_from(now.ctime_nsec()).unwrap());
        assert_eq!(fs::read(m.lower("f")).unwrap()[0], 2);
    });
}

#[test]
fn two_writers_each_complete_the_content() {
    both(|m| {
        let a = File::create(m.path("f")).unwrap();
        let b = OpenOptions::new().write(true).open(m.path("f")).unwrap();
        a.write_all_at(b"aaaa", 0).unwrap();
        drop(a);
        assert_eq!(m.wait_for(Opcode::Close, 1).len(), 1);
        assert!(m.volume.writers.is_writing(m.records()[0].outcome.object));
        b.write_all_at(b"bbbb", 4).unwrap();
        drop(b);
        let closes = m.wait_for(Opcode::Close, 2);
        assert_eq!(closes[1].outcome.after.size, 8);
        assert_eq!(fs::read(m.lower("f")).unwrap(), b"aaaabbbb");
    });
}

#[test]
fn a_long_open_file_is_journaled_on_the_way() {
    both(|m| {
        let file = File::create(m.path("log")).unwrap();
        file.write_all_at(b"line", 0).unwrap();
        let close = m.wait_for(Opcode::Close, 1);
        assert_eq!(close[0].outcome.after.size, 4);
        drop(file);
    });
}

#[test]
fn fsync_completes_the_content_first() {
    both(|m| {
        let file = File::create(m.path("f")).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(m.opcodes(), [Opcode::Create, Opcode::Close]);
        file.sync_data().unwrap();
        assert_eq!(m.records().len(), 2);
        drop(file);
    });
}

#[test]
fn truncation_and_attributes_are_journaled() {
    both(|m| {
        fs::write(m.path("f"), b"0123456789").unwrap();
        OpenOptions::new().write(true).truncate(true).open(m.path("f")).unwrap();
        fs::set_permissions(m.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(m.path("f"), Some(12), Some(34)).unwrap();
        let times = rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: -5, tv_nsec: 250_000_000 },
            last_modification: rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 },
        };
        rustix::fs::utimensat(rustix::fs::CWD, m.path("f"), &times, rustix::fs::AtFlags::empty()).unwrap();
        let shown = fs::metadata(m.path("f")).unwrap();
        assert_eq!((shown.atime(), shown.atime_nsec()), (-5, 250_000_000));
        assert_eq!((shown.mtime(), shown.mtime_nsec()), (1_000_000_000, 123_456_789));
        assert_eq!((shown.uid(), shown.gid(), shown.mode() & 0o7777), (12, 34, 0o600));
        let masks: Vec<Mask> =
            m.records().iter().filter(|r| r.opcode == Opcode::Setattr).map(|r| r.intent.mask).collect();
        assert_eq!(masks.len(), 4);
        assert!(masks[0].contains(Mask::SIZE));
        assert!(masks[1].contains(Mask::MODE));
        assert!(masks[2].contains(Mask::UID | Mask::GID));
        assert!(masks[3].contains(Mask::MTIME | Mask::ATIME));
    });
}

#[test]
fn new_files_belong_to_their_maker_and_written_ones_lose_suid() {
    both(|m| {
        fs::set_permissions(&m.mnt, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(m.mnt.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        as_user(1234, 2345, || -> std::io::Result<()> {
            fs::write(m.path("mine"), b"x")?;
            fs::create_dir(m.path("dir"))?;
            fs::set_permissions(m.path("mine"), fs::Permissions::from_mode(0o4755))?;
            let shown = fs::metadata(m.path("mine"))?;
            if (shown.uid(), shown.gid(), shown.mode() & 0o7777) != (1234, 2345, 0o4755) {
                return Err(std::io::Error::other(format!("{shown:?}")));
            }
            OpenOptions::new().write(true).open(m.path("mine"))?.write_all_at(b"y", 0)?;
            let shown = fs::metadata(m.path("mine"))?;
            if shown.mode() & 0o7777 != 0o755 {
                return Err(std::io::Error::other(format!("suid stays: {:o}", shown.mode())));
            }
            Ok(())
        })
        .unwrap();
        let lower = fs::metadata(m.lower("mine")).unwrap();
        assert_eq!((lower.uid(), lower.gid(), lower.mode() & 0o7777), (1234, 2345, 0o755));
        assert_eq!(fs::metadata(m.lower("dir")).unwrap().uid(), 1234);
        let last = m.records().pop().unwrap();
        assert_eq!((last.opcode, last.intent.mask), (Opcode::Setattr, Mask::MODE));
        assert_eq!(last.outcome.after.mode & 0o7777, 0o755);
    });
}

#[test]
fn nodes_of_every_type_can_be_made() {
    both(|m| {
        use rustix::fs::FileType;
        for (name, kind, device) in [
            ("fifo", FileType::Fifo, 0),
            ("socket", FileType::Socket, 0),
            ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            ("plain", FileType::RegularFile, 0),
        ] {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, m.path(name), kind, mode, device).unwrap();
        }
        assert_eq!(fs::metadata(m.path("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
        use Opcode::*;
        assert_eq!(m.opcodes(), [Mknod, Mknod, Mknod, Create]);
    });
}

#[test]
fn a_read_only_volume_refuses_updates() {
    let m = start();
    fs::write(m.path("f"), b"x").unwrap();
    m.volume.marks.read_only.set(true);
    let error = fs::write(m.path("g"), b"x").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert!(OpenOptions::new().write(true).open(m.path("f")).is_err());
    assert_eq!(fs::read(m.path("f")).unwrap(), b"x");
}

#[test]
fn replaced_files_show_after_a_notice() {
    let m = start();
    fs::write(m.path("f"), b"old").unwrap();
    assert!(fs::metadata(m.path("absent")).is_err());
    assert_eq!(fs::metadata(m.path("f")).unwrap().len(), 3);
    // What a replay does: behind the kernel's back, then a notice.
    fs::write(m.cache.join("stage/new"), b"newer").unwrap();
    fs::rename(m.cache.join("stage/new"), m.lower("f")).unwrap();
    fs::write(m.lower("absent"), b"here").unwrap();
    let root = m.volume.lower.root();
    m.volume.notifier.entry(root, b"f");
    m.volume.notifier.entry(root, b"absent");
    m.volume.notifier.inode(root);
    for _ in 0..200 {
        if fs::metadata(m.path("absent")).is_ok() && fs::read(m.path("f")).unwrap() == b"newer" {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(fs::read(m.path("absent")).unwrap(), b"here");
    assert_eq!(fs::read(m.path("f")).unwrap(), b"newer");
    assert_eq!(fs::read_dir(&m.mnt).unwrap().count(), 2);
}

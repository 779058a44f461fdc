//! Where a volume is not as the file system below it: each line of "Deviations" in docs/semantics.md, with what is the case on
//! either side. A test that fails here says that a deviation is gone, or has changed.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, chown};

use intermezzo_kml::record::Opcode;
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags, XattrFlags, inotify};
use rustix::io::{Errno, ReadWriteFlags};

use presto::fuse::MountOptions;

use crate::calls::{acl, as_user, chmod, errno, truncate};
use crate::lower_fs::LowerFs;
use crate::mounted::mounted_in;
use crate::places::{Place, each};

fn new(place: &Place, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(place.path(name)).unwrap()
}

fn mode(place: &Place, name: &str) -> u32 {
    fs::metadata(place.path(name)).unwrap().mode() & 0o7777
}

#[test]
fn set_id_bits_fall_also_when_root_writes() {
    each("ext4", |place| {
        fs::write(place.path("f"), b"x").unwrap();
        chmod(place.path("f"), 0o6755);
        OpenOptions::new().write(true).open(place.path("f")).unwrap().write_all_at(b"y", 0).unwrap();
        assert_eq!(mode(place, "f"), if place.is_volume() { 0o755 } else { 0o6755 });
    });
}

#[test]
fn set_group_id_stays_when_an_outsider_sets_an_acl() {
    each("ext4", |place| {
        fs::write(place.path("f"), b"x").unwrap();
        chown(place.path("f"), Some(1000), Some(77)).unwrap();
        chmod(place.path("f"), 0o2755);
        as_user(1000, 1000, || {
            let value = acl(&[(1, 7, u32::MAX), (4, 5, u32::MAX), (0x20, 5, u32::MAX)]);
            rustix::fs::setxattr(place.path("f"), c"system.posix_acl_access", &value, XattrFlags::empty())
                .unwrap();
        });
        assert_eq!(mode(place, "f"), if place.is_volume() { 0o2755 } else { 0o755 });
    });
}

#[test]
fn o_tmpfile_is_not_supported() {
    each("ext4", |place| {
        let opened = rustix::fs::open(&place.dir, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o600));
        assert_eq!(opened.map(drop), if place.is_volume() { Err(Errno::OPNOTSUPP) } else { Ok(()) });
    });
}

#[test]
fn ficlone_is_not_supported() {
    each("btrfs", |place| {
        let (from, to) = (new(place, "from"), new(place, "to"));
        from.write_all_at(&[1; 65536], 0).unwrap();
        let cloned = rustix::fs::ioctl_ficlone(&to, &from);
        assert_eq!(cloned, if place.is_volume() { Err(Errno::OPNOTSUPP) } else { Ok(()) });
    });
}

#[test]
fn rwf_nowait_is_not_supported() {
    each("ext4", |place| {
        let file = new(place, "f");
        file.write_all_at(&[1; 4096], 0).unwrap();
        let mut byte = [0];
        let told = rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut byte)], 0, ReadWriteFlags::NOWAIT);
        assert_eq!(told, if place.is_volume() { Err(Errno::OPNOTSUPP) } else { Ok(1) });
    });
}

#[test]
fn ranges_are_not_collapsed_or_inserted() {
    each("ext4", |place| {
        let file = new(place, "f");
        file.write_all_at(&[1; 16384], 0).unwrap();
        for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            let told = rustix::fs::fallocate(&file, flags, 4096, 4096);
            assert_eq!(told, if place.is_volume() { Err(Errno::OPNOTSUPP) } else { Ok(()) });
        }
    });
}

#[test]
fn set_group_id_falls_also_where_the_group_may_not_execute() {
    each("ext4", |place| {
        fs::write(place.path("f"), b"x").unwrap();
        chown(place.path("f"), Some(1000), Some(1000)).unwrap();
        chmod(place.path("f"), 0o2744);
        as_user(1000, 1000, || {
            OpenOptions::new().write(true).open(place.path("f")).unwrap().write_all_at(b"y", 0).unwrap();
        });
        assert_eq!(mode(place, "f"), if place.is_volume() { 0o744 } else { 0o2744 });
    });
}

#[test]
fn copy_file_range_does_not_cross_file_systems() {
    each("ext4", |place| {
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("from"), b"from elsewhere").unwrap();
        let from = File::open(elsewhere.path().join("from")).unwrap();
        let told = rustix::fs::copy_file_range(&from, None, new(place, "to"), None, 4);
        assert!(told == Err(Errno::XDEV) || !place.is_volume(), "{told:?}");
    });
}

#[test]
fn a_truncation_by_name_to_the_same_size_moves_times() {
    each("xfs", |place| {
        let file = new(place, "f");
        file.write_all_at(b"12345", 0).unwrap();
        drop(file);
        file_times(place, "f", 1000);
        truncate(&place.path("f"), 5).unwrap();
        assert_eq!(fs::metadata(place.path("f")).unwrap().mtime() != 1000, place.is_volume());
    });
}

fn file_times(place: &Place, name: &str, second: i64) {
    let time = rustix::fs::Timespec { tv_sec: second, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, place.path(name), &times, AtFlags::empty()).unwrap();
}

#[test]
fn there_is_no_birth_time() {
    each("ext4", |place| {
        let file = new(place, "f");
        let told = rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME).unwrap();
        assert_eq!(told.stx_mask & StatxFlags::BTIME.bits() != 0, !place.is_volume());
    });
}

#[test]
fn a_running_program_may_be_written_to() {
    each("ext4", |place| {
        fs::copy("/bin/sleep", place.path("sleep")).unwrap();
        let mut child = std::process::Command::new(place.path("sleep")).arg("60").spawn().unwrap();
        let opened = OpenOptions::new().write(true).open(place.path("sleep"));
        child.kill().unwrap();
        child.wait().unwrap();
        // Through the mount the kernel refuses it as below.
        assert_eq!(opened.map(drop).map_err(errno), Err(Errno::TXTBSY));
        let Some(volume) = &place.volume else { return };
        let mut child = std::process::Command::new(place.path("sleep")).arg("60").spawn().unwrap();
        let opened = OpenOptions::new().write(true).open(volume.lower("sleep"));
        child.kill().unwrap();
        child.wait().unwrap();
        opened.unwrap();
    });
}

#[test]
fn mounts_honour_neither_set_user_id_nor_devices_unless_asked() {
    let lower = LowerFs::mount("ext4");
    for asked in [false, true] {
        let options = MountOptions { suid: asked, dev: asked, ..MountOptions::default() };
        let volume = mounted_in(tempfile::tempdir_in(&lower.at).unwrap(), &options);
        let mode = Mode::from_raw_mode(0o666);
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            volume.path("null"),
            rustix::fs::FileType::CharacterDevice,
            mode,
            null,
        )
        .unwrap();
        let opened = File::open(volume.path("null")).map(drop).map_err(errno);
        assert_eq!(opened, if asked { Ok(()) } else { Err(Errno::ACCESS) });
        let flags = rustix::fs::statvfs(&volume.mnt).unwrap().f_flag;
        assert_eq!(flags.contains(rustix::fs::StatVfsMountFlags::NOSUID), !asked);
        assert_eq!(flags.contains(rustix::fs::StatVfsMountFlags::NODEV), !asked);
    }
}

#[test]
fn a_changed_mapping_shows_its_time_with_its_record() {
    let lower = LowerFs::mount("ext4");
    let volume = mounted_in(tempfile::tempdir_in(&lower.at).unwrap(), &MountOptions::default());
    if !volume.mount.as_ref().unwrap().has_passthrough() {
        return;
    }
    let path = volume.path("f");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    // SAFETY: nobody cuts the file.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    file.sync_all().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    let before = fs::metadata(&path).unwrap().mtime_nsec();
    map[0] = 2;
    let seen = fs::metadata(&path).unwrap().mtime_nsec();
    file.sync_all().unwrap();
    let after = fs::metadata(&path).unwrap().mtime_nsec();
    assert_eq!((seen == before, after != before), (true, true));
}

#[test]
fn names_of_trusted_attributes_are_the_administrators_also_on_btrfs() {
    each("btrfs", |place| {
        fs::write(place.path("f"), b"x").unwrap();
        chmod(place.path("f"), 0o666);
        rustix::fs::setxattr(place.path("f"), c"trusted.x", b"1", XattrFlags::empty()).unwrap();
        as_user(1000, 1000, || {
            let mut names = [0_u8; 256];
            let length = rustix::fs::listxattr(place.path("f"), &mut names[..]).unwrap();
            let shown = names[..length].windows(9).any(|part| part == b"trusted.x");
            assert_eq!(shown, !place.is_volume());
        });
    });
}

#[test]
fn every_file_tells_where_it_is_safe() {
    each("ext4", |place| {
        if !place.is_volume() {
            return;
        }
        let path = place.path("f");
        fs::write(&path, "text").unwrap();
        let safe = "user.intermezzo.safe";
        let mut value = [0_u8; 16];
        let length = rustix::fs::getxattr(&path, safe, &mut value).unwrap();
        // Nobody is there to ask.
        assert_eq!(&value[..length], b"unknown");
        assert_eq!(rustix::fs::listxattr(&path, &mut value), Ok(0), "no copy takes it along");
        assert_eq!(rustix::fs::setxattr(&path, safe, b"local", XattrFlags::empty()), Err(Errno::PERM));
        assert_eq!(rustix::fs::removexattr(&path, safe), Err(Errno::PERM));
    });
}

#[test]
fn names_of_prestos_own_attributes_are_refused() {
    each("ext4", |place| {
        fs::write(place.path("f"), b"x").unwrap();
        let set = rustix::fs::setxattr(place.path("f"), c"trusted.intermezzo.x", b"1", XattrFlags::empty());
        assert_eq!(set, if place.is_volume() { Err(Errno::PERM) } else { Ok(()) });
    });
}

#[test]
fn syncfs_does_not_reach_presto() {
    each("ext4", |place| {
        let file = new(place, "f");
        file.write_all_at(b"x", 0).unwrap();
        rustix::fs::syncfs(File::open(&place.dir).unwrap()).unwrap();
        let Some(volume) = &place.volume else { return };
        let closes = || volume.opcodes().into_iter().filter(|opcode| *opcode == Opcode::Close).count();
        assert_eq!(closes(), 0);
        file.sync_all().unwrap();
        assert_eq!(closes(), 1, "what fsync does");
    });
}

#[test]
fn inotify_tells_of_this_mount_only() {
    let m = mounted_in(tempfile::tempdir().unwrap(), &MountOptions::default());
    let inotify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&inotify, &m.mnt, inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO)
        .unwrap();
    let told = || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&inotify, &mut buffer).next().map(|event| event.file_name().map(CStr::to_owned))
    };
    fs::write(m.path("here"), "text").unwrap();
    assert_eq!(told(), Ok(Some(c"here".to_owned())));
    assert_eq!(told(), Err(Errno::AGAIN));
    // What a replay does.
    fs::write(m.cache.join("stage/new"), "text").unwrap();
    fs::rename(m.cache.join("stage/new"), m.lower("there")).unwrap();
    let root = m.volume.lower.root();
    m.volume.notifier.entry(root, b"there");
    m.volume.notifier.inode(root);
    assert_eq!(fs::read_to_string(m.path("there")).unwrap(), "text");
    assert_eq!(told(), Err(Errno::AGAIN));
}

#[test]
fn fanotify_of_the_whole_file_system_is_refused() {
    each("ext4", |place| {
        // SAFETY: numbers in, a descriptor out.
        let group = unsafe { libc::fanotify_init(libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID, 0) };
        assert!(group >= 0);
        // SAFETY: just made, nobody else's.
        let group = unsafe { OwnedFd::from_raw_fd(group) };
        let path = CString::new(place.dir.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path ends with zero.
        let marked = unsafe {
            libc::fanotify_mark(
                group.as_fd().as_raw_fd(),
                libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM,
                libc::FAN_CREATE | libc::FAN_ONDIR,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        assert_eq!(marked == 0, !place.is_volume(), "{}", std::io::Error::last_os_error());
    });
}

//! What is mounted on or over a volume: overlayfs, bind mounts with flags.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree,
};

use crate::calls::{as_user, chmod, errno};
use crate::lower_fs::kinds;
use crate::places::{Notes, Place, each, same};

/// Unmounted when the test is over.
struct Over(PathBuf);

impl Drop for Over {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn overlay(place: &Place, lower: &Path) -> rustix::io::Result<Over> {
    for dir in ["upper", "work"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    let at = lower.join("merged");
    fs::create_dir(&at).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join("lower").display(),
        place.path("upper").display(),
        place.path("work").display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount("overlay", &at, "overlay", MountFlags::empty(), options.as_c_str())?;
    Ok(Over(at))
}

fn tree(notes: &mut Notes, dir: &Path) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        notes.stat(&path);
        if path.is_dir() {
            tree(notes, &path);
        } else if path.is_file() {
            notes.content(&path);
        }
    }
}

#[test]
fn an_overlay_has_its_upper_directory_on_a_volume() {
    same(|place, notes| {
        let elsewhere = tempfile::tempdir().unwrap();
        let lower = elsewhere.path().join("lower");
        fs::create_dir_all(lower.join("dir/inner")).unwrap();
        for name in ["a", "b", "dir/c", "dir/inner/d"] {
            fs::write(lower.join(name), format!("lower {name}")).unwrap();
        }
        let overlay = overlay(place, elsewhere.path()).unwrap();
        let merged = &overlay.0;
        notes.done("append to what is below", {
            OpenOptions::new()
                .append(true)
                .open(merged.join("a"))
                .and_then(|mut file| file.write_all(b" and above"))
        });
        notes.done("remove what is below", fs::remove_file(merged.join("b")));
        notes.done("make it anew", fs::create_dir(merged.join("b")));
        notes.done("remove a directory", fs::remove_file(merged.join("dir/inner/d")));
        notes.done("rmdir", fs::remove_dir(merged.join("dir/inner")));
        notes.done("an opaque one", fs::create_dir(merged.join("dir/inner")));
        notes.done("rename", fs::rename(merged.join("dir/c"), merged.join("c")));
        notes.done("chmod", fs::set_permissions(merged.join("c"), fs::Permissions::from_mode(0o751)));
        notes.done("link", fs::hard_link(merged.join("c"), merged.join("e")));
        notes.done("symlink", std::os::unix::fs::symlink("c", merged.join("s")));
        fs::write(merged.join(".tmp"), b"saved").unwrap();
        notes.done("save by rename", fs::rename(merged.join(".tmp"), merged.join("a")));
        tree(notes, merged);
        // Whiteouts and opaque directories lie on the volume.
        let dir = fs::symlink_metadata(place.path("upper/dir/c")).unwrap();
        notes.note("whiteout", (dir.mode() & libc::S_IFMT == libc::S_IFCHR, dir.rdev()));
        let mut value = [0; 8];
        let opaque =
            rustix::fs::lgetxattr(place.path("upper/dir/inner"), c"trusted.overlay.opaque", &mut value);
        notes.call("opaque", opaque);
        let flags = UnmountFlags::empty();
        notes.done("unmount", rustix::mount::unmount(merged, flags));
        tree(notes, &place.path("upper"));
    });
}

#[test]
fn bind_mounts_of_it_may_be_read_only_noexec_and_nosuid() {
    same(|place, notes| {
        fs::copy("/bin/true", place.path("true")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let at = elsewhere.path().join("bind");
        fs::create_dir(&at).unwrap();
        rustix::mount::mount_bind(&place.dir, &at).unwrap();
        let bound = Over(at);
        rustix::mount::mount_change(&bound.0, MountPropagationFlags::PRIVATE).unwrap();
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID;
        rustix::mount::mount_remount(&bound.0, flags, "").unwrap();
        notes.done("write", fs::write(bound.0.join("f"), b"x"));
        notes.done("unlink", fs::remove_file(bound.0.join("true")));
        notes.done("chmod", fs::set_permissions(bound.0.join("true"), fs::Permissions::from_mode(0o700)));
        notes.done("run", Command::new(bound.0.join("true")).status());
        notes.done("read", File::open(bound.0.join("true")));
        notes.done("elsewhere as before", Command::new(place.path("true")).status());
    });
}

/// Since then the kernel has idmapped mounts of FUSE; of all lower file systems it has them since before.
const IDMAPPED: (u32, u32) = (6, 12);

#[test]
fn idmapped_mounts_show_and_make_other_owners() {
    if kernel() < IDMAPPED {
        for kind in kinds() {
            each(kind, |place| {
                if place.is_volume() {
                    assert_eq!(
                        idmapped(place).map(drop),
                        Err(Errno::INVAL),
                        "the mount is refused as a whole"
                    );
                }
            });
        }
        return;
    }
    same(|place, notes| {
        fs::write(place.path("f"), b"x").unwrap();
        chown(place.path("f"), Some(1000), Some(1000)).unwrap();
        chmod(place.path("f"), 0o600);
        let elsewhere = tempfile::tempdir().unwrap();
        chmod(elsewhere.path(), 0o755);
        let at = elsewhere.path().join("mapped");
        fs::create_dir(&at).unwrap();
        let tree = idmapped(place).unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(tree, c"", rustix::fs::CWD, &at, flags).unwrap();
        let mapped = Over(at);
        notes.stat(mapped.0.join("f"));
        as_user(2000, 2000, || {
            notes.content(mapped.0.join("f"));
            notes.done("create", fs::write(mapped.0.join("g"), b"made by 2000"));
            notes.done("mkdir", fs::create_dir(mapped.0.join("d")));
            notes.done("chmod", fs::set_permissions(mapped.0.join("f"), fs::Permissions::from_mode(0o640)));
            notes.done("rename", fs::rename(mapped.0.join("g"), mapped.0.join("d/g")));
        });
        as_user(1000, 1000, || notes.content(mapped.0.join("f")));
        as_user(3000, 3000, || {
            notes.done("by one without a number there", fs::write(mapped.0.join("h"), b"x"))
        });
        notes.done("chown", chown(mapped.0.join("f"), Some(2000), None));
        for name in ["f", "d", "d/g"] {
            notes.stat(place.path(name));
            notes.stat(mapped.0.join(name));
        }
    });
}

/// Major and minor number of the kernel's release.
fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A copy of the mount with user 1000 shown as 2000; nobody sees it but this process.
fn idmapped(place: &Place) -> Result<OwnedFd, Errno> {
    let mut child = std::process::Command::new("unshare").args(["--user", "sleep", "60"]).spawn().unwrap();
    let proc = std::path::PathBuf::from(format!("/proc/{}", child.id()));
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let is_apart = || fs::read_link(proc.join("ns/user")).is_ok_and(|other| other != own);
    for _ in 0..500 {
        if is_apart() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for map in ["uid_map", "gid_map"] {
        fs::write(proc.join(map), "1000 2000 1").unwrap();
    }
    let namespace = File::open(proc.join("ns/user")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, &place.dir, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap(),
    };
    // SAFETY: both descriptors are open, the structure is as long as it says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(errno(std::io::Error::last_os_error())) }
}

//! What programs ask, by whom, and how it ends.

#![allow(dead_code)] // Each test file uses its part.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::io::Errno;

/// How a call failed.
pub fn errno<E: Into<io::Error>>(error: E) -> Errno {
    let error = error.into();
    Errno::from_io_error(&error).unwrap_or_else(|| panic!("{error} has no errno"))
}

pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// truncate(2), which std has for descriptors only.
pub fn truncate(path: &Path, size: u64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a string that ends with zero.
    match unsafe { libc::truncate(path.as_ptr(), i64::try_from(size).unwrap()) } {
        0 => Ok(()),
        _ => Err(errno(io::Error::last_os_error())),
    }
}

/// An ACL as the kernel takes it: tag, permissions, id.
pub fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Runs something on a thread with another user's rights, and a file mode mask of its own.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    as_user_in(uid, &[gid], work)
}

/// The same with supplementary groups: the first is the group.
pub fn as_user_in<T: Send>(uid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let user = scope.spawn(|| {
            let gid = groups[0];
            // SAFETY: raw calls, which change this thread only; the thread ends with them.
            unsafe {
                assert_eq!(libc::unshare(libc::CLONE_FS), 0);
                assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            work()
        });
        user.join().unwrap()
    })
}

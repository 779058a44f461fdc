//! The end of a connection whose users do not go by themselves: from then on the kernel answers each of their calls with an
//! error.
//!
//! A mount that was taken from its place is out of reach of umount(2), and closing the device would not do: the holder and
//! a thread that waits in a read have it open too. So the kernel's control file system is asked, which need not be mounted.

use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;

/// Ends the connection of the mount with this device number. One that has ended already is none to end.
pub(super) fn abort(device: u64) -> Result<(), Errno> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let control = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    let file = format!("{device}/abort");
    match rustix::fs::openat(&control, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => rustix::io::write(&file, b"1").map(|_| ()),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

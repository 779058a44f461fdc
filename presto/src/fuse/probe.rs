//! What the running kernel's FUSE offers, asked of it by a mount that has no place and is gone at once.

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use fuser::InitFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::FsMountFlags;
use rustix::mount::FsOpenFlags;
use rustix::mount::MountAttrFlags;

/// What presto can use, and how it is called.
const OFFERS: [(&str, InitFlags); 4] = [
    ("passthrough", InitFlags::FUSE_PASSTHROUGH),
    ("resend", InitFlags::FUSE_HAS_RESEND),
    ("expire", InitFlags::FUSE_HAS_EXPIRE_ONLY),
    ("idmap", InitFlags::FUSE_ALLOW_IDMAP),
];
/// The kernel asks at once.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// Of the first request, `struct fuse_in_header`: where its operation stands, and its length.
const OPCODE: usize = 4;
const HEADER: usize = 40;
const INIT: u32 = 26;
/// In `struct fuse_init_in`: the two halves of the flags.
const FLAGS: [usize; 2] = [HEADER + 12, HEADER + 16];

/// Names of what is offered.
///
/// # Errors
/// There is no FUSE, or no right to mount.
pub fn offered() -> Result<Vec<&'static str>, Errno> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let _mount = mount(&device)?;
    let mut waits = [PollFd::new(&device, PollFlags::IN)];
    if rustix::event::poll(&mut waits, Some(&PATIENCE))? == 0 {
        return Err(Errno::TIMEDOUT);
    }
    // The kernel wants room for a whole request.
    let mut request = vec![0; 1 << 16];
    let length = rustix::io::read(&device, &mut request)?;
    request.truncate(length);
    let flags = flags(&request).ok_or(Errno::PROTO)?;
    Ok(OFFERS.iter().filter(|(_, flag)| flags.contains(*flag)).map(|(name, _)| *name).collect())
}

fn mount(device: &OwnedFd) -> Result<OwnedFd, Errno> {
    use rustix::mount::{fsconfig_create, fsconfig_set_string, fsmount, fsopen};
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let device = device.as_raw_fd().to_string();
    for (key, value) in [("fd", device.as_str()), ("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]
    {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn flags(request: &[u8]) -> Option<InitFlags> {
    let word = |at: usize| Some(u32::from_ne_bytes(*request.get(at..)?.first_chunk()?));
    if word(OPCODE)? != INIT {
        return None;
    }
    let low = InitFlags::from_bits_retain(u64::from(word(FLAGS[0])?));
    if !low.contains(InitFlags::FUSE_INIT_EXT) {
        return Some(low);
    }
    Some(low | InitFlags::from_bits_retain(u64::from(word(FLAGS[1])?) << 32))
}

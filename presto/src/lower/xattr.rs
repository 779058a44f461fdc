//! Extended attributes of lower files, by descriptor of any kind (O_PATH included).

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Attributes with this prefix are the replica's own; users neither see nor set them.
pub const HIDDEN: &[u8] = b"trusted.intermezzo.";
/// Mark of what stays on this node.
pub const LOCAL: &[u8] = b"trusted.intermezzo.local";
/// Name space of who administers the machine.
pub const TRUSTED: &[u8] = b"trusted.";
/// Default ACL of a directory.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// ACL of a file.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// File capabilities; the kernel removes them when content or owner change.
pub const CAPABILITY: &[u8] = b"security.capability";

/// Names and values of extended attributes.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Where the kernel follows an O_PATH descriptor to its file, and no further.
pub(crate) fn magic(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Value of an attribute. ENODATA: there is none.
pub fn get(fd: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    match grow(|buffer| rustix::fs::fgetxattr(&fd, name, buffer)) {
        // An O_PATH one: the way round by /proc takes several times as long.
        Err(Errno::BADF) => {
            let path = magic(&fd);
            grow(|buffer| rustix::fs::getxattr(&path, name, buffer))
        }
        result => result,
    }
}

/// Names of all attributes.
pub fn list(fd: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let path = magic(&fd);
    let names = grow(|buffer| rustix::fs::listxattr(&path, buffer))?;
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Names and values of all attributes, hidden ones not included.
pub fn all(fd: impl AsFd) -> Result<Xattrs, Errno> {
    let mut all = Vec::new();
    for name in list(&fd)? {
        if name.starts_with(HIDDEN) {
            continue;
        }
        match get(&fd, &name) {
            Ok(value) => all.push((name, value)),
            Err(Errno::NODATA) => {} // Gone meanwhile.
            Err(errno) => return Err(errno),
        }
    }
    Ok(all)
}

/// Sets an attribute.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<(), Errno> {
    rustix::fs::setxattr(magic(&fd), name, value, flags)
}

/// Removes an attribute. ENODATA: there is none.
pub fn remove(fd: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::removexattr(magic(&fd), name)
}

/// The same three for what a name stands for; a symbolic link is not followed.
pub fn get_at(dir: impl AsFd, name: &[u8], attribute: &[u8]) -> Result<Vec<u8>, Errno> {
    let path = entry(&dir, name);
    grow(|buffer| rustix::fs::lgetxattr(path.as_slice(), attribute, buffer))
}

/// See `get_at`.
pub fn set_at(dir: impl AsFd, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<(), Errno> {
    rustix::fs::lsetxattr(entry(&dir, name), attribute, value, XattrFlags::empty())
}

/// See `get_at`.
pub fn remove_at(dir: impl AsFd, name: &[u8], attribute: &[u8]) -> Result<(), Errno> {
    rustix::fs::lremovexattr(entry(&dir, name), attribute)
}

fn entry(dir: &impl AsFd, name: &[u8]) -> Vec<u8> {
    [magic(dir).as_bytes(), b"/", name].concat()
}

/// Reads something whose size may change between asking and reading.
fn grow(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 512];
    loop {
        match read(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                return Ok(buffer);
            }
            // 64 KiB is the kernel's limit for values as for lists.
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer.resize(buffer.len().saturating_mul(8), 0),
            Err(errno) => return Err(errno),
        }
    }
}

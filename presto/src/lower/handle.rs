//! Identity of lower files by kernel file handle, without state.
//!
//! The shape of a handle is learned once from the volume's root; after that a `FileId` is packed from a handle and
//! unpacked into one by arithmetic. Owns the two handle system calls; knows nothing of names or volumes.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use intermezzo_kml::record::FileId;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How often and how soon an inode is asked for again.
const TRIES: u32 = 100;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);
/// Largest handle that any of the known file systems makes (btrfs with parent).
const SPACE: usize = 40;

/// `struct file_handle` of name_to_handle_at(2) with room behind it.
#[repr(C, align(8))]
struct Raw {
    bytes: u32,
    kind: i32,
    handle: [u8; SPACE],
}

/// How this file system writes identity into its handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// ext4: inode number u32, generation u32.
    Ext,
    /// xfs with 64-bit inode numbers: inode number u64, generation u32.
    Xfs,
    /// btrfs: object id u64, subvolume u64 (the volume's own), generation u32.
    Btrfs {
        /// Subvolume of the volume's root.
        subvolume: u64,
    },
    /// tmpfs: generation u32, inode number low u32, high u32.
    Tmpfs,
}

/// Handle as the kernel gave it.
struct Handle {
    raw: Raw,
    mount: i32,
}

impl Handle {
    /// name_to_handle_at(2); an empty name means the descriptor itself.
    fn of(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Handle, Errno> {
        let path = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut raw = Raw { bytes: 40, kind: 0, handle: [0; SPACE] };
        let mut mount = 0i32;
        let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
        // SAFETY: `raw` has the layout of struct file_handle with `bytes` of room, `path` is NUL-terminated, and all
        // three outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw mut raw,
                &raw mut mount,
                flags,
            )
        };
        if result == 0 { Ok(Handle { raw, mount }) } else { Err(last_error()) }
    }

    fn u32_at(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes()?.get(at..)?.first_chunk::<4>()?;
        Some(u64::from(u32::from_ne_bytes(*bytes)))
    }

    fn u64_at(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes()?.get(at..)?.first_chunk::<8>()?;
        Some(u64::from_ne_bytes(*bytes))
    }

    fn bytes(&self) -> Option<&[u8]> {
        self.raw.handle.get(..usize::try_from(self.raw.bytes).ok()?)
    }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

impl Shape {
    /// Learns the shape from the volume's root directory; `None` if it is of no known kind.
    pub fn learn(root: BorrowedFd<'_>) -> Result<Option<(Shape, i32)>, Errno> {
        let handle = Handle::of(root, b"")?;
        let shape = match (handle.raw.kind, handle.raw.bytes) {
            (1, 8) => Some(Shape::Ext),
            (1, 12) => Some(Shape::Tmpfs),
            (0x81, 12) => Some(Shape::Xfs),
            (0x4d, 20) => handle.u64_at(8).map(|subvolume| Shape::Btrfs { subvolume }),
            _ => None,
        };
        Ok(shape.map(|shape| (shape, handle.mount)))
    }

    /// Identity of `name` in `dir`, or of `dir` itself if the name is empty. A mount point on the way is EXDEV.
    pub fn identify(self, dir: BorrowedFd<'_>, name: &[u8], mount: i32) -> Result<FileId, Errno> {
        let handle = Handle::of(dir, name)?;
        if handle.mount != mount {
            return Err(Errno::XDEV);
        }
        let (ino, generation) = match (self, handle.raw.kind) {
            (Shape::Ext, 1) => (handle.u32_at(0), handle.u32_at(4)),
            (Shape::Tmpfs, 1) => {
                let ino = handle.u32_at(4).zip(handle.u32_at(8)).map(|(low, high)| high << 32 | low);
                (ino, handle.u32_at(0))
            }
            (Shape::Xfs, 0x81) => (handle.u64_at(0), handle.u32_at(8)),
            (Shape::Btrfs { subvolume }, 0x4d) if handle.u64_at(8) == Some(subvolume) => {
                (handle.u64_at(0), handle.u32_at(16))
            }
            (Shape::Btrfs { .. }, 0x4d) => return Err(Errno::XDEV),
            _ => return Err(Errno::OPNOTSUPP),
        };
        match (ino, generation) {
            (Some(ino), Some(generation)) => Ok(FileId { ino, generation }),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// open_by_handle_at(2). ESTALE: no such file any more. The kernel says the same of an inode that it cannot read; by a
    /// name it would tell.
    pub fn open(self, mount: BorrowedFd<'_>, id: FileId, flags: OFlags) -> Result<OwnedFd, Errno> {
        for _ in 0..TRIES {
            match self.open_once(mount, id, flags) {
                // So ext4 says that an inode of this number is just being made; a moment later it is there, or another.
                Err(Errno::NOMEM) => std::thread::sleep(PAUSE),
                result => return result,
            }
        }
        self.open_once(mount, id, flags)
    }

    fn open_once(self, mount: BorrowedFd<'_>, id: FileId, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut raw = self.pack(id)?;
        // SAFETY: `raw` is a complete struct file_handle that outlives the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                &raw mut raw,
                (flags | OFlags::CLOEXEC).bits(),
            )
        };
        match i32::try_from(fd) {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(last_error()),
        }
    }

    fn pack(self, id: FileId) -> Result<Raw, Errno> {
        let generation = u32::try_from(id.generation).map_err(|_| Errno::STALE)?.to_ne_bytes();
        let mut bytes = Vec::with_capacity(SPACE);
        let kind = match self {
            Shape::Ext => {
                bytes.extend(u32::try_from(id.ino).map_err(|_| Errno::STALE)?.to_ne_bytes());
                bytes.extend(generation);
                1
            }
            Shape::Xfs => {
                bytes.extend(id.ino.to_ne_bytes());
                bytes.extend(generation);
                0x81
            }
            Shape::Btrfs { subvolume } => {
                bytes.extend(id.ino.to_ne_bytes());
                bytes.extend(subvolume.to_ne_bytes());
                bytes.extend(generation);
                0x4d
            }
            Shape::Tmpfs => {
                bytes.extend(generation);
                // Low word first on every architecture: the kernel writes the two words one by one.
                bytes.extend(u32::try_from(id.ino & 0xffff_ffff).unwrap_or_default().to_ne_bytes());
                bytes.extend(u32::try_from(id.ino >> 32).unwrap_or_default().to_ne_bytes());
                1
            }
        };
        let mut raw = Raw { bytes: u32::try_from(bytes.len()).unwrap_or(0), kind, handle: [0; SPACE] };
        if let Some(room) = raw.handle.get_mut(..bytes.len()) {
            room.copy_from_slice(&bytes);
        }
        Ok(raw)
    }
}

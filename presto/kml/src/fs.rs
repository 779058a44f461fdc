//! The file system as the journal sees it: whole files that are mapped, and a few directory operations.

use std::any::Any;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, IFlags, StatxFlags};
use rustix::io::Errno;

use crate::guard::Guarded;

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reader in another process.
    Read,
    /// The writer.
    Write,
}

/// A file system. Tests have one that crashes at any write.
pub trait FileSystem: fmt::Debug + Send + Sync {
    /// Makes the directory, durably, if it is not there.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock file for as long as the guard lives; `WouldBlock` if another has it.
    fn lock(&self, file: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// Names in a directory, in any order.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A new file of zeros that really lie on the disk when this returns, mapped for writing.
    fn create(&self, file: &Path, bytes: u64) -> io::Result<Box<dyn Map>>;
    /// An existing file, mapped whole.
    fn open(&self, file: &Path, access: Access) -> io::Result<Box<dyn Map>>;
    /// Renames within one directory.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, file: &Path) -> io::Result<()>;
    /// Makes earlier creations, renames and removals in the directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// What differs after each boot of the kernel and, where the kernel can say so, after each mount of what `dir` lies in.
    fn instance(&self, dir: &Path) -> [u8; 16];
    /// Whether segments may be prepared by a thread of their own (a test that counts writes says no).
    fn background(&self) -> bool {
        true
    }
}

/// A mapped file. Offsets outside of it read as zero and are not written; the segment above never uses any.
pub trait Map: fmt::Debug + Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Copies bytes out.
    fn read(&self, at: u64, into: &mut [u8]);
    /// Copies bytes in. Nobody else may read or write these until a `store` has published them.
    fn write(&self, at: u64, bytes: &[u8]);
    /// Reads a little-endian word at a multiple of 8, with acquire ordering.
    fn load(&self, at: u64) -> u64;
    /// Writes a little-endian word at a multiple of 8, with release ordering.
    fn store(&self, at: u64, word: u64);
    /// Makes everything written before durable.
    fn sync(&self) -> io::Result<()>;
    /// Starts to bring everything written before to the device.
    fn start_write_out(&self) -> io::Result<()>;
    /// Waits until it is there: in the device's cache perhaps, so durable only with the next flush of that device.
    fn wait_written_out(&self) -> io::Result<()>;
    /// Marks the file in the kernel's memory.
    fn mark(&self);
    /// Whether it has not left that since it was marked. Then its file system has been mounted all the time, and nothing that was
    /// written is lost.
    fn was_kept(&self) -> bool;
    /// Whether the disk has refused a page. What was stored or read before this said no is as it seemed; nothing is from then
    /// on.
    fn is_broken(&self) -> bool {
        false
    }
}

/// The real one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;

/// How much is written at once while a segment is made.
const BLOCK: usize = 1 << 20;

impl FileSystem for Os {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        dir.parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .map_or(Ok(()), |parent| self.sync_dir(parent))
    }

    fn lock(&self, file: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let file = File::options().create(true).truncate(false).write(true).mode(MODE).open(file)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Box<dyn Map>> {
        let file = File::options().create_new(true).read(true).write(true).mode(MODE).open(path)?;
        fill(&file, bytes)
            .and_then(|()| OsMap::new(file, Access::Write))
            .map(|map| Box::new(map) as Box<dyn Map>)
            .inspect(|map| map.mark())
            .inspect_err(|_| drop(fs::remove_file(path)))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Map>> {
        let file = File::options().read(true).write(access == Access::Write).open(path)?;
        Ok(Box::new(OsMap::new(file, access)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn instance(&self, dir: &Path) -> [u8; 16] {
        let mut id = [0; 16];
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut digits = text.chars().filter_map(|c| c.to_digit(16));
        for byte in &mut id {
            let (high, low) = (digits.next().unwrap_or(0), digits.next().unwrap_or(0));
            *byte = u8::try_from(high << 4 | low).unwrap_or(0);
        }
        for (byte, of_mount) in id.iter_mut().zip(mount_id(dir).to_le_bytes()) {
            *byte ^= of_mount;
        }
        id
    }
}

/// Number of the mount that a directory lies in, which no later one gets (Linux 6.8; before: 0).
fn mount_id(dir: &Path) -> u64 {
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
    match rustix::fs::statx(rustix::fs::CWD, dir, AtFlags::empty(), UNIQUE) {
        Ok(stat) if StatxFlags::from_bits_retain(stat.stx_mask).contains(UNIQUE) => stat.stx_mnt_id,
        _ => 0,
    }
}

/// Journals hold file names: only their writer, and who may read everything, looks inside.
const MODE: u32 = 0o600;

/// Writes zeros everywhere, so that a later store through the map never needs room, which it could not be refused in words.
fn fill(mut file: &File, bytes: u64) -> io::Result<()> {
    // On btrfs a store would need new room after all, unless copy-on-write is off; elsewhere there is no such flag.
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
    }
    // In one piece if possible. Not enough by itself: such blocks still change state at their first write.
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(e) if e == Errno::NOSPC || e == Errno::DQUOT => return Err(e.into()),
        _ => {}
    }
    let zeros = vec![0; BLOCK];
    let mut left = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    while left > 0 {
        let (block, _) = zeros.split_at_checked(left).unwrap_or((&zeros, &[]));
        file.write_all(block)?;
        left -= block.len();
    }
    file.sync_all()
}

/// A real map.
#[derive(Debug)]
struct OsMap(Guarded);

/// fcntl(2) commands that the libc crate does not name, and one of their values: what is written lives for a short time. No
/// file system writes this hint to its disk: a file has it until it leaves the memory.
const F_GET_RW_HINT: i32 = 1035;
const F_SET_RW_HINT: i32 = 1036;
const SHORT: u64 = 2;

impl OsMap {
    fn new(file: File, access: Access) -> io::Result<OsMap> {
        Guarded::map(file, None, access).map(OsMap)
    }

    fn write_out(&self, flags: u32) -> io::Result<()> {
        // SAFETY: plain numbers and a descriptor that is open as long as `self` is.
        let result = unsafe { libc::sync_file_range(self.0.file().as_raw_fd(), 0, 0, flags) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Offset as a pointer distance, if `length` bytes lie there.
    fn place(&self, at: u64, length: usize) -> Option<usize> {
        let at = usize::try_from(at).ok()?;
        (at.checked_add(length)? <= self.0.memory().len()).then_some(at)
    }

    fn word(&self, at: u64) -> Option<*mut u64> {
        let at = self.place(at, 8).filter(|at| at.is_multiple_of(8))?;
        // SAFETY: `place` keeps it inside the map.
        Some(unsafe { self.0.memory().as_mut_ptr().add(at) }.cast())
    }
}

impl Map for OsMap {
    fn size(&self) -> u64 {
        self.0.memory().len() as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) {
        let Some(at) = self.place(at, into.len()) else { return into.fill(0) };
        // SAFETY: inside the map, and `into` is ours alone. No reference to the map is made: other processes write to
        // it, though never to bytes that a `load` has shown as published.
        unsafe {
            std::ptr::copy_nonoverlapping(self.0.memory().as_ptr().add(at), into.as_mut_ptr(), into.len())
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let Some(at) = self.place(at, bytes.len()) else { return };
        // SAFETY: inside the map, which `Access::Write` made writable; the journal hands out each range to one thread.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.memory().as_mut_ptr().add(at), bytes.len())
        }
    }

    fn load(&self, at: u64) -> u64 {
        let Some(word) = self.word(at) else { return 0 };
        // SAFETY: inside the map and aligned (maps begin at a page). Relaxed loads of a word are allowed on read-only
        // memory; the fence makes it an acquire.
        let found = unsafe { AtomicU64::from_ptr(word) }.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        u64::from_le(found)
    }

    fn store(&self, at: u64, value: u64) {
        let Some(word) = self.word(at) else { return };
        // SAFETY: inside the map and aligned; only the writer, whose map is writable, stores.
        unsafe { AtomicU64::from_ptr(word) }.store(value.to_le(), Ordering::Release);
    }

    fn sync(&self) -> io::Result<()> {
        // Writes back what was stored through the map too. The file never grows, so its size needs no sync.
        self.0.file().sync_data()
    }

    fn start_write_out(&self) -> io::Result<()> {
        // A page on its way may have been changed since it set out: it is waited for, and goes once more.
        self.write_out(libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE)
    }

    fn wait_written_out(&self) -> io::Result<()> {
        self.write_out(libc::SYNC_FILE_RANGE_WAIT_BEFORE)
    }

    fn mark(&self) {
        let hint = SHORT;
        // SAFETY: takes a pointer to one number, which outlives the call.
        unsafe { libc::fcntl(self.0.file().as_raw_fd(), F_SET_RW_HINT, &raw const hint) };
    }

    fn was_kept(&self) -> bool {
        let mut hint = 0_u64;
        // SAFETY: takes a pointer to one number, which outlives the call.
        unsafe { libc::fcntl(self.0.file().as_raw_fd(), F_GET_RW_HINT, &raw mut hint) };
        hint == SHORT
    }

    fn is_broken(&self) -> bool {
        self.0.is_broken()
    }
}

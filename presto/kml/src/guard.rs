//! Files in memory whose disk may fail: a page that the disk does not give, or does not take, is replaced by one that is
//! nobody's, and the map says so from then on. Without this the kernel would end the process (SIGBUS), and every volume with it.
//!
//! That happens where a page has left the memory and cannot be read back, where a file system has shut itself down, and where
//! a store needs room after all (btrfs beside a snapshot). Owns the list of such maps, which the signal's handler reads without
//! a lock. A SIGBUS about anything else goes to whoever had the signal before.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicUsize, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;

use crate::fs::Access;

/// A mapped file.
#[derive(Debug)]
pub struct Guarded {
    file: File,
    map: MmapRaw,
    entry: &'static Entry,
}

impl Guarded {
    /// Maps the first `length` bytes of a file; `None`: all that it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(file: File, length: Option<usize>, access: Access) -> io::Result<Guarded> {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(listen);
        let mut options = MmapOptions::new();
        if let Some(length) = length {
            options.len(length);
        }
        let map = match access {
            Access::Write => options.map_raw(&file)?,
            Access::Read => options.map_raw_read_only(&file)?,
        };
        let entry = take_entry(map.as_ptr() as usize, map.len(), file.as_raw_fd());
        Ok(Guarded { file, map, entry })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The map.
    #[must_use]
    pub fn memory(&self) -> &MmapRaw {
        &self.map
    }

    /// Whether a page could not be had. What was stored before this said no is in the file; what was read before it said no is
    /// what the file holds. After that, neither is so.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.entry.broken.load(Ordering::SeqCst)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Before the map goes: its place may be another one's then.
        self.entry.base.store(0, Ordering::SeqCst);
    }
}

/// A place for one map; free while it begins at 0.
#[derive(Debug)]
struct Entry {
    base: AtomicUsize,
    length: AtomicUsize,
    file: AtomicI32,
    broken: AtomicBool,
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            base: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            file: AtomicI32::new(-1),
            broken: AtomicBool::new(false),
        }
    }
}

const ENTRIES: usize = 64;

/// Entries; never freed, since the handler may be looking.
#[derive(Debug)]
struct Block {
    entries: [Entry; ENTRIES],
    next: AtomicPtr<Block>,
}

impl Block {
    const fn new() -> Block {
        Block { entries: [const { Entry::new() }; ENTRIES], next: AtomicPtr::new(null_mut()) }
    }

    fn next(&self) -> Option<&'static Block> {
        // SAFETY: null, or a block that was leaked.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }
}

static FIRST: Block = Block::new();
/// Who takes an entry holds it.
static TAKING: Mutex<()> = Mutex::new(());

fn take_entry(base: usize, length: usize, file: i32) -> &'static Entry {
    let _one = TAKING.lock();
    let mut block = &FIRST;
    let entry = loop {
        if let Some(free) = block.entries.iter().find(|entry| entry.base.load(Ordering::Acquire) == 0) {
            break free;
        }
        block = match block.next() {
            Some(next) => next,
            None => {
                let new = Box::leak(Box::new(Block::new()));
                block.next.store(new, Ordering::Release);
                new
            }
        };
    };
    entry.length.store(length, Ordering::Relaxed);
    entry.file.store(file, Ordering::Relaxed);
    entry.broken.store(false, Ordering::Relaxed);
    entry.base.store(base, Ordering::Release);
    entry
}

/// The map of this address. Whoever stumbled over it is using the map, so its entry stays as it is meanwhile; others may change.
fn find(address: usize) -> Option<(&'static Entry, usize)> {
    let mut block = Some(&FIRST);
    while let Some(here) = block {
        for entry in &here.entries {
            let base = entry.base.load(Ordering::SeqCst);
            let inside = base != 0
                && address.checked_sub(base).is_some_and(|at| at < entry.length.load(Ordering::SeqCst));
            if inside && entry.base.load(Ordering::SeqCst) == base {
                return Some((entry, base));
            }
        }
        block = here.next();
    }
    None
}

static PAGE: AtomicUsize = AtomicUsize::new(4096);
/// Whoever had the signal before.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

fn listen() {
    // SAFETY: a number in, a number out.
    if let Ok(page) = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) {
        PAGE.store(page, Ordering::Relaxed);
    }
    // SAFETY: all zero is a valid value of it.
    let before: &'static mut libc::sigaction = Box::leak(Box::new(unsafe { std::mem::zeroed() }));
    // SAFETY: as above.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    ours.sa_sigaction = on_bus as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both are valid; the handler makes system calls only, and keeps errno.
    unsafe {
        libc::sigemptyset(&raw mut ours.sa_mask);
        libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut *before);
        BEFORE.store(before, Ordering::SeqCst);
        libc::sigaction(libc::SIGBUS, &raw const ours, null_mut());
    }
}

extern "C" fn on_bus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: this thread's errno, which whoever was interrupted may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel hands over what SA_SIGINFO asks for.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Positive codes are the kernel's: a program that sends the signal says nothing of an address.
    let is_fault = code > 0;
    if !(is_fault && find(address).is_some_and(|(entry, base)| entry.replace_page(base, address))) {
        // SAFETY: what `listen` has noted. A fault comes once more when this returns; a signal has to be sent again.
        unsafe {
            libc::sigaction(libc::SIGBUS, BEFORE.load(Ordering::SeqCst), null_mut());
            if !is_fault {
                libc::raise(signal);
            }
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

impl Entry {
    /// Puts memory in the place of the page with this address, with what the kernel still has of it. Says whether it could.
    fn replace_page(&self, base: usize, address: usize) -> bool {
        let page = PAGE.load(Ordering::Relaxed);
        let at = address & !(page - 1);
        let Ok(offset) = libc::off_t::try_from(at - base) else { return false };
        // First: whoever reads or stores there from now on sees this as well, if he looks afterwards.
        self.broken.store(true, Ordering::SeqCst);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new page at a place of the kernel's choice.
        let copy = unsafe { libc::mmap(null_mut(), page, access, flags, -1, 0) };
        if copy == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: into the new page, which is nobody's yet. What cannot be read stays zero.
        unsafe { libc::pread(self.file.load(Ordering::SeqCst), copy, page, offset) };
        let moving = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the place is a page of the map that `base` begins, which lives: the interrupted thread is using it. Nothing
        // refers to that memory but raw pointers, and whoever uses them finds memory there before and after.
        unsafe { libc::mremap(copy, page, page, moving, at as *mut libc::c_void) != libc::MAP_FAILED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    /// A page beyond the end of its file is the one fault that needs no broken disk.
    #[test]
    fn a_page_that_is_not_there_breaks_its_map_and_no_other() {
        let page = PAGE.load(Ordering::Relaxed);
        let bytes = 4 * page as u64;
        let [map, other] = [(); 2].map(|()| Guarded::map(file(bytes), None, Access::Write).unwrap());
        // SAFETY: within the map, here and below.
        let at = |map: &Guarded, at: usize| unsafe { map.memory().as_mut_ptr().add(at) };
        // SAFETY: see above.
        unsafe { at(&map, 0).write_volatile(7) };
        assert!(!map.is_broken());
        map.file().set_len(2 * page as u64).unwrap();
        // SAFETY: see above.
        let found = unsafe { at(&map, 3 * page).read_volatile() };
        assert_eq!(found, 0);
        assert!(map.is_broken() && !other.is_broken());
        // SAFETY: see above.
        unsafe {
            at(&map, 3 * page).write_volatile(9);
            at(&map, 2 * page + 1).write_volatile(8);
        }
        // SAFETY: see above.
        let there = unsafe { [at(&map, 3 * page).read(), at(&map, 2 * page + 1).read(), at(&map, 0).read()] };
        assert_eq!(there, [9, 8, 7], "the process goes on, with memory of its own there");
        drop(map);
        // SAFETY: see above.
        unsafe { at(&other, 3 * page).write_volatile(1) };
        assert!(!other.is_broken());
    }

    #[test]
    fn many_maps_come_and_go() {
        let maps: Vec<_> =
            (0..3 * ENTRIES).map(|_| Guarded::map(file(4096), None, Access::Read).unwrap()).collect();
        for map in &maps {
            let base = map.memory().as_ptr() as usize;
            assert_eq!(find(base + 4095).map(|(_, found)| found), Some(base));
        }
        let gone = maps[5].memory().as_ptr() as usize;
        drop(maps);
        assert!(find(gone).is_none());
    }

    /// Set in the child that dies.
    const CHILD: &str = "INTERMEZZO_TEST_OF_ANOTHER_SIGBUS";

    #[test]
    fn another_sigbus_ends_the_process_as_ever() {
        let _listening = Guarded::map(file(4096), None, Access::Read).unwrap();
        if std::env::var_os(CHILD).is_some() {
            let file = file(8192);
            let plain = MmapOptions::new().map_raw(&file).unwrap();
            file.set_len(0).unwrap();
            // SAFETY: within the map.
            let _ = unsafe { plain.as_ptr().read_volatile() };
            return;
        }
        let program = std::env::current_exe().unwrap();
        let mut child = std::process::Command::new(program);
        child.args(["--exact", "guard::tests::another_sigbus_ends_the_process_as_ever", "--quiet"]);
        let done = child.env(CHILD, "1").output().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&done.status),
            Some(libc::SIGBUS),
            "{done:?}"
        );
    }
}

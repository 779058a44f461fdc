//! Whose rights a lower operation runs with, per thread.
//!
//! New files must belong to the caller (set-group-id directories, ACL inheritance and quotas look at the file system
//! ids at creation), and a written file must lose its set-user-id bit although presto writes as root. Both are done by
//! changing this thread's credentials for the length of one closure. A change of capabilities takes longer than most
//! lower operations, so a thread that serves users has no CAP_FSETID to begin with, and gets it for what needs it.

use std::cell::Cell;
use std::sync::OnceLock;

/// CAP_DAC_OVERRIDE.
const DAC_OVERRIDE: u32 = 1;
/// CAP_DAC_READ_SEARCH.
const DAC_READ_SEARCH: u32 = 2;
/// CAP_FSETID.
const FSETID: u32 = 4;
/// CAP_MKNOD.
const MKNOD: u32 = 27;
/// CAP_SYS_ADMIN.
const SYS_ADMIN: u32 = 21;

/// What making something takes beyond its maker's own rights, which the kernel has checked.
const MAKING: [u32; 3] = [DAC_OVERRIDE, DAC_READ_SEARCH, MKNOD];
/// The same for a file that is to have set-group-id.
const MAKING_SETGID: [u32; 4] = [DAC_OVERRIDE, DAC_READ_SEARCH, MKNOD, FSETID];

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Capabilities of a thread at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// All that the process has.
    Full,
    /// All but CAP_FSETID.
    Serving,
}

thread_local! {
    /// This process's capability sets, as this thread had them at first.
    static FULL: Cell<Option<[Sets; 2]>> = const { Cell::new(None) };
    /// This thread's umask, once it has one of its own.
    static OWN_UMASK: Cell<Option<u32>> = const { Cell::new(None) };
    /// What this thread has outside of the closures below.
    static REST: Cell<Rest> = const { Cell::new(Rest::Full) };
}

/// The user for whom something is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bits that the new file does not get (unless the directory has a default ACL).
    pub umask: u32,
    /// Permission bits asked for: without CAP_FSETID a new file may not get set-group-id.
    pub mode: u32,
}

/// Set-group-id.
const SGID: u32 = 0o2000;

/// This thread serves users from now on: see above. Cheap when it did before.
pub fn serve() {
    if REST.get() == Rest::Full
        && let Some(full) = full()
    {
        set_capabilities(without_fsetid(full));
        REST.set(Rest::Serving);
    }
}

/// Runs something that may leave a file set-group-id, on any thread.
pub fn with_fsetid<T>(change: impl FnOnce() -> T) -> T {
    let _back = Back::with_fsetid();
    change()
}

/// Runs a creation so that what it makes belongs to `owner`. Presto's power to search and write any directory stays:
/// the kernel has checked the caller's rights before.
pub fn as_owner<T>(owner: Owner, make: impl FnOnce() -> T) -> T {
    set_umask(owner.umask);
    let setgid = owner.mode & SGID != 0 && (owner.uid == 0 || kernel_strips_setgid());
    let _full = if owner.uid == 0 && setgid { Back::with_fsetid() } else { Back::Nothing };
    if owner.uid == 0 && owner.gid == 0 {
        return make();
    }
    let kept: &[u32] = if setgid { &MAKING_SETGID } else { &MAKING };
    let _back = Back::become_owner(owner, kept);
    make()
}

/// Runs something that changes content without CAP_FSETID, so that the lower file loses set-user-id and set-group-id
/// as if its user had written it.
pub fn dropping_privileges<T>(write: impl FnOnce() -> T) -> T {
    let _back = Back::without_fsetid();
    write()
}

/// Puts the credentials back, also when the closure unwinds.
enum Back {
    Nothing,
    Ids,
    Capabilities([Sets; 2]),
}

impl Back {
    fn become_owner(owner: Owner, kept: &[u32]) -> Back {
        let full = full();
        set_fs_ids(owner.uid, owner.gid);
        if owner.uid != 0
            && let Some(full) = full
        {
            // Leaving uid 0 took all file capabilities away. These come back.
            set_capabilities(keeping(full, kept));
        }
        Back::Ids
    }

    fn without_fsetid() -> Back {
        match (REST.get(), full()) {
            (Rest::Full, Some(full)) => {
                set_capabilities(without_fsetid(full));
                Back::Capabilities(full)
            }
            _ => Back::Nothing,
        }
    }

    fn with_fsetid() -> Back {
        match (REST.get(), full()) {
            (Rest::Serving, Some(full)) => {
                set_capabilities(full);
                Back::Capabilities(without_fsetid(full))
            }
            _ => Back::Nothing,
        }
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        match self {
            Back::Nothing => {}
            Back::Ids => {
                set_fs_ids(0, 0);
                if let Some(full) = FULL.get() {
                    set_capabilities(match REST.get() {
                        Rest::Full => full,
                        Rest::Serving => without_fsetid(full),
                    });
                }
            }
            Back::Capabilities(before) => set_capabilities(*before),
        }
    }
}

fn without_fsetid(full: [Sets; 2]) -> [Sets; 2] {
    let mut less = full;
    if let Some(low) = less.first_mut() {
        low.effective &= !(1 << FSETID);
    }
    less
}

/// `full` without the file capabilities other than these.
fn keeping(full: [Sets; 2], wanted: &[u32]) -> [Sets; 2] {
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, MKNOD: the kernel's CAP_FS_SET.
    const FILE: u32 =
        1 | 1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH | 1 << 3 | 1 << FSETID | 1 << 9 | 1 << MKNOD;
    let mut sets = full;
    if let Some(low) = sets.first_mut() {
        let kept = wanted.iter().fold(0, |bits, capability| bits | 1 << capability);
        low.effective = (low.effective & !FILE) | (low.permitted & kept);
    }
    sets
}

fn full() -> Option<[Sets; 2]> {
    if let Some(full) = FULL.get() {
        return Some(full);
    }
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: both structures have the layout that version 3 of capget(2) fills, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    FULL.set(Some(sets));
    Some(sets)
}

fn set_capabilities(sets: [Sets; 2]) {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: as for capget(2) above; it changes only the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result != 0 {
        tracing::error!(target: "lower", error = %std::io::Error::last_os_error(), "capset refused");
    }
}

fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: both calls take plain numbers and change only the calling thread. Group first on both ways: it needs
    // CAP_SETGID, which is no file capability and stays.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

fn set_umask(mask: u32) {
    let mask = mask & 0o777;
    let own = OWN_UMASK.get();
    if own == Some(mask) {
        return;
    }
    if own.is_none() {
        // SAFETY: takes a flag only; afterwards umask and working directory are this thread's own.
        let result = unsafe { libc::unshare(libc::CLONE_FS) };
        if result != 0 {
            tracing::error!(target: "lower", error = %std::io::Error::last_os_error(), "unshare(CLONE_FS) refused");
        }
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
    OWN_UMASK.set(Some(mask));
}

/// Whether this thread has a capability, by its number.
#[must_use]
pub fn is_capable(number: u32) -> bool {
    let effective = full().and_then(|sets| sets.first().map(|low| low.effective)).unwrap_or_default();
    1u32.checked_shl(number).is_some_and(|bit| effective & bit != 0)
}

/// Whether this thread may see what is the administrator's: CAP_SYS_ADMIN on this machine, and not only in a user namespace of
/// its own. Requests do not tell their user where mounts may be idmapped.
#[must_use]
pub fn administers(pid: u32) -> bool {
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(proc.join("status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    effective & 1 << SYS_ADMIN != 0
        && std::fs::read_link(proc.join("ns/user")).ok() == std::fs::read_link("/proc/self/ns/user").ok()
}

/// Whether the kernel has taken set-group-id from the mode of a file whose maker is not in the directory's group before it asks
/// a file system to make it (since 6.0, vfs_prepare_mode). It knows all groups of the maker, presto only one.
fn kernel_strips_setgid() -> bool {
    static STRIPS: OnceLock<bool> = OnceLock::new();
    *STRIPS.get_or_init(|| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        release.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 6)
    })
}

//! Termination signals, waited for instead of handled: no code runs in a handler.

use rustix::io::Errno;

/// The number of SIGTERM.
pub const SIGTERM: i32 = libc::SIGTERM;

/// SIGTERM and SIGINT, blocked in the thread that made it and in all that it starts afterwards.
#[derive(Debug)]
pub struct Termination {
    set: libc::sigset_t,
}

impl Termination {
    /// Call it first in `main`, before there are other threads.
    ///
    /// # Errors
    /// The kernel's.
    pub fn block() -> Result<Termination, Errno> {
        // SAFETY: an all-zero sigset_t is a valid value, and sigemptyset makes it an empty set.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid sigset_t that outlives the calls; the old mask is not asked for.
        let result = unsafe {
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        };
        if result == 0 { Ok(Termination { set }) } else { Err(Errno::from_raw_os_error(result)) }
    }

    /// Waits until one of them comes; its number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self) -> Result<i32, Errno> {
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are to live values of the right types.
            match unsafe { libc::sigwait(&raw const self.set, &raw mut signal) } {
                0 => return Ok(signal),
                libc::EINTR => {}
                error => return Err(Errno::from_raw_os_error(error)),
            }
        }
    }
}

/// Those that do nothing to a program that has no handler for them, or that only stop it. Runtimes use some of them without
/// pause, and a call that ends because a child has ended is expected by nobody.
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Whether a signal waits for this thread that ends what it waits for. Of a thread that cannot be seen from here, nothing is
/// known.
#[must_use]
pub fn is_interrupted(thread: u32) -> bool {
    waiting_signals(thread).is_some_and(|(waiting, _)| waiting != 0)
}

/// Whether one waits that ends its program: for calls that no program expects to be interrupted, whatever handlers it has.
#[must_use]
pub fn is_ended(thread: u32) -> bool {
    waiting_signals(thread).is_some_and(|(waiting, caught)| waiting & !caught != 0)
}

/// Those that are neither blocked, ignored nor harmless, and those for which there is a handler.
fn waiting_signals(thread: u32) -> Option<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let mask = |name: &str| {
        let bits = status.lines().find_map(|line| line.strip_prefix(name));
        bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0)
    };
    let harmless = HARMLESS.iter().fold(0, |all, signal| all | 1_u64 << (signal - 1));
    let waiting = (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:") & !harmless;
    Some((waiting, mask("SigCgt:")))
}

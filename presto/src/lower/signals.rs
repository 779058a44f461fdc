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

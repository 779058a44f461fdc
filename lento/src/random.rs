//! Random numbers for ids and jitter, from the kernel.

use std::io::Read;
use std::time::Duration;

/// A random number other than 0.
///
/// # Errors
/// The kernel's random device cannot be read.
pub fn id() -> std::io::Result<u64> {
    let mut device = std::fs::File::open("/dev/urandom")?;
    loop {
        let mut bytes = [0; 8];
        device.read_exact(&mut bytes)?;
        let id = u64::from_le_bytes(bytes);
        if id != 0 {
            return Ok(id);
        }
    }
}

/// Between half of `base` and all of it, so that many waiters do not come back at once.
#[must_use]
pub fn jitter(base: Duration) -> Duration {
    let part = id().unwrap_or(u64::MAX) % 1000;
    base.mul_f64(0.5 + f64::from(u32::try_from(part).unwrap_or(0)) / 2000.0)
}

/// A waiting time that doubles up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Backoff {
    /// From `first` to `last`.
    #[must_use]
    pub fn new(first: Duration, last: Duration) -> Backoff {
        Backoff { first, last, next: first }
    }

    /// How long to wait this time.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.last);
        jitter(wait)
    }

    /// It went well: begin again with the first.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

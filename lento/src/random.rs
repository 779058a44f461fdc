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

    /// How long to wait after something went well for `lived`: who held out as long as the longest wait begins again with
    /// the first.
    pub fn wait_after(&mut self, lived: Duration) -> Duration {
        if lived >= self.last {
            self.reset();
        }
        self.wait()
    }

    /// It went well: begin again with the first.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_held_out_is_not_made_to_wait_for_old_failures() {
        let (first, last) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut backoff = Backoff::new(first, last);
        for _ in 0..10 {
            backoff.wait_after(Duration::from_secs(3));
        }
        assert!(backoff.wait_after(Duration::from_secs(59)) >= last / 2);
        assert!(backoff.wait_after(last) <= first);
    }
}

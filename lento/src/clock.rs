//! The clocks: the core's, which never goes back and counts through suspend, and the lower file system's.

use lento_core::types::Time;
use lento_core::volume::Millis;
use rustix::time::ClockId;
use rustix::time::clock_gettime;
use std::time::Duration;

/// Now, on CLOCK_BOOTTIME.
#[must_use]
pub fn now() -> Millis {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Millis(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

/// How long until then; zero if it is past.
#[must_use]
pub fn until(then: Millis) -> Duration {
    Duration::from_millis(then.0.saturating_sub(now().0))
}

/// Now, as files are stamped.
#[must_use]
pub fn wall() -> Time {
    let time = clock_gettime(ClockId::Realtime);
    Time { sec: time.tv_sec, nsec: u32::try_from(time.tv_nsec).unwrap_or(0) }
}

/// Seconds from then until `now`; 0 for nothing, and where the clock was set back in between.
#[must_use]
pub fn seconds_since(then: Option<Time>, now: Time) -> f64 {
    then.map_or(0.0, |then| nanos_between(then, now).max(0) as f64 / 1e9)
}

/// Nanoseconds from `earlier` to `later`; negative if they stand the other way round.
#[must_use]
pub fn nanos_between(earlier: Time, later: Time) -> i128 {
    let of = |time: Time| i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
    of(later) - of(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_never_negative_and_no_clock_overflows_them() {
        let time = |sec| Time { sec, nsec: 999_999_999 };
        for now in [i64::MIN, -1, 0, 1_700_000_000, i64::MAX] {
            for then in [i64::MIN, -5_000_000_000, 0, 4_102_444_800, i64::MAX] {
                let age = seconds_since(Some(time(then)), time(now));
                assert!(age >= 0.0 && age.is_finite(), "{then} to {now}: {age}");
            }
        }
        assert_eq!(seconds_since(Some(time(10)), time(5)), 0.0, "the clock was set back");
        assert_eq!(seconds_since(None, time(5)), 0.0);
        assert_eq!(until(Millis(0)), Duration::ZERO);
        assert!(until(Millis(u64::MAX)) > Duration::from_secs(86_400));
    }
}

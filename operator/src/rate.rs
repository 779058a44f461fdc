//! How often a status is written: at once when a condition says something else, otherwise every ten seconds at most.

use std::collections::BTreeMap;
use std::time::Duration;

use intermezzo_api::Condition;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::conditions::changed;

/// Least time between two writes that bring no other condition.
pub const PAUSE: Duration = Duration::from_secs(10);

/// When each object's status was written last.
#[derive(Debug, Default)]
pub struct Writes(Mutex<BTreeMap<String, Instant>>);

/// What to do with a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Write it.
    Now,
    /// Nothing new.
    Never,
    /// Look again after this time.
    In(Duration),
}

impl Writes {
    /// Decides for the object `uid`; `Now` counts as written.
    pub fn decide<T: PartialEq>(
        &self,
        uid: &str,
        (before, old): (&T, &[Condition]),
        (after, new): (&T, &[Condition]),
        now: Instant,
    ) -> Write {
        if before == after {
            return Write::Never;
        }
        let mut written = self.0.lock();
        let due = written.get(uid).map_or(now, |last| *last + PAUSE);
        let news = changed(old, new).next().is_some() || old.len() != new.len();
        if !news && due > now {
            return Write::In(due - now);
        }
        written.insert(uid.to_owned(), now);
        Write::Now
    }

    /// Forgets an object.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

/// What was brought about for each object, by numbers, and when.
#[derive(Debug, Default)]
pub struct Applied(Mutex<BTreeMap<String, (Vec<u64>, Instant)>>);

impl Applied {
    /// Somebody may have changed it meanwhile.
    const AGAIN: Duration = Duration::from_secs(60);

    /// Whether this is something else than before, or was brought about long ago.
    pub fn is_due(&self, uid: &str, wanted: &[u64], now: Instant) -> bool {
        let applied = self.0.lock();
        applied.get(uid).is_none_or(|(before, at)| before != wanted || *at + Applied::AGAIN <= now)
    }

    /// It has been brought about.
    pub fn note(&self, uid: &str, wanted: Vec<u64>, now: Instant) {
        self.0.lock().insert(uid.to_owned(), (wanted, now));
    }

    /// Forgets an object.
    pub fn forget(&self, uid: &str) {
        self.0.lock().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::{Conditions, Truth};

    fn ready(truth: Truth) -> Vec<Condition> {
        let mut conditions = Conditions::new(&[], None, jiff::Timestamp::UNIX_EPOCH);
        conditions.set("Ready", truth, "Because", "");
        conditions.done()
    }

    #[test]
    fn what_is_as_it_was_is_looked_at_once_a_minute() {
        let (applied, start) = (Applied::default(), Instant::now());
        assert!(applied.is_due("uid", &[1], start));
        applied.note("uid", vec![1], start);
        assert!(!applied.is_due("uid", &[1], start + Duration::from_secs(59)));
        assert!(applied.is_due("uid", &[1], start + Duration::from_secs(60)));
        assert!(applied.is_due("uid", &[1, 2], start));
    }

    #[test]
    fn numbers_wait_and_conditions_do_not() {
        let (writes, start, yes, no) =
            (Writes::default(), Instant::now(), ready(Truth::Yes), ready(Truth::No));
        let decide = |before: (&i32, &[Condition]), after: (&i32, &[Condition]), seconds| {
            writes.decide("uid", before, after, start + Duration::from_secs(seconds))
        };
        assert_eq!(decide((&1, &[]), (&1, &yes), 0), Write::Never);
        assert_eq!(decide((&0, &[]), (&1, &yes), 0), Write::Now);
        assert_eq!(decide((&1, &yes), (&2, &yes), 4), Write::In(Duration::from_secs(6)));
        assert_eq!(decide((&1, &yes), (&2, &no), 4), Write::Now);
        assert_eq!(decide((&2, &no), (&3, &no), 14), Write::Now);
        writes.forget("uid");
        assert_eq!(decide((&3, &no), (&4, &no), 15), Write::Now);
    }
}

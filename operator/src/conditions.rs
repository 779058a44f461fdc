//! Conditions: set with the generation they were judged by; the time of transition moves only when the status does.

use intermezzo_api::Condition;
use intermezzo_api::condition::{READY, TERMINATING};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::time::Duration;

/// What is known of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// Nobody can say.
    Unknown,
}

impl Truth {
    /// `Yes` or `No`.
    #[must_use]
    pub fn of(holds: bool) -> Truth {
        if holds { Truth::Yes } else { Truth::No }
    }

    fn text(self) -> &'static str {
        match self {
            Truth::Yes => "True",
            Truth::No => "False",
            Truth::Unknown => "Unknown",
        }
    }
}

/// Conditions of one object under way.
#[derive(Clone, Debug)]
pub struct Conditions {
    before: Vec<Condition>,
    now: Vec<Condition>,
    generation: Option<i64>,
    at: Timestamp,
}

impl Conditions {
    /// From those it had, judged at `at` by this generation of the spec.
    #[must_use]
    pub fn new(before: &[Condition], generation: Option<i64>, at: Timestamp) -> Conditions {
        Conditions { before: before.to_vec(), now: Vec::new(), generation, at }
    }

    /// Says what is true. `reason` is one word for programs, `message` a sentence for people.
    pub fn set(&mut self, type_: &str, truth: Truth, reason: &str, message: impl Into<String>) {
        let status = truth.text();
        let same = self.before.iter().find(|before| before.type_ == type_ && before.status == status);
        self.now.retain(|condition| condition.type_ != type_);
        self.now.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.into(),
            observed_generation: self.generation,
            last_transition_time: same.map_or(Time(self.at), |before| before.last_transition_time.clone()),
        });
    }

    /// All that were set.
    #[must_use]
    pub fn done(self) -> Vec<Condition> {
        self.now
    }
}

/// Of an object that is being deleted, and why it still is there.
#[must_use]
pub fn terminating(
    before: &[Condition],
    generation: Option<i64>,
    reason: &str,
    message: impl Into<String>,
) -> Vec<Condition> {
    let mut conditions = Conditions::new(before, generation, Timestamp::now());
    conditions.set(TERMINATING, Truth::Yes, reason, message);
    conditions.set(READY, Truth::No, "Terminating", "it is being deleted");
    conditions.done()
}

/// How long ago, by this clock. The API server's may be ahead: then it has just been.
#[must_use]
pub fn elapsed(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether a condition is there and holds.
#[must_use]
pub fn holds(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Conditions that a person should hear about: another status or another reason than before.
pub fn changed<'a>(before: &'a [Condition], now: &'a [Condition]) -> impl Iterator<Item = &'a Condition> {
    now.iter().filter(|new| {
        find(before, &new.type_).is_none_or(|old| old.status != new.status || old.reason != new.reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_behind_makes_nothing_late() {
        let now = Timestamp::now();
        assert_eq!(elapsed(now + Duration::from_secs(3600), now), Duration::ZERO);
        assert_eq!(elapsed(now - Duration::from_secs(60), now), Duration::from_secs(60));
    }

    #[test]
    fn the_time_moves_with_the_status_only() {
        let early = Timestamp::now();
        let mut first = Conditions::new(&[], Some(1), early);
        first.set("Ready", Truth::No, "Starting", "wait");
        let first = first.done();
        let late = early + Duration::from_secs(60);
        let mut second = Conditions::new(&first, Some(2), late);
        second.set("Ready", Truth::No, "Stuck", "disk full");
        let second = second.done();
        assert_eq!(second[0].last_transition_time, Time(early));
        assert_eq!(second[0].observed_generation, Some(2));
        assert_eq!(changed(&first, &second).count(), 1, "another reason is news");
        let mut third = Conditions::new(&second, Some(2), late);
        third.set("Ready", Truth::Yes, "Ready", "");
        let third = third.done();
        assert_eq!(third[0].last_transition_time, Time(late));
        assert!(holds(&third, "Ready") && !holds(&second, "Ready"));
    }
}

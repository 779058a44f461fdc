//! What to do with a Lease as it is.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// Another's Lease: nobody's clock is compared with another one's, only how long it has not changed here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lead {
    pub(super) holder: String,
    pub(super) renewed: Option<Timestamp>,
    pub(super) since: Instant,
}

#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Make it ours, or renew it.
    Write(Box<LeaseSpec>),
    /// It is another's.
    Yield,
}

pub(super) fn evaluate(
    lease: Option<&Lease>,
    me: &str,
    watched: &mut Option<Lead>,
    now: Timestamp,
    here: Instant,
    length: Duration,
) -> Decision {
    let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
    let mine = LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(length.as_secs()).ok(),
        renew_time: Some(MicroTime(now)),
        ..spec.clone()
    };
    let taken = || {
        let transitions = spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(lease.is_some()));
        let acquire_time = Some(MicroTime(now));
        Decision::Write(Box::new(LeaseSpec {
            acquire_time,
            lease_transitions: Some(transitions),
            ..mine.clone()
        }))
    };
    let Some(holder) = holder else {
        *watched = None;
        return taken();
    };
    if holder == me {
        *watched = None;
        return Decision::Write(Box::new(mine.clone()));
    }
    let renewed = spec.renew_time.map(|time| time.0);
    let length = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let length = length.map_or(super::LEASE, Duration::from_secs);
    match watched {
        Some(lead) if lead.holder == holder && lead.renewed == renewed => {
            if here.saturating_duration_since(lead.since) <= length {
                return Decision::Yield;
            }
            *watched = None;
            taken()
        }
        _ => {
            *watched = Some(Lead { holder, renewed, since: here });
            Decision::Yield
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(15);

    fn held(by: &str, renewed: Timestamp) -> Lease {
        let spec = LeaseSpec {
            holder_identity: Some(by.into()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(MicroTime(renewed)),
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        };
        Lease { spec: Some(spec), ..Lease::default() }
    }

    fn written(decision: Decision) -> LeaseSpec {
        let Decision::Write(spec) = decision else { panic!("it yields") };
        *spec
    }

    #[test]
    fn nobodys_lease_is_taken_and_ones_own_renewed() {
        let (now, here, mut watched) = (Timestamp::now(), Instant::now(), None);
        let spec = written(evaluate(None, "a", &mut watched, now, here, LENGTH));
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("a"), Some(0)));

        let before = held("a", now - Duration::from_secs(3));
        let spec = written(evaluate(Some(&before), "a", &mut watched, now, here, LENGTH));
        assert_eq!((spec.renew_time, spec.lease_transitions), (Some(MicroTime(now)), Some(3)));
        assert_eq!(spec.acquire_time, before.spec.unwrap().acquire_time);

        let mut given_back = held("b", now);
        given_back.spec.as_mut().unwrap().holder_identity = None;
        let spec = written(evaluate(Some(&given_back), "a", &mut watched, now, here, LENGTH));
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("a"), Some(4)));
    }

    #[test]
    fn anothers_lease_is_taken_only_after_it_has_not_moved_for_its_whole_length() {
        let (now, here, mut watched) = (Timestamp::now(), Instant::now(), None);
        // Its time stamp is an hour old: that says nothing, its holder's clock may be wrong.
        let old = held("b", now - Duration::from_secs(3600));
        let mut at = |lease: &Lease, seconds| {
            evaluate(Some(lease), "a", &mut watched, now, here + Duration::from_secs(seconds), LENGTH)
        };
        assert_eq!(at(&old, 0), Decision::Yield);
        assert_eq!(at(&old, 14), Decision::Yield);
        let renewed = held("b", now);
        assert_eq!(at(&renewed, 16), Decision::Yield);
        assert_eq!(at(&renewed, 31), Decision::Yield);
        let spec = written(at(&renewed, 32));
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("a"), Some(4)));
    }
}

//! The filter's questions, put to Lento over the channel; its policy where Lento is away.

use std::time::Duration;

use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::safety::Is;
use intermezzo_channel::v1::{GetData, GetPermit, GetSafety};
use intermezzo_kml::record::{FileId, Recno};
use rustix::io::Errno;

use super::{Answer, Link, NoLento, convert};
use crate::filter::{DataAnswer, Kept, PermitAnswer, Safety, Upcalls, Wait};

impl Upcalls for Link {
    fn journal(&self, volume: &str, to: Recno) {
        self.announce(volume, to.0);
    }

    fn get_permit(&self, volume: &str, wait: Wait) -> PermitAnswer {
        let body = Body::GetPermit(GetPermit { deadline_ms: milliseconds(wait.deadline) });
        let unheard = || match self.policy(volume) {
            NoLento::Steal => PermitAnswer::Stolen,
            NoLento::Fail => PermitAnswer::ReadOnly,
        };
        match self.ask(volume, body, wait) {
            Answer::Answered(Body::PermitGranted(granted)) => {
                PermitAnswer::Granted { serial: granted.serial, until: granted.until_ms }
            }
            Answer::Answered(Body::Failure(failure)) => match errno(failure.errno, Errno::AGAIN) {
                Errno::NOTCONN => unheard(),
                errno => PermitAnswer::Refused(errno),
            },
            Answer::Answered(_) => PermitAnswer::Refused(Errno::PROTO),
            Answer::Interrupted => PermitAnswer::Refused(Errno::INTR),
            Answer::Away | Answer::Late => unheard(),
        }
    }

    fn get_data(&self, volume: &str, object: FileId, wait: Wait) -> DataAnswer {
        let object = Some(convert::to_file_id(object));
        let body = Body::GetData(GetData { object, deadline_ms: milliseconds(wait.deadline) });
        match self.ask(volume, body, wait) {
            Answer::Answered(Body::Done(_)) => DataAnswer::Present,
            Answer::Answered(Body::Coming(_)) => DataAnswer::Coming,
            Answer::Answered(Body::Failure(failure)) => DataAnswer::Refused(errno(failure.errno, Errno::IO)),
            Answer::Answered(_) => DataAnswer::Refused(Errno::PROTO),
            Answer::Interrupted => DataAnswer::Refused(Errno::INTR),
            // A permit can be stolen, bytes that are not here cannot.
            Answer::Away | Answer::Late => DataAnswer::Away,
        }
    }

    fn safety(&self, volume: &str, object: FileId, newest: Recno, wait: Wait) -> Safety {
        let object = Some(convert::to_file_id(object));
        let deadline_ms = milliseconds(wait.deadline);
        let body = Body::GetSafety(GetSafety { object, newest: newest.0, deadline_ms, at_server: false });
        match self.ask(volume, body, wait) {
            Answer::Answered(Body::Safety(answer)) => match answer.is() {
                Is::Local => Safety::Local,
                Is::Server => Safety::Server,
                Is::Everywhere => Safety::Everywhere,
                Is::Unspecified => Safety::Unknown,
            },
            Answer::Answered(_) | Answer::Away | Answer::Late | Answer::Interrupted => Safety::Unknown,
        }
    }

    fn keep(&self, volume: &str, object: FileId, newest: Recno, wait: Wait) -> Kept {
        let object = Some(convert::to_file_id(object));
        let deadline_ms = milliseconds(wait.deadline);
        let body = Body::GetSafety(GetSafety { object, newest: newest.0, deadline_ms, at_server: true });
        match self.ask(volume, body, wait) {
            Answer::Answered(Body::Safety(_)) => Kept::AtServer,
            Answer::Answered(Body::Failure(failure)) => match errno(failure.errno, Errno::IO) {
                Errno::NOTCONN => Kept::Unheard,
                errno => Kept::Refused(errno),
            },
            Answer::Answered(_) => Kept::Refused(Errno::PROTO),
            Answer::Interrupted => Kept::Refused(Errno::INTR),
            Answer::Late => Kept::Refused(Errno::TIMEDOUT),
            Answer::Away => Kept::Unheard,
        }
    }
}

fn milliseconds(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
}

/// The errno Lento sent, if the kernel would take it.
fn errno(raw: i32, otherwise: Errno) -> Errno {
    if (1..4096).contains(&raw) { Errno::from_raw_os_error(raw) } else { otherwise }
}

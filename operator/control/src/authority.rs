//! The certificate authority: what it is made of, and how one follows another without anybody losing touch.
//!
//! A rollover has three states, and [`Authority::due`] is the only way from one to the next:
//! - *steady*: one CA, which issues and is trusted;
//! - *announced*: the next CA is trusted as well, the old one still issues. It lasts for the longest lifetime of a
//!   certificate: whoever has a valid one at the end got it after the announcement, and the bundle came with it;
//! - *retiring*: the new CA issues, the old one is still trusted, until its last certificate has ended.
//!
//! It holds no clock and no files: the operator asks what is due, writes the answer to its Secret, and then uses it.

mod issue;
mod pem;

pub use issue::Issued;
pub use issue::Refusal;

use rcgen::KeyPair;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

/// Why an authority cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A part of what was stored is missing.
    #[error("the stored authority has no {0}")]
    Missing(&'static str),
    /// A part of what was stored is broken.
    #[error("the stored authority's {part} is broken: {reason}")]
    Broken {
        /// Which part.
        part: &'static str,
        /// Why.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// Lifetimes that do not fit.
    #[error(
        "an authority must live at least {least:?} where certificates live {certificate:?}, not {authority:?}"
    )]
    Lifetimes {
        /// Of the authority, as given.
        authority: Duration,
        /// Of certificates, as given.
        certificate: Duration,
        /// What the authority's must be at least.
        least: Duration,
    },
    /// A rollover is under way.
    #[error("a rollover is under way: {0}")]
    Rolling(&'static str),
}

/// How long things live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    authority: Duration,
    certificate: Duration,
}

/// The last part of an authority's life in which the next one takes over.
const HANDOVER_PART: u32 = 3;
/// A handover takes two lifetimes of a certificate, and there must be room for it.
const LEAST: u32 = HANDOVER_PART * 2;

impl Lifetimes {
    /// Of an authority and of the certificates that it issues.
    ///
    /// # Errors
    /// The authority's is too short for a handover, or a certificate's is less than a second.
    pub fn new(authority: Duration, certificate: Duration) -> Result<Lifetimes, AuthorityError> {
        let certificate_or_least = certificate.max(Duration::from_secs(1));
        let least = certificate_or_least.saturating_mul(LEAST);
        if authority < least || certificate < certificate_or_least {
            return Err(AuthorityError::Lifetimes { authority, certificate, least });
        }
        Ok(Lifetimes { authority, certificate })
    }

    /// Of a certificate.
    #[must_use]
    pub fn certificate(&self) -> Duration {
        self.certificate
    }
}

impl Default for Lifetimes {
    /// Ten years and a day: replication outlives an operator that is away for the greater part of a day.
    fn default() -> Lifetimes {
        let day = Duration::from_secs(86_400);
        Lifetimes { authority: day * 3650, certificate: day }
    }
}

/// One CA.
#[derive(Clone)]
struct Ca {
    certificate: String,
    key: Arc<KeyPair>,
    expiry: SystemTime,
}

#[derive(Clone)]
enum State {
    Steady,
    Announced { next: Ca, issues_from: SystemTime },
    Retiring { previous: String, trusted_until: SystemTime },
}

/// The authority in one state. Made by [`Authority::create`] or read by [`Authority::from_pem`].
#[derive(Clone)]
pub struct Authority {
    issuing: Ca,
    state: State,
    /// The longest lifetime that a certificate of it may have.
    longest: Duration,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("state", &self.state_name()).finish_non_exhaustive()
    }
}

impl Authority {
    /// The first one.
    ///
    /// # Errors
    /// The random device fails.
    pub fn create(now: SystemTime, lifetimes: &Lifetimes) -> Result<Authority, AuthorityError> {
        let issuing = Ca::create(now + lifetimes.authority)?;
        Ok(Authority { issuing, state: State::Steady, longest: lifetimes.certificate })
    }

    /// What must take the place of this one now; `None`: nothing. Write it to stable storage, then use it.
    ///
    /// # Errors
    /// The random device fails.
    pub fn due(&self, now: SystemTime, lifetimes: &Lifetimes) -> Result<Option<Authority>, AuthorityError> {
        if lifetimes.certificate > self.longest {
            let longest = lifetimes.certificate;
            return Ok(Some(Authority { longest, ..self.clone() }));
        }
        let dead = self.issuing.expiry <= now;
        match &self.state {
            // Nobody holds a certificate of it that is still valid: there is nothing to hand over.
            State::Steady if dead => Authority::create(now, lifetimes).map(Some),
            State::Steady if self.issuing.expiry <= now + lifetimes.authority / HANDOVER_PART => {
                self.announce(now, lifetimes).map(Some)
            }
            State::Announced { next, issues_from } if dead || *issues_from <= now => {
                let previous = self.issuing.certificate.clone();
                let state = State::Retiring { previous, trusted_until: now + self.longest };
                Ok(Some(Authority { issuing: next.clone(), state, longest: self.longest }))
            }
            State::Retiring { trusted_until, .. } if *trusted_until <= now => {
                Ok(Some(Authority { state: State::Steady, ..self.clone() }))
            }
            State::Steady | State::Announced { .. } | State::Retiring { .. } => Ok(None),
        }
    }

    /// A rollover that a person asks for: the same steps as by age.
    ///
    /// # Errors
    /// One is under way.
    pub fn roll(&self, now: SystemTime, lifetimes: &Lifetimes) -> Result<Authority, AuthorityError> {
        match self.state {
            State::Steady => self.announce(now, lifetimes),
            State::Announced { .. } => Err(AuthorityError::Rolling("the next authority has been announced")),
            State::Retiring { .. } => Err(AuthorityError::Rolling("the previous authority is still trusted")),
        }
    }

    fn announce(&self, now: SystemTime, lifetimes: &Lifetimes) -> Result<Authority, AuthorityError> {
        let next = Ca::create(now + lifetimes.authority)?;
        let state = State::Announced { next, issues_from: now + self.longest };
        Ok(Authority { state, ..self.clone() })
    }

    /// Everything that is to be trusted, PEM: for the agents' ConfigMap.
    #[must_use]
    pub fn bundle(&self) -> String {
        let mut bundle = self.issuing.certificate.clone();
        match &self.state {
            State::Steady => {}
            State::Announced { next, .. } => bundle.push_str(&next.certificate),
            State::Retiring { previous, .. } => bundle.push_str(previous),
        }
        bundle
    }

    /// `Steady`, `Announced` or `Retiring`.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Steady => "Steady",
            State::Announced { .. } => "Announced",
            State::Retiring { .. } => "Retiring",
        }
    }
}

#[cfg(test)]
mod tests;

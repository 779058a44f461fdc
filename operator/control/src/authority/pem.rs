//! The authority as texts, one for each key of the Secret that holds it.

use super::Authority;
use super::AuthorityError;
use super::Ca;
use super::State;
use intermezzo_identity::credentials::certificates;
use intermezzo_identity::name::expiry_of_certificate;
use rcgen::KeyPair;
use rcgen::PublicKeyData;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const LONGEST: &str = "longest-lifetime";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const NEXT_FROM: &str = "next.issues-from";
const PREVIOUS: &str = "previous.crt";
const PREVIOUS_UNTIL: &str = "previous.trusted-until";

impl Authority {
    /// Everything that must be stored. Private keys are among it.
    #[must_use]
    pub fn to_pem(&self) -> BTreeMap<String, String> {
        let mut parts = BTreeMap::new();
        let mut put = |part: &str, text: String| drop(parts.insert(part.to_owned(), text));
        put(CERTIFICATE, self.issuing.certificate.clone());
        put(KEY, self.issuing.key.serialize_pem());
        put(LONGEST, self.longest.as_secs().to_string());
        match &self.state {
            State::Steady => {}
            State::Announced { next, issues_from } => {
                put(NEXT_CERTIFICATE, next.certificate.clone());
                put(NEXT_KEY, next.key.serialize_pem());
                put(NEXT_FROM, seconds(*issues_from));
            }
            State::Retiring { previous, trusted_until } => {
                put(PREVIOUS, previous.clone());
                put(PREVIOUS_UNTIL, seconds(*trusted_until));
            }
        }
        parts
    }

    /// Reads what [`Authority::to_pem`] gave.
    ///
    /// # Errors
    /// A part is missing or broken. Nothing is repaired: who would trust what it made up?
    pub fn from_pem(parts: &BTreeMap<String, String>) -> Result<Authority, AuthorityError> {
        let issuing = ca(parts, CERTIFICATE, KEY)?;
        let longest = Duration::from_secs(number(parts, LONGEST)?);
        let state = if parts.contains_key(NEXT_CERTIFICATE) {
            let next = ca(parts, NEXT_CERTIFICATE, NEXT_KEY)?;
            State::Announced { next, issues_from: time(parts, NEXT_FROM)? }
        } else if parts.contains_key(PREVIOUS) {
            let (previous, _) = certificate(parts, PREVIOUS)?;
            State::Retiring { previous, trusted_until: time(parts, PREVIOUS_UNTIL)? }
        } else {
            State::Steady
        };
        Ok(Authority { issuing, state, longest })
    }
}

fn text<'a>(parts: &'a BTreeMap<String, String>, part: &'static str) -> Result<&'a str, AuthorityError> {
    parts.get(part).map(String::as_str).ok_or(AuthorityError::Missing(part))
}

fn number(parts: &BTreeMap<String, String>, part: &'static str) -> Result<u64, AuthorityError> {
    text(parts, part)?.trim().parse().map_err(|error| broken(part, error))
}

fn time(parts: &BTreeMap<String, String>, part: &'static str) -> Result<SystemTime, AuthorityError> {
    let since = Duration::from_secs(number(parts, part)?);
    UNIX_EPOCH.checked_add(since).ok_or_else(|| broken(part, "too far away"))
}

fn seconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string()
}

/// The text, and the one certificate in it (DER).
fn certificate(
    parts: &BTreeMap<String, String>,
    part: &'static str,
) -> Result<(String, Vec<u8>), AuthorityError> {
    let pem = text(parts, part)?;
    let mut found = certificates(part, pem).map_err(|error| broken(part, error))?.into_iter();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok((pem.to_owned(), one.to_vec())),
        _ => Err(broken(part, "one certificate is wanted")),
    }
}

fn ca(
    parts: &BTreeMap<String, String>,
    cert_part: &'static str,
    key_part: &'static str,
) -> Result<Ca, AuthorityError> {
    let (pem, der) = certificate(parts, cert_part)?;
    let key = KeyPair::from_pem(text(parts, key_part)?).map_err(|error| broken(key_part, error))?;
    let (_, read) = x509_parser::parse_x509_certificate(&der).map_err(|error| broken(cert_part, error))?;
    if !read.is_ca() {
        return Err(broken(cert_part, "it is not an authority's"));
    }
    if read.public_key().raw != key.subject_public_key_info() {
        return Err(broken(key_part, "it is not the certificate's"));
    }
    let expiry = expiry_of_certificate(&der).map_err(|error| broken(cert_part, error))?;
    Ok(Ca { certificate: pem, key: Arc::new(key), expiry })
}

fn broken(part: &'static str, reason: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Broken { part, reason: reason.to_string() }
}

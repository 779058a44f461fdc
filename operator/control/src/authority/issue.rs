//! What the authority signs: itself, nodes' certificates and the operator's own.

use super::Authority;
use super::AuthorityError;
use super::Ca;
use intermezzo_identity::OPERATOR_NAME;
use intermezzo_identity::name::is_node_name;
use intermezzo_identity::name::node_identity;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SubjectPublicKeyInfo;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Why a node gets no certificate. Text for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// A certificate for somebody else's key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// From now.
    pub lifetime: Duration,
}

impl Ca {
    pub(super) fn create(expiry: SystemTime) -> Result<Ca, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        // Two authorities are trusted at a time: they must not look the same.
        let id: String =
            params.key_identifier(&key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        params.distinguished_name.push(DnType::CommonName, format!("InterMezzo authority {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, expiry);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Ca { certificate, key: Arc::new(key), expiry })
    }
}

impl Authority {
    /// A certificate for `node`, for the key that signed `csr` (PKCS#10, DER). Only the key is taken from it: what names it
    /// asks for does not matter.
    ///
    /// # Errors
    /// The request is not what an agent sends, or the name is no node's.
    pub fn issue_node(
        &self,
        node: &str,
        csr: &[u8],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, Refusal> {
        if !is_node_name(node) {
            return Err(Refusal(format!("{node:?} is not a node's name")));
        }
        let key = key_of_request(csr)?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let expiry = self.expiry(lifetime, now);
        let certificate = self
            .sign(&node_identity(node), usages, &key, expiry)
            .map_err(|error| Refusal(format!("no certificate could be made: {error}")))?;
        Ok(Issued { certificate, lifetime: expiry.duration_since(now).unwrap_or_default() })
    }

    /// The operator's own certificate and its key, PEM.
    ///
    /// # Errors
    /// The random device fails.
    pub fn issue_operator(
        &self,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate()?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = self.sign(OPERATOR_NAME, usages, &key, self.expiry(lifetime, now))?;
        Ok((certificate, key.serialize_pem()))
    }

    /// No certificate outlives what rollovers count on.
    fn expiry(&self, lifetime: Duration, now: SystemTime) -> SystemTime {
        (now + lifetime.min(self.longest)).min(self.issuing.expiry)
    }

    fn sign(
        &self,
        name: &str,
        usages: Vec<ExtendedKeyUsagePurpose>,
        key: &impl rcgen::PublicKeyData,
        expiry: SystemTime,
    ) -> Result<String, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&self.issuing.certificate, &*self.issuing.key)?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, expiry);
        Ok(params.signed_by(key, &issuer)?.pem())
    }
}

/// The key in a request, which must have signed it.
fn key_of_request(csr: &[u8]) -> Result<SubjectPublicKeyInfo, Refusal> {
    let refuse = |what: &str| Refusal(format!("the certificate request {what}"));
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|_| refuse("cannot be read as PKCS#10"))?;
    if !rest.is_empty() {
        return Err(refuse("is followed by something else"));
    }
    request.verify_signature().map_err(|_| refuse("is not signed by its own key"))?;
    let raw = request.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(raw).map_err(|_| refuse("has a key of an unknown kind"))?;
    if rcgen::PublicKeyData::algorithm(&key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(refuse("has a key that is not P-256"));
    }
    Ok(key)
}

fn set_validity(params: &mut CertificateParams, expiry: SystemTime) {
    // A node whose clock has lost years must not be locked out for that.
    params.not_before = SystemTime::UNIX_EPOCH.into();
    params.not_after = expiry.into();
}

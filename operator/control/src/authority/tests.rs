//! The rollover, its storage, and what is signed.

use super::*;
use intermezzo_identity::Identity;
use intermezzo_identity::credentials::Strangers;
use intermezzo_identity::name::node_of_certificate;
use rcgen::CertificateParams;

const HOUR: Duration = Duration::from_secs(3600);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + HOUR * 500_000
}

fn lifetimes() -> Lifetimes {
    Lifetimes::new(HOUR * 90, HOUR).unwrap()
}

fn csr(names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    CertificateParams::new(names).unwrap().serialize_request(&key).unwrap().der().to_vec()
}

fn count(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

/// Which of the two a certificate is signed by.
fn signed_by(authority: &Authority, ca: &str) -> bool {
    let issued = authority.issue_node("a", &csr(&[]), HOUR, start()).unwrap();
    let der = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
    let (ca, leaf) = (der(ca), der(&issued.certificate));
    let ca = x509_parser::parse_x509_certificate(&ca).unwrap().1;
    let leaf = x509_parser::parse_x509_certificate(&leaf).unwrap().1;
    leaf.verify_signature(Some(ca.public_key())).is_ok()
}

#[test]
fn the_next_authority_is_trusted_a_lifetime_before_it_issues_and_the_old_one_a_lifetime_after() {
    let (now, lifetimes) = (start(), lifetimes());
    let first = Authority::create(now, &lifetimes).unwrap();
    assert!(first.due(now + HOUR * 59, &lifetimes).unwrap().is_none());

    let announced_at = now + HOUR * 60;
    let announced = first.due(announced_at, &lifetimes).unwrap().unwrap();
    assert_eq!((announced.state_name(), count(&announced.bundle())), ("Announced", 2));
    assert!(signed_by(&announced, &first.bundle()));
    assert!(announced.due(announced_at + HOUR - Duration::from_secs(1), &lifetimes).unwrap().is_none());

    let switched_at = announced_at + HOUR;
    let retiring = announced.due(switched_at, &lifetimes).unwrap().unwrap();
    assert_eq!((retiring.state_name(), count(&retiring.bundle())), ("Retiring", 2));
    assert!(!signed_by(&retiring, &first.bundle()));
    assert!(retiring.due(switched_at + HOUR - Duration::from_secs(1), &lifetimes).unwrap().is_none());

    let steady = retiring.due(switched_at + HOUR, &lifetimes).unwrap().unwrap();
    assert_eq!((steady.state_name(), count(&steady.bundle())), ("Steady", 1));
    assert!(signed_by(&steady, &steady.bundle()));
    assert!(!steady.bundle().contains(&first.bundle()));
}

#[test]
fn every_state_survives_being_stored() {
    let (now, lifetimes) = (start(), lifetimes());
    let mut authority = Authority::create(now, &lifetimes).unwrap();
    let mut moment = now;
    for state in ["Steady", "Announced", "Retiring", "Steady"] {
        let read = Authority::from_pem(&authority.to_pem()).unwrap();
        assert_eq!(read.state_name(), state);
        assert_eq!(read.to_pem(), authority.to_pem());
        moment += HOUR * 60;
        authority = read.due(moment, &lifetimes).unwrap().unwrap_or(read);
    }
}

#[test]
fn what_is_broken_is_named() {
    let authority = Authority::create(start(), &lifetimes()).unwrap();
    let other = Authority::create(start(), &lifetimes()).unwrap().to_pem();
    let error = |change: &dyn Fn(&mut std::collections::BTreeMap<String, String>)| {
        let mut parts = authority.to_pem();
        change(&mut parts);
        Authority::from_pem(&parts).unwrap_err().to_string()
    };
    assert!(error(&|parts| drop(parts.remove("ca.key"))).contains("no ca.key"));
    assert!(error(&|parts| drop(parts.insert("ca.crt".into(), "x".into()))).contains("ca.crt is broken"));
    let swapped = error(&|parts| drop(parts.insert("ca.key".into(), other["ca.key"].clone())));
    assert!(swapped.contains("it is not the certificate's"), "{swapped}");
}

#[test]
fn a_rollover_on_request_takes_the_same_steps_and_only_one_at_a_time() {
    let (now, lifetimes) = (start(), lifetimes());
    let rolling = Authority::create(now, &lifetimes).unwrap().roll(now, &lifetimes).unwrap();
    assert_eq!(rolling.state_name(), "Announced");
    assert!(matches!(rolling.roll(now, &lifetimes), Err(AuthorityError::Rolling(_))));
    assert_eq!(rolling.due(now + HOUR, &lifetimes).unwrap().unwrap().state_name(), "Retiring");
}

#[test]
fn an_operator_that_was_away_too_long_begins_anew() {
    let (now, lifetimes) = (start(), lifetimes());
    let first = Authority::create(now, &lifetimes).unwrap();
    let anew = first.due(now + HOUR * 90, &lifetimes).unwrap().unwrap();
    assert_eq!((anew.state_name(), count(&anew.bundle())), ("Steady", 1));
    assert_ne!(anew.bundle(), first.bundle());
}

#[test]
fn a_longer_lifetime_is_recorded_before_it_is_used() {
    let (now, short) = (start(), lifetimes());
    let authority = Authority::create(now, &short).unwrap();
    let issued = authority.issue_node("a", &csr(&[]), HOUR * 5, now).unwrap();
    assert_eq!(issued.lifetime, HOUR);
    let longer = Lifetimes::new(HOUR * 90, HOUR * 5).unwrap();
    let recorded = authority.due(now, &longer).unwrap().unwrap();
    assert_eq!(recorded.issue_node("a", &csr(&[]), HOUR * 5, now).unwrap().lifetime, HOUR * 5);
    assert!(Lifetimes::new(HOUR, HOUR).is_err());
}

#[test]
fn names_in_a_certificate_come_from_the_operator_and_never_from_the_request() {
    let authority = Authority::create(start(), &lifetimes()).unwrap();
    let asks = csr(&["b.node.intermezzo.internal", "operator.intermezzo.internal"]);
    let issued = authority.issue_node("a", &asks, HOUR, start()).unwrap();
    let der = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).unwrap().1.contents;
    assert_eq!(node_of_certificate(&der).unwrap(), "a");
    let leaf = x509_parser::parse_x509_certificate(&der).unwrap().1;
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    assert!(!leaf.is_ca());
}

#[test]
fn a_request_must_be_signed_by_its_key_and_have_a_key_of_ours() {
    let authority = Authority::create(start(), &lifetimes()).unwrap();
    let refusal = |csr: &[u8]| authority.issue_node("a", csr, HOUR, start()).unwrap_err().to_string();
    let mut forged = csr(&[]);
    *forged.last_mut().unwrap() ^= 1;
    assert!(refusal(&forged).contains("not signed by its own key"));
    assert!(refusal(b"nonsense").contains("PKCS#10"));
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other = CertificateParams::new(Vec::new()).unwrap().serialize_request(&other).unwrap();
    assert!(refusal(other.der()).contains("P-256"));
    let name = authority.issue_node("*", &csr(&[]), HOUR, start()).unwrap_err().to_string();
    assert!(name.contains("is not a node's name"), "{name}");
}

#[test]
fn the_operator_is_no_node() {
    let now = SystemTime::now();
    let authority = Authority::create(now, &lifetimes()).unwrap();
    let (certificate, key) = authority.issue_operator(HOUR, now).unwrap();
    let identity = Identity::from_pem(&certificate, &key, &authority.bundle(), Strangers::Admitted).unwrap();
    let refused = identity.of_node("operator").unwrap_err().to_string();
    assert!(refused.contains("names no node"), "{refused}");
}

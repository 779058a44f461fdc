//! Names in certificates. A node is `<node>.node.intermezzo.internal`; the operator has a name that no node can have.

use std::time::Duration;
use std::time::SystemTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

/// What follows a node's name in its certificate.
pub const NODE_DOMAIN: &str = ".node.intermezzo.internal";

/// The operator's name in its certificate. It is not below [`NODE_DOMAIN`].
pub const OPERATOR_NAME: &str = "operator.intermezzo.internal";

/// Longest node name: with the domain it must still be a DNS name.
pub const NODE_NAME_MAX: usize = 253 - NODE_DOMAIN.len();

/// The DNS name that is a node's identity.
#[must_use]
pub fn node_identity(node: &str) -> String {
    format!("{node}{NODE_DOMAIN}")
}

/// The node named in a certificate (DER).
///
/// # Errors
/// Text for people: it names none, or several.
pub fn node_of_certificate(der: &[u8]) -> Result<String, String> {
    let certificate = parse(der)?;
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let mut nodes = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => name.strip_suffix(NODE_DOMAIN),
        _ => None,
    });
    match (nodes.next(), nodes.next()) {
        (Some(node), None) if is_node_name(node) => Ok(node.to_owned()),
        (Some(node), None) => Err(format!("the certificate's node name {node:?} is not one")),
        (None, _) => Err(format!("the certificate names no node (a DNS name ending in {NODE_DOMAIN})")),
        (Some(_), Some(_)) => Err("the certificate names several nodes".to_owned()),
    }
}

/// Until when a certificate (DER) is valid.
///
/// # Errors
/// Text for people: it cannot be read.
pub fn expiry_of_certificate(der: &[u8]) -> Result<SystemTime, String> {
    let seconds = parse(der)?.validity().not_after.timestamp();
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Ok(SystemTime::UNIX_EPOCH + since)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    parse_x509_certificate(der).map(|(_, certificate)| certificate).map_err(|error| error.to_string())
}

/// A node name is a DNS name as Kubernetes has it.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inside)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= NODE_NAME_MAX && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        for good in ["a", "node-1", "ip-10-0-0-1.ec2.internal", &"x".repeat(63)] {
            assert!(is_node_name(good), "{good}");
        }
        let long = ["y".repeat(60), "y".repeat(60), "y".repeat(60), "y".repeat(60)].join(".");
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "*", &"x".repeat(64), &long] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }

    #[test]
    fn no_node_can_have_the_operators_name() {
        assert!(!OPERATOR_NAME.ends_with(NODE_DOMAIN));
    }
}

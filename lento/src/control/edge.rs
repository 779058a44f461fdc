//! Limits on what the operator sends. Even it makes mistakes, and an agent that swallowed one would keep it on disk.

use intermezzo_identity::credentials::check_authorities;
use intermezzo_identity::name::is_node_name;
use intermezzo_proto::v1;

/// Longest message, in bytes.
pub(super) const MESSAGE_MAX: usize = 32 << 20;

const PEM_MAX: usize = 256 << 10;
const OBJECT_MAX: usize = 1 << 20;
const MANY: usize = 100_000;
const ADDRESS_MAX: usize = 261;
/// A certificate for longer than this is a mistake.
const LIFETIME_MAX: u64 = 366 * 86_400;

fn limit(what: &str, length: usize, most: usize) -> Result<(), String> {
    if length > most {
        return Err(format!("the operator's {what} has length {length}; at most {most} is allowed"));
    }
    Ok(())
}

pub(super) fn enrolled(reply: &v1::EnrolReply) -> Result<(), String> {
    limit("certificate", reply.certificate.len(), PEM_MAX)?;
    limit("authorities", reply.authorities.len(), PEM_MAX)?;
    if reply.lifetime == 0 || reply.lifetime > LIFETIME_MAX {
        return Err(format!("the operator gave a certificate for {} s", reply.lifetime));
    }
    Ok(())
}

pub(super) fn authorities(bundle: &str) -> Result<(), String> {
    limit("authorities", bundle.len(), PEM_MAX)?;
    check_authorities(bundle).map_err(|error| error.to_string())
}

pub(super) fn desired(desired: &v1::Desired) -> Result<(), String> {
    limit("revision", desired.revision.len(), 128)?;
    if desired.revision.is_empty() {
        return Err("the operator's desired state has no revision".to_owned());
    }
    limit("list of objects", desired.objects.len(), MANY)?;
    desired.objects.iter().try_for_each(|object| limit("object", object.len(), OBJECT_MAX))?;
    limit("list of peers", desired.peers.len(), MANY)?;
    for peer in &desired.peers {
        limit("peer's address", peer.address.len(), ADDRESS_MAX)?;
        if !is_node_name(&peer.node) {
            return Err("the operator named a peer that is no node".to_owned());
        }
    }
    limit("list of volumes to discard", desired.discard.len(), MANY)?;
    desired.discard.iter().try_for_each(|volume| {
        // It becomes a path.
        intermezzo_api::names::volume(volume).map(drop).and_then(|()| match volume.contains('/') {
            true => Ok(()),
            false => Err(format!("{volume:?} is not NAMESPACE/NAME")),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_to_discard_must_be_a_name() {
        let one = |name: &str| {
            desired(&v1::Desired {
                revision: "1".to_owned(),
                discard: vec![name.to_owned()],
                ..Default::default()
            })
        };
        assert!(one("team/home").is_ok());
        for bad in ["home", "../etc", "team/..", "team/a/b", "/team/a", "team/", ""] {
            assert!(one(bad).is_err(), "{bad}");
        }
    }
}

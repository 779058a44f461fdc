//! Number of a verdict in the KML record of a replay. Never reuse one.

use crate::types::ConflictKind;

/// Unified.
pub const UNIFIED: u8 = 1;
/// Not a verdict: what is in a file, since a power cut tore it or nobody had read it before this era, is its content
/// from here on.
pub const TAKEN: u8 = 11;
/// Not a verdict: the conflict about this record is resolved.
pub const RESOLVED: u8 = 16;

/// Conflict.
pub fn of(kind: ConflictKind) -> u8 {
    match kind {
        ConflictKind::StoreStore => 2,
        ConflictKind::StoreRemove => 3,
        ConflictKind::RemoveUpdate => 4,
        ConflictKind::NameName => 5,
        ConflictKind::ParentGone => 6,
        ConflictKind::TargetTaken => 7,
        ConflictKind::RenameCycle => 8,
        ConflictKind::UpdateRemove => 9,
        ConflictKind::Orphan => 10,
        ConflictKind::MassRemoval => 17,
    }
}

/// The conflict with this number.
pub fn conflict(code: u8) -> Option<ConflictKind> {
    Some(match code {
        2 => ConflictKind::StoreStore,
        3 => ConflictKind::StoreRemove,
        4 => ConflictKind::RemoveUpdate,
        5 => ConflictKind::NameName,
        6 => ConflictKind::ParentGone,
        7 => ConflictKind::TargetTaken,
        8 => ConflictKind::RenameCycle,
        9 => ConflictKind::UpdateRemove,
        10 => ConflictKind::Orphan,
        17 => ConflictKind::MassRemoval,
        _ => return None,
    })
}

/// Accepted over what stood there, which is kept. `None`: what stands there never gives way.
pub fn won(kind: ConflictKind) -> Option<u8> {
    match kind {
        ConflictKind::StoreStore => Some(12),
        ConflictKind::RemoveUpdate => Some(13),
        ConflictKind::NameName => Some(14),
        ConflictKind::TargetTaken => Some(15),
        ConflictKind::StoreRemove
        | ConflictKind::ParentGone
        | ConflictKind::RenameCycle
        | ConflictKind::UpdateRemove
        | ConflictKind::Orphan
        | ConflictKind::MassRemoval => None,
    }
}

/// The conflict that the record with this number has won.
pub fn winner(code: u8) -> Option<ConflictKind> {
    Some(match code {
        12 => ConflictKind::StoreStore,
        13 => ConflictKind::RemoveUpdate,
        14 => ConflictKind::NameName,
        15 => ConflictKind::TargetTaken,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_means_one_thing() {
        let mut seen = vec![UNIFIED, TAKEN, RESOLVED];
        for code in 2..=u8::MAX {
            if let Some(kind) = conflict(code) {
                assert_eq!(of(kind), code);
                seen.push(code);
            }
            if let Some(kind) = winner(code) {
                assert_eq!(won(kind), Some(code));
                seen.push(code);
            }
        }
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((count, seen.last()), (seen.len(), Some(&17)));
    }
}

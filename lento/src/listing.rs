//! Rows of a volume's store for people: the CML and the conflicts.
//!
//! How they are encoded is the core's knowledge; until it gives readers for them, there is nothing to list.

use crate::volume::VolumeHandle;
use intermezzo_proto::v1;

/// Own records without a verdict.
///
/// # Errors
/// Text for people.
pub fn cml(volume: &VolumeHandle) -> Result<Vec<v1::CmlRecord>, String> {
    ready(volume).map(|()| Vec::new())
}

/// Conflicts kept.
///
/// # Errors
/// Text for people.
pub fn conflicts(volume: &VolumeHandle) -> Result<Vec<v1::ConflictRecord>, String> {
    ready(volume).map(|()| Vec::new())
}

fn ready(volume: &VolumeHandle) -> Result<(), String> {
    let missing = || format!("volume {} is not ready", volume.name);
    volume.store().map(drop).ok_or_else(missing)
}

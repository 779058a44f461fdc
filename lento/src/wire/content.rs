//! What travels beside a content's pieces.

use super::WireError;
use super::limit;
use crate::content::block::BLOCKS_MAX;
use crate::content::block::MARK;
use crate::content::difference::Have;
use intermezzo_proto::v1;

/// What a receiver has, for the wire.
#[must_use]
pub fn have(have: &Have) -> v1::Have {
    v1::Have { blocks: have.to_bytes() }
}

/// What a receiver has, from the wire. Absent: nothing.
///
/// # Errors
/// Too long, or not whole marks.
pub fn have_back(field: &'static str, have: Option<v1::Have>) -> Result<Have, WireError> {
    let blocks = have.unwrap_or_default().blocks;
    limit(field, blocks.len(), BLOCKS_MAX * MARK)?;
    if !blocks.len().is_multiple_of(MARK) {
        return Err(WireError::Wrong { field, reason: "half a mark" });
    }
    Ok(Have::from_bytes(&blocks))
}

//! What travels beside a content's pieces.

use super::WireError;
use super::limit;
use crate::content::block::BLOCKS_MAX;
use crate::content::block::MARK;
use crate::content::block::SIZE_MAX;
use crate::content::chunk::Average;
use crate::content::chunk::CHUNK_BYTES;
use crate::content::chunk::CHUNKS_MAX;
use crate::content::chunk::Chunks;
use crate::content::difference::Blocks;
use crate::content::difference::Have;
use intermezzo_proto::v1;

/// What a receiver has, for the wire.
#[must_use]
pub fn have(have: &Have) -> v1::Have {
    let chunks = have.chunks.as_ref();
    v1::Have {
        blocks: have.blocks.to_bytes(),
        old: have.old,
        average: chunks.map_or(0, |chunks| chunks.average().bytes()),
        chunks: chunks.map(Chunks::to_bytes).unwrap_or_default().into(),
    }
}

/// What a receiver has, from the wire. Absent: nothing.
///
/// # Errors
/// Too long, not whole marks, or chunks that cannot be.
pub fn have_back(field: &'static str, have: Option<v1::Have>) -> Result<Have, WireError> {
    let v1::Have { blocks, old, average, chunks } = have.unwrap_or_default();
    limit(field, blocks.len(), BLOCKS_MAX * MARK)?;
    limit(field, chunks.len(), CHUNKS_MAX * CHUNK_BYTES)?;
    if !blocks.len().is_multiple_of(MARK) {
        return Err(WireError::Wrong { field, reason: "half a mark" });
    }
    if old > SIZE_MAX {
        return Err(WireError::Wrong { field, reason: "an old version that is too long to be" });
    }
    let chunks = match average {
        0 if chunks.is_empty() => None,
        average => {
            let parsed = Average::from_bytes(average).and_then(|a| Chunks::from_bytes(a, &chunks, old));
            Some(parsed.ok_or(WireError::Wrong { field, reason: "chunks that cannot be" })?)
        }
    };
    Ok(Have { blocks: Blocks::from_bytes(&blocks), old, chunks })
}

//! A piece on its way: compressed where the way is slower than compressing, and unpacked within the limits of a piece.

use super::CHUNK;
use super::difference::Moved;
use super::difference::Part;
use super::difference::Piece;
use super::difference::is_zero;
use bytes::Bytes;
use intermezzo_proto::v1;
use std::io;
use zstd::bulk::Compressor;

/// Fast, and most of what the higher levels save.
const LEVEL: i32 = 1;
/// Shorter pieces travel as they are, in bytes.
const WORTH: usize = 4096;
/// What is compressed to find out whether it pays, in bytes.
const SAMPLE: usize = 8192;

/// Why a piece cannot be.
#[derive(Debug, thiserror::Error)]
pub enum PackingError {
    /// Nothing in it: such pieces could come for ever.
    #[error("a piece without bytes")]
    Empty,
    /// Longer than a piece may be.
    #[error("a piece of {0} bytes, more than {CHUNK}")]
    TooLong(u64),
    /// Bytes of the old version and bytes in one.
    #[error("a piece of both kinds")]
    Both,
    /// It unpacks to another length than it says.
    #[error("a piece that says {said} bytes unpacks to {found}")]
    Length {
        /// By its own words.
        said: u64,
        /// What came out.
        found: usize,
    },
    /// It does not unpack within its length.
    #[error("a piece that says {said} bytes does not unpack to that: {error}")]
    Garbled {
        /// By its own words.
        said: u64,
        /// The library's words.
        error: io::Error,
    },
}

/// Packs pieces of one content.
pub struct Packer(Option<Compressor<'static>>);

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Packer").finish_non_exhaustive()
    }
}

impl Default for Packer {
    fn default() -> Packer {
        Packer(Compressor::new(LEVEL).ok())
    }
}

/// Whether the peer takes pieces as fast as they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Yes: compressing would only delay them.
    Keeps,
    /// No.
    Lags,
}

impl Packer {
    /// For the wire.
    pub fn pack(&mut self, part: Part, pace: Pace) -> v1::Piece {
        let Piece { offset, bytes } = match part {
            Part::Piece(piece) => piece,
            Part::Moved(Moved { offset, from, length }) => {
                return v1::Piece { offset, from, length, ..v1::Piece::default() };
            }
        };
        let worth_trying = pace == Pace::Lags || is_zero(&bytes);
        let packed = if worth_trying { self.squeeze(&bytes) } else { None };
        match packed {
            Some(data) => v1::Piece {
                offset,
                data: data.into(),
                unpacked: u32::try_from(bytes.len()).unwrap_or(0),
                ..v1::Piece::default()
            },
            None => v1::Piece { offset, data: bytes, ..v1::Piece::default() },
        }
    }

    /// `None`: it does not pay.
    fn squeeze(&mut self, bytes: &Bytes) -> Option<Vec<u8>> {
        let pays = |packed: &Vec<u8>, length: usize| packed.len() < length / 10 * 9;
        let compressor = self.0.as_mut().filter(|_| bytes.len() >= WORTH)?;
        let sample = bytes.get(..SAMPLE).unwrap_or(bytes);
        compressor.compress(sample).ok().filter(|packed| pays(packed, sample.len()))?;
        compressor.compress(bytes).ok().filter(|packed| pays(packed, bytes.len()))
    }
}

/// From the wire: never more bytes than a piece may have, whatever it says.
///
/// # Errors
/// See [`PackingError`].
pub fn unpack(piece: v1::Piece) -> Result<Part, PackingError> {
    let v1::Piece { offset, data, unpacked, from, length } = piece;
    if length > 0 {
        let alone = data.is_empty() && unpacked == 0;
        return alone.then_some(Part::Moved(Moved { offset, from, length })).ok_or(PackingError::Both);
    }
    let said = if unpacked == 0 { data.len() as u64 } else { u64::from(unpacked) };
    let length = usize::try_from(said).ok().filter(|length| *length <= CHUNK);
    let length = length.ok_or(PackingError::TooLong(said))?;
    let bytes = if unpacked == 0 {
        data
    } else {
        let bytes =
            zstd::bulk::decompress(&data, length).map_err(|error| PackingError::Garbled { said, error })?;
        if bytes.len() != length {
            return Err(PackingError::Length { said, found: bytes.len() });
        }
        bytes.into()
    };
    if bytes.is_empty() { Err(PackingError::Empty) } else { Ok(Part::Piece(Piece { offset, bytes })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Bytes {
        b"the quick brown fox jumps over the lazy dog ".iter().copied().cycle().take(length).collect()
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was_and_only_what_pays_is_compressed() {
        let mut packer = Packer::default();
        let bytes = text(CHUNK);
        let piece = |offset, bytes: &Bytes| Part::Piece(Piece { offset, bytes: bytes.clone() });
        let packed = packer.pack(piece(7, &bytes), Pace::Lags);
        assert!(packed.data.len() < CHUNK / 10, "{}", packed.data.len());
        assert_eq!(unpack(packed).unwrap(), piece(7, &bytes));
        let as_it_is = packer.pack(piece(7, &bytes), Pace::Keeps);
        assert_eq!((as_it_is.unpacked, as_it_is.data), (0, bytes));
        let mut noise = vec![0; CHUNK];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let noise = packer.pack(piece(0, &noise.into()), Pace::Lags);
        assert_eq!(noise.unpacked, 0);
        let moved = Part::Moved(Moved { offset: 1, from: 2, length: 3 });
        assert_eq!(unpack(packer.pack(moved.clone(), Pace::Lags)).unwrap(), moved);
    }

    #[test]
    fn a_piece_that_lies_about_its_length_is_refused() {
        let packed = |length, unpacked| {
            let data = zstd::bulk::compress(&vec![0; length], LEVEL).unwrap().into();
            unpack(v1::Piece { data, unpacked, ..v1::Piece::default() }).map(|_| ()).unwrap_err().to_string()
        };
        assert!(packed(64 << 20, 4096).contains("does not unpack"));
        assert!(packed(100, 4096).contains("unpacks to 100"));
        assert!(packed(64 << 20, 64 << 20).contains("more than 524288"));
        let raw = |data: &'static [u8], unpacked| {
            unpack(v1::Piece { data: data.into(), unpacked, ..v1::Piece::default() }).map(|_| ()).unwrap_err()
        };
        assert!(matches!(raw(b"", 0), PackingError::Empty));
        assert!(matches!(raw(b"not zstd", 100), PackingError::Garbled { .. }));
        let long = unpack(v1::Piece { data: vec![1; CHUNK + 1].into(), ..v1::Piece::default() });
        assert!(matches!(long, Err(PackingError::TooLong(_))));
        let both = v1::Piece { data: b"bytes"[..].into(), length: 5, ..v1::Piece::default() };
        assert!(matches!(unpack(both), Err(PackingError::Both)));
    }
}

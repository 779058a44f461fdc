//! The sending side: reads a content whole and unchanged, and hands out what the receiver does not have.

use super::CHUNK;
use super::block::BlockReader;
use super::block::Layout;
use super::block::MARK;
use super::block::Mark;
use super::block::Value;
use super::block::pieces;
use super::block::root;
use super::source::SourceError;
use super::source::Whole;
use super::source::is_racy;
use super::source::read_whole;
use super::source::version;
use bytes::Bytes;
use lento_core::types::INLINE_MAX;
use std::fs::File;
use std::ops::Range;

/// Some bytes of a content and where they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub offset: u64,
    /// What; at most [`CHUNK`].
    pub bytes: Bytes,
}

/// What the receiver has of a content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Have {
    /// Nothing: zeros.
    #[default]
    Zeros,
    /// The mark of each block in its file, at the content's size.
    Blocks(Vec<Mark>),
}

impl Have {
    /// For the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Have::Zeros => Bytes::new(),
            Have::Blocks(marks) => marks.concat().into(),
        }
    }

    /// From the wire; what does not fit the content is of no use.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Have {
        let (marks, _) = bytes.as_chunks::<MARK>();
        if marks.is_empty() { Have::Zeros } else { Have::Blocks(marks.to_vec()) }
    }

    /// Whether the receiver has this block.
    fn holds(&self, index: usize, value: &Value, zero: bool) -> bool {
        match self {
            Have::Zeros => zero,
            Have::Blocks(marks) => marks.get(index).is_some_and(|mark| *mark == value.mark()),
        }
    }
}

/// Takes pieces, in ascending order.
pub type Outlet<'a> = dyn FnMut(Piece) -> Result<(), String> + 'a;

/// Reads the file; pieces that the receiver lacks go to `out`. Small contents come back whole. Blocks.
///
/// # Errors
/// See [`SourceError`]; what `out` got is void then.
pub fn send(file: &File, have: &Have, out: &mut Outlet<'_>) -> Result<Whole, SourceError> {
    let version = version(file)?;
    let Some(layout) = Layout::of(version.size) else {
        if version.size > INLINE_MAX {
            return Err(SourceError::NotAFile);
        }
        return read_whole(file, &mut |offset, bytes| out(Piece { offset, bytes }));
    };
    let racy = is_racy(&version);
    let mut sending = Sending {
        reader: BlockReader::new(file, layout.size()),
        layout,
        have,
        out,
        values: Vec::with_capacity(layout.count()),
    };
    sending.run()?;
    let hash = root(layout, &sending.values).ok_or(SourceError::Changed)?;
    if self::version(file)? != version {
        return Err(SourceError::Changed);
    }
    Ok(Whole { hash, size: version.size, version, racy, inline: None })
}

struct Sending<'a, 'b> {
    reader: BlockReader<'a>,
    layout: Layout,
    have: &'a Have,
    out: &'a mut Outlet<'b>,
    values: Vec<Value>,
}

impl Sending<'_, '_> {
    fn run(&mut self) -> Result<(), SourceError> {
        let per_chunk = usize::try_from(CHUNK as u64 / self.layout.block()).unwrap_or(0);
        let mut index = 0;
        while index < self.layout.count() {
            if per_chunk > 0 {
                self.several(index..(index + per_chunk).min(self.layout.count()))?;
                index += per_chunk;
            } else {
                self.large(index)?;
                index += 1;
            }
        }
        Ok(())
    }

    /// Blocks of one chunk: read once, runs of lacking ones leave together.
    fn several(&mut self, blocks: Range<usize>) -> Result<(), SourceError> {
        let base = self.layout.range(blocks.start).start;
        let whole = base..self.layout.range(blocks.end - 1).end;
        let mut bytes = vec![0; usize::try_from(whole.end - whole.start).unwrap_or(0)];
        if !self.reader.is_hole(&whole)? {
            self.reader.read(&mut bytes, whole.start)?;
        }
        let bytes = Bytes::from(bytes);
        // Runs of zeros and of others leave apart: the former cost nothing.
        let mut lacking: Option<(bool, Range<usize>)> = None;
        for index in blocks {
            let range = self.layout.range(index);
            let within = |at: u64| usize::try_from(at - base).unwrap_or(0);
            let (start, end) = (within(range.start), within(range.end));
            let block = bytes.get(start..end).unwrap_or_default();
            let value = Value::of(range.start, block);
            let zero = is_zero(block);
            let held = self.have.holds(index, &value, zero);
            self.values.push(value);
            match &mut lacking {
                Some((same, run)) if !held && *same == zero => run.end = end,
                _ => {
                    self.emit(base, &bytes, lacking.take())?;
                    lacking = Some((zero, start..end)).filter(|_| !held);
                }
            }
        }
        self.emit(base, &bytes, lacking)
    }

    fn emit(
        &mut self,
        base: u64,
        bytes: &Bytes,
        run: Option<(bool, Range<usize>)>,
    ) -> Result<(), SourceError> {
        let Some((_, run)) = run else { return Ok(()) };
        let offset = base + run.start as u64;
        (self.out)(Piece { offset, bytes: bytes.slice(run) }).map_err(SourceError::Sink)
    }

    /// A block of several chunks: hashed first, and read again where it is lacking.
    fn large(&mut self, index: usize) -> Result<(), SourceError> {
        let range = self.layout.range(index);
        let mut buffer = Vec::new();
        let value = self.reader.value(&range, &mut buffer)?;
        // Whether it is all zeros is seen piece by piece below.
        let held = self.have.holds(index, &value, false);
        self.values.push(value);
        if held {
            return Ok(());
        }
        for piece in pieces(&range) {
            let mut bytes = vec![0; usize::try_from(piece.end - piece.start).unwrap_or(0)];
            if !self.reader.is_hole(&piece)? {
                self.reader.read(&mut bytes, piece.start)?;
            }
            if *self.have != Have::Zeros || !is_zero(&bytes) {
                (self.out)(Piece { offset: piece.start, bytes: bytes.into() }).map_err(SourceError::Sink)?;
            }
        }
        Ok(())
    }
}

/// Nothing but zeros.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

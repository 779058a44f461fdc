//! The sending side: reads a content whole and unchanged, and hands out what the receiver does not have.

use super::CHUNK;
use super::block::BlockReader;
use super::block::Layout;
use super::block::MARK;
use super::block::Mark;
use super::block::Task;
use super::block::Value;
use super::block::ValueOf;
use super::block::describe;
use super::block::describe_until;
use super::block::pieces;
use super::block::root;
use super::chunk::Chunks;
use super::chunk::Found;
use super::chunk::Go;
use super::chunk::Table;
use super::chunk::cut;
use super::known::Values;
use super::source::SourceError;
use super::source::Whole;
use super::source::is_racy;
use super::source::version;
use bytes::Bytes;
use lento_core::types::INLINE_MAX;
use lento_core::types::Version;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Some bytes of a content and where they belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub offset: u64,
    /// What; at most [`CHUNK`].
    pub bytes: Bytes,
}

/// Bytes of a content that the receiver's old version has elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where they belong.
    pub offset: u64,
    /// Where they are in the old version.
    pub from: u64,
    /// How many.
    pub length: u64,
}

/// What a content is put together from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes.
    Piece(Piece),
    /// Bytes of the old version.
    Moved(Moved),
}

/// What the receiver has of a content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// What its file holds, at the content's size.
    pub blocks: Blocks,
    /// Bytes of the old version, from which parts can be moved; 0: there is none.
    pub old: u64,
    /// Its chunks, once asked for.
    pub chunks: Option<Chunks>,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// Nothing: zeros.
    #[default]
    Zeros,
    /// Blocks with these marks.
    Marks(Vec<Mark>),
}

impl Blocks {
    /// For the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Blocks::Zeros => Bytes::new(),
            Blocks::Marks(marks) => marks.concat().into(),
        }
    }

    /// From the wire; what does not fit the content is of no use.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Blocks {
        let (marks, _) = bytes.as_chunks::<MARK>();
        if marks.is_empty() { Blocks::Zeros } else { Blocks::Marks(marks.to_vec()) }
    }
}

/// Takes parts, in ascending order.
pub type Outlet<'a> = dyn FnMut(Part) -> Result<(), String> + 'a;

/// What to do about a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Send.
    Send,
    /// Ask it for the chunks of its old version first: blocks do not fit.
    AskForChunks,
}

/// So many bytes that blocks do not find in the old version are sent without asking.
const FEW: u64 = 512 << 10;
/// And such a part of it: to find chunks, all of it has to be read.
const FEW_OF: u64 = 256;

/// A large content on its way out: one version of a file.
#[derive(Debug)]
pub struct Outgoing {
    version: Version,
    racy: bool,
    layout: Layout,
    /// The hash of each block, where it is known.
    values: Vec<Option<Value>>,
}

impl Outgoing {
    /// The file as it is now. `None`: its content is so small that it travels in one piece.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn of(file: &File) -> Result<Option<Outgoing>, SourceError> {
        let version = version(file)?;
        if version.size <= INLINE_MAX {
            return Ok(None);
        }
        let layout = Layout::of(version.size).ok_or(SourceError::NotAFile)?;
        let values = vec![None; layout.count()];
        Ok(Some(Outgoing { version, racy: is_racy(&version), layout, values }))
    }

    /// Bytes.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// It should be this content. If it is not, the receiver finds out.
    pub fn believe(&mut self, values: &[Value]) {
        if values.len() == self.values.len() {
            self.values = values.iter().copied().map(Some).collect();
        }
    }

    /// Hashes ahead while it is not known yet what the receiver has. Blocks until all is hashed or `stop`.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn hash_until(&mut self, file: &File, stop: &AtomicBool) -> Result<(), SourceError> {
        describe_until(stop, Task::Hash(file), self.layout, &mut self.values)
    }

    /// Hashes all of it. Blocks.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn hash(&mut self, file: &File) -> Result<Whole, SourceError> {
        describe(Task::Hash(file), self.layout, &mut self.values)?;
        self.end(file)
    }

    /// How to go on with this receiver. Blocks.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn weigh(&mut self, file: &File, have: &Have) -> Result<Advice, SourceError> {
        if have.blocks == Blocks::Zeros {
            return Ok(Advice::Send);
        }
        describe(Task::Hash(file), self.layout, &mut self.values)?;
        if have.old == 0 || have.chunks.is_some() {
            return Ok(Advice::Send);
        }
        // What was appended is not in the old version.
        let ranges = self.lacking(&have.blocks).into_iter().map(|run| self.bytes_of(&run));
        let within = ranges.map(|range| range.end.min(have.old).saturating_sub(range.start)).sum::<u64>();
        Ok(if within > FEW.max(have.old / FEW_OF) { Advice::AskForChunks } else { Advice::Send })
    }

    /// Sends what the receiver lacks to `out`. Blocks.
    ///
    /// # Errors
    /// See [`SourceError`]; what `out` got is void then.
    pub fn send(&mut self, file: &File, have: &Have, out: &mut Outlet<'_>) -> Result<Whole, SourceError> {
        let everything = 0..self.layout.count();
        let lacking = match &have.blocks {
            Blocks::Zeros => vec![everything],
            blocks @ Blocks::Marks(_) => {
                describe(Task::Hash(file), self.layout, &mut self.values)?;
                self.lacking(blocks)
            }
        };
        let zeros = if have.blocks == Blocks::Zeros { Zeros::AreThere } else { Zeros::AreSent };
        let table = have.chunks.as_ref().map(|chunks| (chunks.average(), chunks.table()));
        for run in lacking {
            match &table {
                Some((average, table)) if run.len() > 1 => {
                    let mut search = Search { table, moved: None, out };
                    cut(file, self.bytes_of(&run), *average, &mut |found| search.take(found))?;
                    search.flush()?;
                }
                _ => self.send_run(file, run, zeros, out)?,
            }
        }
        self.end(file)
    }

    /// The hashes of all blocks; `None`: not all are known.
    #[must_use]
    pub fn into_values(self) -> Option<Values> {
        self.values.into_iter().collect::<Option<Vec<Value>>>().map(Values::from)
    }

    fn end(&self, file: &File) -> Result<Whole, SourceError> {
        let values: Option<Vec<Value>> = self.values.iter().copied().collect();
        let hash = values.and_then(|values| root(self.layout, &values)).ok_or(SourceError::Changed)?;
        if version(file)? != self.version {
            return Err(SourceError::Changed);
        }
        Ok(Whole { hash, size: self.version.size, version: self.version, racy: self.racy, inline: None })
    }

    fn lacking(&self, blocks: &Blocks) -> Vec<Range<usize>> {
        let mark = |index| match blocks {
            Blocks::Zeros => None,
            Blocks::Marks(marks) => marks.get(index).copied(),
        };
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (index, value) in self.values.iter().enumerate() {
            if value.map(|value| value.mark()) == mark(index) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }

    fn bytes_of(&self, run: &Range<usize>) -> Range<u64> {
        self.layout.range(run.start).start..self.layout.range(run.end.saturating_sub(1)).end
    }

    /// Blocks, read once more or for the first time: what is sent is what is hashed.
    fn send_run(
        &mut self,
        file: &File,
        run: Range<usize>,
        zeros: Zeros,
        out: &mut Outlet<'_>,
    ) -> Result<(), SourceError> {
        let mut reader = BlockReader::new(file, self.layout.size());
        let mut hashing = ValueOf::default();
        for piece in pieces(&self.bytes_of(&run)) {
            let mut bytes = vec![0; usize::try_from(piece.end - piece.start).unwrap_or(0)];
            if !reader.is_hole(&piece)? {
                reader.read(&mut bytes, piece.start)?;
            }
            let bytes = Bytes::from(bytes);
            // Runs of zeros and of others leave apart: the former cost nothing.
            let mut together: Option<(bool, Range<usize>)> = None;
            for block in self.layout.split(&piece) {
                let within = |at: u64| usize::try_from(at - piece.start).unwrap_or(0);
                let range = within(block.start)..within(block.end);
                let part = bytes.get(range.clone()).unwrap_or_default();
                let index = self.layout.index(block.start);
                let whole = self.layout.range(index);
                if let Some(value) = hashing.take(&whole, &block, Some(part))
                    && let Some(slot) = self.values.get_mut(index)
                {
                    *slot = Some(value);
                }
                let zero = is_zero(part);
                match &mut together {
                    Some((same, run)) if *same == zero => run.end = range.end,
                    _ => {
                        emit(piece.start, &bytes, together.replace((zero, range)), zeros, out)?;
                    }
                }
            }
            emit(piece.start, &bytes, together, zeros, out)?;
        }
        Ok(())
    }
}

/// What the receiver has where it has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeros {
    AreThere,
    AreSent,
}

fn emit(
    base: u64,
    bytes: &Bytes,
    run: Option<(bool, Range<usize>)>,
    zeros: Zeros,
    out: &mut Outlet<'_>,
) -> Result<(), SourceError> {
    let Some((zero, run)) = run else { return Ok(()) };
    if zero && zeros == Zeros::AreThere {
        return Ok(());
    }
    let offset = base + run.start as u64;
    out(Part::Piece(Piece { offset, bytes: bytes.slice(run) })).map_err(SourceError::Sink)
}

/// Chunks that the receiver's old version has are moved there, others sent.
struct Search<'a, 'b> {
    table: &'a Table,
    /// Found and not said yet: what follows may belong to it.
    moved: Option<Moved>,
    out: &'a mut Outlet<'b>,
}

impl Search<'_, '_> {
    fn take(&mut self, found: Found<'_>) -> Result<Go, SourceError> {
        match found {
            Found::Chunk(offset, bytes) => match self.table.find(bytes) {
                Some(from) => self.moved(Moved { offset, from, length: bytes.len() as u64 })?,
                None => self.sent(offset, bytes)?,
            },
            Found::Hole(hole) => {
                let zeros = vec![0; CHUNK];
                for piece in pieces(&hole) {
                    let length = usize::try_from(piece.end - piece.start).unwrap_or(CHUNK);
                    self.sent(piece.start, zeros.get(..length).unwrap_or_default())?;
                }
            }
        }
        Ok(Go::On)
    }

    fn moved(&mut self, next: Moved) -> Result<(), SourceError> {
        match &mut self.moved {
            Some(last)
                if last.offset + last.length == next.offset && last.from + last.length == next.from =>
            {
                last.length += next.length;
                Ok(())
            }
            _ => {
                self.flush()?;
                self.moved = Some(next);
                Ok(())
            }
        }
    }

    fn sent(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SourceError> {
        self.flush()?;
        for (nth, bytes) in bytes.chunks(CHUNK).enumerate() {
            let piece = Piece { offset: offset + (nth * CHUNK) as u64, bytes: Bytes::copy_from_slice(bytes) };
            (self.out)(Part::Piece(piece)).map_err(SourceError::Sink)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        match self.moved.take() {
            Some(moved) => (self.out)(Part::Moved(moved)).map_err(SourceError::Sink),
            None => Ok(()),
        }
    }
}

/// Nothing but zeros.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

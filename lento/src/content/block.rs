//! A content as aligned blocks. The hash of a block is a subtree of the content's blake3, so one pass over the bytes
//! gives both, and the hash of the whole follows from those of the blocks.

use super::CHUNK;
use super::source::SourceError;
use super::source::hash_zeros;
use super::source::next_data;
use super::source::shorter_means_changed;
use blake3::Hasher;
use blake3::hazmat::ChainingValue;
use blake3::hazmat::HasherExt;
use blake3::hazmat::Mode;
use blake3::hazmat::left_subtree_len;
use blake3::hazmat::merge_subtrees_non_root;
use blake3::hazmat::merge_subtrees_root;
use lento_core::types::Hash;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// Bytes of a block of all but the largest contents.
pub const LEAST: u64 = 64 << 10;
/// Most blocks of a content: beyond that, blocks are larger.
pub const BLOCKS_MAX: usize = 131_072;
/// Largest content, in bytes: what a file offset can say.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// Bytes of a [`Mark`].
pub const MARK: usize = 16;

/// The beginning of a block's hash: enough to find what is equal, because the whole is checked afterwards.
pub type Mark = [u8; MARK];

/// How a content of this size is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    size: u64,
    block: u64,
}

impl Layout {
    /// `None`: too small to be divided, or too large to exist.
    #[must_use]
    pub fn of(size: u64) -> Option<Layout> {
        if size <= LEAST || size > SIZE_MAX {
            return None;
        }
        let mut block = LEAST;
        while size.div_ceil(block) > BLOCKS_MAX as u64 {
            block *= 2;
        }
        Some(Layout { size, block })
    }

    /// Bytes of the content.
    #[must_use]
    pub fn size(self) -> u64 {
        self.size
    }

    /// Bytes of each block but the last.
    #[must_use]
    pub fn block(self) -> u64 {
        self.block
    }

    /// Number of blocks, at least 2.
    #[must_use]
    pub fn count(self) -> usize {
        usize::try_from(self.size.div_ceil(self.block)).unwrap_or(BLOCKS_MAX)
    }

    /// Where a block lies.
    #[must_use]
    pub fn range(self, index: usize) -> Range<u64> {
        let start = (index as u64).saturating_mul(self.block).min(self.size);
        start..start.saturating_add(self.block).min(self.size)
    }

    /// A range, cut where blocks end.
    pub fn split(self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        let Range { start, end } = *range;
        let until = move |at: u64| (at / self.block).saturating_add(1).saturating_mul(self.block).min(end);
        let starts = std::iter::successors(Some(start), move |at| Some(until(*at)));
        starts.take_while(move |at| *at < end).map(move |at| at..until(at))
    }

    /// The block in which this byte lies.
    #[must_use]
    pub fn index(self, offset: u64) -> usize {
        usize::try_from(offset / self.block).unwrap_or(BLOCKS_MAX)
    }
}

/// The hash of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(ChainingValue);

impl Value {
    /// Of the block that begins at `offset`.
    #[must_use]
    pub fn of(offset: u64, bytes: &[u8]) -> Value {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset);
        if bytes.is_empty() {
            return Value([0; 32]);
        }
        Value(hasher.update(bytes).finalize_non_root())
    }

    /// The mark that no block has.
    pub const NO_MARK: Mark = [0; MARK];

    /// Its beginning.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let mut mark = [0; MARK];
        for (to, from) in mark.iter_mut().zip(self.0) {
            *to = from;
        }
        mark
    }
}

/// Hashes blocks that come in parts, one after the other.
#[derive(Debug, Default)]
pub struct ValueOf(Hasher);

impl ValueOf {
    /// The next part of the block at `block`, nothing for zeros; its hash, if that was the last.
    pub fn take(&mut self, block: &Range<u64>, part: &Range<u64>, bytes: Option<&[u8]>) -> Option<Value> {
        if part.start == block.start {
            self.0 = Hasher::new();
            self.0.set_input_offset(block.start);
        }
        match bytes {
            Some(bytes) => {
                self.0.update(bytes);
            }
            None => hash_zeros(&mut self.0, part.end - part.start),
        }
        (part.end == block.end && !block.is_empty()).then(|| Value(self.0.finalize_non_root()))
    }
}

/// The content's hash from those of all its blocks; `None`: not all are there.
#[must_use]
pub fn root(layout: Layout, values: &[Value]) -> Option<Hash> {
    if values.len() != layout.count() {
        return None;
    }
    let left = left_subtree_len(layout.size);
    let hash = merge_subtrees_root(
        &subtree(layout, values, 0, left)?,
        &subtree(layout, values, left, layout.size - left)?,
        Mode::Hash,
    );
    Some(Hash(*hash.as_bytes()))
}

fn subtree(layout: Layout, values: &[Value], start: u64, length: u64) -> Option<ChainingValue> {
    if length <= layout.block {
        return values.get(layout.index(start)).map(|value| value.0);
    }
    let left = left_subtree_len(length);
    Some(merge_subtrees_non_root(
        &subtree(layout, values, start, left)?,
        &subtree(layout, values, start.checked_add(left)?, length - left)?,
        Mode::Hash,
    ))
}

/// Reads blocks of a file; holes cost no reading.
#[derive(Debug)]
pub struct BlockReader<'a> {
    file: &'a File,
    size: u64,
    /// The next data at or after where it was last asked.
    data: Range<u64>,
    asked: u64,
}

impl<'a> BlockReader<'a> {
    /// For a file of this many bytes.
    #[must_use]
    pub fn new(file: &'a File, size: u64) -> BlockReader<'a> {
        BlockReader { file, size, data: 0..0, asked: 0 }
    }

    /// Whether there is nothing but a hole. Ask in ascending order.
    ///
    /// # Errors
    /// The file system's.
    pub fn is_hole(&mut self, range: &Range<u64>) -> Result<bool, SourceError> {
        if range.start >= self.data.end || range.start < self.asked {
            let (start, end) = next_data(self.file, range.start, self.size)?;
            (self.data, self.asked) = (start..end, range.start);
        }
        Ok(self.data.start >= range.end)
    }

    /// Reads into `bytes`, all of it.
    ///
    /// # Errors
    /// [`SourceError::Changed`]: the file is shorter now.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), SourceError> {
        self.file.read_exact_at(bytes, offset).map_err(shorter_means_changed)
    }

    /// Reads into `bytes`; what the file does not have is zeros.
    fn read_or_zeros(&self, bytes: &mut [u8], offset: u64) -> Result<(), SourceError> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.get_mut(done..).unwrap_or_default().fill(0);
        Ok(())
    }
}

/// A range in pieces of at most [`CHUNK`].
pub fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let Range { start, end } = *range;
    let step = CHUNK as u64;
    let next = move |at: &u64| Some(at.saturating_add(step)).filter(|at| *at < end);
    std::iter::successors(Some(start).filter(|start| *start < end), next)
        .map(move |at| at..at.saturating_add(step).min(end))
}

/// Most threads that hash one file.
const HASHERS: usize = 4;
/// Fewer blocks than this are not worth a thread.
const PER_HASHER: usize = 64;

/// How many threads share so many blocks.
#[must_use]
pub fn hashers(blocks: usize) -> usize {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(HASHERS);
    threads.min(blocks.div_ceil(PER_HASHER)).max(1)
}

/// What is done with blocks that have no value yet.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// They are hashed.
    Hash(&'a File),
    /// They are copied from the first file to the second, and what is written is hashed. The first may be shorter.
    Copy(&'a File, &'a File),
}

/// Gives a value to those blocks that have none yet. Blocks, with a few threads of its own.
///
/// # Errors
/// See [`SourceError`].
pub fn describe(task: Task<'_>, layout: Layout, values: &mut [Option<Value>]) -> Result<(), SourceError> {
    describe_until(&AtomicBool::new(false), task, layout, values)
}

/// The same until `stop` is true: not all have a value then.
///
/// # Errors
/// See [`SourceError`].
pub fn describe_until(
    stop: &AtomicBool,
    task: Task<'_>,
    layout: Layout,
    values: &mut [Option<Value>],
) -> Result<(), SourceError> {
    let share = values.len().div_ceil(hashers(values.len())).max(1);
    std::thread::scope(|scope| {
        let running: Vec<_> = values
            .chunks_mut(share)
            .enumerate()
            .map(|(nth, part)| {
                let run = move || Part::new(task, layout, stop).run(nth * share, part);
                std::thread::Builder::new().spawn_scoped(scope, run)
            })
            .collect();
        let failed = || SourceError::Sink("a hashing thread failed".to_owned());
        running.into_iter().try_for_each(|thread| thread?.join().map_err(|_| failed())?)
    })
}

/// One thread's share.
struct Part<'a> {
    task: Task<'a>,
    stop: &'a AtomicBool,
    layout: Layout,
    reader: BlockReader<'a>,
    buffer: Vec<u8>,
}

impl<'a> Part<'a> {
    fn new(task: Task<'a>, layout: Layout, stop: &'a AtomicBool) -> Part<'a> {
        let (Task::Hash(file) | Task::Copy(file, _)) = task;
        Part { task, stop, layout, reader: BlockReader::new(file, layout.size), buffer: Vec::new() }
    }

    fn run(mut self, first: usize, values: &mut [Option<Value>]) -> Result<(), SourceError> {
        let unknown = |values: &[Option<Value>], from: usize| {
            let start = from + values.get(from..)?.iter().position(Option::is_none)?;
            let length = values.get(start..)?.iter().position(Option::is_some);
            Some(start..length.map_or(values.len(), |length| start + length))
        };
        let mut from = 0;
        while let Some(run) = unknown(values, from) {
            from = run.end;
            let bytes =
                self.layout.range(first + run.start).start..self.layout.range(first + run.end - 1).end;
            let mut hashing = ValueOf::default();
            for piece in pieces(&bytes) {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let hole = self.fill(&piece)?;
                for part in self.layout.split(&piece) {
                    let index = self.layout.index(part.start);
                    let within = |at: u64| usize::try_from(at - piece.start).unwrap_or(0);
                    let bytes = self.buffer.get(within(part.start)..within(part.end));
                    let bytes = bytes.filter(|_| hole == Hole::No);
                    let value = hashing.take(&self.layout.range(index), &part, bytes);
                    if let Some(slot) = index.checked_sub(first).and_then(|nth| values.get_mut(nth)) {
                        *slot = value.or(*slot);
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads, and writes where that is the task.
    fn fill(&mut self, piece: &Range<u64>) -> Result<Hole, SourceError> {
        if self.reader.is_hole(piece)? {
            return Ok(Hole::Yes);
        }
        self.buffer.resize(usize::try_from(piece.end - piece.start).unwrap_or(CHUNK), 0);
        match self.task {
            Task::Hash(_) => self.reader.read(&mut self.buffer, piece.start)?,
            Task::Copy(_, to) => {
                self.reader.read_or_zeros(&mut self.buffer, piece.start)?;
                to.write_all_at(&self.buffer, piece.start)?;
            }
        }
        Ok(Hole::No)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hole {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_hash_follows_from_the_blocks_of_any_size() {
        let dir = tempfile::tempdir().unwrap();
        for size in [65_537, 131_072, 131_073, 196_608, 200_001, 1 << 20, (17 << 20) + 1025] {
            let bytes: Vec<u8> = (0..size).map(|at: u32| (at % 249).to_le_bytes()[0]).collect();
            let path = dir.path().join("f");
            std::fs::write(&path, &bytes).unwrap();
            let layout = Layout::of(size.into()).unwrap();
            let mut values = vec![None; layout.count()];
            describe(Task::Hash(&File::open(&path).unwrap()), layout, &mut values).unwrap();
            let values: Vec<Value> = values.into_iter().flatten().collect();
            assert_eq!(root(layout, &values), Some(Hash::of(&bytes)), "{size}");
            assert_eq!(root(layout, &values[1..]), None);
        }
    }

    #[test]
    fn no_size_has_more_blocks_than_a_message_holds() {
        assert_eq!(Layout::of(LEAST), None);
        assert_eq!(Layout::of(SIZE_MAX + 1), None);
        for size in [LEAST + 1, 1 << 30, (8 << 30) + 1, 1 << 40, SIZE_MAX] {
            let layout = Layout::of(size).unwrap();
            assert!((2..=BLOCKS_MAX).contains(&layout.count()), "{layout:?}");
            assert_eq!(layout.range(layout.count() - 1).end, size);
        }
        assert_eq!(Layout::of(8 << 30).unwrap().block(), LEAST);
    }
}

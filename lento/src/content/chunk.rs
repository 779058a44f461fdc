//! A content as chunks whose ends follow from the bytes themselves (FastCDC): bytes that moved within a file, by any
//! distance, make the same chunks again.

use super::block::BLOCKS_MAX;
use super::block::LEAST;
use super::block::MARK;
use super::block::Mark;
use super::block::hashers;
use super::source::SourceError;
use super::source::next_data;
use super::source::shorter_means_changed;
use fastcdc::v2020::FastCDC;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Most chunks that are told of a content; what lies behind them is not found again.
pub const CHUNKS_MAX: usize = 2 * BLOCKS_MAX;
/// Largest average, in bytes: with it, chunks need 8 MiB of memory.
const AVERAGE_MAX: u32 = 1 << 20;
/// Bytes of a chunk on the wire: its mark, and its length in the order of little-endian machines.
pub const CHUNK_BYTES: usize = MARK + 4;
/// The mark of what is no chunk but a hole.
const HOLE: Mark = [0; MARK];

/// How long chunks are: a quarter of this at least, four times of it at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Average(u32);

impl Average {
    /// For a content of this many bytes.
    #[must_use]
    pub fn of(size: u64) -> Average {
        let mut average = u32::try_from(LEAST).unwrap_or(AVERAGE_MAX);
        while average < AVERAGE_MAX && size / u64::from(average) > BLOCKS_MAX as u64 {
            average *= 2;
        }
        Average(average)
    }

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// From the wire; `None`: nobody cuts like that.
    #[must_use]
    pub fn from_bytes(bytes: u32) -> Option<Average> {
        let possible = bytes.is_power_of_two() && (LEAST..=u64::from(AVERAGE_MAX)).contains(&bytes.into());
        possible.then_some(Average(bytes))
    }

    fn most(self) -> usize {
        usize::try_from(self.0).unwrap_or(0) * 4
    }

    fn cutter(self, bytes: &[u8]) -> FastCDC<'_> {
        let average = usize::try_from(self.0).unwrap_or(0);
        FastCDC::new(bytes, average / 4, average, self.most())
    }
}

/// The chunks of a content, from its beginning, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunks {
    average: Average,
    list: Vec<(Mark, u32)>,
}

impl Chunks {
    /// Those of the first `size` bytes of a file. Blocks, with a few threads of its own.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn of(file: &File, size: u64) -> Result<Chunks, SourceError> {
        let average = Average::of(size);
        // Each part begins with a cut of its own: one chunk for each thread is not found again.
        let share = size.div_ceil(hashers(usize::try_from(size / LEAST).unwrap_or(BLOCKS_MAX)) as u64).max(1);
        let starts = std::iter::successors(Some(0), |at: &u64| at.checked_add(share));
        let parts = starts.take_while(|start| *start < size).map(|start| start..(start + share).min(size));
        let lists = std::thread::scope(|scope| {
            let running: Vec<_> = parts.map(|part| scope.spawn(move || marks(file, part, average))).collect();
            let failed = || SourceError::Sink("a hashing thread failed".to_owned());
            let done = running.into_iter().map(|thread| thread.join().map_err(|_| failed())?);
            done.collect::<Result<Vec<_>, SourceError>>()
        })?;
        let mut list = lists.concat();
        list.truncate(CHUNKS_MAX);
        Ok(Chunks { average, list })
    }

    /// How they were cut.
    #[must_use]
    pub fn average(&self) -> Average {
        self.average
    }

    /// For the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.list.iter().flat_map(|(mark, length)| mark.iter().copied().chain(length.to_le_bytes())).collect()
    }

    /// From the wire; `None`: more of them than there may be, an empty one, half a one, or more bytes than `size`.
    #[must_use]
    pub fn from_bytes(average: Average, bytes: &[u8], size: u64) -> Option<Chunks> {
        let (chunks, rest) = bytes.as_chunks::<CHUNK_BYTES>();
        if !rest.is_empty() || chunks.len() > CHUNKS_MAX {
            return None;
        }
        let mut list = Vec::with_capacity(chunks.len());
        let mut left = size;
        for [mark @ .., a, b, c, d] in chunks {
            let length = u32::from_le_bytes([*a, *b, *c, *d]);
            left = left.checked_sub(length.into()).filter(|_| length > 0)?;
            list.push((*mark, length));
        }
        Some(Chunks { average, list })
    }

    /// Where each lies, by its mark.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = BTreeMap::new();
        let mut at = 0_u64;
        for (mark, length) in &self.list {
            if *mark != HOLE {
                table.entry(*mark).or_insert((at, *length));
            }
            at = at.saturating_add((*length).into());
        }
        Table(table)
    }
}

/// Finds chunks.
#[derive(Debug)]
pub struct Table(BTreeMap<Mark, (u64, u32)>);

impl Table {
    /// Where the same bytes are.
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<u64> {
        let (offset, length) = self.0.get(&mark(bytes))?;
        (u32::try_from(bytes.len()) == Ok(*length)).then_some(*offset)
    }
}

fn mark(bytes: &[u8]) -> Mark {
    let mut mark = HOLE;
    for (to, from) in mark.iter_mut().zip(blake3::hash(bytes).as_bytes()) {
        *to = *from;
    }
    mark
}

fn marks(file: &File, range: Range<u64>, average: Average) -> Result<Vec<(Mark, u32)>, SourceError> {
    let mut list = Vec::new();
    cut(file, range, average, &mut |found| {
        match found {
            Found::Chunk(_, bytes) => list.push((mark(bytes), u32::try_from(bytes.len()).unwrap_or(0))),
            Found::Hole(mut hole) => {
                while hole.start < hole.end {
                    let length = u32::try_from(hole.end - hole.start).unwrap_or(u32::MAX);
                    list.push((HOLE, length));
                    hole.start += u64::from(length);
                }
            }
        }
        Ok(if list.len() < CHUNKS_MAX { Go::On } else { Go::Home })
    })?;
    Ok(list)
}

/// What lies in a file.
#[derive(Debug)]
pub enum Found<'a> {
    /// A chunk and where it begins.
    Chunk(u64, &'a [u8]),
    /// Nothing.
    Hole(Range<u64>),
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Yes.
    On,
    /// No.
    Home,
}

/// Cuts a range of a file; a hole ends a chunk. Blocks.
///
/// # Errors
/// See [`SourceError`], or what `out` says.
pub fn cut(
    file: &File,
    range: Range<u64>,
    average: Average,
    out: &mut dyn FnMut(Found<'_>) -> Result<Go, SourceError>,
) -> Result<(), SourceError> {
    let mut buffer = vec![0; (2 * average.most()).max(2 << 20)];
    let mut at = range.start;
    while at < range.end {
        let (data, end) = next_data(file, at, range.end)?;
        if data > at && out(Found::Hole(at..data))? == Go::Home {
            return Ok(());
        }
        if cut_data(file, data..end, average, &mut buffer, out)? == Go::Home {
            return Ok(());
        }
        at = end.max(at.saturating_add(1));
    }
    Ok(())
}

fn cut_data(
    file: &File,
    range: Range<u64>,
    average: Average,
    buffer: &mut [u8],
    out: &mut dyn FnMut(Found<'_>) -> Result<Go, SourceError>,
) -> Result<Go, SourceError> {
    // What the buffer holds begins at `at`.
    let (mut at, mut filled) = (range.start, 0_usize);
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let want = buffer.len().min(left);
        let fresh = buffer.get_mut(filled..want).unwrap_or_default();
        file.read_exact_at(fresh, at + filled as u64).map_err(shorter_means_changed)?;
        let bytes = buffer.get(..want).unwrap_or_default();
        let cutter = average.cutter(bytes);
        let mut done = 0;
        // What might be cut otherwise with more bytes behind it waits for them.
        while done < want && (want == left || want - done >= average.most()) {
            let (_, end) = cutter.cut(done, want - done);
            let end = end.clamp(done + 1, want);
            let chunk = bytes.get(done..end).unwrap_or_default();
            if out(Found::Chunk(at + done as u64, chunk))? == Go::Home {
                return Ok(Go::Home);
            }
            done = end;
        }
        buffer.copy_within(done..want, 0);
        (at, filled) = (at + done as u64, want - done);
    }
    Ok(Go::On)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u8, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn file(dir: &tempfile::TempDir, bytes: &[u8]) -> File {
        let path = dir.path().join("f");
        std::fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn chunks_lie_one_behind_the_other_and_the_buffer_does_not_show() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = noise(1, (7 << 20) + 13);
        let (mut ends, mut at) = (Vec::new(), 0);
        cut(&file(&dir, &bytes), 0..bytes.len() as u64, Average::of(0), &mut |found| {
            let Found::Chunk(offset, chunk) = found else { panic!("{found:?}") };
            assert_eq!((offset, chunk), (at as u64, &bytes[at..at + chunk.len()]));
            at += chunk.len();
            ends.push(at);
            Ok(Go::On)
        })
        .unwrap();
        let whole: Vec<usize> =
            Average::of(0).cutter(&bytes).map(|chunk| chunk.offset + chunk.length).collect();
        assert_eq!(ends, whole);
        assert!((40..400).contains(&ends.len()), "{}", ends.len());
    }

    #[test]
    fn moved_bytes_are_found_where_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let old = noise(2, 16 << 20);
        let table = Chunks::of(&file(&dir, &old), old.len() as u64).unwrap().table();
        let new = [noise(3, 12_345), old.clone()].concat();
        let mut found = 0;
        cut(&file(&dir, &new), 0..new.len() as u64, Average::of(0), &mut |part| {
            let Found::Chunk(offset, chunk) = part else { panic!("{part:?}") };
            if let Some(from) = table.find(chunk) {
                assert_eq!(from + 12_345, offset);
                found += chunk.len();
            }
            Ok(Go::On)
        })
        .unwrap();
        assert!(found > old.len() - (1 << 20), "{found}");
    }

    #[test]
    fn holes_cost_no_reading_and_keep_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let sparse = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        sparse.set_len(20 << 30).unwrap();
        let bytes = noise(4, 1 << 20);
        sparse.write_all_at(&bytes, 12 << 30).unwrap();
        let chunks = Chunks::of(&sparse, 20 << 30).unwrap();
        assert!(chunks.list.len() < 100, "{}", chunks.list.len());
        let table = chunks.table();
        let first = chunks.average().cutter(&bytes).next().unwrap().length;
        assert_eq!(table.find(&bytes[..first]), Some(12 << 30));
        let back = Chunks::from_bytes(chunks.average(), &chunks.to_bytes(), 20 << 30);
        assert_eq!(back, Some(chunks));
    }

    #[test]
    fn chunks_that_cannot_be_are_refused() {
        let average = Average::of(0);
        let one = |length: u32| [&[7; MARK][..], &length.to_le_bytes()].concat();
        assert!(Chunks::from_bytes(average, &one(100), 100).is_some());
        assert_eq!(Chunks::from_bytes(average, &one(100), 99), None, "longer than the file");
        assert_eq!(Chunks::from_bytes(average, &one(0), 99), None, "empty");
        assert_eq!(Chunks::from_bytes(average, &one(100)[1..], 100), None, "half a one");
        let many = one(1).repeat(CHUNKS_MAX + 1);
        assert_eq!(Chunks::from_bytes(average, &many, u64::MAX), None, "too many");
        for bytes in [0, 1, 32 << 10, (64 << 10) + 2, 2 << 20, u32::MAX] {
            assert_eq!(Average::from_bytes(bytes), None);
        }
        for size in [0, 8 << 30, 64 << 30, 1 << 40, u64::MAX] {
            let average = Average::of(size);
            assert_eq!(Average::from_bytes(average.bytes()), Some(average));
        }
    }
}

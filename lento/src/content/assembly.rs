//! The receiving side: a staged file that becomes a content, from what is here already and the parts that come.
//!
//! The staged file itself says how far it is: it begins as a copy of the old version, or as what an interrupted
//! transfer left, is described by its blocks to the sender, and is checked as a whole before it counts.

use super::BLOCK;
use super::CHUNK;
use super::Stop;
use super::block::Layout;
use super::block::Mark;
use super::block::Task;
use super::block::Value;
use super::block::describe_until;
use super::block::pieces;
use super::block::root;
use super::chunk::Chunks;
use super::difference::Blocks;
use super::difference::Have;
use super::difference::Moved;
use super::difference::Part;
use super::difference::Piece;
use super::difference::is_zero;
use super::known::Values;
use super::source::SourceError;
use super::source::shorter_means_changed;
use lento_core::types::Hash;
use rustix::fs::FallocateFlags;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// An old version that a content is built upon.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Its file.
    pub file: Arc<File>,
    /// The hashes of its blocks, if they are remembered, with its size: what they say is believed until the end.
    pub known: Option<(u64, Values)>,
}

/// A staged file on its way to a content.
#[derive(Debug)]
pub struct Assembly {
    file: Arc<File>,
    layout: Layout,
    /// The hash of each block, where it is known for what the file holds now.
    values: Vec<Option<Value>>,
    next: u64,
    under: Under,
    old: Option<Old>,
    /// The file is copied from the old version before the first part comes.
    unseeded: bool,
    syncing: Option<JoinHandle<io::Result<()>>>,
    /// Nobody waits for it any more.
    ended: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Old {
    file: Arc<File>,
    size: u64,
}

/// How often the disk is asked to write what has been copied.
const SYNC_EACH: Duration = Duration::from_millis(20);

/// What lies under the parts that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    /// A hole: zeros need not be written.
    Hole,
    /// Other bytes.
    Bytes,
}

/// Why it is no content.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    /// Not a content that travels this way.
    #[error("a content of {0} bytes does not travel in pieces")]
    Size(u64),
    /// Whoever it was for has gone.
    #[error("nobody waits for the content any more")]
    Ended,
    /// An earlier transfer still writes to the file.
    #[error("an earlier transfer of the same content has not ended yet")]
    Busy,
    /// Parts overlap or go back.
    #[error("a piece at {0} where the content was already at {1}")]
    Order(u64, u64),
    /// A part ends beyond the size.
    #[error("a piece that ends at {0}, beyond the content's {1} bytes")]
    Beyond(u64, u64),
    /// A part of the old version that is not there.
    #[error("a piece from {0} to {1} of an old version of {2} bytes")]
    NotInOld(u64, u64, u64),
    /// The bytes are not those that were promised.
    #[error("the content's hash is {found}, not {expected}")]
    Hash {
        /// Of what came.
        found: Hash,
        /// Of what was promised.
        expected: Hash,
    },
    /// The file system.
    #[error("write: {0}")]
    Io(#[from] io::Error),
    /// Reading it back.
    #[error("staged file: {0}")]
    Source(#[from] SourceError),
}

impl Assembly {
    /// Begins with what the staged file holds from an earlier try, else with the old version, else with nothing; says
    /// what the sender may leave out. The file is open for reading and writing. Blocks, as all that is done with it does,
    /// until `ended` is true; [`Assembly::prepare`] follows.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn begin(
        file: File,
        size: u64,
        ground: Option<Ground>,
        ended: Arc<AtomicBool>,
    ) -> Result<(Assembly, Have), AssemblyError> {
        let layout = Layout::of(size).ok_or(AssemblyError::Size(size))?;
        // Held until the last descriptor of this opening is closed: by whoever still writes for a transfer that broke.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(AssemblyError::Busy),
            locked => locked.map_err(io::Error::from)?,
        }
        let mut assembly = Assembly {
            file: Arc::new(file),
            layout,
            values: vec![None; layout.count()],
            next: 0,
            under: Under::Bytes,
            old: None,
            unseeded: false,
            syncing: None,
            ended,
        };
        let blocks = assembly.look(ground)?;
        let old = assembly.old.as_ref().map_or(0, |old| old.size);
        Ok((assembly, Have { blocks, old, chunks: None }))
    }

    /// At the staged file and the old version.
    fn look(&mut self, ground: Option<Ground>) -> Result<Blocks, AssemblyError> {
        let mut known = None;
        if let Some(ground) = ground {
            let size = ground.file.metadata()?.len();
            known = ground.known.filter(|(known, _)| *known == size);
            self.old = Some(Old { file: ground.file, size }).filter(|_| size > 0);
        }
        let is_new = self.file.metadata()?.len() == 0;
        self.file.set_len(self.layout.size())?;
        if !is_new {
            self.hash()?;
        } else if self.old.is_none() {
            self.under = Under::Hole;
            return Ok(Blocks::Zeros);
        } else {
            self.unseeded = true;
            if let Some((size, values)) = known
                && let Some(marks) = self.marks_of_known(size, &values)
            {
                return Ok(Blocks::Marks(marks));
            }
            self.prepare()?;
        }
        Ok(Blocks::Marks(self.values.iter().flatten().map(Value::mark).collect()))
    }

    /// The blocks that the old version and a content of this size have in common.
    fn marks_of_known(&self, size: u64, values: &[Value]) -> Option<Vec<Mark>> {
        let theirs = Layout::of(size).filter(|layout| layout.block() == self.layout.block())?;
        let mark = |index| {
            let same = theirs.range(index) == self.layout.range(index);
            values.get(index).filter(|_| same).map_or(Value::NO_MARK, Value::mark)
        };
        (values.len() == theirs.count()).then(|| (0..self.layout.count()).map(mark).collect())
    }

    /// Copies the old version where that was promised: shared where the file system can, else with its holes. It may
    /// change meanwhile; what counts is what the staged file holds then. Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn prepare(&mut self) -> Result<(), AssemblyError> {
        let Some(old) = self.old.as_ref().filter(|_| self.unseeded) else { return Ok(()) };
        self.unseeded = false;
        if rustix::fs::ioctl_ficlone(&*self.file, &*old.file).is_ok() {
            self.file.set_len(self.layout.size())?;
            return self.hash();
        }
        // The disk works while this copies and the sender hashes. Where sizes differ, much of it may be written anew.
        let copied = Stop::default();
        if old.size == self.layout.size() {
            let (file, copied) = (self.file.clone(), copied.0.clone());
            // Without it the end takes longer.
            let syncing = std::thread::Builder::new().spawn(move || sync_until(&file, &copied));
            self.syncing = syncing.ok();
        }
        let task = Task::Copy(&old.file, &self.file);
        describe_until(&self.ended, task, self.layout, &mut self.values)?;
        self.go_on()
    }

    /// Whatever is not known of what the file holds.
    fn hash(&mut self) -> Result<(), AssemblyError> {
        describe_until(&self.ended, Task::Hash(&self.file), self.layout, &mut self.values)?;
        self.go_on()
    }

    /// Somebody may announce a content of any size, and go.
    fn go_on(&self) -> Result<(), AssemblyError> {
        if self.ended.load(Ordering::Relaxed) { Err(AssemblyError::Ended) } else { Ok(()) }
    }

    /// The chunks of the old version. Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn chunks(&self) -> Result<Option<Chunks>, AssemblyError> {
        let chunks = self.old.as_ref().map(|old| Chunks::of(&old.file, old.size));
        Ok(chunks.transpose()?)
    }

    /// Takes a part; what lies between the last one and this stays as it is. Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn take(&mut self, part: &Part) -> Result<(), AssemblyError> {
        match part {
            Part::Piece(Piece { offset, bytes }) => {
                let range = self.room(*offset, bytes.len() as u64)?;
                self.write(*offset, bytes)?;
                self.note(&range, bytes);
            }
            Part::Moved(moved) => {
                let range = self.room(moved.offset, moved.length)?;
                self.move_from_old(*moved)?;
                self.note(&range, &[]);
            }
        }
        Ok(())
    }

    /// Where a part of so many bytes goes, if it may.
    fn room(&mut self, start: u64, length: u64) -> Result<Range<u64>, AssemblyError> {
        let size = self.layout.size();
        if start < self.next {
            return Err(AssemblyError::Order(start, self.next));
        }
        let end = start.saturating_add(length);
        if end > size {
            return Err(AssemblyError::Beyond(end, size));
        }
        self.next = end;
        Ok(start..end)
    }

    /// The blocks of this range have other hashes now: known where they are whole in `bytes`.
    fn note(&mut self, range: &Range<u64>, bytes: &[u8]) {
        let mut index = self.layout.index(range.start);
        while let Some(value) = self.values.get_mut(index) {
            let block = self.layout.range(index);
            if block.start >= range.end {
                break;
            }
            let at = |offset: u64| usize::try_from(offset.checked_sub(range.start)?).ok();
            let covered = at(block.start).zip(at(block.end)).and_then(|(from, to)| bytes.get(from..to));
            *value = covered.map(|bytes| Value::of(block.start, bytes));
            index += 1;
        }
    }

    fn move_from_old(&self, moved: Moved) -> Result<(), AssemblyError> {
        let Moved { offset, from, length } = moved;
        let end = from.saturating_add(length);
        let size = self.old.as_ref().map_or(0, |old| old.size);
        let Some(old) = self.old.as_ref().filter(|_| end <= size) else {
            return Err(AssemblyError::NotInOld(from, end, size));
        };
        let mut bytes = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
        for piece in pieces(&(from..end)) {
            let length = usize::try_from(piece.end - piece.start).unwrap_or(CHUNK);
            let part = bytes.get_mut(..length).unwrap_or_default();
            old.file.read_exact_at(part, piece.start).map_err(shorter_means_changed)?;
            self.write(offset.saturating_add(piece.start - from), part)?;
        }
        Ok(())
    }

    /// All of it is here: checks it and makes it durable, and says the hashes of its blocks. A wrong one is emptied, so
    /// that the next try begins anew. Blocks.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub fn finish(mut self, expected: Hash) -> Result<Values, AssemblyError> {
        self.hash()?;
        let values: Vec<Value> = self.values.iter().copied().flatten().collect();
        let found = root(self.layout, &values).ok_or(SourceError::Changed)?;
        // An error of the disk is told once, to whoever asked first; and the next try waits for nobody then.
        if let Some(syncing) = self.syncing.take() {
            syncing.join().map_err(|_| io::Error::other("a thread that synced failed"))??;
        }
        if found != expected {
            self.file.set_len(0)?;
            return Err(AssemblyError::Hash { found, expected });
        }
        self.file.sync_all()?;
        Ok(values.into())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), AssemblyError> {
        for (zero, run) in runs(bytes) {
            let at = offset.saturating_add(run.start as u64);
            let part = bytes.get(run).unwrap_or_default();
            match (zero, self.under) {
                (true, Under::Hole) => {}
                (true, Under::Bytes) => self.punch(at, part)?,
                (false, _) => self.file.write_all_at(part, at)?,
            }
        }
        Ok(())
    }

    fn punch(&self, offset: u64, zeros: &[u8]) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&*self.file, mode, offset, zeros.len() as u64) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.write_all_at(zeros, offset),
            punched => Ok(punched?),
        }
    }
}

fn sync_until(file: &File, copied: &AtomicBool) -> io::Result<()> {
    loop {
        std::thread::sleep(SYNC_EACH);
        let last = copied.load(Ordering::Relaxed);
        file.sync_data()?;
        if last {
            return Ok(());
        }
    }
}

/// `bytes` as runs of zeros (`true`) and of others.
fn runs(bytes: &[u8]) -> Vec<(bool, Range<usize>)> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        let (zero, start) = (is_zero(block), index * BLOCK);
        match runs.last_mut() {
            Some((same, run)) if *same == zero => run.end = start + block.len(),
            _ => runs.push((zero, start..start + block.len())),
        }
    }
    runs
}

#[cfg(test)]
mod tests;

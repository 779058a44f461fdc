//! The session's memory by its parts: whose it is, what was agreed with the kernel, handles, backing ids, node ids.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use rustix::io::Errno;

use super::table::Shape;
use super::table::Slot;
use super::table::Table;
use crate::filter::Access;
use crate::lower::Shared;

/// "PRSTSESS".
const MAGIC: u64 = u64::from_be_bytes(*b"PRSTSESS");
const VERSION: u64 = 1;

// Words of the head.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
const AT_IDENTITY: usize = 2; // Four words.
const AT_FLAGS: usize = 6;
const AT_MINOR: usize = 7;
const AT_EPOCH: usize = 8;
const AT_NOTIFIED: usize = 9;
const AT_MARKS: usize = 16; // One word for each table.
const HEAD: usize = 64;

/// Requests being served, by thread; and those of earlier prestos that were not resent yet.
pub(super) const REQUESTS: Shape = Shape { mark: AT_MARKS, start: HEAD, words: 8, capacity: 2048 };
const HANDLES: Shape = Shape {
    mark: AT_MARKS + 1,
    start: REQUESTS.start + REQUESTS.words * REQUESTS.capacity,
    words: 8,
    capacity: 1 << 20,
};
const BACKINGS: Shape = Shape {
    mark: AT_MARKS + 2,
    start: HANDLES.start + HANDLES.words * HANDLES.capacity,
    words: 4,
    capacity: 1 << 20,
};
/// Only for files whose number does not fit into a node id.
const NODES: Shape = Shape {
    mark: AT_MARKS + 3,
    start: BACKINGS.start + BACKINGS.words * BACKINGS.capacity,
    words: 4,
    capacity: 1 << 24,
};
const WORDS: usize = NODES.start + NODES.words * NODES.capacity;

/// Which session it is: memory of another one must not be taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Root of the tree on its file system.
    pub root: FileId,
    /// Device number of that file system.
    pub lower: u64,
    /// Device number of the mount.
    pub mount: u64,
}

/// What was agreed with the kernel at mount, for as long as the mount lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The FUSE_INIT flags.
    pub flags: u64,
    /// The kernel's minor version of the protocol.
    pub minor: u32,
}

/// Why a memory cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not such a memory, or of another version.
    #[error("its memory is of another version")]
    Version,
    /// Another volume's, or another mount's.
    #[error("its memory belongs to another mount")]
    Other,
    /// The kernel.
    #[error("its memory cannot be used: {0}")]
    Errno(Errno),
}

/// How an open file's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Not told to the kernel yet.
    Unknown,
    /// Past presto.
    Kernel,
    /// Through presto.
    Daemon,
}

/// A handle that an earlier presto gave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldHandle {
    /// Where it is.
    pub slot: Slot,
    /// Its number.
    pub number: u64,
    /// The file.
    pub file: FileId,
    /// What it was opened for.
    pub access: Access,
    /// How its data goes.
    pub way: Way,
    /// The request that opened it.
    pub unique: u64,
}

/// Memory of one session.
#[derive(Debug)]
pub struct Memory {
    pub(super) shared: Shared,
    pub(super) requests: Table,
    handles: Table,
    backings: Table,
    nodes: Table,
    pub(super) inherited: super::requests::Inherited,
}

impl Memory {
    /// For a new mount.
    pub fn create(identity: &Identity, agreed: Agreed) -> Result<Memory, Errno> {
        let memory = Memory::over(Shared::create(WORDS)?);
        memory.put(AT_VERSION, VERSION);
        for (at, word) in identity.words().into_iter().enumerate() {
            memory.put(AT_IDENTITY + at, word);
        }
        memory.put(AT_FLAGS, agreed.flags);
        memory.put(AT_MINOR, u64::from(agreed.minor));
        memory.put(AT_MAGIC, MAGIC);
        Ok(memory)
    }

    /// What an earlier presto left; it must be this session's.
    pub fn open(fd: OwnedFd, identity: &Identity) -> Result<Memory, Refusal> {
        let shared = Shared::open(fd, WORDS).map_err(|errno| match errno {
            Errno::INVAL => Refusal::Version,
            errno => Refusal::Errno(errno),
        })?;
        let memory = Memory::over(shared);
        if memory.at(AT_MAGIC) != MAGIC || memory.at(AT_VERSION) != VERSION {
            return Err(Refusal::Version);
        }
        let same =
            identity.words().into_iter().enumerate().all(|(at, word)| memory.at(AT_IDENTITY + at) == word);
        if same { Ok(memory) } else { Err(Refusal::Other) }
    }

    fn over(shared: Shared) -> Memory {
        let table = |shape| Table::open(shape, &shared);
        let (requests, handles) = (table(REQUESTS), table(HANDLES));
        let (backings, nodes) = (table(BACKINGS), table(NODES));
        Memory { requests, handles, backings, nodes, shared, inherited: Default::default() }
    }

    fn at(&self, word: usize) -> u64 {
        self.shared.word(word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn put(&self, word: usize, value: u64) {
        if let Some(word) = self.shared.word(word) {
            word.store(value, Ordering::Release);
        }
    }

    /// What was agreed with the kernel.
    #[must_use]
    pub fn agreed(&self) -> Agreed {
        Agreed { flags: self.at(AT_FLAGS), minor: u32::try_from(self.at(AT_MINOR)).unwrap_or(0) }
    }

    /// How many prestos have served it before; counts this one.
    pub fn next_epoch(&self) -> u64 {
        let before = self.at(AT_EPOCH);
        self.put(AT_EPOCH, before.saturating_add(1));
        before
    }

    /// The kernel's caches know of every replay up to this record.
    #[must_use]
    pub fn notified(&self) -> Recno {
        Recno(self.at(AT_NOTIFIED))
    }

    /// Moves that mark on.
    pub fn set_notified(&self, recno: Recno) {
        self.put(AT_NOTIFIED, recno.0);
    }

    /// A handle is about to be given out. `None`: no room; it will not outlive presto.
    pub fn add_handle(&self, number: u64, file: FileId, access: Access) -> Option<Slot> {
        let access = match access {
            Access::Read => 1,
            Access::Write => 2,
            Access::ReadWrite => 3,
        };
        let values = [number, file.ino, file.generation, access, 0, super::requests::current()];
        self.handles.insert(&self.shared, &values)
    }

    /// How its data goes; before the reply.
    pub fn set_way(&self, slot: Slot, way: Way) {
        let value = match way {
            Way::Unknown => 0,
            Way::Kernel => 1,
            Way::Daemon => 2,
        };
        self.handles.set(&self.shared, slot, 4, value);
    }

    /// A handle is released.
    pub fn remove_handle(&self, slot: Slot) {
        self.handles.remove(&self.shared, slot);
    }

    /// All handles given out.
    #[must_use]
    pub fn handles(&self) -> Vec<HeldHandle> {
        let held = |(slot, [number, ino, generation, access, way, unique]): (Slot, [u64; 6])| HeldHandle {
            slot,
            number,
            file: FileId { ino, generation },
            access: match access {
                1 => Access::Read,
                2 => Access::Write,
                _ => Access::ReadWrite,
            },
            way: match way {
                0 => Way::Unknown,
                1 => Way::Kernel,
                _ => Way::Daemon,
            },
            unique,
        };
        self.handles.all(&self.shared).into_iter().map(held).collect()
    }

    /// The kernel has this backing id for this file.
    pub fn add_backing(&self, id: u32, file: FileId) -> Option<Slot> {
        self.backings.insert(&self.shared, &[u64::from(id), file.ino, file.generation])
    }

    /// It is about to be closed.
    pub fn remove_backing(&self, slot: Slot) {
        self.backings.remove(&self.shared, slot);
    }

    /// All backing ids that the kernel has.
    #[must_use]
    pub fn backings(&self) -> Vec<(Slot, u32, FileId)> {
        let held = |(slot, [id, ino, generation]): (Slot, [u64; 3])| {
            u32::try_from(id).ok().map(|id| (slot, id, FileId { ino, generation }))
        };
        self.backings.all(&self.shared).into_iter().filter_map(held).collect()
    }

    /// A file gets a node id, its slot's number; so many lookups.
    pub fn add_node(&self, file: FileId, lookups: u64) -> Option<usize> {
        self.nodes.insert(&self.shared, &[file.ino, file.generation, lookups]).map(Slot::number)
    }

    /// The kernel remembers it so many times.
    pub fn set_lookups(&self, node: usize, lookups: u64) {
        self.nodes.set(&self.shared, Slot::of(node), 2, lookups);
    }

    /// The kernel has forgotten it.
    pub fn remove_node(&self, node: usize) {
        self.nodes.remove(&self.shared, Slot::of(node));
    }

    /// All node ids given out: number, file, lookups.
    #[must_use]
    pub fn nodes(&self) -> Vec<(usize, FileId, u64)> {
        let held = |(slot, [ino, generation, lookups]): (Slot, [u64; 3])| {
            (slot.number(), FileId { ino, generation }, lookups)
        };
        self.nodes.all(&self.shared).into_iter().map(held).collect()
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }
}

impl Identity {
    fn words(self) -> [u64; 4] {
        [self.root.ino, self.root.generation, self.lower, self.mount]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { root: FileId { ino: 2, generation: 0 }, lower: 7, mount: 8 }
    }

    fn again(memory: &Memory, identity: &Identity) -> Result<Memory, Refusal> {
        Memory::open(rustix::io::fcntl_dupfd_cloexec(memory, 3).unwrap(), identity)
    }

    #[test]
    fn the_next_presto_finds_what_was_noted() {
        let agreed = Agreed { flags: 0x11_0000_0001, minor: 45 };
        let memory = Memory::create(&identity(), agreed).unwrap();
        let file = FileId { ino: 12, generation: 99 };
        let one = memory.add_handle(1, file, Access::Read).unwrap();
        let two = memory.add_handle(2, file, Access::ReadWrite).unwrap();
        memory.set_way(two, Way::Kernel);
        memory.remove_handle(one);
        let backing = memory.add_backing(5, file).unwrap();
        memory.set_notified(Recno(17));
        assert_eq!(memory.next_epoch(), 0);
        let next = again(&memory, &identity()).unwrap();
        assert_eq!(next.agreed(), agreed);
        assert_eq!(next.notified(), Recno(17));
        assert_eq!(next.next_epoch(), 1);
        assert_eq!(next.backings(), [(backing, 5, file)]);
        let way = Way::Kernel;
        assert_eq!(
            next.handles(),
            [HeldHandle { slot: two, number: 2, file, access: Access::ReadWrite, way, unique: 0 }]
        );
    }

    #[test]
    fn the_memory_of_another_mount_is_refused() {
        let memory = Memory::create(&identity(), Agreed::default()).unwrap();
        let other = Identity { mount: 9, ..identity() };
        assert_eq!(again(&memory, &other).unwrap_err(), Refusal::Other);
        memory.put(AT_VERSION, 2);
        assert_eq!(again(&memory, &identity()).unwrap_err(), Refusal::Version);
    }
}

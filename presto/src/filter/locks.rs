//! Per-object locks: whoever holds an object's lock is the only one who changes it and journals about it.
//!
//! Striped, so that their number is fixed; always taken in ascending order, so that two holders cannot wait for each
//! other. Held across begin, lower operation and done; never while waiting for space, Lento or the kernel's caches.

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;
use parking_lot::MutexGuard;

const STRIPES: usize = 1024;

/// The locks of one volume.
#[derive(Debug)]
pub struct Locks {
    stripes: Vec<Mutex<()>>,
}

/// Locks held until it is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    _stripes: Vec<MutexGuard<'a, ()>>,
}

impl Default for Locks {
    fn default() -> Locks {
        Locks { stripes: (0..STRIPES).map(|_| Mutex::new(())).collect() }
    }
}

impl Locks {
    /// Takes the locks of all these objects (`NONE` is skipped). A thread that already holds some must not call it.
    #[must_use]
    pub fn lock(&self, objects: &[FileId]) -> Held<'_> {
        let mut wanted: Vec<usize> =
            objects.iter().filter(|id| !id.is_none()).map(|id| stripe(*id)).collect();
        wanted.sort_unstable();
        wanted.dedup();
        Held { _stripes: wanted.iter().filter_map(|at| self.stripes.get(*at)).map(Mutex::lock).collect() }
    }
}

fn stripe(id: FileId) -> usize {
    // Neighbouring inode numbers are used together; a multiplication spreads them.
    let mixed = (id.ino ^ id.generation.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 32).unwrap_or(0) % STRIPES
}

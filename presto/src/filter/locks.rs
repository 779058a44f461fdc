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
    locks: &'a Locks,
    stripes: Vec<(usize, MutexGuard<'a, ()>)>,
}

impl Held<'_> {
    /// Takes one more lock if it is free, in whatever order: nobody waits for it here. Says whether it is held now.
    #[must_use]
    pub fn take_free(&mut self, object: FileId) -> bool {
        let wanted = stripe(object);
        if self.stripes.iter().any(|(at, _)| *at == wanted) {
            return true;
        }
        let Some(free) = self.locks.stripes.get(wanted).and_then(Mutex::try_lock) else { return false };
        self.stripes.push((wanted, free));
        true
    }
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
        let take = |at: usize| self.stripes.get(at).map(|stripe| (at, stripe.lock()));
        Held { locks: self, stripes: wanted.into_iter().filter_map(take).collect() }
    }
}

fn stripe(id: FileId) -> usize {
    // Neighbouring inode numbers are used together; a multiplication spreads them.
    let mixed = (id.ino ^ id.generation.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    usize::try_from(mixed >> 32).unwrap_or(0) % STRIPES
}

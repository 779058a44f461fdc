//! A small file as words in memory: a store is no system call, and what was stored survives this process.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use intermezzo_kml::fs::Access;
use intermezzo_kml::guard::Guarded;
use rustix::io::Errno;

/// The first bytes of a file, mapped for writing.
#[derive(Debug)]
pub struct Words {
    map: Guarded,
}

impl Words {
    /// Maps so many words. What the file lacks is written as zeros before, so that no store needs room on the disk:
    /// that only holds where blocks are written in place.
    ///
    /// # Errors
    /// There is no room, or the file cannot be mapped.
    pub fn map(file: &OwnedFd, words: usize) -> Result<Words, Errno> {
        let bytes = words.saturating_mul(8);
        let mut at = usize::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        while at < bytes {
            let zeros = [0; 4096];
            let part = zeros.get(..bytes.saturating_sub(at).min(zeros.len())).unwrap_or_default();
            at = at.saturating_add(rustix::io::pwrite(file, part, at as u64)?);
        }
        let file = std::fs::File::from(rustix::io::fcntl_dupfd_cloexec(file, 3)?);
        let map = Guarded::map(file, Some(bytes), Access::Write);
        Ok(Words { map: map.map_err(super::errno_of)? })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.map.memory().len() / 8
    }

    /// Stores one, little-endian, after all that were stored before. Says whether it is in the file now: not past the end, nor
    /// where the disk refuses its page.
    #[must_use]
    pub fn store(&self, at: usize, word: u64) -> bool {
        if at >= self.count() {
            return false;
        }
        // SAFETY: inside the map, which is writable and begins at a page; all stores to it are atomic.
        unsafe { AtomicU64::from_ptr(self.map.memory().as_mut_ptr().cast::<u64>().add(at)) }
            .store(word.to_le(), Ordering::Release);
        !self.map.is_broken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_in_the_file_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        std::fs::write(&path, 7u64.to_le_bytes()).unwrap();
        let open = || OwnedFd::from(std::fs::File::options().read(true).write(true).open(&path).unwrap());
        let words = Words::map(&open(), 1024).unwrap();
        assert!(words.store(1, 8) && words.store(1023, 9));
        assert!(!words.store(1024, 10));
        let bytes = std::fs::read(&path).unwrap();
        let found: Vec<_> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!((found.len(), found[0], found[1], found[1023]), (1024, 7, 8, 9));
    }
}

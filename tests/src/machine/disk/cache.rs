//! What a disk has been told and has not yet on its medium.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rand::Rng;
use rand::rngs::StdRng;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The image and the cache above it.
#[derive(Debug)]
pub struct Cache {
    image: File,
    size: u64,
    /// As reads see it: sectors by number.
    newest: BTreeMap<u64, [u8; SECTOR]>,
    /// Since the last flush, in order.
    writes: Vec<(u64, Vec<u8>)>,
    flushed: u64,
}

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Writes in the cache when the power went.
    pub cached: usize,
    /// How many of them are not there, or torn.
    pub writes: usize,
    /// Sectors whose newest content is gone.
    pub sectors: usize,
    /// Flushes before.
    pub flushes: u64,
}

/// How much of the cache reached the medium by itself.
#[derive(Clone, Copy, Debug)]
enum Luck {
    Nothing,
    /// The first so many writes.
    First(usize),
    /// Each write with this probability; one in ten of the others is torn.
    Some(f64),
}

impl Cache {
    pub fn new(image: File) -> io::Result<Cache> {
        let size = image.metadata()?.len();
        Ok(Cache { image, size, newest: BTreeMap::new(), writes: Vec::new(), flushed: 0 })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.image.read_exact_at(out, offset)?;
        let first = offset / SECTOR as u64;
        for (number, sector) in (first..).zip(out.chunks_mut(SECTOR)) {
            if let Some(newest) = self.newest.get(&number).and_then(|newest| newest.get(..sector.len())) {
                sector.copy_from_slice(newest);
            }
        }
        Ok(())
    }

    /// Offset and length are whole sectors: the server says so, and QEMU heeds it.
    pub fn write(&mut self, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let (sectors, rest) = bytes.as_chunks::<SECTOR>();
        if !rest.is_empty()
            || !offset.is_multiple_of(SECTOR as u64)
            || offset + bytes.len() as u64 > self.size
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.newest.extend((offset / SECTOR as u64..).zip(sectors.iter().copied()));
        self.writes.push((offset, bytes));
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        self.flushed += 1;
        self.newest.clear();
        for (offset, bytes) in self.writes.drain(..) {
            self.image.write_all_at(&bytes, offset)?;
        }
        Ok(())
    }

    /// What is left on the medium.
    pub fn cut(self, random: &mut StdRng) -> io::Result<Lost> {
        let luck = match random.random_range(0..10) {
            0..4 => Luck::Nothing,
            4..6 => Luck::First(random.random_range(0..=self.writes.len())),
            6..8 => Luck::Some(0.2),
            8 => Luck::Some(0.5),
            _ => Luck::Some(0.9),
        };
        let mut lost = Lost { cached: self.writes.len(), flushes: self.flushed, ..Lost::default() };
        for (number, (offset, bytes)) in self.writes.iter().enumerate() {
            let whole = match luck {
                Luck::Nothing => false,
                Luck::First(count) => number < count,
                Luck::Some(chance) => random.random_bool(chance),
            };
            if whole {
                self.image.write_all_at(bytes, *offset)?;
                continue;
            }
            lost.writes += 1;
            if matches!(luck, Luck::Some(_)) && random.random_bool(0.1) {
                let sectors = (*offset..).step_by(SECTOR).zip(bytes.chunks(SECTOR));
                for (offset, sector) in sectors.filter(|_| random.random()) {
                    self.image.write_all_at(sector, offset)?;
                }
            }
        }
        let mut sector = [0; SECTOR];
        for (number, newest) in &self.newest {
            self.image.read_exact_at(&mut sector, number * SECTOR as u64)?;
            lost.sectors += usize::from(sector != *newest);
        }
        Ok(lost)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn cache() -> (File, Cache) {
        let image = tempfile::tempfile().unwrap();
        image.set_len(64 << 10).unwrap();
        (image.try_clone().unwrap(), Cache::new(image).unwrap())
    }

    fn on_medium(image: &File, offset: u64) -> u8 {
        let mut byte = [0];
        image.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }

    #[test]
    fn what_was_flushed_stays_and_of_the_rest_the_dice_take() {
        let (mut kept, mut gone) = (0, 0);
        for seed in 0..60 {
            let (image, mut cache) = cache();
            cache.write(0, vec![1; 4096]).unwrap();
            cache.flush().unwrap();
            for n in 0..8 {
                cache.write(4096 * n, vec![2; 4096]).unwrap();
            }
            let lost = cache.cut(&mut StdRng::seed_from_u64(seed)).unwrap();
            assert_eq!((lost.cached, lost.flushes), (8, 1));
            assert_ne!(on_medium(&image, 0), 0, "seed {seed}: a flushed sector is gone");
            for n in 1..8 {
                kept += usize::from(on_medium(&image, 4096 * n) == 2);
                gone += usize::from(on_medium(&image, 4096 * n) == 0);
            }
        }
        assert!(kept > 50 && gone > 50, "{kept} kept, {gone} gone");
    }

    #[test]
    fn reads_see_the_newest() {
        let (image, mut cache) = cache();
        cache.write(512, vec![3; 1024]).unwrap();
        cache.write(1024, vec![4; 512]).unwrap();
        let mut found = vec![9; 2048];
        cache.read(0, &mut found).unwrap();
        assert_eq!([found[0], found[512], found[1024], found[1536]], [0, 3, 4, 0]);
        assert_eq!(on_medium(&image, 512), 0);
        assert!(cache.write(100, vec![0; 512]).is_err());
        assert!(cache.write(64 << 10, vec![0; 512]).is_err());
    }
}

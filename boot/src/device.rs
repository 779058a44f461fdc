//! The disk that holds the cache: found by its node, or by what the file system on it is called.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmdline::Place;
use crate::console::say;

/// How often it is looked for.
const BREATH: Duration = Duration::from_millis(50);
/// How often it is said what is waited for.
const WORD: Duration = Duration::from_secs(5);

/// A file system on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The disk.
    pub device: PathBuf,
    /// Type of its file system.
    pub kind: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
struct Superblock {
    kind: &'static str,
    uuid: String,
    label: String,
}

/// Waits until it is there.
///
/// # Errors
/// It is not, in this time; or it holds nothing that a cache can lie on.
pub fn find(place: &Place, patience: Duration) -> Result<Found> {
    let begun = Instant::now();
    let mut said = Duration::ZERO;
    loop {
        match place {
            Place::Device(path) if Path::new(path).exists() => return of(Path::new(path)),
            Place::Device(_) => {}
            Place::Uuid(uuid) => {
                if let Some(found) = among(&|block: &Superblock| block.uuid == *uuid) {
                    return Ok(found);
                }
            }
            Place::Label(label) => {
                if let Some(found) = among(&|block: &Superblock| block.label == *label) {
                    return Ok(found);
                }
            }
        }
        let waited = begun.elapsed();
        let there = disks();
        let names: Vec<_> = there.iter().map(|disk| disk.display().to_string()).collect();
        let names = if names.is_empty() { "no disk at all".to_owned() } else { names.join(", ") };
        if waited >= patience {
            bail!(
                "root={place} is not there after {} s; there is {names}. Correct root=, or pack the module of its controller \
                 (intermezzo initramfs --module NAME)",
                patience.as_secs()
            );
        }
        if waited >= said + WORD {
            said = waited;
            say(format_args!("waiting for root={place}; there is {names}"));
        }
        std::thread::sleep(BREATH);
    }
}

fn of(device: &Path) -> Result<Found> {
    let disk = File::open(device).with_context(|| format!("root={} cannot be read", device.display()))?;
    match superblock(&disk) {
        Some(block) => Ok(Found { device: device.to_owned(), kind: block.kind }),
        None => bail!("root={} holds none of ext4, xfs, btrfs", device.display()),
    }
}

fn among(is_meant: &dyn Fn(&Superblock) -> bool) -> Option<Found> {
    disks().into_iter().find_map(|device| {
        let block = superblock(&File::open(&device).ok()?)?;
        is_meant(&block).then_some(Found { device, kind: block.kind })
    })
}

fn disks() -> Vec<PathBuf> {
    let names = std::fs::read_dir("/sys/class/block").into_iter().flatten().flatten();
    let mut disks: Vec<_> = names.map(|name| Path::new("/dev").join(name.file_name())).collect();
    disks.sort();
    disks
}

/// By the magic number of each: ext4, xfs, btrfs.
fn superblock(disk: &File) -> Option<Superblock> {
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        disk.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    };
    let block = |kind, uuid: u64, label: u64, length| {
        let label = read(label, length)?;
        let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Superblock {
            kind,
            uuid: dashed(&read(uuid, 16)?),
            label: String::from_utf8_lossy(label).into_owned(),
        })
    };
    if read(0x438, 2)? == [0x53, 0xef] {
        return block("ext4", 0x468, 0x478, 16);
    }
    if read(0, 4)? == *b"XFSB" {
        return block("xfs", 32, 108, 12);
    }
    if read(0x1_0040, 8)? == *b"_BHRfS_M" {
        return block("btrfs", 0x1_0020, 0x1_012b, 256);
    }
    None
}

fn dashed(uuid: &[u8]) -> String {
    let digits: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    parts.map(|(from, to)| digits.get(from..to).unwrap_or_default()).join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_known_by_their_superblocks() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let file = disk.as_file();
        file.set_len(1 << 17).unwrap();
        assert_eq!(superblock(file), None);
        assert!(of(disk.path()).unwrap_err().to_string().contains("none of ext4, xfs, btrfs"));
        file.write_all_at(b"_BHRfS_M", 0x1_0040).unwrap();
        assert_eq!(superblock(file).unwrap().kind, "btrfs");
        file.write_all_at(b"XFSB", 0).unwrap();
        assert_eq!(superblock(file).unwrap().kind, "xfs");
        file.write_all_at(&[0x53, 0xef], 0x438).unwrap();
        file.write_all_at(&[0xab; 16], 0x468).unwrap();
        file.write_all_at(b"node-7", 0x478).unwrap();
        let uuid = "abababab-abab-abab-abab-abababababab".to_owned();
        let block = Superblock { kind: "ext4", uuid, label: "node-7".to_owned() };
        assert_eq!(superblock(file), Some(block));
        assert_eq!(of(disk.path()).unwrap().kind, "ext4");
    }

    #[test]
    fn a_disk_that_does_not_come_is_not_waited_for_for_ever() {
        let error = find(&Place::Device("/dev/none-such".to_owned()), Duration::from_millis(60)).unwrap_err();
        assert!(error.to_string().contains("/dev/none-such is not there"), "{error}");
    }
}

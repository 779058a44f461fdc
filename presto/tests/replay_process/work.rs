//! Random work: users on the mount, and a Lento that replays into the same names.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use presto::lower::Lower;
use rustix::fs::{CWD, RenameFlags, XattrFlags};

use crate::fleet::{Lento, NAME};

/// xorshift64*: small, and the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn name(&mut self) -> String {
        format!("n{}", self.below(8))
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let mut path = root.to_owned();
        for _ in 0..self.below(3) {
            path.push(self.name());
        }
        path.join(self.name())
    }
}

/// Users' operations until presto was killed. Refusals are part of life.
pub fn users(root: &Path, seed: u64, killed: &AtomicBool) {
    let mut random = Random::new(seed);
    while !killed.load(Ordering::Relaxed) {
        let _ = step(root, &mut random);
    }
}

fn step(root: &Path, random: &mut Random) -> std::io::Result<()> {
    let (path, other) = (random.path(root), random.path(root));
    match random.below(16) {
        0..=2 => std::fs::create_dir(path),
        3..=5 => {
            let mut file = std::fs::File::create(path)?;
            for _ in 0..random.below(4) {
                file.write_all(&vec![b'x'; usize::try_from(random.below(9000)).unwrap()])?;
            }
            Ok(())
        }
        6 => std::fs::OpenOptions::new().append(true).open(path)?.write_all(b"more"),
        7 | 8 => std::fs::remove_file(path),
        9 => std::fs::remove_dir(path),
        10 | 11 => std::fs::rename(path, other),
        12 => Ok(rustix::fs::renameat_with(CWD, path, CWD, other, RenameFlags::EXCHANGE)?),
        13 => std::fs::hard_link(path, other),
        14 => std::os::unix::fs::symlink(format!("to-{}", random.below(100)), path),
        _ => match random.below(4) {
            0 => {
                let mode = 0o600 | u32::try_from(random.below(0o200)).unwrap();
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            }
            1 => Ok(rustix::fs::setxattr(path, "user.k", &[random.below(256) as u8], XattrFlags::empty())?),
            2 => Ok(rustix::fs::removexattr(path, "user.k")?),
            _ => std::fs::OpenOptions::new().write(true).open(path)?.set_len(random.below(5000)),
        },
    }
}

/// Lento's batches until presto is gone; says how many items were applied.
pub fn lento(mut lento: Lento, cache: &Path, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let lower = Lower::open(cache, None).unwrap();
    let mut applied = 0;
    loop {
        let items = (0..=random.below(5)).filter_map(|_| item(&lower, &mut random)).collect();
        match lento.ask(NAME, Body::Replay(v1::Replay { items, untouched_since: u64::MAX })) {
            Ok(Body::Replayed(replayed)) => {
                applied += replayed
                    .outcomes
                    .iter()
                    .filter(|outcome| outcome.result() == v1::outcome::Result::Applied)
                    .count();
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => return applied,
        }
    }
}

fn item(lower: &Lower, random: &mut Random) -> Option<v1::ReplayItem> {
    let (dir, name) = place(lower, random);
    let (other_dir, other_name) = place(lower, random);
    let found = find(lower, dir, &name);
    let other = find(lower, other_dir, &other_name);
    let bytes = |text: &str| -> bytes::Bytes { text.as_bytes().to_vec().into() };
    let give = |mode| {
        Some(v1::Attributes { mode, mtime: Some(v1::Time { sec: 1000, nsec: 7 }), ..Default::default() })
    };
    let text = "r".repeat(usize::try_from(random.below(3000)).unwrap());
    let content = || {
        let size = u64::try_from(text.len()).unwrap();
        Some(v1::Content { from: Some(v1::content::From::Inline(bytes(&text))), size })
    };
    let busy = if random.below(2) == 0 { v1::Busy::Wait } else { v1::Busy::Decide }.into();
    let op = match random.below(8) {
        0 | 1 => Op::Make(v1::Make {
            dir: by(dir),
            name: bytes(&name),
            attributes: give(0o100_644),
            content: content(),
            ..Default::default()
        }),
        2 => Op::Make(v1::Make {
            dir: by(dir),
            name: bytes(&name),
            attributes: give(0o040_755),
            ..Default::default()
        }),
        3 => Op::Unlink(v1::Unlink {
            dir: by(dir),
            name: bytes(&name),
            expect: by(found?),
            busy,
            ..Default::default()
        }),
        4 => Op::Rename(v1::Rename {
            from: by(dir),
            from_name: bytes(&name),
            expect: by(found?),
            to: by(other_dir),
            to_name: bytes(&other_name),
            replaced: other.and_then(by),
            exchange: other.is_some() && random.below(2) == 0,
            busy,
            ..Default::default()
        }),
        5 | 6 => Op::Install(v1::Install {
            file: by(found?),
            content: content(),
            attributes: give(0o640),
            dir: by(dir),
            name: bytes(&name),
            busy,
            ..Default::default()
        }),
        _ => Op::Link(v1::Link { file: by(found?), dir: by(other_dir), name: bytes(&other_name) }),
    };
    let record = Some(v1::Tag { replica: 0, incarnation: 0, number: 1 });
    Some(v1::ReplayItem { record, op: Some(op), ..Default::default() })
}

type Id = intermezzo_kml::FileId;

fn by(id: Id) -> Option<v1::Ref> {
    let file = v1::FileId { ino: id.ino, generation: id.generation };
    Some(v1::Ref { by: Some(v1::r#ref::By::File(file)) })
}

fn place(lower: &Lower, random: &mut Random) -> (Id, String) {
    let mut dir = lower.root();
    for _ in 0..random.below(3) {
        if let Some(below) = find(lower, dir, &random.name()).filter(|id| lower.dir(*id).is_ok()) {
            dir = below;
        }
    }
    (dir, random.name())
}

fn find(lower: &Lower, dir: Id, name: &str) -> Option<Id> {
    lower.child(&*lower.dir(dir).ok()?, name.as_bytes()).ok()
}

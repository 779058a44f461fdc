//! Files with random damage, through the way by which they are opened: a damaged file stops its volume with its path in the
//! message, never the process. `SIM_RUNS=n`, `SIM_SEED=n`.

#![allow(clippy::all, clippy::restriction, missing_docs)]

use intermezzo_kml as kml;
use intermezzo_kml::record;
use lento::journal::Journal;
use lento::store::TransactionError;
use lento::store::VolumeStore;
use lento_core::Volume;
use lento_core::io::Input;
use lento_core::store::Table;
use lento_core::types::FileId;
use lento_core::types::Recno;
use lento_core::volume::Before;
use lento_core::volume::Config;
use lento_core::volume::Fault;
use lento_core::volume::Millis;
use lento_core::volume::Role;
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::path::Path;
use std::path::PathBuf;

fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_RUNS").unwrap_or(most),
    }
}

/// Flips bits, cuts off, or appends.
fn damage(random: &mut StdRng, path: &Path, used: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    match random.random_range(0..6) {
        0 => bytes.truncate(random.random_range(0..=bytes.len())),
        1 => bytes.extend(std::iter::repeat_n(random.random::<u8>(), random.random_range(1..9000))),
        _ => {
            for _ in 0..random.random_range(1..20) {
                let at = random.random_range(0..bytes.len().min(used).max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.random_range(0..8);
                }
            }
        }
    }
    std::fs::write(path, bytes).unwrap();
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in files(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn config() -> Config {
    Config {
        name: "ns/v".into(),
        role: Role::Server,
        new_replica: 7,
        root: FileId { ino: 2, generation: 1 },
        staging: FileId { ino: 3, generation: 1 },
        adopts: false,
        snapshot_chunk: 512,
        before: Before::Whole,
        entropy: 1,
        tail: 0,
    }
}

fn open(dir: &Path) -> Result<VolumeStore, String> {
    VolumeStore::open(&dir.join("v.redb"), "boot", &dir.join("v.life")).map_err(|error| error.to_string())
}

fn id(ino: u64) -> record::FileId {
    record::FileId { ino, generation: 1 }
}

/// A record of a user, of any kind, about one of a few files; with `wild`, with values that cannot be.
fn write_one(journal: &kml::Journal, random: &mut StdRng, wild: bool) {
    use record::Opcode::*;
    let opcodes = [
        Create, Mkdir, Mknod, Symlink, Link, Unlink, Rmdir, Rename, Setattr, Close, Setxattr, Delxattr, Noop,
    ];
    let opcode = opcodes[random.random_range(0..opcodes.len())];
    let file = |random: &mut StdRng| id(random.random_range(2..9));
    let name = |random: &mut StdRng| match random.random_range(0..if wild { 9 } else { 4 }) {
        5 => b"..".to_vec(),
        6 => b"a/b".to_vec(),
        7 => vec![0; 3],
        8 => Vec::new(),
        letter => vec![b'a' + letter],
    };
    let nsec = if wild && random.random_range(0..6) == 0 { u32::MAX } else { 5 };
    let time = record::Time { sec: random.random_range(-3..3), nsec };
    let attributes = record::Attributes {
        mode: [0o100_644, 0o040_755, 0o120_777, 0, u32::MAX]
            [random.random_range(0..if wild { 5 } else { 3 })],
        size: if wild { random.random() } else { 5 },
        mtime: time,
        ..Default::default()
    };
    let intent = record::Intent {
        opcode: Some(opcode),
        time,
        object: file(random),
        parent: file(random),
        target_parent: file(random),
        replaced: if random.random() { file(random) } else { record::FileId::NONE },
        flags: record::Flags::from_bits_truncate(if wild { random.random() } else { 0 }),
        mask: record::Mask::from_bits_truncate(random.random()),
        name: name(random),
        target_name: name(random),
        value: vec![1; random.random_range(0..40)],
        origin: record::Origin {
            kind: if random.random_range(0..4) == 0 {
                record::OriginKind::Replay
            } else {
                record::OriginKind::User
            },
            verdict: if wild { random.random() } else { 0 },
            ..Default::default()
        },
        ..Default::default()
    };
    let outcome = record::Outcome {
        object: intent.object,
        after: attributes,
        flags: intent.flags,
        ..Default::default()
    };
    journal.append(kml::Class::User, &intent, &outcome).unwrap();
}

fn journal(dir: &Path, random: &mut StdRng, wild: bool) {
    let config =
        kml::Config { max_bytes: 8 << 20, segment_bytes: 64 << 10, reserve_bytes: 128 << 10, volume: 7 };
    let (journal, _) = kml::Journal::open(std::sync::Arc::new(kml::fs::Os), dir, config).unwrap();
    for _ in 0..random.random_range(5..120) {
        write_one(&journal, random, wild);
    }
    journal.sync().unwrap();
}

/// Reads all of the journal into a core. What stops it, if something does.
fn read(journal: &Path, store: &VolumeStore) -> Result<u64, String> {
    let mut journal = Journal::open(journal).map_err(|error| error.to_string())?;
    let opened = store.write(|tables| {
        let mut volume = Volume::open(config(), tables)?;
        volume.handle(Millis(1), Input::PrestoUp { first: Recno(1), last: Recno(0) }, tables)?;
        Ok::<_, Fault>(volume)
    });
    let text = |error: TransactionError<Fault>| error.to_string();
    let mut volume = opened.map_err(text)?;
    loop {
        let records = journal.pass_to_cml(volume.next_recno()).map_err(|error| error.to_string())?;
        if records.is_empty() {
            return Ok(volume.next_recno().0);
        }
        store.write(|tables| volume.handle(Millis(2), Input::Journal(records), tables)).map_err(text)?;
    }
}

#[test]
fn a_damaged_journal_stops_its_volume_and_says_where() {
    let mut stopped = 0;
    for seed in seeds(150) {
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let kml = dir.path().join("kml");
        journal(&kml, &mut random, false);
        let segments = files(&kml);
        let victim = &segments[random.random_range(0..segments.len())];
        damage(&mut random, victim, 40_000);
        if let Err(why) = read(&kml, &open(dir.path()).unwrap()) {
            stopped += 1;
            assert!(
                why.contains(&*kml.to_string_lossy()) || why.contains("journal record"),
                "seed {seed}: {why}"
            );
        }
    }
    assert!(stopped > 0, "nothing was noticed");
}

#[test]
fn records_that_cannot_be_stop_the_volume_and_not_the_process() {
    let mut stopped = 0;
    for seed in seeds(150) {
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let kml = dir.path().join("kml");
        journal(&kml, &mut random, true);
        if let Err(why) = read(&kml, &open(dir.path()).unwrap()) {
            stopped += 1;
            assert!(why.contains("record"), "seed {seed}: {why}");
        }
    }
    assert!(stopped > 0, "nothing was noticed");
}

/// Some of everything, durable and not.
fn fill(store: &VolumeStore, random: &mut StdRng) {
    for round in 0..30_u64 {
        store
            .write(|tables| {
                for table in Table::ALL {
                    let key = random.random_range(0..200_u64).to_be_bytes();
                    let value = vec![7; random.random_range(0..600)];
                    tables.put(table, &key, &value)?;
                }
                Ok::<_, Fault>(())
            })
            .unwrap();
        if round == 20 {
            store.make_durable(round).unwrap();
        }
    }
}

#[test]
fn a_damaged_store_or_redo_file_stops_its_volume_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    let store = open(&whole).unwrap();
    fill(&store, &mut StdRng::seed_from_u64(1));
    for seed in seeds(200) {
        let mut random = StdRng::seed_from_u64(seed);
        let broken = dir.path().join(format!("broken-{seed}"));
        copy(&whole, &broken);
        let file = ["v.redb", "v.redo", "v.life"][random.random_range(0..3)];
        damage(&mut random, &broken.join(file), usize::MAX);
        let outcome = open(&broken).and_then(|store| {
            let text = |error: TransactionError<Fault>| error.to_string();
            store
                .read(|tables| {
                    for table in Table::ALL {
                        tables.scan(table, &[], usize::MAX)?;
                    }
                    Ok(())
                })
                .map_err(text)?;
            store.write(|tables| Ok(tables.put(Table::Log, b"new", b"row")?)).map_err(text)?;
            store.make_durable(1).map_err(|error| error.to_string())
        });
        if let Err(why) = outcome {
            assert!(why.contains(&*broken.to_string_lossy()), "seed {seed}: {why}");
        }
        std::fs::remove_file(broken.join("v.redb")).ok();
    }
}

#[test]
fn a_length_in_the_redo_file_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    // A frame that says it is 1 GiB long.
    let frame = [&(1_u32 << 30).to_le_bytes()[..], &[0; 12]].concat();
    std::fs::write(dir.path().join("v.redo"), frame).unwrap();
    let before = peak();
    assert!(open(dir.path()).is_ok());
    assert!(peak() < before + (256 << 10), "{before} to {} KiB", peak());
}

/// Largest size of this process so far, in KiB of address space.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_directory_where_a_file_should_be_is_named() {
    for file in ["v.redb", "v.redo", "v.life"] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(file)).unwrap();
        let error = open(dir.path()).err().unwrap_or_default();
        assert!(error.contains(file), "{file}: {error}");
    }
}

//! Both sides together, without a wire: what comes out, what it cost, and what is refused.

use super::super::CHUNK;
use super::super::difference::send;
use super::super::packing::Pace;
use super::super::packing::Packer;
use super::super::packing::unpack;
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// One try: how many bytes went over the wire before it ended, by itself or at `cut` bytes.
fn transfer(new: &Path, old: Option<&Path>, staged: &Path, cut: usize) -> Result<usize, (usize, String)> {
    let source = File::open(new).unwrap();
    let old = old.map(|old| File::open(old).unwrap());
    let size = source.metadata().unwrap().len();
    let (mut assembly, have) = Assembly::begin(open(staged), size, old.as_ref()).unwrap();
    let have = Have::from_bytes(&have.to_bytes());
    let (mut sent, mut packer) = (0, Packer::default());
    let whole = send(&source, &have, &mut |piece| {
        if sent >= cut {
            return Err("cut".to_owned());
        }
        let packed = packer.pack(piece, Pace::Keeps);
        sent += packed.data.len();
        assembly.take(&unpack(packed).unwrap()).map_err(|error| error.to_string())
    });
    let done = whole.map_err(|error| error.to_string()).and_then(|whole| {
        assembly.finish(whole.hash).map_err(|error| error.to_string())?;
        Ok(sent)
    });
    done.map_err(|error| (sent, error))
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[derive(Clone, Debug)]
enum Edit {
    Fill(usize, usize, u8),
    Noise(usize, usize, u64),
    Insert(usize, usize),
    Truncate(usize),
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let span = |at: usize, length: usize| {
            let start = at % bytes.len();
            start..(start + length).min(bytes.len())
        };
        match *edit {
            Edit::Fill(at, length, with) => {
                let span = span(at, length);
                bytes[span].fill(with);
            }
            Edit::Noise(at, length, seed) => {
                let span = span(at, length);
                let length = span.len();
                bytes[span].copy_from_slice(&noise(seed, length));
            }
            Edit::Insert(at, length) => {
                let start = at % bytes.len();
                bytes.splice(start..start, noise(at as u64, length));
            }
            Edit::Truncate(length) => bytes.truncate(length.max(100_000)),
        }
    }
    bytes
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<usize>(), 1..300_000_usize, prop_oneof![Just(0), any::<u8>()])
            .prop_map(|(at, length, with)| Edit::Fill(at, length, with)),
        (any::<usize>(), 1..300_000_usize, any::<u64>())
            .prop_map(|(at, len, seed)| Edit::Noise(at, len, seed)),
        (any::<usize>(), 1..100_000_usize).prop_map(|(at, length)| Edit::Insert(at, length)),
        any::<usize>().prop_map(|length| Edit::Truncate(length % (2 << 20))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_old_version_and_any_cuts_give_exactly_the_new_content(
        size in 70_000..2_000_000_usize,
        before in prop::collection::vec(edit(), 0..4),
        after in prop::collection::vec(edit(), 0..4),
        seeded in any::<bool>(),
        cuts in prop::collection::vec(1..2_000_000_usize, 0..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
        let first = edited(noise(1, size), &before);
        let second = edited(first.clone(), &after);
        std::fs::write(&old, &first).unwrap();
        std::fs::write(&new, &second).unwrap();
        let old = seeded.then_some(old.as_path());
        let mut total = 0;
        for cut in &cuts {
            match transfer(&new, old, &staged, *cut) {
                Ok(sent) => total += sent,
                Err((sent, error)) => {
                    prop_assert!(error.ends_with("cut"), "{}", error);
                    total += sent;
                }
            }
        }
        total += transfer(&new, old, &staged, usize::MAX).unwrap();
        prop_assert!(std::fs::read(&staged).unwrap() == second);
        // Each cut may lose the rest of one block at most.
        let bound = second.len() + cuts.len() * (64 << 10);
        prop_assert!(total <= bound, "{} bytes for {}", total, second.len());
    }
}

#[test]
fn a_small_change_costs_one_block_and_nothing_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    let mut bytes = noise(3, 32 << 20);
    std::fs::write(&old, &bytes).unwrap();
    bytes[20_000_000..20_004_096].fill(9);
    std::fs::write(&new, &bytes).unwrap();
    let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
    assert!(sent <= 2 * (64 << 10), "{sent}");
    assert_eq!(std::fs::read(&staged).unwrap(), bytes);
    assert_eq!(transfer(&new, None, &staged, usize::MAX), Ok(0), "it is all there");
}

#[test]
fn holes_stay_holes_and_new_holes_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    let file = open(&new);
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&noise(1, 8192), 5 << 20).unwrap();
    let sent = transfer(&new, None, &staged, usize::MAX).unwrap();
    assert!(sent <= 64 << 10, "{sent}");
    let on_disk = |path: &Path| std::fs::metadata(path).unwrap().blocks() * 512;
    assert!(on_disk(&staged) <= 64 << 10, "{}", on_disk(&staged));

    std::fs::write(&old, noise(2, 8 << 20)).unwrap();
    let staged = dir.path().join("over the old");
    let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
    assert!(sent <= 128 << 10, "zeros hardly cost anything: {sent}");
    assert!(std::fs::read(&staged).unwrap() == std::fs::read(&new).unwrap());
    assert!(on_disk(&staged) <= 128 << 10, "{}", on_disk(&staged));
}

#[test]
fn an_old_version_that_is_longer_is_no_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    std::fs::write(&old, noise(2, 3 << 20)).unwrap();
    std::fs::write(&new, &noise(2, 3 << 20)[..1_000_001]).unwrap();
    assert_eq!(transfer(&new, Some(&old), &staged, usize::MAX), Ok(0));
    assert_eq!(std::fs::metadata(&staged).unwrap().len(), 1_000_001);
}

#[test]
fn pieces_that_cannot_be_are_refused_and_nothing_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let begin = || Assembly::begin(open(&path), 100_000, None).unwrap().0;
    let piece = |offset, length| Piece { offset, bytes: Bytes::from(vec![1; length]) };
    let size = || std::fs::metadata(&path).unwrap().len();
    let beyond = begin().take(&piece(99_999, 2)).unwrap_err();
    assert!(matches!(beyond, AssemblyError::Beyond(100_001, 100_000)), "{beyond}");
    let far = begin().take(&piece(u64::MAX, 2)).unwrap_err();
    assert!(matches!(far, AssemblyError::Beyond(u64::MAX, 100_000)), "{far}");
    let mut back = begin();
    back.take(&piece(0, 70_000)).unwrap();
    let error = back.take(&piece(69_999, 1)).unwrap_err();
    assert!(matches!(error, AssemblyError::Order(69_999, 70_000)), "{error}");
    assert_eq!(size(), 100_000);
    drop(back);
    for size in [0, 1, 64 << 10, 1 << 63, u64::MAX] {
        let error = Assembly::begin(open(&path), size, None).unwrap_err();
        assert!(matches!(error, AssemblyError::Size(_)), "{error}");
    }
}

#[test]
fn a_wrong_hash_is_an_error_and_the_next_try_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bytes = noise(1, CHUNK);
    let begin = || Assembly::begin(open(&path), CHUNK as u64, None).unwrap();
    let (mut first, _) = begin();
    first.take(&Piece { offset: 0, bytes: bytes.clone().into() }).unwrap();
    assert!(matches!(first.finish(Hash::of(b"other")), Err(AssemblyError::Hash { .. })));
    let (mut second, have) = begin();
    assert_eq!(have, Have::Zeros);
    second.take(&Piece { offset: 0, bytes: bytes.clone().into() }).unwrap();
    second.finish(Hash::of(&bytes)).unwrap();
}

#[test]
fn two_transfers_do_not_write_to_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let (first, _) = Assembly::begin(open(&path), 100_000, None).unwrap();
    assert!(matches!(Assembly::begin(open(&path), 100_000, None), Err(AssemblyError::Busy)));
    drop(first);
    Assembly::begin(open(&path), 100_000, None).unwrap();
}

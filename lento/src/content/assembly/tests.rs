//! Both sides together, without a wire: what comes out, what it cost, and what is refused.

use super::super::CHUNK;
use super::super::chunk::Average;
use super::super::chunk::CHUNKS_MAX;
use super::super::difference::Advice;
use super::super::difference::Outgoing;
use super::super::packing::Pace;
use super::super::packing::Packer;
use super::super::packing::unpack;
use super::*;
use crate::wire;
use bytes::Bytes;
use intermezzo_proto::v1;
use proptest::prelude::*;
use prost::Message;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn ground(old: &Path) -> Ground {
    Ground { file: Arc::new(File::open(old).unwrap()), known: None }
}

/// One try: how many bytes went over the wire in both directions before it ended, by itself or at `cut` bytes.
fn transfer(new: &Path, old: Option<&Path>, staged: &Path, cut: usize) -> Result<usize, (usize, String)> {
    exchange(new, old.map(ground), staged, cut).map(|(sent, _)| sent)
}

/// A try that was cut may still write for a moment; the next one comes again, as it does over the wire.
fn begin(staged: &Path, size: u64, ground: Option<Ground>) -> (Assembly, Have) {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        match Assembly::begin(open(staged), size, ground.clone(), Arc::default()) {
            Err(AssemblyError::Busy) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(2))
            }
            begun => return begun.unwrap(),
        }
    }
}

fn exchange(
    new: &Path,
    ground: Option<Ground>,
    staged: &Path,
    cut: usize,
) -> Result<(usize, Values), (usize, String)> {
    let source = File::open(new).unwrap();
    let size = source.metadata().unwrap().len();
    let (mut assembly, have) = begin(staged, size, ground);
    let mut sent = 0;
    let mut tell = |have: &Have| {
        let have = wire::have(have);
        sent += have.encoded_len();
        wire::have_back("have", Some(have)).unwrap()
    };
    let mut have = tell(&have);
    assembly.prepare().unwrap();
    let mut outgoing = Outgoing::of(&source).unwrap().unwrap();
    if outgoing.weigh(&source, &have).unwrap() == Advice::AskForChunks {
        have.chunks = assembly.chunks().unwrap();
        have = tell(&have);
    }
    let described = sent;
    let mut packer = Packer::default();
    let whole = outgoing.send(&source, &have, &mut |part| {
        if sent >= cut {
            return Err("cut".to_owned());
        }
        let packed = packer.pack(part, Pace::Keeps);
        sent += packed.encoded_len();
        assembly.take(&unpack(packed).unwrap()).map_err(|error| error.to_string())
    });
    let done = whole.map_err(|error| error.to_string()).and_then(|whole| {
        let values = assembly.finish(whole.hash).map_err(|error| error.to_string())?;
        assert_eq!(Some(&values), outgoing.into_values().as_ref());
        Ok((sent, values))
    });
    done.map_err(|error| (sent.max(described), error))
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
    Delete(usize, usize),
    Move(usize, usize, usize),
    Extend(usize),
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
            Edit::Delete(at, length) => {
                let span = span(at, length.min(bytes.len() - 70_000));
                bytes.drain(span);
            }
            Edit::Move(from, length, to) => {
                let span = span(from, length.min(bytes.len() / 2));
                let moved: Vec<u8> = bytes.drain(span).collect();
                let to = to % bytes.len();
                bytes.splice(to..to, moved);
            }
            Edit::Extend(length) => bytes.extend(noise(length as u64, length)),
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
        (any::<usize>(), 1..300_000_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (any::<usize>(), 1..1_000_000_usize, any::<usize>())
            .prop_map(|(from, length, to)| Edit::Move(from, length, to)),
        (1..300_000_usize).prop_map(Edit::Extend),
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
        // Each cut may lose the rest of one block at most; each try describes what is here.
        let described = (second.len() + 2 * first.len()) / 1000 + 4096;
        let bound = second.len() + second.len() / 500 + cuts.len() * (64 << 10) + (cuts.len() + 1) * described;
        prop_assert!(total <= bound, "{} bytes for {}", total, second.len());
    }

    #[test]
    fn a_few_edits_of_any_kind_in_a_large_file_cost_little(
        edits in prop::collection::vec(edit(), 1..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
        let first = noise(1, 24 << 20);
        let second = edited(first.clone(), &edits);
        std::fs::write(&old, &first).unwrap();
        std::fs::write(&new, &second).unwrap();
        let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
        prop_assert!(std::fs::read(&staged).unwrap() == second);
        let fresh: usize = edits.iter().map(|edit| match edit {
            Edit::Noise(_, length, _) | Edit::Insert(_, length) | Edit::Extend(length) => *length,
            Edit::Fill(..) | Edit::Delete(..) | Edit::Move(..) | Edit::Truncate(_) => 0,
        }).sum();
        // Each edit has up to three seams, and a seam costs up to two chunks; half a MiB may be sent without asking.
        let bound = fresh + edits.len() * 6 * (160 << 10) + (700 << 10);
        prop_assert!(sent <= bound, "{} bytes for {:?}", sent, edits);
    }
}

#[test]
fn bytes_that_moved_do_not_travel() {
    const SIZE: usize = 48 << 20;
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    let bytes = noise(5, SIZE);
    std::fs::write(&old, &bytes).unwrap();
    std::fs::write(&new, [&noise(6, 1000), &bytes[..]].concat()).unwrap();
    let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
    assert!(std::fs::read(&staged).unwrap() == std::fs::read(&new).unwrap());
    assert!(sent <= 800 << 10, "{sent}");
    // The same length, so that no size tells it.
    std::fs::write(&new, [&bytes[SIZE / 3..], &bytes[..SIZE / 3]].concat()).unwrap();
    let staged = dir.path().join("turned");
    let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
    assert!(std::fs::read(&staged).unwrap() == std::fs::read(&new).unwrap());
    assert!(sent <= 800 << 10, "{sent}");
}

#[test]
fn what_is_appended_is_sent_without_reading_the_old_version_for_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    let bytes = noise(5, 12 << 20);
    std::fs::write(&old, &bytes[..9_000_000]).unwrap();
    std::fs::write(&new, &bytes).unwrap();
    let (assembly, have) =
        Assembly::begin(open(&staged), bytes.len() as u64, Some(ground(&old)), Arc::default()).unwrap();
    let file = File::open(&new).unwrap();
    let mut outgoing = Outgoing::of(&file).unwrap().unwrap();
    assert_eq!(outgoing.weigh(&file, &have).unwrap(), Advice::Send);
    drop(assembly);
    let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
    assert!(sent <= bytes.len() - 9_000_000 + (160 << 10), "{sent}");
}

#[test]
fn a_remembered_old_version_is_believed_until_the_end_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    let mut bytes = noise(7, (8 << 20) + 77);
    std::fs::write(&old, &bytes).unwrap();
    let (_, values) = exchange(&old, None, &staged, usize::MAX).unwrap();
    let known = |size| Ground { known: Some((size, values.clone())), ..ground(&old) };
    let size = bytes.len() as u64;
    bytes[5_000_000..5_004_096].fill(9);
    for length in [bytes.len(), bytes.len() - 300_000, bytes.len() + 300_000] {
        bytes.resize(length, 3);
        std::fs::write(&new, &bytes).unwrap();
        let staged = dir.path().join(length.to_string());
        let (sent, _) = exchange(&new, Some(known(size)), &staged, usize::MAX).unwrap();
        assert!(std::fs::read(&staged).unwrap() == bytes);
        assert!(sent <= 720 << 10, "{sent}");
    }
    // Another file of that size is not what is remembered; its own blocks are the next try.
    std::fs::write(&old, noise(8, usize::try_from(size).unwrap())).unwrap();
    let staged = dir.path().join("believed");
    let (_, error) = exchange(&new, Some(known(size)), &staged, usize::MAX).unwrap_err();
    assert!(error.contains("hash"), "{error}");
    assert_eq!(std::fs::metadata(&staged).unwrap().len(), 0);
    exchange(&new, None, &staged, usize::MAX).unwrap();
    assert!(std::fs::read(&staged).unwrap() == bytes);
}

#[test]
fn parts_of_an_old_version_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [old, staged] = ["old", "staged"].map(|name| dir.path().join(name));
    std::fs::write(&old, noise(1, 200_000)).unwrap();
    let begin = |ground| Assembly::begin(open(&staged), 300_000, ground, Arc::default()).unwrap().0;
    let moved = |offset, from, length| Part::Moved(Moved { offset, from, length });
    let refused = |moved: Part| begin(Some(ground(&old))).take(&moved).unwrap_err();
    let beyond = refused(moved(200_000, 0, 100_001));
    assert!(matches!(beyond, AssemblyError::Beyond(300_001, 300_000)), "{beyond}");
    for (from, length) in [(200_000, 1), (0, 200_001), (u64::MAX, 2)] {
        let error = refused(moved(0, from, length));
        assert!(matches!(error, AssemblyError::NotInOld(..)), "{error}");
    }
    assert!(matches!(refused(moved(1, 0, u64::MAX)), AssemblyError::Beyond(..)));
    let error = begin(None).take(&moved(0, 0, 1)).unwrap_err();
    assert!(matches!(error, AssemblyError::NotInOld(0, 1, 0)), "{error}");
    let mut back = begin(Some(ground(&old)));
    back.take(&moved(0, 0, 100_000)).unwrap();
    let error = back.take(&moved(99_999, 0, 10)).unwrap_err();
    assert!(matches!(error, AssemblyError::Order(..)), "{error}");
    drop(back);
    let mut shrunk = begin(Some(ground(&old)));
    File::options().write(true).open(&old).unwrap().set_len(1000).unwrap();
    let error = shrunk.take(&moved(0, 100_000, 10)).unwrap_err();
    assert!(matches!(error, AssemblyError::Source(SourceError::Changed)), "{error}");
    assert_eq!(std::fs::metadata(&staged).unwrap().len(), 300_000);
}

#[test]
fn what_is_said_of_an_old_version_is_checked() {
    let back = |have: v1::Have| wire::have_back("have", Some(have)).map(|_| ()).unwrap_err().to_string();
    let chunk = |length: u32| [&[7; 16][..], &length.to_le_bytes()].concat();
    let average = Average::of(0).bytes();
    let have = |average, old, chunks: Vec<u8>| v1::Have {
        blocks: Bytes::new(),
        old,
        average,
        chunks: chunks.into(),
    };
    assert!(wire::have_back("have", Some(have(average, 100, chunk(100)))).is_ok());
    assert!(back(have(average, 99, chunk(100))).contains("cannot be"));
    assert!(back(have(average, 99, chunk(0))).contains("cannot be"));
    assert!(back(have(average, 99, vec![1; 19])).contains("cannot be"));
    assert!(back(have(0, 100, chunk(100))).contains("cannot be"));
    assert!(back(have(average + 1, 100, chunk(100))).contains("cannot be"));
    assert!(back(have(0, 1 << 63, Vec::new())).contains("too long"));
    let many = vec![1; (CHUNKS_MAX + 1) * 20];
    assert!(back(have(average, 1 << 40, many)).contains("have"));
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
    assert!(std::fs::read(&staged).unwrap() == bytes);
    let sent = transfer(&new, None, &staged, usize::MAX).unwrap();
    assert!(sent <= 10 << 10, "it is all there: {sent}");
}

#[test]
fn holes_stay_holes_and_new_holes_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let [new, old, staged] = ["new", "old", "staged"].map(|name| dir.path().join(name));
    let file = open(&new);
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&noise(1, 8192), 5 << 20).unwrap();
    let sent = transfer(&new, None, &staged, usize::MAX).unwrap();
    assert!(sent <= 65 << 10, "{sent}");
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
    let sent = transfer(&new, Some(&old), &staged, usize::MAX).unwrap();
    assert!(sent <= 1 << 10, "{sent}");
    assert_eq!(std::fs::metadata(&staged).unwrap().len(), 1_000_001);
}

#[test]
fn pieces_that_cannot_be_are_refused_and_nothing_grows() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let begin = || Assembly::begin(open(&path), 100_000, None, Arc::default()).unwrap().0;
    let piece = |offset, length| Part::Piece(Piece { offset, bytes: Bytes::from(vec![1; length]) });
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
        let error = Assembly::begin(open(&path), size, None, Arc::default()).unwrap_err();
        assert!(matches!(error, AssemblyError::Size(_)), "{error}");
    }
}

#[test]
fn a_wrong_hash_is_an_error_and_the_next_try_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bytes = noise(1, CHUNK);
    let begin = || Assembly::begin(open(&path), CHUNK as u64, None, Arc::default()).unwrap();
    let whole = Part::Piece(Piece { offset: 0, bytes: bytes.clone().into() });
    let (mut first, _) = begin();
    first.take(&whole).unwrap();
    assert!(matches!(first.finish(Hash::of(b"other")), Err(AssemblyError::Hash { .. })));
    let (mut second, have) = begin();
    assert_eq!(have, Have::default());
    second.take(&whole).unwrap();
    second.finish(Hash::of(&bytes)).unwrap();
}

#[test]
fn two_transfers_do_not_write_to_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let (first, _) = Assembly::begin(open(&path), 100_000, None, Arc::default()).unwrap();
    assert!(matches!(Assembly::begin(open(&path), 100_000, None, Arc::default()), Err(AssemblyError::Busy)));
    drop(first);
    Assembly::begin(open(&path), 100_000, None, Arc::default()).unwrap();
}

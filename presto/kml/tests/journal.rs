//! The journal on a real file system, in one process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{close_of, config, create_of, outcome};
use intermezzo_kml::fs::Os;
use intermezzo_kml::record::{Flags, Outcome};
use intermezzo_kml::{Class, Config, FileId, Journal, KmlError, Reader, Recno, Record, State, verify};

fn open(dir: &Path, config: Config) -> (Journal, Vec<Record>) {
    Journal::open(Arc::new(Os), dir, config).unwrap()
}

#[test]
fn what_was_appended_is_read_in_order_with_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, unresolved) = open(dir.path(), config());
    assert!(unresolved.is_empty());
    assert!(journal.was_clean());
    let mut reader = Reader::open(dir.path()).unwrap();
    for number in 1..=100 {
        let recno = journal.append(Class::User, &create_of(number), &outcome(number)).unwrap();
        assert_eq!(recno, Recno(number));
    }
    assert_eq!(journal.published(), Recno(100));
    for number in 1..=100 {
        let record = reader.next().unwrap().unwrap();
        assert_eq!(record.recno, Recno(number));
        assert_eq!(record.state, State::Done);
        assert_eq!(record.intent, create_of(number));
        assert_eq!(record.outcome, outcome(number));
    }
    assert_eq!(reader.next().unwrap(), None);
    for number in (1..=100).rev() {
        assert_eq!(reader.previous().unwrap().unwrap().recno, Recno(number));
    }
    assert_eq!(reader.previous().unwrap(), None);
}

#[test]
fn readers_and_sync_stop_before_an_intent() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), config());
    let first = journal.begin(Class::User, &create_of(1)).unwrap();
    let second = journal.begin(Class::User, &close_of(2)).unwrap();
    assert_eq!(journal.done(second, &outcome(2)).unwrap(), Recno(2));
    let mut reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.next().unwrap(), None);
    assert_eq!(journal.published(), Recno::NONE);
    assert_eq!(journal.sync().unwrap(), Recno::NONE);
    assert!(matches!(journal.mark_clean(), Err(KmlError::Unfinished { recno: Recno(1) })));
    drop(first);
    assert_eq!(journal.published(), Recno(2));
    assert_eq!(journal.sync().unwrap(), Recno(2));
    assert_eq!(reader.next().unwrap().unwrap().state, State::Failed);
    assert_eq!(reader.next().unwrap().unwrap().state, State::Done);
}

#[test]
fn unresolved_intents_come_back_and_hold_readers_until_resolved() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (journal, _) = open(dir.path(), config());
        journal.append(Class::User, &create_of(1), &outcome(1)).unwrap();
        std::mem::forget(journal.begin(Class::User, &create_of(2)).unwrap());
        journal.append(Class::User, &create_of(3), &outcome(3)).unwrap();
        std::mem::forget(journal.begin(Class::User, &create_of(4)).unwrap());
    }
    let (journal, unresolved) = open(dir.path(), config());
    assert!(!journal.was_clean());
    assert!(!journal.unclean_boot());
    assert_eq!(unresolved.iter().map(|r| r.recno.0).collect::<Vec<_>>(), [2, 4]);
    assert!(unresolved.iter().all(|r| r.state == State::Prepared && r.intent == create_of(r.recno.0)));
    let mut reader = Reader::open(dir.path()).unwrap();
    reader.seek(Recno(2)).unwrap();
    assert_eq!(reader.next().unwrap(), None);
    assert!(matches!(reader.seek(Recno(4)), Err(KmlError::Beyond { next: Recno(2) })));
    journal.append(Class::User, &create_of(5), &outcome(5)).unwrap();
    journal.resolve(Recno(2), Some(outcome(2))).unwrap();
    assert_eq!(journal.published(), Recno(3));
    journal.resolve(Recno(4), None).unwrap();
    assert!(matches!(journal.resolve(Recno(4), None), Err(KmlError::NotUnresolved { .. })));
    assert_eq!(journal.published(), Recno(5));
    reader.seek(Recno(2)).unwrap();
    let states: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).map(|r| r.state).collect();
    assert_eq!(states, [State::Done, State::Done, State::Failed, State::Done]);
}

#[test]
fn segments_change_and_go_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut reader;
    let last;
    {
        let (journal, _) = open(dir.path(), config());
        reader = Reader::open(dir.path()).unwrap();
        for number in 1..=200 {
            journal.append(Class::User, &create_of(number), &outcome(number)).unwrap();
        }
        assert!(verify(dir.path()).unwrap().segments > 3);
        reader.seek(Recno(150)).unwrap();
        assert_eq!(reader.next().unwrap().unwrap().recno, Recno(150));
        for number in (1..=150).rev() {
            let record = reader.previous().unwrap().unwrap();
            assert_eq!((record.recno, &record.intent), (Recno(number), &create_of(number)));
        }
        journal.truncate(Recno(100)).unwrap();
        let first = journal.first();
        assert!(first > Recno(1) && first <= Recno(101));
        assert!(matches!(reader.seek(Recno(1)), Ok(()) | Err(KmlError::Gone { .. })));
        let mut other = Reader::open(dir.path()).unwrap();
        assert_eq!(other.first().unwrap(), first);
        assert!(matches!(other.seek(Recno(1)), Err(KmlError::Gone { first: f }) if f == first));
        journal.truncate(Recno(u64::MAX)).unwrap();
        last = journal.published();
        assert_eq!(last, Recno(200));
        assert_eq!(verify(dir.path()).unwrap().segments, 1);
        journal.mark_clean().unwrap();
    }
    let (journal, _) = open(dir.path(), config());
    assert!(journal.was_clean());
    assert_eq!(journal.append(Class::User, &create_of(201), &outcome(201)).unwrap(), last.next());
    drop(journal);
    let (journal, _) = open(dir.path(), config());
    assert!(!journal.was_clean());
}

#[test]
fn a_mark_of_cleanness_is_taken_back_by_the_next_record() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), config());
    journal.mark_clean().unwrap();
    journal.append(Class::User, &create_of(1), &outcome(1)).unwrap();
    drop(journal);
    assert!(!open(dir.path(), config()).0.was_clean());
}

#[test]
fn users_leave_the_reserve_to_replays_and_truncation_wakes_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { max_bytes: 4 * 16384, segment_bytes: 16384, reserve_bytes: 2 * 16384, volume: 7 };
    let (journal, _) = open(dir.path(), config);
    let fill = |class| {
        loop {
            match journal.append(class, &create_of(1), &outcome(1)) {
                Ok(_) => assert!(journal.bytes() <= 4 * 16384),
                Err(e) => break e,
            }
        }
    };
    assert!(matches!(fill(Class::User), KmlError::Full { .. }));
    let users = journal.published();
    assert!(!journal.wait_for_space(Duration::from_millis(5)));
    assert!(matches!(fill(Class::Replay), KmlError::Full { .. }));
    assert!(journal.published().0 >= users.0 * 2 - 1);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| journal.wait_for_space(Duration::from_secs(60)));
        journal.truncate(journal.published()).unwrap();
        assert!(waiter.join().unwrap());
    });
    journal.append(Class::User, &create_of(1), &outcome(1)).unwrap();
}

#[test]
fn one_writer_of_the_right_volume() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), config());
    let again = Journal::open(Arc::new(Os), dir.path(), config());
    assert!(matches!(again, Err(KmlError::Locked { .. })));
    drop(journal);
    let other = Journal::open(Arc::new(Os), dir.path(), Config { volume: 8, ..config() });
    assert!(matches!(other, Err(KmlError::WrongVolume { found: 7, expected: 8, .. })));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), config());
    let mut intent = create_of(1);
    intent.value = vec![0; 20_000];
    assert!(matches!(journal.begin(Class::User, &intent), Err(KmlError::TooLarge { .. })));
    intent.opcode = None;
    assert!(matches!(journal.begin(Class::User, &intent), Err(KmlError::BadIntent { .. })));
    assert_eq!(journal.append(Class::User, &create_of(1), &outcome(1)).unwrap(), Recno(1));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Reader::open(empty.path()), Err(KmlError::Absent { .. })));
    assert!(matches!(Reader::open(&empty.path().join("none")), Err(KmlError::Absent { .. })));
}

#[test]
fn a_record_is_one_line_for_people() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), config());
    let mut intent = create_of(1);
    intent.parent = FileId { ino: 2, generation: 0 };
    intent.name = b"caf\xc3\xa9\n".to_vec();
    intent.flags = Flags::FOUND;
    journal.append(Class::User, &intent, &Outcome { flags: Flags::FOUND, ..outcome(1) }).unwrap();
    let line = Reader::open(dir.path()).unwrap().next().unwrap().unwrap().to_string();
    assert!(!line.contains('\n'), "{line}");
    assert!(line.contains(r#"at="caf\xc3\xa9\n"@2:0"#), "{line}");
    assert!(line.contains(" flags=FOUND"), "{line}");
    assert!(line.trim_start().starts_with("1 done     mkdir"), "{line}");
}

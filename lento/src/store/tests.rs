//! The store: transactions, crashes, and how it was left.

use super::LastTime;
use super::TransactionError;
use super::VolumeStore;
use lento_core::store::StoreError;
use lento_core::store::Table;
use std::path::Path;

fn put(store: &VolumeStore, table: Table, key: &[u8], value: &[u8]) {
    store.write(|tables| tables.put(table, key, value)).unwrap();
}

fn get(store: &VolumeStore, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.read(|tables| tables.get(table, key)).unwrap()
}

fn open(path: &Path, boot: &str) -> Result<VolumeStore, StoreError> {
    VolumeStore::open(path, boot, &path.with_extension("life"))
}

/// What a kill leaves: the files as they are while the database is still open.
fn crash(path: &Path, to: &Path) {
    std::fs::copy(path, to).unwrap();
    std::fs::copy(path.with_extension("life"), to.with_extension("life")).unwrap();
    std::fs::copy(path.with_extension("redo"), to.with_extension("redo")).unwrap();
}

#[test]
fn every_table_is_its_own_and_ordered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("v"), "boot").unwrap();
    for table in Table::ALL {
        put(&store, table, &[table as u8], &[table as u8]);
        put(&store, table, &[255], &[1]);
        put(&store, table, &[200, 1], &[2]);
    }
    for table in Table::ALL {
        assert_eq!(get(&store, table, &[table as u8]), Some(vec![table as u8]));
        let rows = store.read(|tables| tables.scan(table, &[100], 10)).unwrap();
        assert_eq!(rows, [(vec![200, 1], vec![2]), (vec![255], vec![1])]);
        let rows = store.read(|tables| tables.scan(table, &[], 1)).unwrap();
        assert_eq!(rows.len(), 1);
    }
}

#[test]
fn a_transaction_sees_its_own_writes_and_clears() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("v"), "boot").unwrap();
    put(&store, Table::Log, b"old", b"1");
    store
        .write(|tables| {
            tables.put(Table::Log, b"new", b"2")?;
            assert_eq!(tables.scan(Table::Log, b"", 9)?.len(), 2);
            tables.clear(Table::Log)?;
            assert_eq!(tables.get(Table::Log, b"old")?, None);
            tables.put(Table::Log, b"newer", b"3")?;
            tables.delete(Table::Log, b"absent")
        })
        .unwrap();
    assert_eq!(get(&store, Table::Log, b"old"), None);
    assert_eq!(get(&store, Table::Log, b"newer"), Some(b"3".to_vec()));
}

#[test]
fn an_aborted_transaction_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("v"), "boot").unwrap();
    put(&store, Table::Meta, b"kept", b"1");
    let result: Result<(), _> = store.write(|tables| {
        tables.put(Table::Meta, b"kept", b"2")?;
        tables.put(Table::Dirty, b"gone", b"2")?;
        tables.clear(Table::Pending)?;
        Err(StoreError("the core's fault".to_owned()))
    });
    assert!(matches!(result, Err(TransactionError::Inner(_))));
    assert_eq!(get(&store, Table::Meta, b"kept"), Some(b"1".to_vec()));
    assert_eq!(get(&store, Table::Dirty, b"gone"), None);
}

#[test]
fn a_reader_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("v"), "boot").unwrap();
    assert_eq!(get(&store, Table::Conflict, b"never"), None);
    store.read(|tables| tables.scan(Table::Conflict, b"", 1)).unwrap();
}

#[test]
fn a_kill_takes_nothing_back_and_a_power_cut_what_was_not_durable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let store = open(&path, "boot").unwrap();
    put(&store, Table::Meta, b"a", b"1");
    put(&store, Table::Log, b"cleared", b"1");
    put(&store, Table::Dirty, b"deleted", b"1");
    store.make_durable(7).unwrap();
    put(&store, Table::Meta, b"a", b"2");
    store
        .write(|tables| {
            tables.clear(Table::Log)?;
            tables.put(Table::Log, b"b", &[9; 70_000])?;
            tables.delete(Table::Dirty, b"deleted")
        })
        .unwrap();
    for boot in ["boot", "another"] {
        let after = dir.path().join(boot);
        crash(&path, &after);
        let after = open(&after, boot).unwrap();
        let killed = boot == "boot";
        assert_eq!(after.last_time(), if killed { LastTime::Whole } else { LastTime::Lost });
        assert_eq!(get(&after, Table::Meta, b"a"), Some(if killed { b"2" } else { b"1" }.to_vec()));
        assert_eq!(get(&after, Table::Log, b"cleared").is_none(), killed);
        assert_eq!(get(&after, Table::Log, b"b"), killed.then(|| vec![9; 70_000]));
        assert_eq!(get(&after, Table::Dirty, b"deleted").is_none(), killed);
    }
}

#[test]
fn a_commit_that_a_kill_cut_short_was_none_and_those_before_it_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let store = open(&path, "boot").unwrap();
    put(&store, Table::Meta, b"a", b"1");
    put(&store, Table::Meta, b"a", b"2");
    let redo = std::fs::read(path.with_extension("redo")).unwrap();
    for length in 0..redo.len() {
        let after = dir.path().join("after");
        crash(&path, &after);
        std::fs::write(after.with_extension("redo"), &redo[..length]).unwrap();
        let killed = open(&after, "boot").unwrap();
        let expected = (length >= redo.len() / 2).then(|| b"1".to_vec());
        assert_eq!(get(&killed, Table::Meta, b"a"), expected, "after {length} bytes");
        put(&killed, Table::Meta, b"b", b"3");
        let again = dir.path().join("again");
        crash(&after, &again);
        drop(killed);
        let again = open(&again, "boot").unwrap();
        assert_eq!(get(&again, Table::Meta, b"b"), Some(b"3".to_vec()));
    }
}

#[test]
fn another_boot_is_a_loss_until_noted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    assert_eq!(open(&path, "one").unwrap().last_time(), LastTime::New);
    assert_eq!(open(&path, "one").unwrap().last_time(), LastTime::Whole);
    assert_eq!(open(&path, "two").unwrap().last_time(), LastTime::Lost);
    let store = open(&path, "two").unwrap();
    assert_eq!(store.last_time(), LastTime::Lost, "nobody has noted it yet");
    store.loss_noted(0).unwrap();
    drop(store);
    assert_eq!(open(&path, "two").unwrap().last_time(), LastTime::Whole);
}

#[test]
fn a_clean_end_is_known_at_the_next_boot_until_something_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let store = open(&path, "one").unwrap();
    assert_eq!(store.rested().unwrap(), None);
    put(&store, Table::Meta, b"a", b"1");
    store.rest(7).unwrap();
    drop(store);
    for _ in 0..2 {
        let store = open(&path, "two").unwrap();
        assert_eq!(
            (store.last_time(), store.rested().unwrap()),
            (LastTime::Lost, Some(7)),
            "until it is noted"
        );
        assert_eq!(get(&store, Table::Meta, b"a"), Some(b"1".to_vec()));
    }
    let store = open(&path, "two").unwrap();
    store.loss_noted(0).unwrap();
    assert_eq!(store.rested().unwrap(), None);
    store.rest(8).unwrap();
    store.make_durable(9).unwrap();
    drop(store);
    assert_eq!(open(&path, "three").unwrap().rested().unwrap(), None, "something was stored after it");
}

#[test]
fn a_loss_that_presto_tells_is_new_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let store = open(&path, "one").unwrap();
    assert!(!store.is_new_loss(0).unwrap());
    assert!(store.is_new_loss(7).unwrap());
    store.loss_noted(7).unwrap();
    store.loss_noted(0).unwrap();
    drop(store);
    let store = open(&path, "one").unwrap();
    assert_eq!((store.is_new_loss(7).unwrap(), store.is_new_loss(8).unwrap()), (false, true));
}

#[test]
fn a_restored_file_is_a_loss_on_the_same_boot_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, backup) = (dir.path().join("v"), dir.path().join("backup"));
    drop(open(&path, "one").unwrap());
    std::fs::copy(&path, &backup).unwrap();
    drop(open(&path, "one").unwrap());
    std::fs::copy(&backup, &path).unwrap();
    assert_eq!(open(&path, "one").unwrap().last_time(), LastTime::Lost);
}

#[test]
fn the_uid_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let store = open(&path, "one").unwrap();
    assert_eq!(store.uid().unwrap(), None);
    let uid = store.make_uid().unwrap();
    drop(store);
    assert_eq!(open(&path, "one").unwrap().uid().unwrap(), Some(uid));
}

#[test]
fn a_file_that_is_not_a_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    std::fs::write(&path, vec![7; 4096]).unwrap();
    let error = open(&path, "boot").unwrap_err();
    assert!(error.0.contains(&*path.to_string_lossy()), "{error}");
}

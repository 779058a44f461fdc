//! The journal against a model of what it promises, on a disk that dies at any change.
//!
//! A failing run prints its script; `PROPTEST_CASES` makes more of them, `PROPTEST_RNG_SEED` repeats one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{config, create_of, outcome};
use disk::Disk;
use intermezzo_kml::{Class, Journal, KmlError, Reader, Recno, Record, State, Ticket, verify_on};
use proptest::prelude::*;

const DIR: &str = "/kml";

/// What the model knows of a record.
#[derive(Clone, Debug)]
struct Entry {
    serial: u64,
    /// What it was when all went well.
    last: State,
    /// What it may be after a kill.
    allowed: Vec<State>,
}

#[derive(Clone, Copy, Debug)]
enum Crash {
    Kill,
    Power(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Append(Class),
    Begin,
    Finish(usize),
    Fail(usize),
    Sync,
    /// Written out, and then made durable by somebody else's flush.
    WriteOut,
    Truncate(u64),
    Clean,
}

struct World {
    disk: Disk,
    journal: Option<Journal>,
    tickets: Vec<Ticket>,
    /// Entry of record 1 first; truncated ones stay.
    entries: Vec<Entry>,
    /// Set if the process died in the beginning of the last entry: then it may be absent.
    last_may_be_absent: bool,
    settled: u64,
    written: u64,
    truncated: u64,
    serial: u64,
}

impl World {
    fn new() -> World {
        World {
            disk: Disk::default(),
            journal: None,
            tickets: Vec::new(),
            entries: Vec::new(),
            last_may_be_absent: false,
            settled: 0,
            written: 0,
            truncated: 0,
            serial: 0,
        }
    }

    fn entry(&mut self, recno: Recno) -> &mut Entry {
        &mut self.entries[recno.0 as usize - 1]
    }

    fn finish(&mut self, recno: Recno, state: State) {
        let crashed = self.disk.crashed();
        let entry = self.entry(recno);
        entry.last = state;
        entry.allowed = if crashed { vec![State::Prepared, state] } else { vec![state] };
    }

    fn begin(&mut self, class: Class) -> Option<Ticket> {
        self.serial += 1;
        let intent = create_of(self.serial);
        match self.journal.as_ref().unwrap().begin(class, &intent) {
            Ok(ticket) => {
                assert_eq!(ticket.recno().0, self.entries.len() as u64 + 1);
                self.last_may_be_absent = self.disk.crashed();
                let (last, allowed) = (State::Prepared, vec![State::Prepared]);
                self.entries.push(Entry { serial: self.serial, last, allowed });
                Some(ticket)
            }
            Err(e) => {
                assert!(self.disk.crashed() || e.is_full(), "{e}");
                None
            }
        }
    }

    fn done(&mut self, ticket: Ticket) {
        let serial = self.entry(ticket.recno()).serial;
        let recno = self.journal.as_ref().unwrap().done(ticket, &outcome(serial)).unwrap();
        self.finish(recno, State::Done);
    }

    fn synced(&mut self, result: Result<Recno, KmlError>, begun: u64) {
        if self.disk.crashed() {
            return;
        }
        self.settled = result.unwrap().0;
        self.written = begun;
        let expected = self.entries.iter().take_while(|e| e.last != State::Prepared).count();
        assert_eq!(self.settled, expected as u64);
    }

    fn run(&mut self, op: &Op) {
        let begun = self.entries.len() as u64;
        match op {
            Op::Append(class) => {
                if let Some(ticket) = self.begin(*class) {
                    // Dead processes do nothing more.
                    if self.disk.crashed() { std::mem::forget(ticket) } else { self.done(ticket) }
                }
            }
            Op::Begin => {
                if let Some(ticket) = self.begin(Class::User) {
                    self.tickets.push(ticket);
                }
            }
            Op::Finish(index) if !self.tickets.is_empty() => {
                let ticket = self.tickets.swap_remove(index % self.tickets.len());
                self.done(ticket);
            }
            Op::Fail(index) if !self.tickets.is_empty() => {
                let ticket = self.tickets.swap_remove(index % self.tickets.len());
                let recno = self.journal.as_ref().unwrap().failed(ticket);
                self.finish(recno, State::Failed);
            }
            Op::Finish(_) | Op::Fail(_) => {}
            Op::Sync => {
                let result = self.journal.as_ref().unwrap().sync();
                self.synced(result, begun);
            }
            Op::WriteOut => {
                let journal = self.journal.as_ref().unwrap();
                let written = journal.start_write_out().and_then(|records| {
                    records.map(|records| journal.wait_written_out(&records)).transpose()
                });
                match written {
                    Ok(Some(())) => {
                        let published = journal.published();
                        self.disk.flush();
                        self.synced(Ok(published), begun);
                    }
                    Ok(None) => {
                        let result = journal.sync();
                        self.synced(result, begun);
                    }
                    Err(error) => assert!(self.disk.crashed(), "{error}"),
                }
            }
            Op::Truncate(percent) => {
                let upto = begun * percent / 100;
                self.truncated = self.truncated.max(upto);
                let result = self.journal.as_ref().unwrap().truncate(Recno(upto));
                assert!(result.is_ok() || self.disk.crashed(), "{result:?}");
            }
            Op::Clean => {
                let result = self.journal.as_ref().unwrap().mark_clean();
                let finished = self.entries.iter().all(|e| e.last != State::Prepared);
                if !self.disk.crashed() {
                    assert_eq!(result.is_ok(), finished);
                }
            }
        }
    }

    /// Ends the process, however it is.
    fn die(&mut self, crash: Crash) {
        // Nothing that the dead process would still do may reach the disk.
        self.disk.crash_after(0);
        self.tickets.drain(..).for_each(std::mem::forget);
        self.journal = None;
        match crash {
            Crash::Kill => self.disk.revive(),
            Crash::Power(seed) => self.disk.cut_power(seed),
        }
    }

    /// Opens, and compares all that is there with all that may be there.
    fn open(&mut self, crash: Crash) -> Result<(), KmlError> {
        let (journal, unresolved) = Journal::open(Arc::new(self.disk.clone()), Path::new(DIR), config())?;
        let crashed = self.disk.crashed();
        if crashed {
            self.journal = Some(journal);
            return Ok(());
        }
        let report = verify_on(&self.disk, Path::new(DIR)).unwrap();
        assert!(report.cut.is_none(), "still cut after opening: {report}");
        let first = journal.first();
        assert!(first.0 <= self.truncated + 1);
        let found = self.records(&unresolved, first);
        let last = first.0 - 1 + found.len() as u64;
        assert_eq!(report.last.0, last);
        assert!(last <= self.entries.len() as u64, "more than was written");
        let least = match crash {
            Crash::Kill => self.entries.len() as u64 - u64::from(self.last_may_be_absent),
            Crash::Power(_) => self.written,
        };
        assert!(last >= least, "{last} records, not {least}");
        if journal.was_clean() {
            assert_eq!(last, self.entries.len() as u64);
            assert!(unresolved.is_empty());
        }
        self.entries.truncate(last as usize);
        for record in &found {
            let settled = self.settled;
            let entry = self.entry(record.recno);
            let allowed = match crash {
                Crash::Kill => entry.allowed.clone(),
                Crash::Power(_) if record.recno.0 <= settled => vec![entry.last],
                Crash::Power(_) => vec![State::Prepared, entry.last],
            };
            assert!(allowed.contains(&record.state), "{record}\nmay be {allowed:?}");
            assert_eq!(record.intent, create_of(entry.serial));
            if record.state == State::Done {
                assert_eq!(record.outcome, outcome(entry.serial));
            }
            (entry.last, entry.allowed) = (record.state, vec![record.state]);
        }
        self.last_may_be_absent = false;
        // Opening syncs.
        self.written = last;
        self.settled = self.entries.iter().take_while(|e| e.last != State::Prepared).count() as u64;
        for record in unresolved {
            if self.disk.crashed() {
                break;
            }
            let serial = self.entry(record.recno).serial;
            let result = (record.recno.0 % 2 == 0).then(|| outcome(serial));
            let state = if result.is_some() { State::Done } else { State::Failed };
            journal.resolve(record.recno, result).unwrap();
            self.finish(record.recno, state);
        }
        assert!(self.disk.crashed() || journal.published().0 == last);
        self.journal = Some(journal);
        Ok(())
    }

    /// All records: what a reader sees, and from the first unresolved one on what recovery told.
    fn records(&self, unresolved: &[Record], first: Recno) -> Vec<Record> {
        // A second journal on a copy, so that nothing of the real one changes.
        let copy = self.disk.copy();
        let (journal, again) = Journal::open(Arc::new(copy.clone()), Path::new(DIR), config()).unwrap();
        assert_eq!(again, unresolved);
        for record in unresolved {
            journal.resolve(record.recno, None).unwrap();
        }
        let mut reader = Reader::open_on(Arc::new(copy), Path::new(DIR)).unwrap();
        let mut found: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        let backwards: Vec<_> = std::iter::from_fn(|| reader.previous().unwrap()).collect();
        assert!(found.iter().rev().eq(&backwards), "backwards is not forwards reversed");
        for (index, record) in found.iter_mut().enumerate() {
            assert_eq!(record.recno.0, first.0 + index as u64);
            if let Some(intent) = unresolved.iter().find(|u| u.recno == record.recno) {
                assert_eq!(intent.intent, record.intent);
                record.clone_from(intent);
            }
        }
        found
    }
}

/// Runs the script until the crash; reopens, perhaps with a second crash in between.
fn round(world: &mut World, script: &[Op], crash_after: u64, crash: Crash, again: Option<(u64, Crash)>) {
    world.disk.crash_after(crash_after);
    for op in script {
        world.run(op);
        if world.disk.crashed() {
            break;
        }
    }
    world.die(crash);
    let mut worst = crash;
    if let Some((steps, crash)) = again {
        world.disk.crash_after(steps);
        match world.open(worst) {
            Ok(()) => {}
            Err(e) => assert!(world.disk.crashed(), "{e}"),
        }
        if !world.disk.crashed() {
            worst = crash;
        } else if let Crash::Power(_) = crash {
            worst = crash;
        }
        world.die(crash);
    }
    world.open(worst).unwrap_or_else(|e| panic!("after {worst:?}: {e}"));
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![3 => Just(Class::User), 1 => Just(Class::Replay)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => class().prop_map(Op::Append),
        4 => Just(Op::Begin),
        3 => (0..8_usize).prop_map(Op::Finish),
        1 => (0..8_usize).prop_map(Op::Fail),
        2 => Just(Op::Sync),
        2 => Just(Op::WriteOut),
        1 => (0..=100_u64).prop_map(Op::Truncate),
        1 => Just(Op::Clean),
    ]
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![1 => Just(Crash::Kill), 2 => any::<u64>().prop_map(Crash::Power)]
}

proptest! {
    #[test]
    fn any_history_of_crashes_leaves_what_was_promised(
        rounds in prop::collection::vec(
            (
                prop::collection::vec(op(), 1..120),
                0..1500_u64,
                crash(),
                prop::option::of((0..40_u64, crash())),
            ),
            1..5,
        )
    ) {
        let mut world = World::new();
        world.open(Crash::Kill).unwrap();
        for (script, after, crash, again) in rounds {
            round(&mut world, &script, after, crash, again);
        }
    }
}

/// A script that meets everything, short enough to die at each of its changes.
fn tour() -> Vec<Op> {
    let mut script = Vec::new();
    for turn in 0..3 {
        script.extend([Op::Append(Class::User), Op::Begin, Op::Append(Class::Replay), Op::Begin]);
        script.extend((0..25).map(|_| Op::Append(Class::User)));
        script.extend([
            Op::Sync,
            Op::Finish(0),
            Op::Append(Class::User),
            Op::Fail(0),
            Op::WriteOut,
            Op::Append(Class::User),
            Op::Sync,
        ]);
        script.extend([
            Op::Truncate(30 * turn),
            Op::Begin,
            Op::Append(Class::User),
            Op::Finish(0),
            Op::Clean,
        ]);
    }
    script
}

fn at_each_change(crash: impl Fn(u64) -> Crash) {
    let mut world = World::new();
    world.open(Crash::Kill).unwrap();
    let before = world.disk.steps();
    tour().iter().for_each(|op| world.run(op));
    let total = world.disk.steps() - before;
    assert!(total > 500);
    for step in 0..=total {
        let mut world = World::new();
        world.open(Crash::Kill).unwrap();
        round(&mut world, &tour(), step, crash(step), None);
        round(&mut world, &tour(), u64::MAX / 2, Crash::Kill, None);
    }
}

#[test]
fn killed_at_each_change() {
    at_each_change(|_| Crash::Kill);
}

#[test]
fn power_cut_at_each_change() {
    at_each_change(Crash::Power);
}

/// What a start after a power cut disowns stays disowned, and the start is one after a power cut until it says that it is
/// over.
#[test]
fn disowned_records_have_failed_for_good() {
    let disk = Disk::default();
    let open = || Journal::open(Arc::new(disk.clone()), Path::new(DIR), config()).unwrap().0;
    let journal = open();
    for n in 1..=5 {
        journal.append(Class::User, &create_of(n), &outcome(n)).unwrap();
    }
    journal.sync().unwrap();
    journal.sync().unwrap();
    drop(journal);
    disk.cut_power(1);
    let journal = open();
    assert!(journal.unclean_boot());
    assert_eq!(journal.disown(Recno(4)).unwrap(), 2);
    drop(journal);
    disk.revive();
    let journal = open();
    assert!(journal.unclean_boot(), "it was interrupted");
    assert_eq!(journal.disown(Recno(4)).unwrap(), 0);
    journal.in_order().unwrap();
    drop(journal);
    disk.cut_power(2);
    let mut reader = Reader::open_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    let states: Vec<State> =
        std::iter::from_fn(|| reader.next().unwrap()).map(|record| record.state).collect();
    assert_eq!(states, [State::Done, State::Done, State::Done, State::Failed, State::Failed]);
    disk.revive();
    let journal = open();
    journal.in_order().unwrap();
    drop(journal);
    disk.revive();
    assert!(!open().unclean_boot());
}

/// Whatever the first of them had done by then.
#[test]
fn a_start_after_a_power_cut_is_one_until_it_is_over_however_often_it_is_interrupted() {
    for steps in 1.. {
        let disk = Disk::default();
        let open = || Journal::open(Arc::new(disk.clone()), Path::new(DIR), config());
        let (journal, _) = open().unwrap();
        for n in 1..=5 {
            journal.append(Class::User, &create_of(n), &outcome(n)).unwrap();
        }
        journal.sync().unwrap();
        drop(journal);
        disk.cut_power(3);
        disk.crash_after(steps);
        drop(open());
        let was_interrupted = disk.crashed();
        disk.revive();
        assert!(open().unwrap().0.unclean_boot(), "after {steps} steps");
        if !was_interrupted {
            break;
        }
    }
}

#[test]
fn making_the_first_segment_may_be_interrupted() {
    for step in 0..12 {
        for crash in [Crash::Kill, Crash::Power(step)] {
            let mut world = World::new();
            world.disk.crash_after(step);
            let opened = world.open(Crash::Kill);
            assert!(opened.is_ok() || world.disk.crashed());
            world.die(crash);
            world.open(crash).unwrap();
            world.run(&Op::Append(Class::User));
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_passes() {
    let mut world = World::new();
    world.open(Crash::Kill).unwrap();
    world.disk.set_room(Some(1));
    let journal = world.journal.as_ref().unwrap();
    let fill = |class| loop {
        if let Err(e) = journal.append(class, &create_of(1), &outcome(1)) {
            break e;
        }
    };
    assert!(matches!(fill(Class::User), KmlError::DiskFull { .. }));
    assert!(!journal.wait_for_space(std::time::Duration::from_millis(1)));
    // One spare fits: users leave it to replays.
    world.disk.set_room(Some(2));
    let before = journal.published();
    assert!(matches!(fill(Class::User), KmlError::DiskFull { .. }));
    assert_eq!(journal.published(), before);
    assert!(matches!(fill(Class::Replay), KmlError::DiskFull { .. }));
    assert!(journal.published() > before);
    world.disk.set_room(None);
    journal.append(Class::User, &create_of(1), &outcome(1)).unwrap();
}

#[test]
fn a_flipped_bit_is_an_error_or_takes_the_tail_but_never_lies() {
    let mut world = World::new();
    world.open(Crash::Kill).unwrap();
    let mut script: Vec<_> = (0..70).map(|_| Op::Append(Class::User)).collect();
    script.extend([Op::Sync, Op::Append(Class::User), Op::Sync]);
    script.extend((0..40).map(|_| Op::Append(Class::User)));
    script.iter().for_each(|op| world.run(op));
    let durable = 70;
    let expected = world.entries.clone();
    world.die(Crash::Kill);
    let mut errors = 0;
    let mut cuts = 0;
    for (path, size) in world.disk.files() {
        // Each byte that means something in the first page, those of a record or so, and some of all the rest.
        let each = |byte: &usize| match byte {
            0..1100 => byte % 512 < 64,
            6000..6600 => true,
            _ => byte.is_multiple_of(61),
        };
        for byte in (0..size).filter(each) {
            let disk = world.disk.copy();
            disk.flip(&path, byte, (byte % 8) as u8);
            match check_flipped(&disk, &expected, durable) {
                Ok(last) => cuts += usize::from(last < expected.len()),
                Err((segment, offset)) => {
                    assert_eq!(segment, path);
                    assert!((offset as usize) < size);
                    errors += 1;
                }
            }
        }
    }
    assert!(errors > 500 && cuts > 100, "{errors} errors, {cuts} cuts");
}

fn check_flipped(disk: &Disk, expected: &[Entry], durable: usize) -> Result<usize, (PathBuf, u64)> {
    let (journal, unresolved) = match Journal::open(Arc::new(disk.clone()), Path::new(DIR), config()) {
        Ok(opened) => opened,
        Err(KmlError::Corrupt { segment, offset, .. }) => return Err((segment, offset)),
        Err(e) => panic!("{e}"),
    };
    for record in &unresolved {
        assert!(record.recno.0 as usize > durable);
        journal.resolve(record.recno, None).unwrap();
    }
    let mut reader = Reader::open_on(Arc::new(disk.clone()), Path::new(DIR)).unwrap();
    let mut last = 0;
    while let Some(record) = reader.next().unwrap() {
        let serial = expected[last].serial;
        last += 1;
        assert_eq!(record.recno.0 as usize, last);
        assert_eq!(record.intent, create_of(serial));
        if unresolved.iter().all(|u| u.recno != record.recno) {
            assert_eq!((record.state, record.outcome), (State::Done, outcome(serial)));
        }
    }
    assert!(last >= durable, "only {last} records");
    Ok(last)
}

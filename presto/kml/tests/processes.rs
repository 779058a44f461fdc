//! Several threads, and several processes: the test binary runs itself as the other one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests are tests"
)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{config, create_of, outcome};
use intermezzo_kml::fs::Os;
use intermezzo_kml::{Class, Config, Journal, KmlError, Reader, Recno, Record, State};

const ROLE: &str = "KML_TEST_ROLE";
const DIR: &str = "KML_TEST_DIR";
const DEADLINE: Duration = Duration::from_secs(120);

fn large() -> Config {
    Config { max_bytes: 64 << 20, segment_bytes: 64 << 10, ..config() }
}

/// Runs this binary as another process.
fn start(role: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_other_process", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Does nothing unless a test of this file started the process.
#[test]
fn the_other_process() {
    let (Ok(role), Some(dir)) = (std::env::var(ROLE), std::env::var_os(DIR)) else { return };
    let dir = PathBuf::from(dir);
    match role.as_str() {
        "append" => append_until_killed(&dir),
        "read" => {
            let last = read_until(&dir, Recno(4000));
            println!("\nread {last}");
        }
        other => panic!("no role {other}"),
    }
}

/// Serial of a record by its content, and that all of it belongs together.
fn check(record: &Record) -> u64 {
    let serial = record.intent.caller.pid.into();
    assert_eq!(record.intent, create_of(serial), "{record}");
    if record.state == State::Done {
        assert_eq!(record.outcome, outcome(serial), "{record}");
    } else {
        assert_eq!(record.state, State::Failed);
    }
    serial
}

fn read_until(dir: &Path, last: Recno) -> Recno {
    let deadline = Instant::now() + DEADLINE;
    let mut reader = loop {
        match Reader::open(dir) {
            Ok(reader) => break reader,
            Err(KmlError::Absent { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    };
    let mut next = Recno(1);
    while next <= last {
        match reader.next().unwrap() {
            Some(record) => {
                assert_eq!(record.recno, next, "a gap");
                check(&record);
                next = next.next();
            }
            None => assert!(Instant::now() < deadline, "nothing after {next}"),
        }
        if next.0.is_multiple_of(97) && next.0 > 1 {
            let back = reader.previous().unwrap().unwrap();
            assert_eq!(reader.next().unwrap().unwrap(), back);
        }
    }
    Recno(next.0 - 1)
}

/// Four threads, intents that overlap, some failing, some dropped; somebody syncs all the time.
fn write_all(journal: &Journal, total: u64) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let syncer = scope.spawn(|| {
            let mut before = Recno::NONE;
            while !stop.load(Ordering::Relaxed) {
                let synced = journal.sync().unwrap();
                assert!(synced >= before);
                before = synced;
            }
        });
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    for serial in (1..=total).filter(|serial| serial % 4 == thread) {
                        let ticket = journal.begin(Class::User, &create_of(serial)).unwrap();
                        let recno = ticket.recno();
                        match serial % 10 {
                            3 => drop(ticket),
                            7 => assert_eq!(journal.failed(ticket), recno),
                            _ => assert_eq!(journal.done(ticket, &outcome(serial)).unwrap(), recno),
                        }
                        if serial % 50 == 0 {
                            assert!(journal.published() <= Recno(total));
                            journal.sync().unwrap();
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        syncer.join().unwrap();
    });
    assert_eq!(journal.published(), Recno(total));
    assert_eq!(journal.sync().unwrap(), Recno(total));
}

#[test]
fn a_reader_thread_sees_a_gap_free_prefix_of_many_writers() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(Arc::new(Os), dir.path(), large()).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_until(dir.path(), Recno(4000)));
        write_all(&journal, 4000);
        assert_eq!(reader.join().unwrap(), Recno(4000));
    });
}

#[test]
fn a_reader_process_sees_a_gap_free_prefix_of_many_writers() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start("read", dir.path());
    let (journal, _) = Journal::open(Arc::new(Os), dir.path(), large()).unwrap();
    write_all(&journal, 4000);
    assert!(child.wait().unwrap().success());
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "read 4000"));
}

/// Four threads; tells each finished record on stdout, after it is finished.
fn append_until_killed(dir: &Path) {
    let (journal, unresolved) = Journal::open(Arc::new(Os), dir, large()).unwrap();
    for record in unresolved {
        journal.resolve(record.recno, None).unwrap();
    }
    println!("\nopen");
    let base = u64::from(std::process::id()) * 8;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let journal = &journal;
            scope.spawn(move || {
                for serial in (base..).filter(|serial| serial % 4 == thread) {
                    // Room is made by whoever would be Lento.
                    let recno = match journal.append(Class::User, &create_of(serial), &outcome(serial)) {
                        Ok(recno) => recno,
                        Err(KmlError::Full { .. }) => return,
                        Err(e) => panic!("{e}"),
                    };
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "ack {recno} {serial}").unwrap();
                }
            });
        }
    });
    std::thread::sleep(DEADLINE);
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<(Recno, u64)> = Vec::new();
    for round in 0..8 {
        let mut child = start("append", dir.path());
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut said = 0;
        let mut line = String::new();
        // A line without its end was cut off by the kill.
        while output.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
            let mut words = line.split_whitespace();
            if words.next() == Some("ack") {
                let mut number = || words.next().unwrap().parse().unwrap();
                acknowledged.push((Recno(number()), number()));
                said += 1;
            }
            line.clear();
            if said == 300 + round * 171 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(said > 0);
        let (journal, unresolved) = Journal::open(Arc::new(Os), dir.path(), large()).unwrap();
        assert!(!journal.was_clean() && !journal.unclean_boot());
        assert!(unresolved.len() <= 4, "at most one intent for each thread");
        for record in &unresolved {
            journal.resolve(record.recno, None).unwrap();
        }
        let mut reader = Reader::open(dir.path()).unwrap();
        let found: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        for record in &found {
            check(record);
        }
        assert_eq!(journal.published().0, found.len() as u64);
        for (recno, serial) in &acknowledged {
            let record = &found[recno.0 as usize - 1];
            assert_eq!((record.state, check(record)), (State::Done, *serial));
        }
    }
}

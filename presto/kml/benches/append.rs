//! Appends to a journal on a real file system: one thread and four, begun and done, records as a create makes them.
//!
//! `cargo bench -p intermezzo-kml`; `KML_BENCH_DIR` chooses the file system. On a busy machine the processor time is the
//! figure that means something.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark reports and may stop")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use intermezzo_kml::fs::Os;
use intermezzo_kml::{Attributes, Class, Config, FileId, Intent, Journal, Opcode, Outcome, Reader, Recno};

const RECORDS: u64 = 1_000_000;

fn intent() -> Intent {
    Intent {
        opcode: Some(Opcode::Create),
        parent: FileId { ino: 2, generation: 1 },
        name: b"Makefile.am".to_vec(),
        ..Intent::default()
    }
}

fn outcome() -> Outcome {
    Outcome {
        object: FileId { ino: 12, generation: 99 },
        after: Attributes { mode: 0o100_644, nlink: 1, size: 4096, ..Attributes::default() },
        ..Outcome::default()
    }
}

fn journal(dir: &Path) -> Journal {
    let config = Config { max_bytes: 4 << 30, volume: 1, ..Config::default() };
    let (journal, _) = Journal::open(Arc::new(Os), dir, config).unwrap();
    // The first segment's pages are not what is measured.
    for _ in 0..1000 {
        journal.append(Class::User, &intent(), &outcome()).unwrap();
    }
    journal
}

/// Returns the processor time of this thread for it, in nanoseconds.
fn append(journal: &Journal, count: u64) -> u64 {
    let (intent, outcome) = (intent(), outcome());
    let before = processor_time();
    for _ in 0..count {
        journal.append(Class::User, &intent, &outcome).unwrap();
    }
    processor_time() - before
}

fn processor_time() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

fn report(what: &str, records: u64, began: Instant, processor: u64) {
    let nanos = began.elapsed().as_nanos() as u64 / records;
    let processor = processor / records;
    println!("{what:<28} {nanos:>6} ns per record (processor time {processor:>5} ns)");
}

fn temporary() -> tempfile::TempDir {
    match std::env::var_os("KML_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

fn main() {
    {
        // Bursts within one prepared segment: what an operation pays.
        let dir = temporary();
        let journal = journal(dir.path());
        let began = Instant::now();
        let processor = append(&journal, 30_000);
        report("append, one segment", 30_000, began, processor);
    }
    for threads in [1, 4] {
        let dir = temporary();
        let journal = journal(dir.path());
        let began = Instant::now();
        let processor = std::thread::scope(|scope| {
            let appenders: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| append(&journal, RECORDS / threads))).collect();
            appenders.into_iter().map(|appender| appender.join().unwrap()).sum()
        });
        report(&format!("append, {threads} thread(s)"), RECORDS, began, processor);
        if threads == 4 {
            let (began, before) = (Instant::now(), processor_time());
            let last = journal.sync().unwrap();
            report("sync of them all, once", last.0, began, processor_time() - before);
            let mut reader = Reader::open(dir.path()).unwrap();
            let (began, before) = (Instant::now(), processor_time());
            while reader.next().unwrap().is_some() {}
            report("read", last.0, began, processor_time() - before);
            drop(journal);
            let (began, before) = (Instant::now(), processor_time());
            let config = Config { max_bytes: 4 << 30, volume: 1, ..Config::default() };
            let (journal, _) = Journal::open(Arc::new(Os), dir.path(), config).unwrap();
            report("open after a kill", last.0, began, processor_time() - before);
            assert_eq!(journal.published(), Recno(RECORDS + 1000));
        }
    }
}

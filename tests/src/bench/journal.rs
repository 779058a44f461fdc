//! What the journal costs an untar: the very records that it made, appended once more to a new journal on the same file
//! system, as a share of the time that it took.
//!
//! The second journal is new, so its first pages are among the cost; what Lento reads is not, that runs elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use intermezzo_kml::fs::Os;
use intermezzo_kml::{Class, Config, Journal, Reader, Record, State};

use super::figure::Figure;

pub(super) const FIGURE: Figure = Figure::at_most("journal's share of untar", 3.0, "%");

/// Reads a volume's journal from its present end on.
pub(super) struct Tail(Reader);

impl Tail {
    /// `cache` is the volume's.
    pub(super) fn of(cache: &Path) -> Result<Tail> {
        let mut reader = Reader::open(&cache.join("kml")).context("the volume's journal")?;
        let first = reader.first()?;
        reader.seek(first)?;
        while reader.next()?.is_some() {}
        Ok(Tail(reader))
    }

    /// What has come since.
    pub(super) fn read(&mut self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        while let Some(record) = self.0.next()? {
            records.push(record);
        }
        Ok(records)
    }
}

/// Appends them to a new journal in `dir`, by begin and done as presto does.
pub(super) fn append(records: &[Record], dir: &Path) -> Result<Duration> {
    std::fs::create_dir_all(dir)?;
    let (journal, _) = Journal::open(Arc::new(Os), dir, Config { volume: 1, ..Config::default() })?;
    let begin = Instant::now();
    for record in records {
        let ticket = journal.begin(Class::User, &record.intent)?;
        if record.state == State::Done {
            journal.done(ticket, &record.outcome)?;
        }
    }
    Ok(begin.elapsed())
}

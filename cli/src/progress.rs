//! Long work: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::say;

/// Without a terminal, at most one line in this time.
const PLAIN: Duration = Duration::from_secs(5);

/// One piece of long work.
#[derive(Debug)]
pub struct Progress {
    what: String,
    bar: Option<ProgressBar>,
    began: Instant,
    total: AtomicU64,
    at: AtomicU64,
    told: AtomicU64,
}

impl Progress {
    /// Work of `total` steps.
    #[must_use]
    pub fn steps(what: &str, total: u64) -> Progress {
        let style = "{msg:.bold} {wide_bar:.cyan/dim} {human_pos}/{human_len} {per_sec} {eta}";
        Progress::new(what, ProgressBar::new(total), style, total)
    }

    /// Work of unknown length.
    #[must_use]
    pub fn spinner(what: &str) -> Progress {
        let progress = Progress::new(what, ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}", 0);
        if let Some(bar) = &progress.bar {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        progress
    }

    fn new(what: &str, bar: ProgressBar, style: &str, total: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.with_message(what.to_owned())
        });
        let zero = || AtomicU64::new(0);
        let (began, total) = (Instant::now(), AtomicU64::new(total));
        Progress { what: what.to_owned(), bar, began, total, at: zero(), told: zero() }
    }

    /// Some steps are done.
    pub fn advance(&self, steps: u64) {
        let at = self.at.fetch_add(steps, Ordering::Relaxed) + steps;
        match &self.bar {
            Some(bar) => bar.set_position(at),
            None => self.plain(|| format!("{} {at}/{}", self.what, self.total.load(Ordering::Relaxed))),
        }
    }

    /// What it is doing now.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {text}", self.what)),
            None => self.plain(|| format!("{}: {text}", self.what)),
        }
    }

    fn plain(&self, text: impl FnOnce() -> String) {
        let elapsed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let told = self.told.load(Ordering::Relaxed);
        let due = elapsed.saturating_sub(told) >= PLAIN.as_millis() as u64;
        if due && self.told.compare_exchange(told, elapsed, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            say(text());
        }
    }

    /// Done: the bar goes, and how long it took is returned.
    pub fn finish(self) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.began.elapsed()
    }
}

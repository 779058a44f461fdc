//! When a content that could not be had is asked for again.
//!
//! Superseded there, it may stay so for as long as a program keeps the file open: the pause grows. News from the server may
//! be what it waits for, and shortens it.

use crate::volume::Millis;

/// Shortest pause, in milliseconds.
const SHORT: u64 = 100;
/// Longest pause, in milliseconds.
const LONG: u64 = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub struct AskAgain {
    at: Option<Millis>,
    failed: Millis,
    pause: u64,
}

impl AskAgain {
    /// A content could not be had.
    pub fn failed(&mut self, now: Millis) {
        // One answer brings many.
        if self.failed != now || self.at.is_none() {
            self.pause = (self.pause * 2).clamp(SHORT, LONG);
        }
        self.failed = now;
        self.at = Some(Millis(now.0.saturating_add(self.pause)));
    }

    /// One came.
    pub fn came(&mut self) {
        self.pause = 0;
    }

    /// The server has said something.
    pub fn news(&mut self) {
        let soon = Millis(self.failed.0.saturating_add(SHORT));
        self.at = self.at.map(|at| at.min(soon));
    }

    /// When.
    pub fn at(&self) -> Option<Millis> {
        self.at
    }

    /// Whether it is time; once.
    pub fn is_due(&mut self, now: Millis) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_while_nothing_comes_and_news_end_it() {
        let mut again = AskAgain::default();
        let mut now = Millis(1000);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            again.failed(now);
            again.failed(now);
            let at = again.at().unwrap();
            pauses.push(at.0 - now.0);
            assert!(!again.is_due(Millis(at.0 - 1)) && again.is_due(at) && !again.is_due(at));
            now = at;
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        again.failed(now);
        again.news();
        assert_eq!(again.at(), Some(Millis(now.0 + 100)), "not at once: news may come by the thousand");
        again.came();
        again.failed(Millis(now.0 + 100));
        assert_eq!(again.at(), Some(Millis(now.0 + 200)));
        let mut idle = AskAgain::default();
        idle.news();
        assert_eq!(idle.at(), None);
    }
}

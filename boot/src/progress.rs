//! What Lento says in a file of how far it is, and for how long nothing has moved.

use std::path::Path;
use std::time::{Duration, Instant};

/// Since when something has been what it is.
#[derive(Debug)]
pub struct Still<T> {
    last: Option<T>,
    at: Instant,
}

impl<T: PartialEq> Still<T> {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Still<T> {
        Still { last: None, at: now }
    }

    /// It is this now. How long it has been.
    pub fn hear(&mut self, now: Instant, found: T) -> Duration {
        if self.last.as_ref() != Some(&found) {
            (self.last, self.at) = (Some(found), now);
        }
        now.saturating_duration_since(self.at)
    }
}

/// What Lento says, of all its volumes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lento {
    /// Bytes of contents that have travelled.
    pub moved: u64,
    waits: Vec<String>,
}

impl Lento {
    /// What is in the file now; nothing where there is none.
    pub fn read(path: &Path) -> Lento {
        Lento::parse(&std::fs::read_to_string(path).unwrap_or_default())
    }

    /// `NAMESPACE/NAME WORD REST` in each line.
    pub fn parse(text: &str) -> Lento {
        let mut lento = Lento::default();
        for (word, rest) in text.lines().filter_map(|line| line.split_once(' ')?.1.split_once(' ')) {
            match word {
                "moved" => lento.moved = lento.moved.saturating_add(rest.parse().unwrap_or(0)),
                "waiting" | "waits" => lento.waits.push(rest.to_owned()),
                _ => {}
            }
        }
        lento
    }

    /// What it waits for, with this before it; empty where that is nothing.
    pub fn why(&self, before: &str) -> String {
        if self.waits.is_empty() { String::new() } else { format!("{before}{}", self.waits.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lento_says_is_read() {
        let text = "a/b whole\na/b moved 17\na/b waits not connected to s; s: no route\n";
        let lento = Lento::parse(text);
        assert_eq!(lento, Lento { moved: 17, waits: vec!["not connected to s; s: no route".to_owned()] });
        assert_eq!(lento.why(": "), ": not connected to s; s: no route");
        assert_eq!(Lento::parse("a/b whole\n").why(": "), "");
    }

    #[test]
    fn what_changes_is_not_still() {
        let begun = Instant::now();
        let mut still = Still::new(begun);
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(still.hear(after(3), (7, 1)), Duration::ZERO);
        assert_eq!(still.hear(after(9), (7, 1)), Duration::from_secs(6));
        // No name more, but bytes.
        assert_eq!(still.hear(after(10), (7, 2)), Duration::ZERO);
    }
}

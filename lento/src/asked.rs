//! What Presto has asked on one connection and still waits for: it may give up, or go away, before there is an answer.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tokio_util::sync::DropGuard;

/// The open upcalls of one connection. Dropped, it ends them all.
#[derive(Debug)]
pub struct Asked {
    open: Open,
    connection: CancellationToken,
    _end: DropGuard,
}

type Open = Arc<Mutex<BTreeMap<u64, CancellationToken>>>;

/// One of them. Dropped, it is answered.
#[derive(Debug)]
pub struct Upcall {
    id: u64,
    open: Open,
    interrupted: CancellationToken,
}

impl Default for Asked {
    fn default() -> Asked {
        let connection = CancellationToken::new();
        Asked { open: Open::default(), _end: connection.clone().drop_guard(), connection }
    }
}

impl Asked {
    /// An upcall has come.
    #[must_use]
    pub fn begin(&self, id: u64) -> Upcall {
        let interrupted = self.connection.child_token();
        self.open.lock().insert(id, interrupted.clone());
        Upcall { id, open: self.open.clone(), interrupted }
    }

    /// Nobody waits for it any more.
    pub fn interrupt(&self, id: u64) {
        if let Some(interrupted) = self.open.lock().get(&id) {
            interrupted.cancel();
        }
    }
}

impl Upcall {
    /// Works at the answer for as long as somebody waits for it.
    pub async fn until_interrupted(self, answered: impl Future<Output = ()>) {
        self.interrupted.run_until_cancelled(answered).await;
    }
}

impl Drop for Upcall {
    fn drop(&mut self) {
        self.open.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn a_wait_ends_with_the_answer_an_interrupt_or_the_connection() {
        let asked = Asked::default();
        let soon = |upcall: Upcall| {
            timeout(Duration::from_secs(20), upcall.until_interrupted(std::future::pending()))
        };
        asked.begin(2).until_interrupted(async {}).await;
        let (second, third) = (asked.begin(4), asked.begin(6));
        asked.interrupt(2);
        asked.interrupt(4);
        soon(second).await.unwrap();
        assert_eq!(asked.open.lock().keys().copied().collect::<Vec<_>>(), [6]);
        drop(asked);
        soon(third).await.unwrap();
    }
}

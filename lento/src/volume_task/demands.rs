//! Who waits for contents that are not here, until the core has an answer or they give up.

use lento_core::io::Demanded;
use lento_core::io::Input;
use lento_core::types::FileId;
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Those of one life.
#[derive(Debug, Default)]
pub(super) struct Demands {
    waiting: BTreeMap<u64, oneshot::Sender<Demanded>>,
    next: u64,
}

impl Demands {
    /// One more.
    pub fn begin(&mut self, file: FileId, reply: oneshot::Sender<Demanded>) -> Input {
        self.next += 1;
        self.waiting.insert(self.next, reply);
        Input::Demand { id: self.next, file }
    }

    /// The core has said something.
    pub fn answered(&mut self, id: u64, answer: Demanded) {
        if let Some(waiting) = self.waiting.remove(&id) {
            let _ = waiting.send(answer);
        }
    }

    /// Those who wait no more.
    pub fn given_up(&mut self) -> Vec<Input> {
        let gone = self.waiting.extract_if(.., |_, waiting| waiting.is_closed());
        gone.map(|(id, _)| Input::Undemand(id)).collect()
    }
}

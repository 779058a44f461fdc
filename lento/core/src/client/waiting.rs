//! What a client waits for, in words.

use super::Client;
use super::Stream;
use crate::context::Meta;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;

impl Client {
    /// What waits, for people.
    pub fn waiting(&self, meta: &Meta, store: &dyn Store) -> Result<Vec<String>, StoreError> {
        let mut list = Vec::new();
        match &self.stream {
            Stream::Down => list.push(format!("not connected to {}", self.server)),
            Stream::Reading => list.push("the journal is being read".into()),
            Stream::Greeting => list.push(format!("{} has not answered yet", self.server)),
            Stream::Estranged(why) => list.push(why.clone()),
            Stream::Offering => {
                let progress = self.offering.as_ref().map(|offering| offering.progress(meta));
                let progress = progress.unwrap_or_default();
                list.push(format!(
                    "{} has lost the end of its log and gets it from here: {progress}",
                    self.server
                ));
            }
            Stream::Up(_) => {}
        }
        if let Some(snapshot) = &meta.snapshot {
            list.push(format!(
                "{} of about {} objects of the tree are here",
                snapshot.objects, snapshot.total
            ));
        }
        for object in self.cml.restless(store)? {
            list.push(format!(
                "{}: changes while it is read; others' updates go on",
                View::new(store, Which::Local).path(object)?
            ));
        }
        if self.held_back {
            list.push("others' updates are held back here (lentoAccess: ReadOnly)".to_owned());
        }
        list.extend(self.work.waiting(store)?);
        self.demands.explain(store, &mut list)?;
        Ok(list)
    }
}

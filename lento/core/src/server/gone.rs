//! Where removed objects were, for people: the path of a conflict about something that is gone.
//!
//! In memory only, rebuilt from the log, and no more than the newest ones.

use super::Server;
use super::conflicts;
use crate::store::Store;
use crate::store::StoreError;
use crate::tree::View;
use crate::tree::Which;
use crate::types::Name;
use crate::types::ObjectId;
use crate::types::OpKind;
use crate::types::Operation;
use std::collections::BTreeMap;
use std::collections::VecDeque;

/// Most that are remembered.
const MOST: usize = 65_536;
/// No path has more parts.
const DEEP: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub struct Gone {
    names: BTreeMap<ObjectId, (ObjectId, Name)>,
    order: VecDeque<ObjectId>,
}

impl Gone {
    /// An operation of the log, in its order.
    pub fn note(&mut self, op: &Operation) {
        let gone = match &op.kind {
            OpKind::Remove { dir, name, .. } => (op.object, *dir, name),
            OpKind::Rename { to, to_name, replaced: Some(replaced), exchange: false, .. } => {
                (replaced.object, *to, to_name)
            }
            _ => return,
        };
        if self.names.insert(gone.0, (gone.1, gone.2.clone())).is_none() {
            self.order.push_back(gone.0);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

impl Server {
    /// Where a refused record wanted to do something, for people.
    pub(super) fn conflict_path(&self, store: &dyn Store, op: &Operation) -> Result<String, StoreError> {
        let Some((dir, name)) = conflicts::place(op) else { return self.path_or_last(store, op.object) };
        let dir = self.path_or_last(store, dir)?;
        let name = String::from_utf8_lossy(name);
        Ok(if dir == "/" { format!("/{name}") } else { format!("{dir}/{name}") })
    }

    /// Where an object is, or was, or would be had it not been refused.
    fn path_or_last(&self, store: &dyn Store, object: ObjectId) -> Result<String, StoreError> {
        let view = View::new(store, Which::Local);
        let mut below: Vec<String> = Vec::new();
        let mut at = object;
        let above = loop {
            if let Some(path) = self.conflicts.groups().path(at) {
                break path.to_owned();
            }
            if at == ObjectId::ROOT || view.object(at)?.is_some() || below.len() >= DEEP {
                break view.path(at)?;
            }
            let Some((dir, name)) = self.gone.names.get(&at) else { break view.path(at)? };
            below.push(String::from_utf8_lossy(name).into_owned());
            at = *dir;
        };
        let mut path = if above == "/" { String::new() } else { above };
        for name in below.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        Ok(if path.is_empty() { "/".to_owned() } else { path })
    }
}

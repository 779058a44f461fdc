//! What the server's tree was like at some positions, to be compared with what its history tells of them later.

use super::world::SERVER;
use super::world::World;
use lento_core::history::HistoryError;
use lento_core::history::HistoryOptions;
use lento_core::history::Node;
use lento_core::history::Past;
use lento_core::history::subtree;
use lento_core::io::Input;
use lento_core::store::StoreError;
use lento_core::types::Name;
use lento_core::types::ObjectId;
use lento_core::types::Position;
use std::collections::BTreeMap;

type Tree = BTreeMap<Vec<Name>, Node>;

/// Trees by position.
#[derive(Default)]
pub struct Remembered {
    trees: BTreeMap<Position, Tree>,
    /// How many were compared.
    pub compared: u64,
}

/// As much as anybody wants.
pub const EVERYTHING: HistoryOptions = HistoryOptions { keep_for: u64::MAX, row_bytes: u64::MAX };

pub fn tree_of(past: &Past<'_>) -> Tree {
    let mut tree = Tree::new();
    subtree(past, &[], usize::MAX, |node| {
        tree.insert(node.path.clone(), node);
        Ok::<_, StoreError>(())
    })
    .unwrap();
    tree
}

impl World {
    /// From now on the server keeps so much.
    pub fn keep_history(&mut self, options: Option<HistoryOptions>) {
        self.history = options;
        self.give(SERVER, Input::History(options));
    }

    /// A look at the server's tree as it is now.
    pub fn remember(&mut self) {
        let node = &self.nodes[SERVER];
        if let Ok(past) = Past::present(&node.store)
            && node.volume.is_some()
        {
            let tree = tree_of(&past);
            self.remembered.trees.insert(past.position(), tree);
        }
    }

    /// What the server has forgotten will be something else.
    pub(super) fn forget_the_future(&mut self) {
        let newest = Past::present(&self.nodes[SERVER].store).map(|past| past.position());
        let newest = newest.unwrap_or_default();
        self.remembered.trees.retain(|position, _| *position <= newest);
    }

    /// Whether the history tells of each look what was seen.
    pub fn check_past(&mut self) -> Result<(), String> {
        for (position, was) in &self.remembered.trees {
            let told = match Past::at(&self.nodes[SERVER].store, *position) {
                Ok(past) => tree_of(&past),
                Err(HistoryError::TooOld { .. }) => continue,
                Err(error) => return Err(format!("history of {position}: {error}")),
            };
            self.remembered.compared += 1;
            for path in was.keys().chain(told.keys()) {
                let (was, told) = (was.get(path).map(essence), told.get(path).map(essence));
                if let (Some(was), Some(told)) = (&was, &told)
                    && was.0 == told.0
                    && (was.1.is_none() || told.1.is_none() || was.1 == told.1)
                {
                    continue;
                }
                let path: Vec<_> = path.iter().map(|name| String::from_utf8_lossy(name)).collect();
                return Err(format!(
                    "at {position} /{} was {was:?}, and is told as {told:?}",
                    path.join("/")
                ));
            }
        }
        Ok(())
    }
}

/// What may not differ, and the content, which may not have been read at one of the two times.
fn essence(node: &Node) -> ((ObjectId, String), Option<String>) {
    let condition = &node.condition;
    let text = format!("{:?} {:?} {:?}", condition.attributes, condition.symlink, condition.xattrs);
    let hash = condition.content.and_then(|content| content.hash);
    ((node.object, text), hash.map(|hash| hash.to_string()))
}

//! Contents that clients staged here, until the record that each came ahead of has its verdict.
//!
//! A staged file goes into the tree by rename, so each serves one record. It stays that record's through any number of plans,
//! and goes when nobody needs it any more.

use super::Server;
use crate::context::Context;
use crate::io::NodeName;
use crate::io::Output;
use crate::types::Hash;
use crate::types::ObjectId;
use crate::types::OpId;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Of records that nobody has looked at yet.
    free: BTreeMap<Hash, Vec<File>>,
    /// Of records that were judged and are not in the KML.
    used: BTreeMap<OpId, (Hash, File)>,
    /// For torn files, which no record names.
    given: BTreeMap<ObjectId, (Hash, File)>,
}

#[derive(Clone, Debug)]
struct File {
    name: String,
    size: u64,
    node: NodeName,
}

impl Staged {
    /// One more is here, whole and durable.
    pub fn arrived(&mut self, node: NodeName, hash: Hash, size: u64, name: String) {
        self.free.entry(hash).or_default().push(File { name, size, node });
    }

    /// The file with this record's content: name and size. From now on it is this record's.
    pub fn of(&mut self, record: OpId, hash: &Hash) -> Option<(String, u64)> {
        if let Some((_, file)) = self.used.get(&record).filter(|(known, _)| known == hash) {
            return Some((file.name.clone(), file.size));
        }
        let file = self.any(hash)?;
        let found = (file.name.clone(), file.size);
        let other = self.used.insert(record, (*hash, file));
        self.free_again(other);
        Some(found)
    }

    /// A file with this content, for a torn file.
    pub fn give(&mut self, object: ObjectId, hash: &Hash) -> Option<(String, u64)> {
        let file = self.any(hash)?;
        let found = (file.name.clone(), file.size);
        let other = self.given.insert(object, (*hash, file));
        self.free_again(other);
        Some(found)
    }

    /// What was given to files that are torn no longer.
    pub fn needless(&mut self, is_torn: impl Fn(ObjectId) -> bool) -> Vec<String> {
        self.given.extract_if(.., |object, _| !is_torn(*object)).map(|(_, (_, file))| file.name).collect()
    }

    fn free_again(&mut self, other: Option<(Hash, File)>) {
        if let Some((hash, file)) = other {
            self.free.entry(hash).or_default().push(file);
        }
    }

    fn any(&mut self, hash: &Hash) -> Option<File> {
        let files = self.free.get_mut(hash)?;
        let last = files.pop();
        if files.is_empty() {
            self.free.remove(hash);
        }
        last
    }

    /// The record has its verdict, or will never get one from here: its file, if it is still there, can go.
    pub fn done(&mut self, record: &OpId) -> Option<String> {
        self.used.remove(record).map(|(_, file)| file.name)
    }

    /// This node begins again, and stages again what it sends: what can go. Records under way keep theirs.
    pub fn begins_again(&mut self, node: &NodeName, is_under_way: impl Fn(&OpId) -> bool) -> Vec<String> {
        let mut names = Vec::new();
        let gone = self.used.extract_if(.., |record, (_, file)| file.node == *node && !is_under_way(record));
        names.extend(gone.map(|(_, (_, file))| file.name));
        for files in self.free.values_mut() {
            names.extend(files.extract_if(.., |file| file.node == *node).map(|file| file.name));
        }
        self.free.retain(|_, files| !files.is_empty());
        names
    }
}

impl Server {
    /// A record's content is needed in presto's stage no longer.
    pub(super) fn unstage(&mut self, ctx: &mut Context<'_>, record: &OpId) {
        drop_staged(ctx, self.staged.done(record).into_iter().collect());
    }

    /// This node stages again what it sends again, or sends no more.
    pub(super) fn drop_stage_of(&mut self, ctx: &mut Context<'_>, node: &NodeName) {
        let names = self.staged.begins_again(node, |record| self.flying.contains(record));
        drop_staged(ctx, names);
    }

    /// Contents of files that are torn no longer.
    pub(super) fn drop_needless(&mut self, ctx: &mut Context<'_>) {
        drop_staged(ctx, self.staged.needless(|object| self.torn.contains(object)));
    }
}

fn drop_staged(ctx: &mut Context<'_>, names: Vec<String>) {
    if !names.is_empty() {
        ctx.out.push(Output::DropStage(names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Tag;

    fn record(number: u64) -> OpId {
        OpId(Tag { replica: 7, incarnation: 1, number })
    }

    #[test]
    fn a_file_stays_its_records_through_any_number_of_plans() {
        let (mut staged, hash) = (Staged::default(), Hash::of(b"x"));
        staged.arrived("a".into(), hash, 1, "one".into());
        staged.arrived("a".into(), hash, 1, "two".into());
        let mine = staged.of(record(1), &hash);
        let other = staged.of(record(2), &hash);
        assert!(mine.is_some() && other.is_some() && mine != other);
        assert_eq!(staged.of(record(1), &hash), mine);
        assert_eq!(staged.of(record(3), &hash), None);
        assert_eq!(staged.done(&record(1)), mine.map(|(name, _)| name));
        assert_eq!(staged.done(&record(1)), None);
        // It comes again with another content.
        let newer = Hash::of(b"y");
        staged.arrived("a".into(), newer, 1, "three".into());
        assert_eq!(staged.of(record(2), &newer), Some(("three".into(), 1)));
        assert_eq!(staged.of(record(4), &hash), other);
    }

    #[test]
    fn who_begins_again_leaves_what_is_under_way() {
        let (mut staged, hash) = (Staged::default(), Hash::of(b"x"));
        for (node, name) in [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")] {
            staged.arrived(node.into(), hash, 1, name.into());
        }
        let flying = staged.of(record(1), &hash).map(|(name, _)| name);
        assert!(staged.of(record(2), &hash).is_some());
        let mut gone = staged.begins_again(&"a".to_owned(), |id| *id == record(1));
        gone.sort();
        assert_eq!((flying.as_deref(), gone), (Some("4"), vec!["1".to_owned(), "3".to_owned()]));
        assert_eq!(staged.give(ObjectId::ROOT, &hash), Some(("2".into(), 1)));
        assert!(staged.needless(|_| true).is_empty());
        assert_eq!(staged.needless(|_| false), ["2"]);
        assert_eq!(staged.done(&record(1)), flying);
    }
}

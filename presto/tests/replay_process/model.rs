//! A tree in memory, made by replaying a journal from its beginning, compared with the lower tree.

use std::collections::BTreeMap;
use std::path::Path;

use intermezzo_kml::Reader;
use intermezzo_kml::record::{Attributes, FileId, Flags, Opcode, Record, State, Time};
use presto::lower::{Lower, Stat, xattr};
use rustix::fs::FileType;

#[derive(Debug, Default)]
struct Node {
    attributes: Attributes,
    entries: BTreeMap<Vec<u8>, FileId>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Default)]
pub struct Model {
    nodes: BTreeMap<FileId, Node>,
    pub records: usize,
    pub failed: usize,
}

impl Model {
    pub fn replay(kml: &Path) -> Model {
        let mut model = Model::default();
        let mut reader = Reader::open(kml).unwrap();
        let first = reader.first().unwrap();
        reader.seek(first).unwrap();
        while let Some(record) = reader.next().unwrap() {
            model.records += 1;
            match record.state {
                State::Done => model.apply(&record),
                State::Failed => model.failed += 1,
                State::Prepared => panic!("unresolved record {record:?}"),
            }
        }
        model
    }

    fn entries(&mut self, dir: FileId) -> &mut BTreeMap<Vec<u8>, FileId> {
        &mut self.nodes.entry(dir).or_default().entries
    }

    fn put(&mut self, record: &Record, dir: FileId, name: &[u8], id: FileId) {
        let before = self.entries(dir).insert(name.to_vec(), id);
        assert!(before.is_none() || before == Some(id), "entry taken by {before:?}: {record:#?}");
    }

    fn take(&mut self, record: &Record, dir: FileId, name: &[u8], id: FileId) {
        let before = self.entries(dir).remove(name);
        assert_eq!(before, Some(id), "entry is not what the record says: {record:#?}");
    }

    fn attributes(&mut self, id: FileId, after: Attributes) {
        if after.mode != 0 {
            self.nodes.entry(id).or_default().attributes = after;
        }
    }

    fn apply(&mut self, record: &Record) {
        let (intent, outcome) = (&record.intent, &record.outcome);
        let object = outcome.object;
        match record.opcode {
            Opcode::Create | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink => {
                self.put(record, intent.parent, &intent.name, object);
                let node = self.nodes.entry(object).or_default();
                if record.opcode == Opcode::Symlink {
                    node.target.clone_from(&intent.value);
                } else if outcome.flags.contains(Flags::XATTRS) {
                    node.xattrs = intermezzo_kml::xattr::decode(&intent.value).unwrap().into_iter().collect();
                }
            }
            Opcode::Link => self.put(record, intent.parent, &intent.name, object),
            Opcode::Unlink | Opcode::Rmdir => {
                if self.entries(intent.parent).contains_key(&intent.name) {
                    self.take(record, intent.parent, &intent.name, object);
                } else {
                    assert_eq!(intent.origin.kind as u8, 1, "only a replay may say it again: {record:#?}");
                }
            }
            Opcode::Rename => self.rename(record),
            Opcode::Close => {
                if object != intent.object {
                    self.take(record, intent.parent, &intent.name, intent.object);
                    self.put(record, intent.parent, &intent.name, object);
                    if outcome.flags.contains(Flags::XATTRS) {
                        let list = intermezzo_kml::xattr::decode(&intent.value).unwrap();
                        self.nodes.entry(object).or_default().xattrs = list.into_iter().collect();
                    }
                }
            }
            Opcode::Setxattr => {
                let node = self.nodes.entry(object).or_default();
                node.xattrs.insert(intent.name.clone(), intent.value.clone());
            }
            Opcode::Delxattr => {
                self.nodes.entry(object).or_default().xattrs.remove(&intent.name);
            }
            Opcode::Setattr | Opcode::Noop => {}
        }
        self.attributes(object, outcome.after);
        self.time(intent.parent, outcome.parent_mtime);
        self.time(intent.target_parent, outcome.target_parent_mtime);
    }

    fn time(&mut self, dir: FileId, mtime: Time) {
        if !dir.is_none() {
            self.nodes.entry(dir).or_default().attributes.mtime = mtime;
        }
    }

    fn rename(&mut self, record: &Record) {
        let (intent, outcome) = (&record.intent, &record.outcome);
        let already = self.entries(intent.target_parent).get(&intent.target_name) == Some(&intent.object)
            && intent.origin.kind as u8 == 1;
        if already {
            return;
        }
        self.take(record, intent.parent, &intent.name, intent.object);
        if !intent.replaced.is_none() {
            self.take(record, intent.target_parent, &intent.target_name, intent.replaced);
        }
        self.put(record, intent.target_parent, &intent.target_name, intent.object);
        if outcome.flags.contains(Flags::EXCHANGE) {
            self.put(record, intent.parent, &intent.name, intent.replaced);
        }
    }

    /// Every difference, in words.
    pub fn differences(&self, cache: &Path) -> Vec<String> {
        let lower = Lower::open(cache, None).unwrap();
        let mut found = Vec::new();
        self.compare(&lower, lower.root(), "tree", &mut found);
        self.compare(&lower, lower.staging(), "staging", &mut found);
        found
    }

    fn compare(&self, lower: &Lower, dir: FileId, path: &str, found: &mut Vec<String>) {
        let none = Node::default();
        let node = self.nodes.get(&dir).unwrap_or(&none);
        let fd = lower.dir(dir).unwrap();
        let mut there = BTreeMap::new();
        for entry in rustix::fs::Dir::read_from(&*fd).unwrap() {
            let name = entry.unwrap().file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                there.insert(name.clone(), lower.child(&*fd, &name).unwrap());
            }
        }
        for (name, id) in &node.entries {
            let text = String::from_utf8_lossy(name);
            if there.get(name) != Some(id) {
                found.push(format!("{path}/{text}: journal says {id}, tree {:?}", there.get(name)));
            }
        }
        for (name, id) in &there {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let Some(node) = node.entries.get(name).and_then(|id| self.nodes.get(id)) else {
                found.push(format!("{path}: not in the journal"));
                continue;
            };
            let stat = Stat::at(&*fd, name).unwrap();
            self.compare_node(lower, *id, node, &stat, &path, found);
            if stat.is_dir() {
                self.compare(lower, *id, &path, found);
            }
        }
    }

    fn compare_node(
        &self,
        lower: &Lower,
        id: FileId,
        node: &Node,
        stat: &Stat,
        path: &str,
        found: &mut Vec<String>,
    ) {
        let (says, is) = (&node.attributes, &stat.attributes);
        if (says.mode, says.uid, says.gid, says.rdev) != (is.mode, is.uid, is.gid, is.rdev) {
            found.push(format!("{path}: attributes: journal {says:?}, tree {is:?}"));
        }
        if says.mtime != is.mtime || stat.is_file() && says.size != is.size {
            found.push(format!("{path}: version: journal {says:?}, tree {is:?}"));
        }
        let fd = lower.path_fd(id).unwrap();
        if stat.kind() == FileType::Symlink {
            let target = rustix::fs::readlinkat(&fd, c"", Vec::new()).unwrap();
            if target.to_bytes() != node.target {
                found.push(format!("{path}: target {target:?}"));
            }
        } else {
            let xattrs: BTreeMap<_, _> = xattr::all(&fd).unwrap().into_iter().collect();
            if xattrs != node.xattrs {
                found.push(format!("{path}: xattrs: journal {:?}, tree {xattrs:?}", node.xattrs));
            }
        }
    }
}

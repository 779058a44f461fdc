//! The operations on a tree in memory, by the letter of the manual pages. Root is the user, the mask is 022.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::operation::{Answer, How, Op, SLOTS, Shown, Space, Told, Way};

type Id = usize;

#[derive(Clone, Debug)]
enum Kind {
    File(Vec<u8>),
    Dir(BTreeMap<String, Id>),
    Link(String),
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    mode: u32,
    owner: u32,
    links: u64,
    xattrs: BTreeMap<u8, Vec<u8>>,
}

impl Node {
    fn new(kind: Kind) -> Node {
        let mode = match kind {
            Kind::File(_) => 0o644,
            Kind::Dir(_) => 0o755,
            Kind::Link(_) => 0o777,
        };
        Node { kind, mode, owner: 0, links: 1, xattrs: BTreeMap::new() }
    }
}

#[derive(Clone, Copy, Debug)]
struct Open {
    file: Id,
    how: How,
}

pub struct Reference {
    nodes: Vec<Node>,
    open: [Option<Open>; SLOTS],
    habits: Habits,
}

/// Where file systems differ and all are right.
struct Habits {
    /// It knows FALLOC_FL_ZERO_RANGE.
    zeroes: bool,
    /// What a rename over a directory that is not empty says.
    full: Errno,
}

const ROOT: Id = 0;
/// Symbolic links that are followed on one way.
const FOLLOWED: u32 = 40;

/// Where a path leads: the directory, the last name, and what stands there.
struct Place {
    dir: Id,
    name: String,
    there: Option<Id>,
}

impl Reference {
    /// An empty directory of this file system.
    pub fn new(kind: &str) -> Reference {
        let root = Node::new(Kind::Dir(BTreeMap::new()));
        let habits = Habits {
            zeroes: kind != "tmpfs",
            full: if kind == "xfs" { Errno::EXIST } else { Errno::NOTEMPTY },
        };
        Reference { nodes: vec![root], open: [None; SLOTS], habits }
    }

    pub fn run(&mut self, op: &Op) -> Told {
        match op {
            Op::Open(slot, path, how) => self.open(*slot, path, *how),
            Op::Close(slot) => Ok(self.open[*slot].take().map_or(Answer::Nothing, |_| Answer::Done)),
            Op::Read(slot, at, length) => {
                let Some(Open { file, how }) = self.open[*slot] else { return Ok(Answer::Nothing) };
                if !how.read {
                    return Err(Errno::BADF);
                }
                let content = self.content(file);
                let at = usize::try_from(*at).unwrap().min(content.len());
                Ok(Answer::Bytes(content[at..content.len().min(at + length)].to_vec()))
            }
            Op::Write(slot, at, bytes) => {
                let Some(Open { file, how }) = self.open[*slot] else { return Ok(Answer::Nothing) };
                if !how.write {
                    return Err(Errno::BADF);
                }
                let at = if how.append { self.content(file).len() } else { usize::try_from(*at).unwrap() };
                if !bytes.is_empty() {
                    self.write(file, at, bytes);
                }
                Ok(Answer::Count(bytes.len()))
            }
            Op::Truncate(slot, size) => {
                let Some(Open { file, how }) = self.open[*slot] else { return Ok(Answer::Nothing) };
                if !how.write {
                    return Err(Errno::INVAL);
                }
                self.cut(file, *size);
                Ok(Answer::Done)
            }
            Op::TruncateName(path, size) => {
                let file = self.found(path)?;
                if let Kind::Dir(_) = self.nodes[file].kind {
                    return Err(Errno::ISDIR);
                }
                if self.content(file).len() as u64 == *size {
                    return Ok(Answer::Nothing);
                }
                self.cut(file, *size);
                Ok(Answer::Done)
            }
            Op::Allocate(slot, space, at, length) => self.allocate(*slot, *space, *at, *length),
            Op::Copy(from, to, at, goal, length) => self.copy((*from, *at), (*to, *goal), *length),
            Op::Store(slot, at, byte) => {
                let Some(Open { file, how }) = self.open[*slot] else { return Ok(Answer::Nothing) };
                if !(how.read && how.write) || self.content(file).len() <= *at {
                    return Ok(Answer::Nothing);
                }
                self.write(file, *at, &[*byte]);
                Ok(Answer::Done)
            }
            Op::Sync(slot) => Ok(self.open[*slot].map_or(Answer::Nothing, |_| Answer::Done)),
            Op::StatOpen(slot) => {
                Ok(self.open[*slot].map_or(Answer::Nothing, |open| Answer::Stat(self.shown(open.file))))
            }
            Op::Mkdir(path) => self.make(path, Kind::Dir(BTreeMap::new())),
            Op::Symlink(target, path) => self.make(path, Kind::Link((*target).to_owned())),
            Op::Rmdir(path) => {
                let place = self.place(path)?;
                let dir = place.there.ok_or(Errno::NOENT)?;
                match &self.nodes[dir].kind {
                    Kind::Dir(names) if names.is_empty() => {}
                    Kind::Dir(_) => return Err(Errno::NOTEMPTY),
                    Kind::File(_) | Kind::Link(_) => return Err(Errno::NOTDIR),
                }
                self.set(&place, None);
                Ok(Answer::Done)
            }
            Op::Unlink(path) => {
                let place = self.place(path)?;
                let file = place.there.ok_or(Errno::NOENT)?;
                if let Kind::Dir(_) = self.nodes[file].kind {
                    return Err(Errno::ISDIR);
                }
                self.nodes[file].links -= 1;
                self.set(&place, None);
                Ok(Answer::Done)
            }
            Op::Link(from, to) => {
                let file = self.place(from)?.there.ok_or(Errno::NOENT)?;
                let place = self.place(to)?;
                if place.there.is_some() {
                    return Err(Errno::EXIST);
                }
                if let Kind::Dir(_) = self.nodes[file].kind {
                    return Err(Errno::PERM);
                }
                self.nodes[file].links += 1;
                self.set(&place, Some(file));
                Ok(Answer::Done)
            }
            Op::Rename(from, to, way) => self.rename(from, to, *way),
            Op::Chmod(path, mode) => self.change(path, |node| node.mode = *mode),
            Op::Chown(path, owner) => self.change(path, |node| node.owner = *owner),
            Op::Touch(path, _) => self.change(path, |_| ()),
            Op::SetXattr(path, name, value) => {
                self.change(path, |node| drop(node.xattrs.insert(*name, value.clone())))
            }
            Op::GetXattr(path, name) => {
                let node = self.found(path)?;
                let value = self.nodes[node].xattrs.get(name).cloned();
                value.map(Answer::Bytes).ok_or(Errno::NODATA)
            }
            Op::RemoveXattr(path, name) => {
                let node = self.found(path)?;
                self.nodes[node].xattrs.remove(name).map(|_| Answer::Done).ok_or(Errno::NODATA)
            }
            Op::Stat(path) => {
                let node = self.place(path)?.there.ok_or(Errno::NOENT)?;
                Ok(Answer::Stat(self.shown(node)))
            }
            Op::ReadLink(path) => match &self.nodes[self.place(path)?.there.ok_or(Errno::NOENT)?].kind {
                Kind::Link(target) => Ok(Answer::Bytes(target.clone().into_bytes())),
                Kind::File(_) | Kind::Dir(_) => Err(Errno::INVAL),
            },
            Op::List(path) => match &self.nodes[self.found(path)?].kind {
                Kind::Dir(names) => Ok(Answer::Names(names.keys().cloned().collect())),
                Kind::File(_) | Kind::Link(_) => Err(Errno::NOTDIR),
            },
        }
    }

    /// Follows all but the last name.
    fn place(&self, path: &str) -> Result<Place, Errno> {
        self.walk(ROOT, path, &mut FOLLOWED.clone())
    }

    fn walk(&self, from: Id, path: &str, left: &mut u32) -> Result<Place, Errno> {
        let (mut dir, mut names) = (from, path.split('/').peekable());
        while let Some(name) = names.next() {
            let Kind::Dir(entries) = &self.nodes[dir].kind else { return Err(Errno::NOTDIR) };
            let there = entries.get(name).copied();
            if names.peek().is_none() {
                return Ok(Place { dir, name: name.to_owned(), there });
            }
            let place = self.follow(Place { dir, name: name.to_owned(), there }, left)?;
            dir = place.there.ok_or(Errno::NOENT)?;
        }
        Err(Errno::NOENT)
    }

    /// Where symbolic links lead from here.
    fn follow(&self, mut place: Place, left: &mut u32) -> Result<Place, Errno> {
        while let Some(Kind::Link(target)) = place.there.map(|node| &self.nodes[node].kind) {
            *left = left.checked_sub(1).ok_or(Errno::LOOP)?;
            place = self.walk(place.dir, target, left)?;
        }
        Ok(place)
    }

    fn followed(&self, path: &str) -> Result<Place, Errno> {
        let mut left = FOLLOWED;
        let place = self.walk(ROOT, path, &mut left)?;
        self.follow(place, &mut left)
    }

    fn found(&self, path: &str) -> Result<Id, Errno> {
        self.followed(path)?.there.ok_or(Errno::NOENT)
    }

    fn content(&self, file: Id) -> &Vec<u8> {
        match &self.nodes[file].kind {
            Kind::File(content) => content,
            other => panic!("{other:?} has no content"),
        }
    }

    fn content_mut(&mut self, file: Id) -> &mut Vec<u8> {
        match &mut self.nodes[file].kind {
            Kind::File(content) => content,
            other => panic!("{other:?} has no content"),
        }
    }

    fn write(&mut self, file: Id, at: usize, bytes: &[u8]) {
        let content = self.content_mut(file);
        if content.len() < at + bytes.len() {
            content.resize(at + bytes.len(), 0);
        }
        content[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn cut(&mut self, file: Id, size: u64) {
        self.content_mut(file).resize(usize::try_from(size).unwrap(), 0);
    }

    /// Puts something at a name, or nothing.
    fn set(&mut self, place: &Place, what: Option<Id>) {
        let Kind::Dir(names) = &mut self.nodes[place.dir].kind else {
            panic!("{} is in no directory", place.name)
        };
        match what {
            Some(what) => drop(names.insert(place.name.clone(), what)),
            None => drop(names.remove(&place.name)),
        }
    }

    fn make(&mut self, path: &str, kind: Kind) -> Told {
        let place = self.place(path)?;
        if place.there.is_some() {
            return Err(Errno::EXIST);
        }
        self.add(&place, kind);
        Ok(Answer::Done)
    }

    fn add(&mut self, place: &Place, kind: Kind) -> Id {
        self.nodes.push(Node::new(kind));
        let node = self.nodes.len() - 1;
        self.set(place, Some(node));
        node
    }

    fn change(&mut self, path: &str, change: impl FnOnce(&mut Node)) -> Told {
        let node = self.found(path)?;
        change(&mut self.nodes[node]);
        Ok(Answer::Done)
    }

    fn open(&mut self, slot: usize, path: &str, how: How) -> Told {
        self.open[slot] = None;
        if how.exclusive && self.place(path)?.there.is_some() {
            return Err(Errno::EXIST);
        }
        let place = self.followed(path)?;
        let file = match place.there {
            Some(node) => {
                if let Kind::Dir(_) = self.nodes[node].kind {
                    return if how.write || how.create { Err(Errno::ISDIR) } else { Ok(Answer::Directory) };
                }
                if how.truncate {
                    self.cut(node, 0);
                }
                node
            }
            None if how.create => self.add(&place, Kind::File(Vec::new())),
            None => return Err(Errno::NOENT),
        };
        self.open[slot] = Some(Open { file, how });
        Ok(Answer::Done)
    }

    fn allocate(&mut self, slot: usize, space: Space, at: u64, length: u64) -> Told {
        let Some(Open { file, how }) = self.open[slot] else { return Ok(Answer::Nothing) };
        if !how.write {
            return Err(Errno::BADF);
        }
        if space == Space::Zero && !self.habits.zeroes {
            return Err(Errno::OPNOTSUPP);
        }
        let (at, end) = (usize::try_from(at).unwrap(), usize::try_from(at + length).unwrap());
        let content = self.content_mut(file);
        if matches!(space, Space::Allocate | Space::Zero) && content.len() < end {
            content.resize(end, 0);
        }
        let end = end.min(content.len());
        if matches!(space, Space::Punch | Space::Zero) && at < end {
            content[at..end].fill(0);
        }
        Ok(Answer::Done)
    }

    fn copy(&mut self, (from, at): (usize, u64), (to, goal): (usize, u64), length: usize) -> Told {
        let (Some(from), Some(to)) = (self.open[from], self.open[to]) else { return Ok(Answer::Nothing) };
        if !from.how.read || !to.how.write || to.how.append {
            return Err(Errno::BADF);
        }
        let (at, goal) = (usize::try_from(at).unwrap(), usize::try_from(goal).unwrap());
        let size = self.content(from.file).len();
        let length = length.min(size.saturating_sub(at));
        if from.file == to.file && at < goal + length && goal < at + length {
            return Err(Errno::INVAL);
        }
        if length > 0 {
            let bytes = self.content(from.file)[at..at + length].to_vec();
            self.write(to.file, goal, &bytes);
        }
        Ok(Answer::Count(length))
    }

    fn is_dir(&self, node: Id) -> bool {
        matches!(self.nodes[node].kind, Kind::Dir(_))
    }

    /// Whether `inner` is `outer` or below it.
    fn is_within(&self, inner: Id, outer: Id) -> bool {
        let below = match &self.nodes[outer].kind {
            Kind::Dir(names) => names.values().copied().collect(),
            Kind::File(_) | Kind::Link(_) => Vec::new(),
        };
        inner == outer || below.into_iter().any(|node| self.is_within(inner, node))
    }

    fn rename(&mut self, from: &str, to: &str, way: Way) -> Told {
        let (source, target) = (self.place(from)?, self.place(to)?);
        let object = source.there.ok_or(Errno::NOENT)?;
        match (way, target.there) {
            (Way::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Way::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if self.is_dir(object) && self.is_within(target.dir, object) {
            return Err(Errno::INVAL);
        }
        if let Some(replaced) = target.there
            && self.is_within(source.dir, replaced)
        {
            return Err(if way == Way::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if target.there == Some(object) {
            return Ok(Answer::Done);
        }
        if let (Some(replaced), Way::Plain) = (target.there, way) {
            match (&self.nodes[object].kind, &self.nodes[replaced].kind) {
                (Kind::Dir(_), Kind::Dir(names)) if names.is_empty() => {}
                (Kind::Dir(_), Kind::Dir(_)) => return Err(self.habits.full),
                (Kind::Dir(_), _) => return Err(Errno::NOTDIR),
                (_, Kind::Dir(_)) => return Err(Errno::ISDIR),
                _ => self.nodes[replaced].links -= 1,
            }
        }
        self.set(&source, target.there.filter(|_| way == Way::Exchange));
        self.set(&target, Some(object));
        Ok(Answer::Done)
    }

    fn shown(&self, node: Id) -> Shown {
        let Node { kind, mode, owner, links, .. } = &self.nodes[node];
        let (kind, links, size) = match kind {
            Kind::Dir(_) => ('d', 0, 0),
            Kind::Link(target) => ('l', *links, target.len() as u64),
            Kind::File(content) => ('f', *links, content.len() as u64),
        };
        Shown { kind, mode: *mode, owner: *owner, links, size, mtime: None }
    }

    pub fn tree(&self) -> BTreeMap<String, (Shown, Vec<u8>)> {
        let mut tree = BTreeMap::new();
        let mut waiting = vec![(String::new(), ROOT)];
        while let Some((dir, node)) = waiting.pop() {
            let Kind::Dir(names) = &self.nodes[node].kind else { continue };
            for (name, node) in names {
                let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
                let content = match &self.nodes[*node].kind {
                    Kind::Dir(_) => {
                        waiting.push((path.clone(), *node));
                        Vec::new()
                    }
                    Kind::Link(target) => target.clone().into_bytes(),
                    Kind::File(content) => content.clone(),
                };
                tree.insert(path, (self.shown(*node), content));
            }
        }
        tree
    }
}

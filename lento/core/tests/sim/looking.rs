//! What a test looks at: trees for people, whether all nodes agree, what a power cut left.

use super::disk::Disk;
use super::disk::ROOT;
use super::world::Node;
use super::world::SERVER;
use super::world::World;
use lento_core::State;
use lento_core::Volume;
use lento_core::io::Event;
use lento_core::record::KmlOrigin;
use lento_core::record::Left;
use lento_core::record::Update;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::Mask;
use lento_core::types::Time;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

impl World {
    /// All trees are one, and every content that was closed is in it, kept beside it, or knowingly gone.
    pub fn check(&self) -> Result<(), String> {
        self.check_agreement()?;
        let current: BTreeSet<Hash> =
            self.nodes[SERVER].disk.inodes.values().map(|i| Hash::of(&i.bytes)).collect();
        for (hash, what) in &self.written {
            let safe = current.contains(hash)
                || self.superseded.contains(hash)
                || self.nodes.iter().any(|node| node.kept.contains(hash));
            if !safe {
                return Err(format!("lost: {what}"));
            }
        }
        self.check_torn()
    }

    /// What a core tells people.
    pub fn told(&mut self, index: usize, event: Event) {
        self.note(format!("n{index}: {event:?}"));
        match event {
            Event::Restored { .. } => self.restored += 1,
            Event::ConflictDropped { .. } => self.dropped += 1,
            Event::RemovalsHeld { .. } => self.asked += 1,
            // Right, if nobody has what it was.
            Event::TornTaken { left: Some(left), .. } => {
                if self.torn.get(&left).is_some_and(|good| !self.has_a_copy(index, *good)) {
                    self.torn.remove(&left);
                }
            }
            _ => {}
        }
    }

    /// The server still looks for what a power cut took.
    pub fn is_torn(&self) -> bool {
        let node = &self.nodes[SERVER];
        let status = node.volume.as_ref().and_then(|volume| volume.status(&node.store).ok());
        status.is_some_and(|status| status.waiting.iter().any(|why| why.contains("torn by a power cut")))
    }

    /// Nothing that a power cut tore stands where somebody had something better.
    pub fn check_torn(&self) -> Result<(), String> {
        for node in &self.nodes {
            if let Some(torn) = self.torn.keys().find(|torn| node.disk.shows(**torn)) {
                let torn = node.disk.inodes.values().find(|inode| Hash::of(&inode.bytes) == *torn);
                let text = torn.map(|torn| String::from_utf8_lossy(&torn.bytes).into_owned());
                return Err(format!("{}: a torn file took the place of a good one: {text:?}", node.name));
            }
        }
        Ok(())
    }

    /// Nothing takes room that nobody needs.
    pub fn check_limbo(&self) -> Result<(), String> {
        for node in &self.nodes {
            let limbo = node.disk.in_limbo();
            if !limbo.is_empty() {
                return Err(format!("{}: nobody let {limbo:?} go from limbo", node.name));
            }
        }
        Ok(())
    }

    /// Contents lie in the server's stage.
    pub fn has_staged(&self) -> bool {
        !self.nodes[SERVER].disk.stage.is_empty()
    }

    /// What was staged was installed, or dropped.
    pub fn check_stage(&self) -> Result<(), String> {
        let left: Vec<&String> = self.nodes[SERVER].disk.stage.keys().collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left in the server's stage: {left:?}")) }
    }

    /// All trees are one, and nobody waits for anything.
    pub fn check_agreement(&self) -> Result<(), String> {
        for node in &self.nodes {
            if let Some(fault) = node.faults.first() {
                return Err(format!("{} froze: {fault}", node.name));
            }
        }
        let truth = self.nodes[SERVER].disk.tree();
        for node in &self.nodes[1..] {
            let tree = node.disk.tree();
            if tree != truth {
                let mut text = format!("{} differs from the server:\n", node.name);
                let all: BTreeSet<&String> = tree.keys().chain(truth.keys()).collect();
                for path in all {
                    if tree.get(path) != truth.get(path) {
                        text +=
                            &format!("  {path}: here {:?}, server {:?}\n", tree.get(path), truth.get(path));
                    }
                }
                if let Some(volume) = &node.volume {
                    text += &format!("  {:?}\n", volume.status(&node.store));
                    text += &Volume::differences(&node.store).unwrap_or_default();
                }
                return Err(text);
            }
        }
        for node in &self.nodes {
            if let Some(volume) = &node.volume {
                let status = volume.status(&node.store).map_err(|e| e.to_string())?;
                if status.pending > 0 || status.dirty > 0 {
                    return Err(format!("{} did not come to rest: {status:?}", node.name));
                }
            }
        }
        Ok(())
    }
}

impl Node {
    /// What the status says without counting is what counting says.
    pub fn check_counts(&self) {
        let Some(volume) = &self.volume else { return };
        let status = volume.status(&self.store).unwrap();
        // Counting a long list after each input would take most of the test's time.
        if status.pending <= 16 {
            let pending = Volume::cml(&self.store, usize::MAX).unwrap();
            let bytes = pending.iter().map(|entry| entry.size).sum::<u64>();
            let counted = (pending.len() as u64, bytes);
            assert_eq!(counted, (status.pending, status.pending_bytes), "{}: {pending:?}", self.name);
        }
        if status.conflicts + status.conflicts_decided <= 16 {
            let rows = Volume::conflicts(&self.store, 100).unwrap();
            let standings: Vec<_> =
                rows.iter().map(|(position, _)| Volume::standing(&self.store, *position).unwrap()).collect();
            let heads = standings.iter().filter(|standing| standing.group.is_none());
            let decided = heads.clone().filter(|standing| standing.state == State::Decided).count() as u64;
            let counted = (heads.count() as u64 - decided, decided);
            if rows.len() < 100 {
                assert_eq!(counted, (status.conflicts, status.conflicts_decided), "{}: {rows:?}", self.name);
            }
        }
    }
}

impl Disk {
    /// Presto's recovery (`recovery::closes`): a file that holds something no record vouches for (a writer had stored and
    /// not closed when the current went) gets a close now that says so.
    pub fn journal_torn_files(&mut self) {
        let mut known: BTreeMap<FileId, (Time, u64)> = BTreeMap::new();
        for record in &self.kml {
            match &record.update {
                Update::Make { file, after, .. } | Update::Close { file, after, .. } => {
                    known.insert(*file, (after.version.mtime, after.version.size));
                }
                Update::SetAttr { file, mask, after, .. } if mask.has(Mask::MTIME) => {
                    if let Some(known) = known.get_mut(file) {
                        known.0 = after.version.mtime;
                    }
                }
                // These show a version that a store may have left which nobody closed.
                _ => {}
            }
        }
        let files: Vec<FileId> = self
            .inodes
            .iter()
            .filter(|(_, inode)| inode.attributes.is_file() && inode.missing.is_none())
            .map(|(file, _)| *file)
            .filter(|file| self.links(*file) > 0)
            .filter(|file| {
                let version = self.version(*file);
                known.get(file).is_some_and(|known| *known != (version.mtime, version.size))
            })
            .collect();
        for file in files {
            let after = self.after(file);
            let left = Left::Unvouched;
            self.record(KmlOrigin::User, Update::Close { file, replaces: None, after, left });
        }
    }

    /// The tree for people: path -> what is there. Hard links show as the same number.
    pub fn tree(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        self.walk(ROOT, String::new(), &mut out);
        out
    }

    fn walk(&self, dir: FileId, at: String, out: &mut BTreeMap<String, String>) {
        for (name, file) in &self.inodes[&dir].entries {
            let path = format!("{at}/{}", String::from_utf8_lossy(name));
            let inode = &self.inodes[file];
            out.insert(
                path.clone(),
                format!(
                    "{:o} t{}.{} {:?} x{:?} n{} {}",
                    inode.attributes.mode,
                    inode.attributes.mtime.sec,
                    inode.attributes.mtime.nsec,
                    String::from_utf8_lossy(&inode.symlink),
                    inode.xattrs,
                    if inode.attributes.is_dir() { 1 } else { self.links(*file) },
                    self.hash(*file)
                ),
            );
            if inode.attributes.is_dir() {
                self.walk(*file, path, out);
            }
        }
    }

    /// Some file that has a name holds this.
    pub fn shows(&self, content: Hash) -> bool {
        self.inodes.iter().any(|(file, inode)| {
            inode.attributes.is_file() && Hash::of(&inode.bytes) == content && self.links(*file) > 0
        })
    }

    pub fn hash(&self, file: FileId) -> Hash {
        let inode = &self.inodes[&file];
        inode.missing.unwrap_or_else(|| Hash::of(&inode.bytes))
    }
}

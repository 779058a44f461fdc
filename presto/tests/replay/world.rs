//! One served volume without a mount, a user and a Lento driven by hand.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use intermezzo_channel::v1;
use intermezzo_channel::v1::outcome::Result as Kind;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::Reader;
use intermezzo_kml::record::{Caller, FileId, Record, State};
use presto::channel::{Link, Reply, Service};
use presto::filter::{Access, Handle, NewMode, Volume};
use presto::volumes::{NoMount, Volumes};

pub const NAME: &str = "test/replay";
pub const NOW: u64 = u64::MAX;
pub const FILE: u32 = 0o100_644;
pub const DIR: u32 = 0o040_755;

pub struct World {
    pub volumes: Arc<Volumes>,
    pub volume: Arc<Volume>,
    pub cache: PathBuf,
    /// Where the files lie, and what is beside them.
    pub tree: PathBuf,
    pub home: PathBuf,
    dir: tempfile::TempDir,
}

pub fn world() -> World {
    world_with(tempfile::tempdir().unwrap(), |_| {})
}

/// A volume in this directory, asked for otherwise than usual.
pub fn world_with(dir: tempfile::TempDir, change: impl FnOnce(&mut v1::SetVolume)) -> World {
    let volumes = open(dir.path());
    let cache = dir.path().join("cache");
    let mut set = v1::SetVolume {
        uid: 7,
        cache: cache.display().to_string(),
        mountpoint: dir.path().join("mnt").display().to_string(),
        log_max_bytes: 64 << 20,
        ..Default::default()
    };
    change(&mut set);
    let adopted = (!set.source.is_empty()).then(|| PathBuf::from(&set.source));
    let tree = adopted.clone().unwrap_or_else(|| cache.join("tree"));
    let home = adopted.map_or_else(|| cache.clone(), |source| source.join(".intermezzo"));
    let reply = volumes.call(NAME, Body::SetVolume(set));
    let Body::VolumeInfo(info) = reply.body else { panic!("{:?}", reply.body) };
    assert_eq!(info.fault, "");
    let volume = volumes.volume(NAME).unwrap();
    World { volumes, volume, cache, tree, home, dir }
}

/// The volumes of a node whose state lies there, and which may adopt what is there.
pub fn open(dir: &Path) -> Arc<Volumes> {
    Volumes::open(&dir.join("state"), Link::new(), Arc::new(NoMount), vec![dir.to_owned()]).unwrap()
}

impl World {
    /// Presto is killed (nothing is closed) and started anew; locks of the old one are given up.
    pub fn restart(self, between: impl FnOnce(&Path)) -> World {
        let World { volumes, volume, cache, tree, home, dir } = self;
        // A thread of the syncer holds the volume for some milliseconds.
        let weak = Arc::downgrade(&volume);
        drop((volumes, volume));
        while weak.strong_count() > 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        between(&cache);
        let since = std::time::Instant::now();
        loop {
            // The last holder may still be closing its files.
            let volumes = open(dir.path());
            if let Some(volume) = volumes.volume(NAME) {
                return World { volumes, volume, cache, tree, home, dir };
            }
            assert!(since.elapsed() < std::time::Duration::from_secs(10), "not served again");
        }
    }

    pub fn call(&self, body: Body) -> Reply {
        self.volumes.call(NAME, body)
    }

    pub fn replay_since(&self, since: u64, items: Vec<v1::ReplayItem>) -> Vec<v1::Outcome> {
        let reply = self.call(Body::Replay(v1::Replay { items, untouched_since: since }));
        let Body::Replayed(replayed) = reply.body else { panic!("{:?}", reply.body) };
        assert_eq!(replayed.last_recno, self.volume.journal.published().0);
        replayed.outcomes
    }

    /// One item, with everything read that is there.
    pub fn one(&self, item: v1::ReplayItem) -> v1::Outcome {
        self.replay_since(NOW, vec![item]).remove(0)
    }

    pub fn root(&self) -> FileId {
        self.volume.lower.root()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tree.join(name)
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn there(&self, name: &str) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    pub fn id(&self, name: &str) -> FileId {
        let dir = self.volume.lower.dir(self.root()).unwrap();
        self.volume.lower.child(&*dir, name.as_bytes()).unwrap()
    }

    pub fn stat(&self, name: &str) -> std::fs::Metadata {
        self.path(name).symlink_metadata().unwrap()
    }

    pub fn version(&self, name: &str) -> v1::Version {
        let stat = self.stat(name);
        let time = |sec, nsec| Some(v1::Time { sec, nsec: u32::try_from(nsec).unwrap() });
        v1::Version {
            mtime: time(stat.mtime(), stat.mtime_nsec()),
            ctime: time(stat.ctime(), stat.ctime_nsec()),
            size: stat.len(),
        }
    }

    pub fn last(&self) -> u64 {
        self.volume.journal.published().0
    }

    pub fn records(&self) -> Vec<Record> {
        let mut reader = Reader::open(&self.cache.join("kml")).unwrap();
        let first = reader.first().unwrap();
        reader.seek(first).unwrap();
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    pub fn record(&self, recno: u64) -> Record {
        let record = self.records().into_iter().find(|record| record.recno.0 == recno).unwrap();
        assert_eq!(record.state, State::Done);
        record
    }

    // The user.

    pub fn open_new(&self, name: &str) -> Arc<Handle> {
        let mode = NewMode { mode: 0o644, umask: 0 };
        self.volume.create(user(), self.root(), name.as_bytes(), mode, Access::ReadWrite).unwrap().1
    }

    pub fn open(&self, name: &str) -> Arc<Handle> {
        self.volume.open_file(user(), self.id(name), Access::ReadWrite, false).unwrap()
    }

    pub fn write(&self, handle: &Handle, text: &str) {
        assert_eq!(self.volume.write(handle.number, 0, text.as_bytes()), Ok(text.len()));
    }

    pub fn close(&self, handle: &Handle) {
        self.volume.flush(user(), handle.number).unwrap();
        self.volume.release(user(), handle.number).unwrap();
    }

    pub fn save(&self, name: &str, text: &str) -> FileId {
        let handle = if self.there(name) { self.open(name) } else { self.open_new(name) };
        self.write(&handle, text);
        self.close(&handle);
        handle.file.id
    }

    pub fn user_mkdir(&self, name: &str) -> FileId {
        let mode = NewMode { mode: 0o755, umask: 0 };
        self.volume.mkdir(user(), self.root(), name.as_bytes(), mode).unwrap().id
    }

    // Lento.

    pub fn stage(&self, name: &str, text: &str) -> v1::Content {
        use std::io::Write;
        let size = u64::try_from(text.len()).unwrap();
        let mut reply = self.call(Body::OpenStage(v1::OpenStage { name: name.to_owned(), size }));
        assert!(matches!(reply.body, Body::Done(_)), "{:?}", reply.body);
        std::fs::File::from(reply.fds.remove(0)).write_all(text.as_bytes()).unwrap();
        v1::Content { from: Some(v1::content::From::Staged(name.to_owned())), size }
    }

    pub fn staged(&self, name: &str) -> bool {
        self.home.join("stage").join(name).exists()
    }
}

/// A record that is half there behind the last one: presto takes it for a power cut.
pub fn torn_tail(cache: &Path) {
    let segments = std::fs::read_dir(cache.join("kml")).unwrap().map(|entry| entry.unwrap().path());
    let written = |path: &PathBuf| std::fs::read(path).unwrap().iter().any(|byte| *byte != 0);
    let newest = segments.filter(written).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    // Records end with their length, and are filled up to eight bytes.
    let end = (bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1).next_multiple_of(8);
    bytes[end..end + 64].fill(0xa5);
    std::fs::write(&newest, bytes).unwrap();
}

/// What is durable of a volume whose power goes: the journal as it is, the tree with everything up to this record.
pub fn cut_power(cache: &Path, synced: u64) {
    torn_tail(cache);
    let name = c"trusted.intermezzo.synced";
    rustix::fs::setxattr(cache, name, synced.to_string().as_bytes(), rustix::fs::XattrFlags::empty())
        .unwrap();
}

pub fn user() -> Caller {
    Caller { uid: 0, gid: 0, pid: 1 }
}

pub fn item(op: Op) -> v1::ReplayItem {
    v1::ReplayItem {
        record: Some(v1::Tag { replica: 0, incarnation: 0, number: 1 }),
        op: Some(op),
        ..Default::default()
    }
}

pub fn tag(number: u64) -> v1::Tag {
    v1::Tag { replica: 9, incarnation: 1, number }
}

pub fn tagged(number: u64, op: Op) -> v1::ReplayItem {
    v1::ReplayItem { object: Some(tag(number)), ..item(op) }
}

pub fn by(id: FileId) -> Option<v1::Ref> {
    let file = v1::FileId { ino: id.ino, generation: id.generation };
    Some(v1::Ref { by: Some(v1::r#ref::By::File(file)) })
}

pub fn by_tag(number: u64) -> Option<v1::Ref> {
    Some(v1::Ref { by: Some(v1::r#ref::By::Object(tag(number))) })
}

pub fn give(mode: u32) -> Option<v1::Attributes> {
    Some(v1::Attributes { mode, uid: 12, gid: 34, mtime: Some(v1::Time { sec: 1000, nsec: 5 }), rdev: 0 })
}

pub fn inline(text: &str) -> Option<v1::Content> {
    Some(v1::Content {
        from: Some(v1::content::From::Inline(text.as_bytes().to_vec().into())),
        size: u64::try_from(text.len()).unwrap(),
    })
}

pub fn name(text: &str) -> bytes::Bytes {
    text.as_bytes().to_vec().into()
}

pub fn make(dir: Option<v1::Ref>, at: &str, mode: u32, text: &str) -> v1::Make {
    let content = (mode == FILE).then(|| inline(text)).flatten();
    v1::Make { dir, name: name(at), attributes: give(mode), content, ..Default::default() }
}

pub fn id(outcome: &v1::Outcome) -> FileId {
    let file = outcome.file.unwrap();
    FileId { ino: file.ino, generation: file.generation }
}

#[track_caller]
pub fn applied(outcome: &v1::Outcome) {
    assert_eq!(outcome.result(), Kind::Applied, "{outcome:?}");
}

#[track_caller]
pub fn already(outcome: &v1::Outcome) {
    assert_eq!(outcome.result(), Kind::Already, "{outcome:?}");
}

#[track_caller]
pub fn stale(outcome: &v1::Outcome) {
    assert_eq!(outcome.result(), Kind::Stale, "{outcome:?}");
}

/// New content for what has this name now.
pub fn install(w: &World, at: &str, content: Option<v1::Content>) -> v1::Install {
    v1::Install {
        file: by(w.id(at)),
        expect_version: Some(w.version(at)),
        content,
        attributes: give(0o640),
        dir: by(w.root()),
        name: name(at),
        ..Default::default()
    }
}

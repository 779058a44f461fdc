//! The filter without FUSE, against a plain directory on the same file system: the same operations give the same answers
//! and the same tree, and the journal alone tells how the tree came about.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use intermezzo_kml::Reader;
use intermezzo_kml::record::Caller;
use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Flags;
use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::Recno;
use intermezzo_kml::record::Record;
use intermezzo_kml::record::State;
use presto::filter::Access;
use presto::filter::Alone;
use presto::filter::Changes;
use presto::filter::NewMode;
use presto::filter::Options;
use presto::filter::Place;
use presto::filter::Volume;
use proptest::prelude::*;
use rustix::fs::RenameFlags;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

const ME: Caller = Caller { uid: 0, gid: 0, pid: 1 };

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Vec<u8>),
    Truncate(usize, u64),
    Mkdir(usize),
    Symlink(usize, usize),
    Link(usize, usize),
    Unlink(usize),
    Rmdir(usize),
    Rename(usize, usize, u32),
    Chmod(usize, u32),
    SetXattr(usize, u8),
    RemoveXattr(usize),
}

/// A few names in a few directories, so that operations meet.
const PATHS: [&str; 12] = ["a", "b", "d", "e", "d/a", "d/b", "d/d", "e/a", "e/d", "d/d/a", "d/d/b", "e/d/a"];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let path = 0..PATHS.len();
    let op = prop_oneof![
        4 => (path.clone(), proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(p, d)| Op::Write(p, d)),
        1 => (path.clone(), 0..100u64).prop_map(|(p, s)| Op::Truncate(p, s)),
        4 => path.clone().prop_map(Op::Mkdir),
        1 => (path.clone(), path.clone()).prop_map(|(a, b)| Op::Symlink(a, b)),
        2 => (path.clone(), path.clone()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => path.clone().prop_map(Op::Unlink),
        1 => path.clone().prop_map(Op::Rmdir),
        4 => (path.clone(), path.clone(), 0..3u32).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        1 => (path.clone(), 0..0o1000u32).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path.clone(), any::<u8>()).prop_map(|(p, v)| Op::SetXattr(p, v)),
        1 => path.prop_map(Op::RemoveXattr),
    ];
    proptest::collection::vec(op, 1..60)
}

/// What stands where, as an independent walk sees it.
type Tree = BTreeMap<PathBuf, Seen>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    nlink: u64,
    content: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn walk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(root.join(&at)).unwrap() {
            let name = at.join(entry.unwrap().file_name());
            let path = root.join(&name);
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut content = Vec::new();
            let mut xattrs = Vec::new();
            if meta.is_dir() {
                todo.push(name.clone());
            } else if meta.is_symlink() {
                content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
            } else {
                content = fs::read(&path).unwrap();
            }
            if !meta.is_symlink() {
                xattrs = presto::lower::xattr::all(File::open(&path).unwrap()).unwrap();
                xattrs.sort();
            }
            let nlink = if meta.is_dir() { 0 } else { meta.nlink() };
            tree.insert(name, Seen { mode: meta.mode(), nlink, content, xattrs });
        }
    }
    tree
}

struct Subject {
    volume: Volume,
}

impl Subject {
    fn open(cache: &Path) -> Subject {
        let mut options = Options::default();
        options.journal.max_bytes = 32 << 20;
        options.journal.segment_bytes = 1 << 20;
        options.journal.reserve_bytes = 2 << 20;
        let (volume, unresolved) = Volume::open("test/filter", cache, options, Arc::new(Alone)).unwrap();
        assert!(unresolved.is_empty());
        Subject { volume }
    }

    fn dir_of(&self, path: &str) -> Result<(FileId, Vec<u8>), Errno> {
        let mut at = self.volume.lower.root();
        let path = Path::new(path);
        for part in path.parent().into_iter().flatten() {
            let entry = self.volume.lookup(at, part.as_bytes())?.ok_or(Errno::NOENT)?;
            if !entry.stat.is_dir() {
                return Err(Errno::NOTDIR);
            }
            at = entry.id;
        }
        Ok((at, path.file_name().unwrap_or(OsStr::new("")).as_bytes().to_vec()))
    }

    fn find(&self, path: &str) -> Result<presto::filter::Entry, Errno> {
        let (dir, name) = self.dir_of(path)?;
        self.volume.lookup(dir, &name)?.ok_or(Errno::NOENT)
    }

    fn run(&self, op: &Op) -> Result<(), Errno> {
        let volume = &self.volume;
        match op {
            Op::Write(path, data) => {
                let (dir, name) = self.dir_of(PATHS[*path])?;
                let handle = match volume.lookup(dir, &name)? {
                    Some(entry) if entry.stat.is_dir() => return Err(Errno::ISDIR),
                    Some(entry) if !entry.stat.is_file() => return Err(Errno::LOOP),
                    Some(entry) => volume.open_file(ME, entry.id, Access::Write, false)?,
                    None => {
                        volume.create(ME, dir, &name, NewMode { mode: 0o666, umask: 0o22 }, Access::Write)?.1
                    }
                };
                assert_eq!(volume.write(handle.number, 0, data)?, data.len());
                volume.flush(ME, handle.number)?;
                volume.release(ME, handle.number)?;
                Ok(())
            }
            Op::Truncate(path, size) => {
                let entry = self.find(PATHS[*path])?;
                if !entry.stat.is_file() {
                    return Err(if entry.stat.is_dir() { Errno::ISDIR } else { Errno::LOOP });
                }
                volume.setattr(ME, entry.id, &Changes { size: Some(*size), ..Changes::default() }).map(|_| ())
            }
            Op::Mkdir(path) => {
                let (dir, name) = self.dir_of(PATHS[*path])?;
                volume.mkdir(ME, dir, &name, NewMode { mode: 0o777, umask: 0o22 }).map(|_| ())
            }
            Op::Symlink(path, target) => {
                let (dir, name) = self.dir_of(PATHS[*path])?;
                volume.symlink(ME, dir, &name, format!("to-{target}").as_bytes()).map(|_| ())
            }
            Op::Link(from, to) => {
                let entry = self.find(PATHS[*from])?;
                let (dir, name) = self.dir_of(PATHS[*to])?;
                volume.link(ME, entry.id, dir, &name).map(|_| ())
            }
            Op::Unlink(path) => {
                let (dir, name) = self.dir_of(PATHS[*path])?;
                volume.unlink(ME, dir, &name)
            }
            Op::Rmdir(path) => {
                let (dir, name) = self.dir_of(PATHS[*path])?;
                volume.rmdir(ME, dir, &name)
            }
            Op::Rename(from, to, flags) => {
                let (dir, name) = self.dir_of(PATHS[*from])?;
                let (target, target_name) = self.dir_of(PATHS[*to])?;
                let from = Place { dir, name: &name };
                let to = Place { dir: target, name: &target_name };
                volume.rename(ME, from, to, RenameFlags::from_bits_retain(*flags))
            }
            Op::Chmod(path, mode) => {
                let entry = self.find(PATHS[*path])?;
                if !entry.stat.is_file() && !entry.stat.is_dir() {
                    return Err(Errno::LOOP);
                }
                let mode = Some(mode | 0o700);
                volume.setattr(ME, entry.id, &Changes { mode, ..Changes::default() }).map(|_| ())
            }
            Op::SetXattr(path, value) => {
                let entry = self.find(PATHS[*path])?;
                if !entry.stat.is_file() && !entry.stat.is_dir() {
                    return Err(Errno::LOOP);
                }
                volume.setxattr(ME, entry.id, b"user.x", &[*value], XattrFlags::empty())
            }
            Op::RemoveXattr(path) => {
                let entry = self.find(PATHS[*path])?;
                if !entry.stat.is_file() && !entry.stat.is_dir() {
                    return Err(Errno::LOOP);
                }
                volume.removexattr(ME, entry.id, b"user.x")
            }
        }
    }
}

/// The same on a plain directory.
fn run_plain(root: &Path, op: &Op) -> Result<(), Errno> {
    let at = |path: &usize| root.join(PATHS[*path]);
    let io = |error: std::io::Error| Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO));
    let followed = |path: &usize| match fs::symlink_metadata(at(path)) {
        Ok(meta) if meta.is_symlink() => Err(Errno::LOOP),
        Ok(_) => Ok(at(path)),
        Err(error) => Err(io(error)),
    };
    match op {
        Op::Write(path, data) => {
            if fs::symlink_metadata(at(path)).is_ok_and(|meta| meta.is_symlink()) {
                return Err(Errno::LOOP);
            }
            let file =
                OpenOptions::new().write(true).create(true).truncate(false).open(at(path)).map_err(io)?;
            file.write_all_at(data, 0).map_err(io)
        }
        Op::Truncate(path, size) => {
            let file = OpenOptions::new().write(true).open(followed(path)?).map_err(io)?;
            file.set_len(*size).map_err(io)
        }
        Op::Mkdir(path) => fs::create_dir(at(path)).map_err(io),
        Op::Symlink(path, target) => std::os::unix::fs::symlink(format!("to-{target}"), at(path)).map_err(io),
        Op::Link(from, to) => fs::hard_link(at(from), at(to)).map_err(io),
        Op::Unlink(path) => fs::remove_file(at(path)).map_err(io),
        Op::Rmdir(path) => fs::remove_dir(at(path)).map_err(io),
        Op::Rename(from, to, flags) => {
            let flags = RenameFlags::from_bits_retain(*flags);
            rustix::fs::renameat_with(rustix::fs::CWD, at(from), rustix::fs::CWD, at(to), flags)
        }
        Op::Chmod(path, mode) => {
            fs::set_permissions(followed(path)?, fs::Permissions::from_mode(mode | 0o700)).map_err(io)
        }
        Op::SetXattr(path, value) => {
            rustix::fs::setxattr(followed(path)?, c"user.x", &[*value], XattrFlags::empty())
        }
        Op::RemoveXattr(path) => rustix::fs::removexattr(followed(path)?, c"user.x"),
    }
}

/// What the journal alone says the tree is. Contents are not in it: their sizes are.
#[derive(Default)]
struct Told {
    entries: BTreeMap<FileId, BTreeMap<Vec<u8>, FileId>>,
    objects: BTreeMap<FileId, Object>,
}

#[derive(Clone, Debug, Default)]
struct Object {
    mode: u32,
    size: u64,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Told {
    fn apply(&mut self, record: &Record) {
        let (intent, outcome) = (&record.intent, &record.outcome);
        match record.opcode {
            Opcode::Create | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink => {
                let mut object = Object { mode: outcome.after.mode, ..Object::default() };
                if record.opcode == Opcode::Symlink {
                    object.target.clone_from(&intent.value);
                } else if outcome.flags.contains(Flags::XATTRS) {
                    object.xattrs =
                        intermezzo_kml::xattr::decode(&intent.value).unwrap().into_iter().collect();
                }
                self.objects.insert(outcome.object, object);
                self.enter(intent.parent, &intent.name, outcome.object);
            }
            Opcode::Link => self.enter(intent.parent, &intent.name, intent.object),
            Opcode::Unlink | Opcode::Rmdir => {
                let gone = self.entries.entry(intent.parent).or_default().remove(&intent.name);
                assert_eq!(gone, Some(intent.object));
                let left = self.names_of(intent.object);
                assert_eq!(outcome.flags.contains(Flags::LAST_LINK), left == 0);
            }
            Opcode::Rename => {
                let source = self.entries.entry(intent.parent).or_default().remove(&intent.name);
                assert_eq!(source, Some(intent.object));
                let target = self
                    .entries
                    .entry(intent.target_parent)
                    .or_default()
                    .insert(intent.target_name.clone(), intent.object);
                assert_eq!(target.unwrap_or_default(), intent.replaced);
                if outcome.flags.contains(Flags::EXCHANGE) {
                    self.enter(intent.parent, &intent.name, intent.replaced);
                } else if let Some(replaced) = target {
                    let left = self.names_of(replaced);
                    assert_eq!(outcome.flags.contains(Flags::REPLACED_LAST_LINK), left == 0);
                }
            }
            Opcode::Setattr | Opcode::Close => {
                let object = self.objects.get_mut(&intent.object).unwrap();
                object.mode = outcome.after.mode;
                object.size = outcome.after.size;
            }
            Opcode::Setxattr => {
                let object = self.objects.get_mut(&intent.object).unwrap();
                object.xattrs.insert(intent.name.clone(), intent.value.clone());
            }
            Opcode::Delxattr => {
                self.objects.get_mut(&intent.object).unwrap().xattrs.remove(&intent.name);
            }
            Opcode::Noop => {}
        }
    }

    fn enter(&mut self, dir: FileId, name: &[u8], object: FileId) {
        let before = self.entries.entry(dir).or_default().insert(name.to_vec(), object);
        assert_eq!(before, None, "the name was free");
    }

    fn names_of(&self, object: FileId) -> usize {
        self.entries.values().flat_map(BTreeMap::values).filter(|id| **id == object).count()
    }

    fn tree(&self, root: FileId) -> BTreeMap<PathBuf, (Object, usize)> {
        let mut tree = BTreeMap::new();
        let mut todo = vec![(PathBuf::new(), root)];
        while let Some((at, dir)) = todo.pop() {
            for (name, id) in self.entries.get(&dir).into_iter().flatten() {
                let path = at.join(OsStr::from_bytes(name));
                let object = self.objects[id].clone();
                if object.mode & libc::S_IFMT == libc::S_IFDIR {
                    todo.push((path.clone(), *id));
                }
                tree.insert(path, (object, self.names_of(*id)));
            }
        }
        tree
    }
}

fn told(cache: &Path) -> Told {
    let mut reader = Reader::open(&cache.join("kml")).unwrap();
    let mut told = Told::default();
    reader.seek(Recno(1)).unwrap();
    while let Some(record) = reader.next().unwrap() {
        if record.state == State::Done {
            told.apply(&record);
        }
    }
    told
}

fn check(ops: &[Op], settled: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (cache, plain) = (dir.path().join("cache"), dir.path().join("plain"));
    fs::create_dir(&cache).unwrap();
    fs::create_dir(&plain).unwrap();
    let subject = Subject::open(&cache);
    subject.volume.limbo.set_settled(Recno(settled));
    for op in ops {
        let (here, there) = (subject.run(op), run_plain(&plain, op));
        assert_eq!(here.is_ok(), there.is_ok(), "{op:?}: {here:?}, plain {there:?}");
    }
    let (here, there) = (walk(&cache.join("tree")), walk(&plain));
    assert_eq!(here, there);
    let told = told(&cache).tree(subject.volume.lower.root());
    assert_eq!(told.keys().collect::<Vec<_>>(), here.keys().collect::<Vec<_>>());
    for (path, (object, names)) in told {
        let seen = &here[&path];
        assert_eq!(object.mode, seen.mode, "{}", path.display());
        match object.mode & libc::S_IFMT {
            libc::S_IFLNK => assert_eq!(object.target, seen.content),
            libc::S_IFREG => {
                assert_eq!(object.size, seen.content.len() as u64, "{}", path.display());
                assert_eq!(names as u64, seen.nlink, "{}", path.display());
            }
            _ => {}
        }
        assert_eq!(object.xattrs.into_iter().collect::<Vec<_>>(), seen.xattrs, "{}", path.display());
    }
    assert!(subject.volume.writers.is_empty());
    assert!(subject.volume.files.is_empty());
    if settled == u64::MAX {
        assert!(subject.volume.limbo.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_is_a_plain_one_and_the_journal_tells_it(ops in ops(), server in any::<bool>()) {
        if rustix::process::geteuid().is_root() {
            check(&ops, if server { u64::MAX } else { 0 });
        }
    }
}

#[test]
fn other_file_systems_are_refused_with_a_reason() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root");
    let error = presto::lower::Lower::open(Path::new("/proc/self"), None).unwrap_err();
    assert!(error.to_string().contains("/proc/self"), "{error}");
}

#[test]
fn identity_survives_on_tmpfs() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    assert!(rustix::process::geteuid().is_root(), "run this test as root");
    let lower = presto::lower::Lower::open(dir.path(), None).unwrap();
    fs::write(dir.path().join("tree/f"), b"x").unwrap();
    let root = lower.dir(lower.root()).unwrap();
    let id = lower.child(&*root, b"f").unwrap();
    fs::rename(dir.path().join("tree/f"), dir.path().join("tree/g")).unwrap();
    assert_eq!(lower.stat(id).unwrap().attributes.size, 1);
    assert_eq!(lower.child(&*root, b"g").unwrap(), id);
    fs::remove_file(dir.path().join("tree/g")).unwrap();
    assert!(lower.stat(id).is_err());
}

#[test]
fn a_full_journal_waits_and_then_refuses() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root");
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.journal.max_bytes = 4 << 20;
    options.journal.segment_bytes = 1 << 20;
    options.journal.reserve_bytes = 2 << 20;
    options.when_full = presto::filter::WhenFull::Block(std::time::Duration::from_millis(200));
    let (volume, _) = Volume::open("test/full", dir.path(), options, Arc::new(Alone)).unwrap();
    let root = volume.lower.root();
    let entry = volume.mkdir(ME, root, b"d", NewMode { mode: 0o755, umask: 0 }).unwrap();
    let mut refused = None;
    for mode in 0..100_000u32 {
        let changes = Changes { mode: Some(mode & 0o777), ..Changes::default() };
        if let Err(errno) = volume.setattr(ME, entry.id, &changes) {
            refused = Some(errno);
            break;
        }
    }
    assert_eq!(refused, Some(Errno::NOSPC));
    volume.set_when_full(presto::filter::WhenFull::ReadOnly);
    assert_eq!(volume.rmdir(ME, root, b"d"), Err(Errno::ROFS));
    assert!(volume.marks.full.is_on());
    // A larger limit makes room at once, and so does Lento.
    volume.journal.set_max_bytes(8 << 20);
    volume.setattr(ME, entry.id, &Changes { mode: Some(0o700), ..Changes::default() }).unwrap();
    assert!(!volume.marks.full.is_on());
    volume.journal.set_max_bytes(4 << 20);
    assert_eq!(volume.rmdir(ME, root, b"d"), Err(Errno::ROFS));
    volume.journal.truncate(volume.journal.published()).unwrap();
    volume.rmdir(ME, root, b"d").unwrap();
    assert!(!volume.marks.full.is_on());
}

#[test]
fn files_open_at_a_kill_are_closed_at_the_next_start() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root");
    let dir = tempfile::tempdir().unwrap();
    let object;
    {
        let subject = Subject::open(dir.path());
        let new = NewMode { mode: 0o644, umask: 0 };
        let root = subject.volume.lower.root();
        let (entry, handle) = subject.volume.create(ME, root, b"f", new, Access::Write).unwrap();
        subject.volume.write(handle.number, 0, b"not closed").unwrap();
        let (_, closed) = subject.volume.create(ME, root, b"g", new, Access::Write).unwrap();
        subject.volume.release(ME, closed.number).unwrap();
        object = entry.id;
    }
    let subject = Subject::open(dir.path());
    assert_eq!(subject.volume.close_interrupted(|_, _| false).unwrap(), 1);
    assert_eq!(told(dir.path()).objects[&object].size, 10);
    drop(subject);
    assert_eq!(Subject::open(dir.path()).volume.close_interrupted(|_, _| false).unwrap(), 0);
}

#[test]
fn a_file_that_is_kept_and_has_lost_its_name_is_looked_up_anew() {
    let dir = tempfile::tempdir().unwrap();
    let subject = Subject::open(dir.path());
    let root = subject.volume.lower.root();
    let new = NewMode { mode: 0o644, umask: 0 };
    let (entry, handle) = subject.volume.create(ME, root, b"f", new, Access::Write).unwrap();
    handle.set_passthrough();
    subject.volume.release(ME, handle.number).unwrap();
    let again = subject.volume.open_file(ME, entry.id, Access::Read, false).unwrap();
    assert!(Arc::ptr_eq(&handle.file, &again.file));
    again.set_passthrough();
    subject.volume.release(ME, again.number).unwrap();
    drop((handle, again));
    subject.volume.unlink(ME, root, b"f").unwrap();
    assert_eq!(subject.volume.open_file(ME, entry.id, Access::Read, false).unwrap_err(), Errno::STALE);
    subject.volume.create(ME, root, b"f", new, Access::Write).unwrap();
}

#[test]
fn nothing_is_kept_of_a_file_without_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let subject = Subject::open(dir.path());
    let root = subject.volume.lower.root();
    let new = NewMode { mode: 0o600, umask: 0 };
    let (_, handle) = subject.volume.create(ME, root, b"removed-while-open", new, Access::Write).unwrap();
    handle.set_passthrough();
    subject.volume.unlink(ME, root, b"removed-while-open").unwrap();
    subject.volume.release(ME, handle.number).unwrap();
    assert_eq!(Arc::strong_count(&handle.file), 1);
    let (_, handle) = subject.volume.create(ME, root, b"closed-before", new, Access::Write).unwrap();
    handle.set_passthrough();
    subject.volume.release(ME, handle.number).unwrap();
    assert_eq!(Arc::strong_count(&handle.file), 2);
    subject.volume.unlink(ME, root, b"closed-before").unwrap();
    assert_eq!(Arc::strong_count(&handle.file), 1);
}

//! Two places for one test: a directory of a lower file system, and a volume on the same file system.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use presto::fuse::MountOptions;

use crate::calls::{chmod, errno};
use crate::lower_fs::{LowerFs, kinds};
use crate::mounted::{Mounted, mounted_in};

/// Where a test works.
pub struct Place {
    /// An empty directory.
    pub dir: PathBuf,
    /// The file system of it, or below it.
    pub lower: PathBuf,
    /// The mounted volume, if it is one.
    pub volume: Option<Mounted>,
    _dir: Option<tempfile::TempDir>,
}

/// What a program was told, in order.
#[derive(Debug, Default)]
pub struct Notes(Vec<String>);

/// How data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Inside the kernel.
    Passthrough,
    /// Through presto.
    Daemon,
}

/// On every lower file system, and on one of them also without passthrough.
pub fn same(test: impl Fn(&Place, &mut Notes)) {
    for kind in kinds() {
        same_on(kind, &[Way::Passthrough], &test);
    }
    same_on("ext4", &[Way::Daemon], &test);
}

/// On one lower file system.
pub fn same_on(kind: &'static str, ways: &[Way], test: impl Fn(&Place, &mut Notes)) {
    let fs = LowerFs::mount(kind);
    let mut wanted = Notes::default();
    test(&Place::native(&fs), &mut wanted);
    assert!(!wanted.0.is_empty(), "the test notes nothing");
    for way in ways {
        let mut found = Notes::default();
        test(&Place::volume(&fs, *way), &mut found);
        for (wanted, found) in wanted.0.iter().zip(&found.0) {
            assert_eq!(found, wanted, "on a volume (left) and on {kind} (right), {way:?}");
        }
        assert_eq!(found.0.len(), wanted.0.len(), "{kind}, {way:?}");
    }
}

/// Both places on one lower file system, for what differs: the test says of each what it must be.
pub fn each(kind: &'static str, test: impl Fn(&Place)) {
    let fs = LowerFs::mount(kind);
    test(&Place::native(&fs));
    for way in [Way::Passthrough, Way::Daemon] {
        test(&Place::volume(&fs, way));
    }
}

/// Says that this kernel is known to have no passthrough: who asks for it gets presto's own way, and that is tested. Without
/// it a kernel that has none is a failure.
const WITHOUT: &str = "INTERMEZZO_TEST_WITHOUT_PASSTHROUGH";

impl Place {
    fn native(fs: &LowerFs) -> Place {
        let dir = tempfile::tempdir_in(&fs.at).unwrap();
        Place::open_to_all(Place {
            dir: dir.path().to_owned(),
            lower: fs.at.clone(),
            volume: None,
            _dir: Some(dir),
        })
    }

    fn volume(fs: &LowerFs, way: Way) -> Place {
        let passthrough = way == Way::Passthrough;
        let options = MountOptions { passthrough, suid: true, dev: true, ..MountOptions::default() };
        let volume = mounted_in(tempfile::tempdir_in(&fs.at).unwrap(), &options);
        assert_eq!(
            volume.mount.as_ref().unwrap().has_passthrough(),
            passthrough && std::env::var_os(WITHOUT).is_none(),
            "the kernel decides otherwise; {WITHOUT} says that it has no passthrough"
        );
        Place::open_to_all(Place {
            dir: volume.mnt.clone(),
            lower: fs.at.clone(),
            volume: Some(volume),
            _dir: None,
        })
    }

    /// Other users come as far as this directory, and may write in it.
    fn open_to_all(place: Place) -> Place {
        let temporary = std::env::temp_dir();
        let above = place.dir.ancestors().skip(1).take_while(|dir| **dir != *temporary);
        above.for_each(|dir| chmod(dir, 0o755));
        chmod(&place.dir, 0o777);
        place
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    pub fn is_volume(&self) -> bool {
        self.volume.is_some()
    }
}

impl Notes {
    /// Anything that must be the same.
    pub fn note(&mut self, what: &str, found: impl Debug) {
        self.0.push(format!("{what}: {found:?}"));
    }

    /// How a call ended: what it gave, or its errno.
    pub fn call<T: Debug, E: Into<io::Error>>(&mut self, what: &str, result: Result<T, E>) {
        self.note(what, result.map_err(errno));
    }

    /// The same where only that it went well matters.
    pub fn done<T, E: Into<io::Error>>(&mut self, what: &str, result: Result<T, E>) {
        self.note(what, result.map(drop).map_err(errno));
    }

    /// What stat(2) says, but for numbers that no two file systems share.
    pub fn stat(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.call(&format!("stat of {name}"), shape(path));
    }

    /// Names in a directory, sorted.
    pub fn list(&mut self, dir: impl AsRef<Path>) {
        let names = fs::read_dir(dir.as_ref()).map(|entries| {
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        });
        self.call("names", names);
    }

    pub fn content(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let content = fs::read(path).map(|content| {
            let text: Vec<u8> = content.iter().take(80).copied().collect();
            (content.len(), String::from_utf8_lossy(&text).into_owned())
        });
        self.call(&format!("content of {}", path.file_name().unwrap_or_default().to_string_lossy()), content);
    }
}

/// Type, mode, links, owner, group, size of what is no directory, device.
pub fn shape(path: &Path) -> io::Result<String> {
    let stat = fs::symlink_metadata(path)?;
    let kind = stat.file_type();
    let kind = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_char_device() => "character device",
        () => "block device",
    };
    // Directories count their links and bytes in ways of their own.
    let (nlink, size) = if stat.is_dir() { (0, 0) } else { (stat.nlink(), stat.len()) };
    Ok(format!(
        "{kind} {:o} links {nlink} of {}:{} size {size} device {}",
        stat.mode() & 0o7777,
        stat.uid(),
        stat.gid(),
        stat.rdev()
    ))
}

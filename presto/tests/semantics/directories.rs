//! Listing directories.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::places::{Place, Way, same, same_on};

/// How often each name is listed, by a stream that was opened before `meanwhile` ran after every thousandth entry.
fn listed(dir: &Path, mut meanwhile: impl FnMut(usize)) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for (count, entry) in fs::read_dir(dir).unwrap().enumerate() {
        *names.entry(entry.unwrap().file_name().into_string().unwrap()).or_default() += 1;
        if count % 1000 == 999 {
            meanwhile(count);
        }
    }
    names
}

fn many(place: &Place, notes: &mut crate::places::Notes, count: usize) {
    let dir = place.path("d");
    fs::create_dir(&dir).unwrap();
    let name = |n: usize| format!("a-name-of-usual-length-{n}");
    let fd = rustix::fs::open(&dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for n in 0..count {
        rustix::fs::mknodat(&fd, name(n), FileType::RegularFile, Mode::from_raw_mode(0o644), 0).unwrap();
    }
    let all = listed(&dir, |_| ());
    notes.note("all of them", (all.len(), all.values().all(|times| *times == 1)));
    // Every other one goes, and new ones come, while somebody reads.
    let mut next = 0;
    let seen = listed(&dir, |_| {
        for n in next..next + 500 {
            let _ = fs::remove_file(dir.join(name(n * 2 % count)));
            File::create(dir.join(format!("new-{n}"))).unwrap();
        }
        next += 500;
    });
    let stayed = (0..count).filter(|n| dir.join(name(*n)).exists());
    let missed: Vec<usize> = stayed.filter(|n| seen.get(&name(*n)) != Some(&1)).collect();
    notes.note("what stayed is listed once", missed.is_empty());
    notes.note("nothing twice", seen.values().all(|times| *times == 1));
    let after = listed(&dir, |_| ());
    notes.note("then as it is", after.keys().all(|name| dir.join(name).exists()));
    notes.note("how many", after.len());
}

#[test]
fn a_directory_of_100000_names_is_read_while_it_changes() {
    same_on("ext4", &[Way::Passthrough], |place, notes| many(place, notes, 100_000));
}

#[test]
fn a_directory_is_read_while_it_changes() {
    same(|place, notes| many(place, notes, 5_000));
}

#[test]
fn entries_say_type_and_number() {
    same(|place, notes| {
        fs::write(place.path("file"), b"").unwrap();
        fs::create_dir(place.path("dir")).unwrap();
        std::os::unix::fs::symlink("x", place.path("symlink")).unwrap();
        rustix::fs::mknodat(CWD, place.path("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        let mut entries: Vec<_> = fs::read_dir(&place.dir).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let stat = fs::symlink_metadata(entry.path()).unwrap();
            notes.note("type", (entry.file_name(), entry.file_type().unwrap()));
            notes.note("number", entry.ino() == stat.ino());
        }
        let fd = rustix::fs::open(place.path("dir"), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut dots: Vec<_> = rustix::fs::Dir::new(fd).unwrap().map(Result::unwrap).collect();
        dots.sort_by_key(|entry| entry.file_name().to_owned());
        let numbers = [place.path("dir"), place.dir.clone()].map(|dir| fs::metadata(dir).unwrap().ino());
        for (dot, number) in dots.iter().zip(numbers) {
            notes.note("dot", (dot.file_name(), dot.file_type(), dot.ino() == number));
        }
    });
}

#[test]
fn a_stream_goes_back_to_where_it_was() {
    same(|place, notes| {
        for n in 0..300 {
            File::create(place.path(format!("{n:03}"))).unwrap();
        }
        let path = std::ffi::CString::new(place.dir.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the stream is open until closedir, and entries are copied before the next call.
        unsafe {
            let stream = libc::opendir(path.as_ptr());
            let next = || {
                let entry = libc::readdir(stream);
                (!entry.is_null()).then(|| CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
            };
            let mut places = Vec::new();
            loop {
                let at = libc::telldir(stream);
                let Some(name) = next() else { break };
                places.push((at, name));
            }
            notes.note("names", places.len());
            let wrong = places.iter().step_by(7).filter(|(at, name)| {
                libc::seekdir(stream, *at);
                next().as_ref() != Some(name)
            });
            notes.note("other names than before", wrong.count());
            fs::write(place.path("later"), b"").unwrap();
            libc::rewinddir(stream);
            let again = std::iter::from_fn(next).count();
            notes.note("rewound, with what is new", again);
            libc::closedir(stream);
        }
    });
}

#[test]
fn a_removed_directory_is_empty_for_who_has_it_open() {
    same(|place, notes| {
        let dir = place.path("d");
        fs::create_dir(&dir).unwrap();
        let fd = rustix::fs::open(&dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
        notes.done("rmdir", fs::remove_dir(&dir));
        let create =
            rustix::fs::openat(&fd, "f", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644));
        notes.done("create in it", create);
        notes.done("mkdir in it", rustix::fs::mkdirat(&fd, "e", Mode::from_raw_mode(0o755)));
        notes.done("find in it", rustix::fs::statat(&fd, "f", rustix::fs::AtFlags::empty()));
        let names = rustix::fs::Dir::read_from(&fd).map(|dir| {
            dir.filter_map(Result::ok).filter(|entry| !entry.file_name().to_bytes().starts_with(b".")).count()
        });
        notes.call("names", names);
        notes.done("a new one by the name", fs::create_dir(&dir));
        notes.done("still not in the old one", rustix::fs::mkdirat(&fd, "e", Mode::from_raw_mode(0o755)));
    });
}

#[test]
fn the_current_directory_goes_with_its_names() {
    same(|place, notes| {
        fs::create_dir_all(place.path("a/b")).unwrap();
        let (dir, inner) = (place.dir.clone(), place.path("a/b"));
        let told = std::thread::spawn(move || {
            let mut told = Vec::new();
            // SAFETY: this thread alone gets a current directory of its own.
            unsafe { assert_eq!(libc::unshare(libc::CLONE_FS), 0) };
            rustix::process::chdir(&inner).unwrap();
            let here = |dir: &Path| {
                let here = rustix::process::getcwd(Vec::new()).map(|path| path.into_string().unwrap());
                here.map(|path| Path::new(&path).strip_prefix(dir).map(Path::to_owned).unwrap_or_default())
            };
            told.push(format!("{:?}", here(&dir)));
            fs::rename(dir.join("a"), dir.join("c")).unwrap();
            told.push(format!("{:?}", here(&dir)));
            fs::remove_dir(dir.join("c/b")).unwrap();
            told.push(format!("{:?}", here(&dir)));
            told.push(format!("{:?}", fs::metadata("..").is_ok()));
            told
        });
        notes.note("where", told.join().unwrap());
    });
}

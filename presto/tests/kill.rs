//! Presto is killed under load: the journal and the tree agree, and a new presto serves the volume again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

#[path = "common/mounted.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use intermezzo_kml::record::Opcode;
use intermezzo_kml::record::State;
use presto::filter::Alone;
use presto::filter::Volume;
use presto::fuse::Mount;
use presto::fuse::MountOptions;
use rustix::mount::UnmountFlags;

const SERVE: &str = "PRESTO_TEST_SERVE";

/// Not a test: the process that is killed. The test below runs this file with the variable set.
#[test]
fn serve() {
    let Ok(dir) = std::env::var(SERVE) else { return };
    let dir = Path::new(&dir);
    let (volume, _) =
        Volume::open("test/killed-filter", &dir.join("cache"), common::options(), Arc::new(Alone)).unwrap();
    volume.limbo.set_settled(intermezzo_kml::record::Recno(u64::MAX));
    let _mount = Mount::start(Arc::new(volume), &dir.join("mnt"), &MountOptions::default(), None).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

/// Unmounts and ends the server whatever happens.
struct Server<'a> {
    child: std::process::Child,
    dir: &'a Path,
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        rustix::mount::unmount(self.dir.join("mnt"), UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
    }
}

fn start(dir: &Path) -> Server<'_> {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["serve", "--exact", "--nocapture"])
        .env(SERVE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server { child, dir };
    let mnt = dir.join("mnt").display().to_string();
    let begun = Instant::now();
    while !fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&mnt) {
        assert!(begun.elapsed() < Duration::from_secs(30), "not mounted");
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

#[test]
fn killed_under_load_the_journal_tells_the_tree() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("cache")).unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    for round in 0..5u64 {
        let server = start(dir.path());
        let work = dir.path().join("mnt").join(format!("round{round}"));
        let load = std::thread::spawn(move || {
            // Ends with the first error: the server is gone.
            let _ = fs::create_dir(&work);
            for number in 0.. {
                let (a, b) = (work.join(format!("a{number}")), work.join(format!("b{number}")));
                let done = fs::write(&a, format!("content {number}"))
                    .and_then(|()| fs::rename(&a, &b))
                    .and_then(|()| if number % 3 == 0 { fs::remove_file(&b) } else { Ok(()) });
                if done.is_err() {
                    break;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(300 + 37 * round));
        drop(server);
        load.join().unwrap();
        check(&dir.path().join("cache"));
    }
}

/// Each entry that the journal says is there, and no other; unresolved intents may have happened or not.
fn check(cache: &Path) {
    let (volume, unresolved) =
        Volume::open("test/killed-filter", cache, common::options(), Arc::new(Alone)).unwrap();
    for record in &unresolved {
        assert_eq!(record.state, State::Prepared);
        let intent = &record.intent;
        let dir = volume.lower.dir(intent.parent).unwrap();
        let there = volume.lower.find(&*dir, &intent.name).unwrap();
        let happened = match record.opcode {
            Opcode::Create | Opcode::Mkdir => there.is_some(),
            Opcode::Unlink | Opcode::Rename => there.is_none(),
            other => panic!("{other:?} is never left prepared here"),
        };
        let outcome = happened.then(|| intermezzo_kml::record::Outcome {
            object: there.unwrap_or(intent.object),
            flags: intent.flags,
            ..Default::default()
        });
        volume.journal.resolve(record.recno, outcome).unwrap();
    }
    volume.close_interrupted(|_, _| false).unwrap();
    drop(volume);
    let mut names = std::collections::BTreeMap::new();
    let mut closed = std::collections::BTreeMap::new();
    for record in common::records(cache) {
        let intent = record.intent;
        match record.opcode {
            Opcode::Create | Opcode::Mkdir => {
                assert_eq!(names.insert((intent.parent, intent.name), record.outcome.object), None);
            }
            Opcode::Unlink => assert_eq!(names.remove(&(intent.parent, intent.name)), Some(intent.object)),
            Opcode::Rename => {
                assert_eq!(names.remove(&(intent.parent, intent.name)), Some(intent.object));
                names.insert((intent.target_parent, intent.target_name), intent.object);
            }
            Opcode::Close => {
                closed.insert(intent.object, record.outcome.after.size);
            }
            other => panic!("{other:?}"),
        }
    }
    let lower = presto::lower::Lower::open(cache, None).unwrap();
    let mut seen = 0;
    for round in fs::read_dir(cache.join("tree")).unwrap() {
        let round = round.unwrap();
        let root = lower.dir(lower.root()).unwrap();
        let dir = lower.child(&*root, round.file_name().as_encoded_bytes()).unwrap();
        assert_eq!(names.get(&(lower.root(), round.file_name().into_encoded_bytes())), Some(&dir));
        seen += 1;
        let open = lower.dir(dir).unwrap();
        for file in fs::read_dir(round.path()).unwrap() {
            let file = file.unwrap();
            let id = lower.child(&*open, file.file_name().as_encoded_bytes()).unwrap();
            assert_eq!(names.get(&(dir, file.file_name().into_encoded_bytes())), Some(&id));
            let size = file.metadata().unwrap().len();
            assert_eq!(closed.get(&id).copied().unwrap_or(0), size, "{}", file.path().display());
            seen += 1;
        }
    }
    assert_eq!(seen, names.len());
}

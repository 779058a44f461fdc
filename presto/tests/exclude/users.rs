//! What users see on a mount, and what the journal says of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use intermezzo_kml::record::{Flags, Opcode, Recno, Record};
use presto::filter::{Exclude, Options};
use presto::fuse::MountOptions;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::mounted::{Mounted, mounted_with, options};

fn excluding(patterns: &[&str]) -> Mounted {
    let options = Options { exclude: exclude(patterns), ..options() };
    mounted_with(tempfile::tempdir().unwrap(), options, &MountOptions::default())
}

fn exclude(patterns: &[&str]) -> Exclude {
    let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    Exclude::parse(&patterns).unwrap()
}

/// The server has everything: it will not ask for a content any more.
fn settled(m: &Mounted) {
    m.volume.limbo.set_settled(Recno(u64::MAX));
}

/// What others would hear of names, in order.
fn told(m: &Mounted) -> Vec<(Opcode, String)> {
    let about = |record: &Record| {
        let name = if record.opcode == Opcode::Rename && !record.intent.flags.contains(Flags::LEFT) {
            &record.intent.target_name
        } else {
            &record.intent.name
        };
        (record.opcode, String::from_utf8_lossy(name).into_owned())
    };
    let names = |record: &&Record| {
        !matches!(record.opcode, Opcode::Close | Opcode::Setattr)
            && !record.intent.flags.contains(Flags::LOCAL)
    };
    m.records().iter().filter(names).map(about).collect()
}

fn errno<T>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.map(drop).unwrap_err()).unwrap()
}

#[test]
fn what_is_made_by_excluded_names_is_like_other_files_and_no_news() {
    let m = excluding(&["target/", "*.o"]);
    let (target, a) = (m.path("target"), m.path("a.o"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(target.join("deep")).unwrap();
    fs::write(target.join("deep/x"), "built").unwrap();
    fs::hard_link(target.join("deep/x"), target.join("y")).unwrap();
    symlink("x", target.join("deep/s")).unwrap();
    fs::rename(target.join("deep"), target.join("moved")).unwrap();
    fs::write(&a, "object").unwrap();
    fs::rename(&a, m.path("b.o")).unwrap();
    fs::rename(m.path("b.o"), target.join("c")).unwrap();
    assert_eq!(fs::read_to_string(target.join("moved/s")).unwrap(), "built");
    assert_eq!(fs::metadata(target.join("y")).unwrap().nlink(), 2);
    #[allow(clippy::disallowed_methods, reason = "a directory that this test made")]
    fs::remove_dir_all(&target).unwrap();
    assert!(!target.exists());
    assert_eq!(told(&m), []);
    assert!(m.volume.limbo.is_empty(), "nobody will ask for these contents");
    fs::write(m.path("a.c"), "source").unwrap();
    assert_eq!(told(&m), [(Opcode::Create, "a.c".to_owned())]);
}

#[test]
fn saving_by_an_excluded_name_replaces_in_one_step() {
    let m = excluding(&["*.tmp"]);
    fs::write(m.path("f"), "old").unwrap();
    let old = fs::metadata(m.lower("f")).unwrap().ino();
    let before = m.records().len();
    fs::write(m.path("f.tmp"), "new").unwrap();
    rustix::fs::lsetxattr(m.path("f.tmp"), "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let new = fs::metadata(m.lower("f.tmp")).unwrap().ino();
    fs::rename(m.path("f.tmp"), m.path("f")).unwrap();
    assert_eq!(fs::read_to_string(m.path("f")).unwrap(), "new");
    let records = m.records();
    let joins: Vec<_> = records[before..].iter().rev().take(3).rev().collect();
    assert_eq!(
        joins.iter().map(|record| record.opcode).collect::<Vec<_>>(),
        [Opcode::Create, Opcode::Close, Opcode::Rename]
    );
    let [create, close, rename] = joins[..] else { panic!() };
    assert_eq!(create.intent.name, create.outcome.object.joining_name());
    assert!(create.intent.flags.contains(Flags::FOUND | Flags::XATTRS));
    assert_eq!((close.outcome.object.ino, close.outcome.after.size), (new, 3));
    assert_eq!((rename.intent.object.ino, rename.intent.replaced.ino), (new, old));
    assert!(rename.intent.flags.contains(Flags::JOINED));
    // From now on it is like the one before.
    fs::remove_file(m.path("f")).unwrap();
    assert_eq!(told(&m).last(), Some(&(Opcode::Unlink, "f".to_owned())));
}

#[test]
fn a_file_that_is_renamed_to_an_excluded_name_is_removed_elsewhere() {
    let m = excluding(&["*~", "build/"]);
    for name in ["f", "linked", "early"] {
        fs::write(m.path(name), name).unwrap();
        if name == "linked" {
            fs::hard_link(m.path("linked"), m.path("other")).unwrap();
            settled(&m);
        }
    }
    fs::create_dir(m.path("d")).unwrap();
    m.volume.limbo.set_settled(Recno(0));
    fs::write(m.path("early"), "not sent").unwrap();
    assert_eq!(errno(fs::rename(m.path("early"), m.path("early~"))), Errno::XDEV, "the server may ask");
    settled(&m);
    fs::rename(m.path("f"), m.path("f~")).unwrap();
    assert_eq!(told(&m).last(), Some(&(Opcode::Rename, "f".to_owned())));
    let left = m.records().pop().unwrap();
    assert!(left.intent.flags.contains(Flags::LEFT) && !left.intent.flags.contains(Flags::LOCAL));
    fs::write(m.path("f~"), "goes on").unwrap();
    fs::rename(m.path("f~"), m.path("g~")).unwrap();
    assert_eq!(told(&m).len(), 6, "{:?}", told(&m));

    // What one rename cannot say, programs copy.
    assert_eq!(errno(fs::rename(m.path("linked"), m.path("linked~"))), Errno::XDEV);
    assert_eq!(errno(fs::hard_link(m.path("linked"), m.path("linked~"))), Errno::XDEV);
    assert_eq!(errno(fs::hard_link(m.path("g~"), m.path("g"))), Errno::XDEV);
    assert_eq!(errno(fs::rename(m.path("d"), m.path("build"))), Errno::XDEV);
    fs::create_dir(m.path("build")).unwrap();
    assert_eq!(errno(fs::rename(m.path("build"), m.path("b"))), Errno::XDEV);
    let exchange =
        |a: &str, b: &str| rustix::fs::renameat_with(CWD, m.path(a), CWD, m.path(b), RenameFlags::EXCHANGE);
    assert_eq!(exchange("linked", "g~"), Err(Errno::XDEV));
    assert_eq!(exchange("linked", "early"), Ok(()));
    mv(&m.path("d"), &m.path("build/d"));
    assert!(!m.path("d").exists() && m.path("build/d").is_dir());
}

fn mv(from: &Path, to: &Path) {
    assert!(std::process::Command::new("mv").args([from, to]).status().unwrap().success());
}

#[test]
fn patterns_decide_about_what_is_made_and_nothing_else() {
    let m = excluding(&[]);
    fs::write(m.path("tracked.o"), "before").unwrap();
    m.volume.set_exclude(exclude(&["*.o"])).unwrap();
    fs::write(m.path("local.o"), "after").unwrap();
    settled(&m);
    fs::rename(m.path("tracked.o"), m.path("still")).unwrap();
    fs::rename(m.path("still"), m.path("back.o")).unwrap();
    let names = told(&m);
    assert_eq!(names[0], (Opcode::Create, "tracked.o".to_owned()));
    assert_eq!(names[1], (Opcode::Rename, "still".to_owned()));
    assert!(m.records().pop().unwrap().intent.flags.contains(Flags::LEFT), "a new name is decided anew");

    // Other patterns do not change what stays here.
    m.volume.set_exclude(exclude(&[])).unwrap();
    fs::write(m.path("new.o"), "replicated").unwrap();
    assert_eq!(told(&m).last(), Some(&(Opcode::Create, "new.o".to_owned())));
    fs::remove_file(m.path("local.o")).unwrap();
    assert_eq!(told(&m).last(), Some(&(Opcode::Create, "new.o".to_owned())));
    fs::remove_file(m.path("new.o")).unwrap();
    assert_eq!(told(&m).last(), Some(&(Opcode::Unlink, "new.o".to_owned())));
}

//! "What is journaled" in docs/semantics.md, call by call, with data in the kernel and through presto.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, chown, symlink};
use std::path::Path;

use intermezzo_kml::record::{Flags, Mask, Opcode, Record};
use presto::fuse::MountOptions;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};

use crate::mounted::{Mounted, mounted};

/// A volume with the file `f` (three bytes), a second name `g` of it, the file `h` and the directory `d`.
fn volumes(test: impl Fn(&Mounted)) {
    for passthrough in [true, false] {
        let m = mounted(&MountOptions { passthrough, dev: true, ..MountOptions::default() });
        fs::write(m.path("f"), "abc").unwrap();
        fs::hard_link(m.path("f"), m.path("g")).unwrap();
        fs::write(m.path("h"), "h").unwrap();
        fs::create_dir(m.path("d")).unwrap();
        test(&m);
    }
}

/// The records of a call.
fn of(m: &Mounted, call: impl FnOnce(&dyn Fn(&str) -> std::path::PathBuf)) -> Vec<Record> {
    let before = m.records().len();
    call(&|name| m.path(name));
    m.records().split_off(before)
}

fn opcodes(records: &[Record]) -> Vec<Opcode> {
    records.iter().map(|record| record.opcode).collect()
}

/// Its only one.
fn one(records: &[Record]) -> &Record {
    let [record] = records else { panic!("{records:#?}") };
    record
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn what_is_made_is_one_record() {
    volumes(|m| {
        let made = of(m, |at| drop(File::create_new(at("c")).unwrap()));
        assert_eq!(opcodes(&made), [Opcode::Create]);
        assert_eq!(one(&made).intent.name, b"c");
        for (kind, name) in [(FileType::Fifo, "p"), (FileType::Socket, "s"), (FileType::CharacterDevice, "n")]
        {
            let made = of(m, |at| rustix::fs::mknodat(CWD, at(name), kind, Mode::RWXU, 0).unwrap());
            assert_eq!(opcodes(&made), [Opcode::Mknod], "{name}");
        }
        assert_eq!(opcodes(&of(m, |at| fs::create_dir(at("e")).unwrap())), [Opcode::Mkdir]);
        let made = of(m, |at| symlink("target", at("l")).unwrap());
        assert_eq!((opcodes(&made), &*one(&made).intent.value), (vec![Opcode::Symlink], &b"target"[..]));
    });
}

#[test]
fn a_removal_is_one_record_and_says_whether_the_last_name_went() {
    volumes(|m| {
        assert_eq!(opcodes(&of(m, |at| fs::hard_link(at("f"), at("third")).unwrap())), [Opcode::Link]);
        for (name, is_last) in [("third", false), ("f", false), ("g", true)] {
            let removed = of(m, |at| fs::remove_file(at(name)).unwrap());
            assert_eq!(opcodes(&removed), [Opcode::Unlink]);
            assert_eq!(one(&removed).outcome.flags.contains(Flags::LAST_LINK), is_last, "{name}");
        }
        assert_eq!(opcodes(&of(m, |at| fs::remove_dir(at("d")).unwrap())), [Opcode::Rmdir]);
    });
}

#[test]
fn a_rename_is_one_record_with_what_it_replaced() {
    volumes(|m| {
        let rename = |from: &str, to: &str, flags| {
            of(m, |at| rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags).unwrap())
        };
        let nothing = rename("h", "i", RenameFlags::NOREPLACE);
        assert_eq!((one(&nothing).opcode, one(&nothing).intent.replaced.is_none()), (Opcode::Rename, true));
        let over = rename("i", "f", RenameFlags::empty());
        let replaced = fs::metadata(m.lower("g")).unwrap();
        let ino = std::os::unix::fs::MetadataExt::ino(&replaced);
        assert_eq!((one(&over).opcode, one(&over).intent.replaced.ino), (Opcode::Rename, ino));
        assert!(one(&rename("f", "g", RenameFlags::EXCHANGE)).outcome.flags.contains(Flags::EXCHANGE));
        assert!(one(&rename("f", "j", RenameFlags::WHITEOUT)).outcome.flags.contains(Flags::WHITEOUT));
        of(m, |at| fs::hard_link(at("j"), at("k")).unwrap());
        assert!(rename("j", "k", RenameFlags::empty()).is_empty(), "two names of one file");
    });
}

#[test]
fn a_change_of_attributes_is_one_record() {
    volumes(|m| {
        let changed = of(m, |at| crate::calls::chmod(at("f"), 0o600));
        assert_eq!((one(&changed).opcode, one(&changed).intent.mask), (Opcode::Setattr, Mask::MODE));
        let changed = of(m, |at| chown(at("f"), Some(1), Some(2)).unwrap());
        assert_eq!(one(&changed).intent.mask, Mask::UID | Mask::GID);
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
            last_modification: Timespec { tv_sec: 1, tv_nsec: 2 },
        };
        let changed = of(m, |at| rustix::fs::utimensat(CWD, at("f"), &times, AtFlags::empty()).unwrap());
        assert_eq!(one(&changed).intent.mask & Mask::MTIME, Mask::MTIME);
        let set = |at: &Path| rustix::fs::setxattr(at, c"user.a", b"value", XattrFlags::empty()).unwrap();
        let changed = of(m, |at| set(&at("f")));
        assert_eq!((one(&changed).opcode, &*one(&changed).intent.value), (Opcode::Setxattr, &b"value"[..]));
        let changed = of(m, |at| rustix::fs::removexattr(at("f"), c"user.a").unwrap());
        assert_eq!((one(&changed).opcode, &*one(&changed).intent.name), (Opcode::Delxattr, &b"user.a"[..]));
    });
}

#[test]
fn a_truncation_is_one_record_with_the_size() {
    volumes(|m| {
        for size in [1, 100] {
            let cut = of(m, |at| crate::calls::truncate(&at("f"), size).unwrap());
            assert_eq!((one(&cut).opcode, one(&cut).intent.mask & Mask::SIZE), (Opcode::Setattr, Mask::SIZE));
            assert_eq!(one(&cut).outcome.after.size, size);
        }
        let file = writable(&m.path("f"));
        assert_eq!(opcodes(&of(m, |_| file.set_len(5).unwrap())), [Opcode::Setattr]);
        // Where stamps are coarse, its close comes so soon that the content counts as changed once more.
        let cut = of(m, |at| drop(File::create(at("f")).unwrap()));
        assert_eq!((cut[0].opcode, cut[0].outcome.after.size), (Opcode::Setattr, 0));
        assert!(cut[1..].iter().all(|record| record.opcode == Opcode::Close), "{cut:#?}");
    });
}

#[test]
fn data_is_journaled_by_the_close_record() {
    volumes(|m| {
        let write = |file: &File| file.write_all_at(b"data", 1).unwrap();
        let allocate = |file: &File| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, 8192).unwrap();
        let copy = |file: &File| {
            let from = File::open(m.path("h")).unwrap();
            assert_eq!(rustix::fs::copy_file_range(&from, None, file, None, 1), Ok(1));
        };
        for (call, change) in
            [("pwrite", &write as &dyn Fn(&File)), ("fallocate", &allocate), ("copy", &copy)]
        {
            let file = writable(&m.path("f"));
            assert!(of(m, |_| change(&file)).is_empty(), "{call}");
            let closed = of(m, |_| drop(file));
            assert_eq!(opcodes(&closed), [Opcode::Close], "{call}");
            assert_eq!(one(&closed).outcome.after.size, fs::metadata(m.lower("f")).unwrap().len(), "{call}");
        }
    });
}

#[test]
fn a_close_without_a_change_is_no_record() {
    volumes(|m| {
        // Longer than a tick of the clock: a younger content counts as changed where stamps are coarse.
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(of(m, |at| drop(writable(&at("f")))).is_empty());
        assert!(of(m, |at| drop(File::open(at("f")).unwrap())).is_empty());
    });
}

#[test]
fn fsync_is_the_close_record_of_what_has_changed() {
    volumes(|m| {
        let file = writable(&m.path("f"));
        file.write_all_at(b"data", 0).unwrap();
        // Where stamps are coarse, what is recorded within a tick of its last change is doubted once more.
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(opcodes(&of(m, |_| file.sync_all().unwrap())), [Opcode::Close]);
        assert!(of(m, |_| file.sync_all().unwrap()).is_empty());
        let dir = File::open(&m.mnt).unwrap();
        assert!(of(m, |_| dir.sync_all().unwrap()).is_empty());
    });
}

#[test]
fn looking_is_no_record() {
    volumes(|m| {
        let looked = of(m, |at| {
            assert_eq!(fs::read(at("f")).unwrap(), b"abc");
            assert_eq!(fs::read_dir(&m.mnt).unwrap().count(), 4);
            fs::metadata(at("absent")).unwrap_err();
            rustix::fs::statvfs(&m.mnt).unwrap();
            let file = File::open(at("f")).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
            rustix::fs::listxattr(at("f"), &mut [0_u8; 64][..]).unwrap();
        });
        assert!(looked.is_empty(), "{looked:#?}");
    });
}

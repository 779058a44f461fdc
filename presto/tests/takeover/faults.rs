//! Presto dies at each point of each operation, and the program that asked for it notices nothing: the next presto answers what
//! came of it, from the journal, and does nothing twice that would show.

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use intermezzo_kml::record::{Opcode, Record};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags};
use rustix::process::Signal;

use crate::{TAKEN_OVER, World, common};

/// A name, what makes ready, what is done while presto dies, and whether it is there afterwards.
struct Case {
    operation: &'static str,
    opcode: Opcode,
    ready: fn(&World),
    run: fn(&World) -> std::io::Result<()>,
    is_so: fn(&World) -> bool,
}

const CASES: [Case; 15] = [
    Case {
        operation: "create",
        opcode: Opcode::Create,
        ready: |_| {},
        run: |w| File::create_new(w.at("created")).map(drop),
        is_so: |w| w.at("created").is_file(),
    },
    Case {
        operation: "mkdir",
        opcode: Opcode::Mkdir,
        ready: |_| {},
        run: |w| fs::create_dir(w.at("dir")),
        is_so: |w| w.at("dir").is_dir(),
    },
    Case {
        operation: "mknod",
        opcode: Opcode::Mknod,
        ready: |_| {},
        run: |w| Ok(rustix::fs::mknodat(CWD, w.at("fifo"), FileType::Fifo, Mode::RUSR, 0)?),
        is_so: |w| fs::metadata(w.at("fifo")).unwrap().file_type().is_fifo(),
    },
    Case {
        operation: "symlink",
        opcode: Opcode::Symlink,
        ready: |_| {},
        run: |w| symlink("to", w.at("symlink")),
        is_so: |w| fs::read_link(w.at("symlink")).unwrap().ends_with("to"),
    },
    Case {
        operation: "link",
        opcode: Opcode::Link,
        ready: |w| fs::write(w.at("linked"), "x").unwrap(),
        run: |w| fs::hard_link(w.at("linked"), w.at("link")),
        is_so: |w| fs::metadata(w.at("link")).unwrap().nlink() == 2,
    },
    Case {
        operation: "unlink",
        opcode: Opcode::Unlink,
        ready: |w| fs::write(w.at("unlinked"), "x").unwrap(),
        run: |w| fs::remove_file(w.at("unlinked")),
        is_so: |w| !w.at("unlinked").exists(),
    },
    Case {
        operation: "rmdir",
        opcode: Opcode::Rmdir,
        ready: |w| fs::create_dir(w.at("gone")).unwrap(),
        run: |w| fs::remove_dir(w.at("gone")),
        is_so: |w| !w.at("gone").exists(),
    },
    Case {
        operation: "rename",
        opcode: Opcode::Rename,
        ready: |w| fs::write(w.at("from"), "x").unwrap(),
        run: |w| fs::rename(w.at("from"), w.at("to")),
        is_so: |w| w.at("to").exists() && !w.at("from").exists(),
    },
    // Over another file.
    Case {
        operation: "rename",
        opcode: Opcode::Rename,
        ready: |w| {
            fs::write(w.at("new"), "new").unwrap();
            fs::write(w.at("old"), "old").unwrap();
        },
        run: |w| fs::rename(w.at("new"), w.at("old")),
        is_so: |w| fs::read(w.at("old")).unwrap() == b"new" && !w.at("new").exists(),
    },
    // Twice, it would undo itself.
    Case {
        operation: "rename",
        opcode: Opcode::Rename,
        ready: |w| {
            fs::write(w.at("one"), "one").unwrap();
            fs::write(w.at("two"), "two").unwrap();
        },
        run: |w| {
            let flags = RenameFlags::EXCHANGE;
            Ok(rustix::fs::renameat_with(CWD, w.at("one"), CWD, w.at("two"), flags)?)
        },
        is_so: |w| fs::read(w.at("one")).unwrap() == b"two" && fs::read(w.at("two")).unwrap() == b"one",
    },
    Case {
        operation: "setattr",
        opcode: Opcode::Setattr,
        ready: |w| fs::write(w.at("mode"), "x").unwrap(),
        run: |w| fs::set_permissions(w.at("mode"), fs::Permissions::from_mode(0o751)),
        is_so: |w| fs::metadata(w.at("mode")).unwrap().mode() & 0o777 == 0o751,
    },
    Case {
        operation: "setattr",
        opcode: Opcode::Setattr,
        ready: |w| fs::write(w.at("size"), "0123456789").unwrap(),
        run: |w| File::options().write(true).open(w.at("size"))?.set_len(4),
        is_so: |w| fs::read(w.at("size")).unwrap() == b"0123",
    },
    Case {
        operation: "setxattr",
        opcode: Opcode::Setxattr,
        ready: |w| fs::write(w.at("xattr"), "x").unwrap(),
        // A second time it would be there.
        run: |w| Ok(rustix::fs::setxattr(w.at("xattr"), "user.a", b"1", XattrFlags::CREATE)?),
        is_so: |w| rustix::fs::getxattr(w.at("xattr"), "user.a", &mut [0_u8; 9]) == Ok(1),
    },
    Case {
        operation: "delxattr",
        opcode: Opcode::Delxattr,
        ready: |w| {
            fs::write(w.at("bare"), "x").unwrap();
            rustix::fs::setxattr(w.at("bare"), "user.a", b"1", XattrFlags::empty()).unwrap();
        },
        run: |w| Ok(rustix::fs::removexattr(w.at("bare"), "user.a")?),
        is_so: |w| rustix::fs::getxattr(w.at("bare"), "user.a", &mut [0_u8; 9]).is_err(),
    },
    Case {
        operation: "close",
        opcode: Opcode::Close,
        ready: |w| fs::write(w.at("closed"), "").unwrap(),
        run: |w| {
            let mut file = File::options().write(true).open(w.at("closed"))?;
            file.write_all(b"content")?;
            file.sync_all()
        },
        is_so: |w| fs::read(w.at("closed")).unwrap() == b"content",
    },
];

fn dies_at(point: &str) {
    for (number, case) in CASES.iter().enumerate() {
        let what = format!("{}@{point} (case {number})", case.operation);
        let world = World::start();
        (case.ready)(&world);
        world.arm(&format!("{}@{point}", case.operation));
        let (count, takeovers) = (of(&world, case.opcode).len(), world.takeovers());
        (case.run)(&world).unwrap_or_else(|error| panic!("{what}: {error}"));
        world.wait_for(TAKEN_OVER, takeovers + 1);
        assert!((case.is_so)(&world), "{what}: it is not so");
        let records = of(&world, case.opcode);
        // Attributes are set once more, to the same; what is open for writing may be told of once more.
        let again = matches!(case.opcode, Opcode::Setattr | Opcode::Close) && records.len() > count;
        let fine = records.len() == count + 1 || again;
        assert!(fine, "{what}: {} records more", records.len() - count);
    }
}

fn of(world: &World, opcode: Opcode) -> Vec<Record> {
    common::records(&world.path("cache")).into_iter().filter(|record| record.opcode == opcode).collect()
}

impl World {
    /// The next presto, which comes at once, dies there.
    fn arm(&self, fault: &str) {
        fs::write(self.path("fault"), fault).unwrap();
        self.takeover(Signal::KILL);
    }
}

#[test]
fn after_the_intent() {
    dies_at("intent");
}

#[test]
fn after_the_lower_operation() {
    dies_at("operation");
}

#[test]
fn after_the_record() {
    dies_at("record");
}

#[test]
fn after_the_note_for_the_next_presto() {
    dies_at("answer");
}

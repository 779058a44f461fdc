//! When Lento hears that there are records: of all that it can read, and of nothing that it cannot.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says where"
)]

use std::sync::Arc;

use intermezzo_kml::Class;
use intermezzo_kml::record::{Caller, FileId, Intent, Opcode, Outcome, Recno};
use parking_lot::Mutex;
use presto::filter::{DataAnswer, Kept, NewMode, Options, PermitAnswer, Safety, Upcalls, Volume, Wait};

/// A Lento that only listens.
#[derive(Default)]
struct Heard(Mutex<Vec<Recno>>);

impl Upcalls for Heard {
    fn journal(&self, _volume: &str, to: Recno) {
        self.0.lock().push(to);
    }

    fn get_permit(&self, _volume: &str, _wait: Wait) -> PermitAnswer {
        PermitAnswer::Stolen
    }

    fn get_data(&self, _volume: &str, _object: FileId, _wait: Wait) -> DataAnswer {
        DataAnswer::Present
    }

    fn safety(&self, _volume: &str, _object: FileId, _newest: Recno, _wait: Wait) -> Safety {
        Safety::Unknown
    }

    fn keep(&self, _volume: &str, _object: FileId, _newest: Recno, _wait: Wait) -> Kept {
        Kept::Unheard
    }
}

#[test]
fn lento_is_told_of_what_it_can_read_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(Heard::default());
    let (volume, _) =
        Volume::open("test/notices", dir.path(), Options::default(), Arc::clone(&heard) as _).unwrap();
    let mkdir = |name: &[u8]| {
        let me = Caller { uid: 0, gid: 0, pid: 1 };
        volume.mkdir(me, volume.lower.root(), name, NewMode { mode: 0o755, umask: 0 }).unwrap();
    };
    let last = || heard.0.lock().last().copied().unwrap_or(Recno::NONE);
    mkdir(b"first");
    let first = last();
    // An operation takes long, and one that began later is done.
    let intent = Intent { opcode: Some(Opcode::Setattr), object: volume.lower.root(), ..Intent::default() };
    let slow = volume.journal.begin(Class::User, &intent).unwrap();
    mkdir(b"second");
    assert_eq!(last(), first, "nobody can read the second one yet");
    let slow = volume.journal.done(slow, &Outcome::default()).unwrap();
    mkdir(b"third");
    assert_eq!(last(), Recno(slow.0 + 2), "all of them");
}

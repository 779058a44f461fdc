//! Others' updates are never refused, and they count; a start counts anew.

use intermezzo_channel::v1::replay_item::Op;
use presto::filter::{Access, NewMode};
use rustix::io::Errno;

use crate::world::*;
use crate::{counted, walked};

#[test]
fn others_updates_arrive_beyond_the_limit_and_count() {
    let w = world_with(tempfile::tempdir().unwrap(), |set| {
        (set.max_bytes, set.max_inodes) = (10, 2);
    });
    counted(&w.volume);
    for name in ["a", "b", "c"] {
        applied(&w.one(item(Op::Make(make(by(w.root()), name, FILE, "12345678")))));
    }
    let usage = counted(&w.volume);
    assert_eq!((usage.inodes, usage.bytes), (3, 24));
    let new = NewMode { mode: 0o644, umask: 0 };
    let refused = w.volume.create(user(), w.root(), b"mine", new, Access::Write).unwrap_err();
    assert_eq!(refused, Errno::DQUOT);
    let w = w.restart(|_| {});
    assert_eq!(counted(&w.volume), walked(&w.tree));
    assert_eq!(w.volume.mkdir(user(), w.root(), b"mine", new).unwrap_err(), Errno::DQUOT);
}

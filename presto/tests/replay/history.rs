//! What is removed, replaced or changed in place is kept where the volume wants that, whoever does it.

use std::io::Read;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::replay_item::Op;
use intermezzo_kml::record::FileId;
use presto::filter::{Access, Changes, Place};
use rustix::fs::RenameFlags;

use crate::world::*;

/// A server's volume that keeps what was.
fn keeping() -> World {
    let w = world_with(tempfile::tempdir().unwrap(), |set| {
        set.history = Some(v1::History { max_bytes: 1 << 20, copy_bytes: 100_000 });
    });
    server(&w);
    w
}

/// Nobody else decides about what its users remove.
fn server(w: &World) {
    let mark = v1::Mark { settled: Some(u64::MAX), ..Default::default() };
    assert!(matches!(w.call(Body::Mark(mark)).body, Body::Done(_)));
}

/// What a name holds now, to be asked for later.
#[derive(Clone, Copy, Debug)]
struct Was(FileId, v1::Time, u64);

impl Was {
    fn at(w: &World, name: &str) -> Was {
        let version = w.version(name);
        Was(w.id(name), version.mtime.unwrap(), version.size)
    }

    fn of(self) -> v1::ContentOf {
        let Was(file, mtime, size) = self;
        let file = Some(v1::FileId { ino: file.ino, generation: file.generation });
        v1::ContentOf { file, mtime: Some(mtime), size, nth: 0 }
    }

    /// All that presto takes for it.
    fn all(self, w: &World) -> Vec<String> {
        let contents = (0..4).map(|nth| v1::ContentOf { nth, ..self.of() }).collect();
        let reply = w.call(Body::FindContents(v1::FindContents { contents, open: true }));
        let text = |fd| std::io::read_to_string(std::fs::File::from(fd)).unwrap();
        reply.fds.into_iter().map(text).collect()
    }

    /// What presto gives for it.
    fn found(self, w: &World) -> Option<String> {
        let reply = w.call(Body::FindContents(v1::FindContents { contents: vec![self.of()], open: true }));
        let Body::FoundContents(answer) = &reply.body else { panic!("{:?}", reply.body) };
        assert_eq!(answer.found.len(), 1);
        let mut text = String::new();
        let file = reply.fds.into_iter().next()?;
        std::fs::File::from(file).read_to_string(&mut text).unwrap();
        Some(text)
    }
}

fn kept(w: &World) -> usize {
    std::fs::read_dir(w.home.join("history")).unwrap().count()
}

fn unlink(w: &World, name: &str) {
    w.volume.unlink(user(), w.root(), name.as_bytes()).unwrap();
}

fn rename(w: &World, from: &str, to: &str) {
    let place = |name: &'static str| Place { dir: w.root(), name: name.as_bytes() };
    let (from, to) = (String::from(from).leak(), String::from(to).leak());
    w.volume.rename(user(), place(from), place(to), RenameFlags::empty()).unwrap();
}

#[test]
fn users_removals_and_saves_keep_what_was_there() {
    let w = keeping();
    w.save("f", "removed");
    let removed = Was::at(&w, "f");
    unlink(&w, "f");
    w.save("f", "replaced");
    let replaced = Was::at(&w, "f");
    w.save("f.new", "new");
    rename(&w, "f.new", "f");
    assert_eq!(w.read("f"), "new");
    let present = Was::at(&w, "f");
    for (was, text) in [(removed, "removed"), (replaced, "replaced"), (present, "new")] {
        assert_eq!(was.found(&w).as_deref(), Some(text), "{was:?}");
    }
    assert_eq!(kept(&w), 2);
    // What is kept is nobody's: not even who has it open gets it back.
    assert!(w.volume.link(user(), removed.0, w.root(), b"back").is_err());
    // Of a file with another name nothing is lost.
    w.save("g", "two names");
    w.volume.link(user(), w.id("g"), w.root(), b"h").unwrap();
    unlink(&w, "g");
    w.save("e", "");
    unlink(&w, "e");
    assert_eq!(kept(&w), 2, "and what was empty is not worth it");
}

#[test]
fn replays_keep_what_they_take_away() {
    let w = keeping();
    w.save("f", "by a user");
    let first = Was::at(&w, "f");
    applied(&w.one(item(Op::Install(install(&w, "f", inline("by a replay"))))));
    let second = Was::at(&w, "f");
    assert_eq!(first.found(&w).as_deref(), Some("by a user"));
    let expect = by(w.id("f"));
    let remove = v1::Unlink { dir: by(w.root()), name: name("f"), expect, ..Default::default() };
    applied(&w.one(item(Op::Unlink(remove))));
    assert!(!w.there("f"));
    assert_eq!(second.found(&w).as_deref(), Some("by a replay"));
    w.save("g", "under it");
    w.save("h", "over it");
    let under = Was::at(&w, "g");
    let over = v1::Rename {
        from: by(w.root()),
        from_name: name("h"),
        expect: by(w.id("h")),
        to: by(w.root()),
        to_name: name("g"),
        replaced: by(w.id("g")),
        ..Default::default()
    };
    applied(&w.one(item(Op::Rename(over))));
    assert_eq!((w.read("g").as_str(), under.found(&w).as_deref()), ("over it", Some("under it")));
    // In place: it has two names.
    w.volume.link(user(), w.id("g"), w.root(), b"g2").unwrap();
    let in_place = Was::at(&w, "g");
    applied(&w.one(item(Op::Install(install(&w, "g", inline("in place"))))));
    assert_eq!((w.read("g2").as_str(), in_place.found(&w).as_deref()), ("in place", Some("over it")));
}

#[test]
fn what_is_changed_in_place_is_copied_before() {
    let w = keeping();
    w.save("f", "the first content");
    let first = Was::at(&w, "f");
    std::thread::sleep(std::time::Duration::from_millis(20));
    w.save("f", "THE SECOND");
    assert_eq!(first.found(&w).as_deref(), Some("the first content"));
    let second = Was::at(&w, "f");
    std::thread::sleep(std::time::Duration::from_millis(20));
    // As `> f` does.
    w.volume.setattr(user(), w.id("f"), &Changes { size: Some(0), ..Changes::default() }).unwrap();
    assert_eq!(second.found(&w).as_deref(), Some("THE SECONDcontent"));
    // Too long to be copied where blocks cannot be shared.
    w.save("large", &"x".repeat(200_000));
    let large = Was::at(&w, "large");
    std::thread::sleep(std::time::Duration::from_millis(20));
    w.save("large", "y");
    let shares = large.found(&w).is_some_and(|text| text == "x".repeat(200_000));
    let tried = w.cache.join("try");
    std::fs::write(&tried, "x").unwrap();
    let clone = std::fs::File::create(w.cache.join("clone")).unwrap();
    let can = rustix::fs::ioctl_ficlone(&clone, std::fs::File::open(tried).unwrap()).is_ok();
    assert_eq!(shares, can);
}

#[test]
fn who_opens_and_writes_nothing_leaves_no_copy() {
    let w = keeping();
    w.save("f", "as it is");
    let old = v1::Time { sec: 1000, nsec: 0 };
    let at = presto::filter::SetTime::At(intermezzo_kml::record::Time { sec: old.sec, nsec: old.nsec });
    w.volume.setattr(user(), w.id("f"), &Changes { mtime: Some(at), ..Changes::default() }).unwrap();
    let handle = w.volume.open_file(user(), w.id("f"), Access::Write, false).unwrap();
    assert_eq!(kept(&w), 1, "he might");
    w.close(&handle);
    assert_eq!(kept(&w), 0);
}

#[test]
fn a_time_that_is_put_back_hides_no_change() {
    let w = keeping();
    let at = presto::filter::SetTime::At(intermezzo_kml::record::Time { sec: 1000, nsec: 0 });
    let put_back = || {
        w.volume.setattr(user(), w.id("f"), &Changes { mtime: Some(at), ..Changes::default() }).unwrap();
    };
    w.save("f", "one");
    put_back();
    let was = Was::at(&w, "f");
    for text in ["two", "six"] {
        let handle = w.open("f");
        w.write(&handle, text);
        put_back();
        w.close(&handle);
    }
    assert_eq!(Was::at(&w, "f").1, was.1);
    assert_eq!(was.all(&w), ["two", "one", "six"], "the newest copy first, what is in the tree last");
}

#[test]
fn a_start_knows_what_is_kept_and_counts_its_bytes_later() {
    let w = keeping();
    for name in ["a", "b", "c"] {
        w.save(name, &"x".repeat(9000));
        unlink(&w, name);
    }
    let (count, bytes) = w.volume.history.usage();
    assert!(count == 3 && bytes >= 3 * 9000, "{count} {bytes}");
    let w = w.restart(|_| {});
    assert_eq!(w.volume.history.usage(), (3, 0));
    // Gone meanwhile, by whatever hand.
    let gone = std::fs::read_dir(w.home.join("history")).unwrap().next().unwrap().unwrap();
    std::fs::remove_file(gone.path()).unwrap();
    w.volume.history.sweep(&w.volume.lower).unwrap();
    assert_eq!(w.volume.history.usage(), (2, bytes / 3 * 2));
}

#[test]
fn a_kill_at_any_moment_leaves_a_file_in_one_place() {
    let w = keeping();
    w.save("f", "removed");
    let removed = Was::at(&w, "f");
    unlink(&w, "f");
    w.save("g", "still here");
    let here = Was::at(&w, "g");
    // Killed after it got its second name and before the new file took the first one.
    let id = w.id("g");
    let w = w.restart(|cache| {
        let second = format!("{:016x}-{}-{}", 77, id.ino, id.generation);
        std::fs::hard_link(cache.join("tree/g"), cache.join("history").join(second)).unwrap();
        std::fs::write(cache.join("history/what-is-this"), "somebody's").unwrap();
    });
    server(&w);
    assert_eq!(w.stat("g").len(), 10);
    assert_eq!(
        (removed.found(&w).as_deref(), here.found(&w).as_deref()),
        (Some("removed"), Some("still here"))
    );
    assert_eq!(kept(&w), 2, "the removed one, and what is not presto's");
    assert_eq!(w.volume.history.usage().0, 1);
    unlink(&w, "g");
    assert_eq!(here.found(&w).as_deref(), Some("still here"));
}

#[test]
fn what_is_too_much_or_too_old_goes_from_the_oldest_on() {
    let w = keeping();
    let text = "x".repeat(200_000);
    let mut all = Vec::new();
    for number in 0..8 {
        let name = format!("f{number}");
        w.save(&name, &text);
        all.push(Was::at(&w, &name));
        unlink(&w, &name);
    }
    w.volume.history.sweep(&w.volume.lower).unwrap();
    let there: Vec<bool> = all.iter().map(|was| was.found(&w).is_some()).collect();
    assert!(!there[0] && there[7] && there.is_sorted(), "{there:?}");
    let (count, bytes) = w.volume.history.usage();
    assert!(bytes <= 1 << 20 && count == kept(&w), "{count} {bytes}");
    let mark = v1::Mark { history_floor: Some(w.last() + 1), ..Default::default() };
    assert!(matches!(w.call(Body::Mark(mark)).body, Body::Done(_)));
    w.volume.history.sweep(&w.volume.lower).unwrap();
    assert_eq!((kept(&w), w.volume.history.usage()), (0, (0, 0)));
}

#[test]
fn nothing_is_kept_where_nobody_wants_it_and_what_was_goes_with_the_wish() {
    let w = world();
    server(&w);
    w.save("f", "gone");
    unlink(&w, "f");
    assert_eq!(kept(&w), 0);
    let w = keeping();
    w.save("f", "kept");
    unlink(&w, "f");
    assert_eq!(kept(&w), 1);
    w.volume.history.set_keep(None);
    w.volume.history.sweep(&w.volume.lower).unwrap();
    assert_eq!(kept(&w), 0);
}

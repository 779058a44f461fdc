//! Lists of directories: whole, in pages, while names come and go.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use prost::Message;
use rustix::io::Errno;

use crate::ask::*;
use crate::world::*;

#[test]
fn a_name_comes_with_identity_attributes_and_version() {
    let w = world();
    let id = w.save("f", "text");
    w.user_mkdir("d");
    let listed = list(&w, w.root(), 0);
    assert_eq!((listed.entries.len(), listed.next), (2, 0));
    let entry = listed.entries.into_iter().find(|entry| entry.name == "f").unwrap();
    assert_eq!((entry.file, entry.version), (wire(id), Some(w.version("f"))));
    assert_eq!(entry.attributes.unwrap().mode, w.stat("f").mode());
}

#[test]
fn what_is_no_directory_any_more_is_a_failure() {
    let w = world();
    let (dir, file) = (w.user_mkdir("d"), w.save("f", ""));
    list(&w, dir, 0);
    fs::remove_dir(w.path("d")).unwrap();
    for (id, errno) in [(dir, Errno::STALE), (file, Errno::NOTDIR)] {
        let Body::Failure(failure) = w.call(Body::List(v1::List { dir: wire(id), after: 0 })).body else {
            panic!("listed")
        };
        assert_eq!(failure.errno, errno.raw_os_error(), "{}", failure.message);
    }
}

#[test]
fn five_thousand_names_come_in_pages_while_others_come_and_go() {
    let w = world();
    let dir = w.user_mkdir("d");
    let at = |name: String| w.path("d").join(name);
    for number in 0..5000 {
        fs::write(at(format!("stays-{number}")), "").unwrap();
        if number % 5 == 0 {
            fs::write(at(format!("goes-{number}")), "").unwrap();
        }
    }
    let mut seen = BTreeMap::new();
    let (mut after, mut pages) = (0, 0);
    loop {
        let listed = list(&w, dir, after);
        assert!(listed.encoded_len() < 256 << 10 && listed.entries.len() <= 1000);
        for entry in listed.entries {
            *seen.entry(String::from_utf8(entry.name.to_vec()).unwrap()).or_insert(0) += 1;
        }
        for number in (pages * 700..(pages + 1) * 700).filter(|number| number % 5 == 0) {
            let _ = fs::remove_file(at(format!("goes-{number}")));
            fs::write(at(format!("comes-{number}")), "").unwrap();
        }
        pages += 1;
        after = listed.next;
        if after == 0 {
            break;
        }
    }
    assert!(pages >= 5, "{pages}");
    for number in 0..5000 {
        assert_eq!(seen.get(&format!("stays-{number}")), Some(&1), "{number}");
    }
    assert!(seen.values().all(|times| *times == 1), "no name twice");
}

#[test]
fn a_mount_point_is_left_out_and_never_compared() {
    assert!(rustix::process::geteuid().is_root(), "run this test as root");
    let w = world();
    let dir = w.user_mkdir("d");
    let at = w.path("d");
    let _gone = Unmount(at.clone());
    rustix::mount::mount("none", &at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    assert!(list(&w, w.root(), 0).entries.is_empty());
    let item = intermezzo_channel::v1::scrub_item::What::Entry(expect(&w, "d", dir));
    let outcome = is(&w, Kind::Refused, item);
    assert_eq!(outcome.errno, Errno::XDEV.raw_os_error());
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

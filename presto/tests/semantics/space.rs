//! Space: what statfs says, and what happens when there is none.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::lower_fs::fill;
use crate::places::same;

#[test]
fn a_full_disk_says_so_and_what_is_deleted_makes_room() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, vec![1; 2 << 20]).unwrap();
        fs::write(place.path("g"), vec![1; 4 << 20]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let filler = fill(&place.lower, 0);
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        let ended = (0..64).map(|_| (&file).write_all(&vec![2; 1 << 20])).find(Result::is_err);
        notes.done("write on and on", ended.unwrap());
        notes.note("the old bytes", fs::read(&path).unwrap()[..2 << 20].iter().all(|byte| *byte == 1));
        notes.done("delete", fs::remove_file(place.path("g")));
        fs::remove_file(&filler).unwrap();
        notes.done("write again", OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"3", 0));
        notes.done("a new file", fs::write(place.path("h"), vec![4; 1 << 20]));
        notes.content(place.path("h"));
    });
}

#[test]
fn statfs_shows_the_lower_file_system() {
    same(|place, notes| {
        let told = rustix::fs::statvfs(&place.dir).unwrap();
        let lower = rustix::fs::statvfs(&place.lower).unwrap();
        notes.note("blocks", (told.f_blocks == lower.f_blocks, told.f_bsize == lower.f_bsize));
        notes.note("names", told.f_namemax);
        notes.note("free", told.f_bavail.abs_diff(lower.f_bavail) < 1024);
        notes.note("inodes", told.f_files == lower.f_files);
    });
}

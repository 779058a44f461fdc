//! mmap(2).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use memmap2::{Mmap, MmapMut, MmapOptions};

use crate::calls::chmod;
use crate::places::same;

fn open(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn shared(file: &File) -> MmapMut {
    // SAFETY: nobody cuts the file while this test maps it.
    unsafe { MmapOptions::new().map_mut(file).unwrap() }
}

#[test]
fn a_shared_mapping_and_the_file_are_one() {
    same(|place, notes| {
        let path = place.path("f");
        let file = open(&path);
        file.set_len(20_000).unwrap();
        let mut one = shared(&file);
        // SAFETY: as above.
        let other = unsafe { Mmap::map(&File::open(&path).unwrap()).unwrap() };
        one[5000] = b'm';
        notes.note("the other mapping", other[5000]);
        let mut byte = [0];
        file.read_at(&mut byte, 5000).unwrap();
        notes.note("read", byte);
        file.write_all_at(b"w", 12_000).unwrap();
        notes.note("written", (one[12_000], other[12_000]));
        notes.done("msync", one.flush());
        notes.note("a new descriptor", fs::read(&path).unwrap()[5000]);
    });
}

#[test]
fn stores_after_the_last_close_are_in_the_file() {
    same(|place, notes| {
        let path = place.path("f");
        let file = open(&path);
        file.set_len(8192).unwrap();
        let mut map = shared(&file);
        drop(file);
        for byte in 1..20u8 {
            map[usize::from(byte) * 100] = byte;
            notes.note("read", fs::read(&path).unwrap()[usize::from(byte) * 100]);
        }
        fs::remove_file(&path).unwrap();
        map[1] = 7;
        notes.note("without a name", (map[1], map[1900]));
    });
}

#[test]
fn a_private_mapping_changes_nothing() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, vec![b'o'; 5000]).unwrap();
        let file = File::open(&path).unwrap();
        // SAFETY: nobody cuts the file while this test maps it.
        let mut map = unsafe { MmapOptions::new().map_copy(&file).unwrap() };
        map[100] = b'p';
        notes.note("there", (map[100], map[101]));
        notes.note("in the file", fs::read(&path).unwrap()[100]);
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"new", 4200).unwrap();
        notes.note("what was not changed follows", map[4200]);
    });
}

#[test]
fn a_mapping_has_the_rights_of_its_descriptor() {
    same(|place, notes| {
        let path = place.path("f");
        fs::write(&path, vec![1; 4096]).unwrap();
        let reading = File::open(&path).unwrap();
        // SAFETY: nobody cuts the file while this test maps it.
        unsafe {
            notes.done("shared, to write, of a file open to read", MmapOptions::new().map_mut(&reading));
            notes.done("private", MmapOptions::new().map_copy(&reading));
            notes.done("to execute", MmapOptions::new().map_exec(&reading));
            let writing = OpenOptions::new().write(true).open(&path).unwrap();
            notes.done("of a file open to write", MmapOptions::new().len(4096).map(&writing));
            notes.done("of a directory", MmapOptions::new().len(4096).map(&File::open(&place.dir).unwrap()));
        }
    });
}

#[test]
fn programs_run_from_the_volume() {
    same(|place, notes| {
        let path = place.path("true");
        fs::copy("/bin/true", &path).unwrap();
        let status = std::process::Command::new(&path).status();
        notes.call("run", status.map(|status| status.code()));
        fs::write(place.path("script"), "#!/bin/sh\nexit 7\n").unwrap();
        std::os::unix::fs::chown(place.path("script"), Some(0), Some(0)).unwrap();
        notes.done("not executable", std::process::Command::new(place.path("script")).status());
        chmod(place.path("script"), 0o755);
        let status = std::process::Command::new(place.path("script")).status();
        notes.call("a script", status.map(|status| status.code()));
    });
}

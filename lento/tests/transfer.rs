//! Prints what a 4 KiB change in a file of 256 MiB, and bytes inserted at its front, cost: `cargo test --release -p lento --test transfer -- --nocapture`
//! (`MIB=1024` for another size).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that fails says where"
)]

use lento::content::assembly::Assembly;
use lento::content::assembly::Ground;
use lento::content::difference::Advice;
use lento::content::difference::Outgoing;
use lento::content::known::Values;
use lento::content::packing::Pace;
use lento::content::packing::Packer;
use lento::content::packing::unpack;
use lento::wire;
use prost::Message;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn transfer(what: &str, new: &Path, old: Option<(&Path, Option<Values>)>, staged: &Path) -> (usize, Values) {
    let source = File::open(new).unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(staged).unwrap();
    let ground = old.map(|(old, known)| {
        let file = Arc::new(File::open(old).unwrap());
        let size = file.metadata().unwrap().len();
        Ground { file, known: known.map(|known| (size, known)) }
    });
    let begin = Instant::now();
    let size = source.metadata().unwrap().len();
    let (mut assembly, mut have) = Assembly::begin(file, size, ground, Arc::default()).unwrap();
    let described = begin.elapsed();
    let (mut sent, mut packer) = (wire::have(&have).encoded_len(), Packer::default());
    assembly.prepare().unwrap();
    let prepared = begin.elapsed();
    let mut outgoing = Outgoing::of(&source).unwrap().unwrap();
    if outgoing.weigh(&source, &have).unwrap() == Advice::AskForChunks {
        have.chunks = assembly.chunks().unwrap();
        sent += wire::have(&have).encoded_len();
    }
    let weighed = begin.elapsed();
    let whole = outgoing.send(&source, &have, &mut |part| {
        let packed = packer.pack(part, Pace::Keeps);
        sent += packed.encoded_len();
        assembly.take(&unpack(packed).unwrap()).map_err(|error| error.to_string())
    });
    let (whole, told) = (whole.unwrap(), begin.elapsed());
    let values = assembly.finish(whole.hash).unwrap();
    println!(
        "{what}: {sent} bytes; described after {described:.0?}, copied {prepared:.0?}, weighed {weighed:.0?}, all there \
         {told:.0?}, durable {:.0?}",
        begin.elapsed()
    );
    (sent, values)
}

#[test]
fn a_change_in_a_large_file_costs_a_block_and_its_description() {
    let mib = std::env::var("MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(256_usize);
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let [old, new] = ["old", "new"].map(path);
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    std::fs::write(&old, &bytes).unwrap();
    std::fs::copy(&old, &new).unwrap();
    let file = File::options().write(true).open(&new).unwrap();
    file.write_all_at(&[7; 4096], (mib as u64) << 19).unwrap();
    let (_, known) = transfer("all of it", &old, None, &path("whole"));
    let (sent, _) = transfer("4 KiB changed", &new, Some((&old, None)), &path("changed"));
    assert!(sent <= (65 << 10) + mib * 16 * 16, "{sent}");
    let (sent, _) =
        transfer("4 KiB changed, old version known", &new, Some((&old, Some(known))), &path("known"));
    assert!(sent <= (65 << 10) + mib * 16 * 16, "{sent}");
    let mut file = File::create(&new).unwrap();
    file.write_all(b"a line at the front\n").unwrap();
    file.write_all(&bytes).unwrap();
    let (sent, _) = transfer("inserted at the front", &new, Some((&old, None)), &path("inserted"));
    assert!(sent <= (1 << 20) + mib * 1000, "{sent}");
}

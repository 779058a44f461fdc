//! Prints what a 4 KiB change in a file of 256 MiB costs: `cargo test --release -p lento --test transfer -- --nocapture`
//! (`MIB=1024` for another size).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that fails says where"
)]

use lento::content::assembly::Assembly;
use lento::content::difference::send;
use lento::content::packing::Pace;
use lento::content::packing::Packer;
use lento::content::packing::unpack;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

fn transfer(new: &Path, old: Option<&Path>, staged: &Path) -> usize {
    let source = File::open(new).unwrap();
    let old = old.map(|old| File::open(old).unwrap());
    let file = File::options().read(true).write(true).create_new(true).open(staged).unwrap();
    let begin = Instant::now();
    let size = source.metadata().unwrap().len();
    let (mut assembly, have) = Assembly::begin(file, size, old.as_ref()).unwrap();
    let described = begin.elapsed();
    let (mut sent, mut packer) = (have.to_bytes().len(), Packer::default());
    let whole = send(&source, &have, &mut |piece| {
        let packed = packer.pack(piece, Pace::Keeps);
        sent += packed.data.len();
        assembly.take(&unpack(packed).unwrap()).map_err(|error| error.to_string())
    })
    .unwrap();
    let told = begin.elapsed();
    assembly.finish(whole.hash).unwrap();
    println!(
        "{sent} bytes; ready after {described:?}, all there after {told:?}, durable after {:?}",
        begin.elapsed()
    );
    sent
}

#[test]
fn a_change_in_a_large_file_costs_a_block_and_its_description() {
    let mib = std::env::var("MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(256_usize);
    let dir = tempfile::tempdir().unwrap();
    let [old, new, whole, changed] = ["old", "new", "whole", "changed"].map(|name| dir.path().join(name));
    let mut bytes = vec![0; mib << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    std::fs::write(&old, &bytes).unwrap();
    std::fs::copy(&old, &new).unwrap();
    let file = File::options().write(true).open(&new).unwrap();
    file.write_all_at(&[7; 4096], (mib as u64) << 19).unwrap();
    transfer(&old, None, &whole);
    let sent = transfer(&new, Some(&old), &changed);
    assert!(sent <= (64 << 10) + mib * 16 * 16, "{sent}");
}

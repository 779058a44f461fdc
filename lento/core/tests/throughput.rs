//! How fast the core alone is, on a store in memory: no assertion about times, the numbers are for people.
//! `cargo test -p lento-core --release --test throughput -- --nocapture`; `RECORDS=n` sets how many.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::types::FileId;
use lento_core::types::mode;
use sim::disk::ROOT;
use sim::world::World;
use std::time::Instant;

fn records() -> u64 {
    std::env::var("RECORDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3_000)
}

/// A tree as an archive is unpacked: per file a create, a store, attributes and an extended attribute, 100 per directory.
fn unpack(world: &mut World, index: usize, records: u64) {
    let mut dir = ROOT;
    let mut made = 0_u64;
    let mut files: Vec<FileId> = Vec::new();
    while world.nodes[index].disk.last().0 < records {
        if made % 100 == 0 {
            dir = world.nodes[index].disk.user_make(ROOT, format!("d{made}").as_bytes(), mode::DIR).unwrap();
        }
        let file = world.nodes[index].disk.user_make(dir, format!("f{made}").as_bytes(), mode::FILE).unwrap();
        let bytes = world.content();
        world.nodes[index].disk.user_store(file, &bytes);
        world.nodes[index].disk.user_close(file);
        world.nodes[index].disk.user_setattr(file, 0o640);
        world.nodes[index].disk.user_setxattr(file, b"user.x", b"y");
        files.push(file);
        made += 1;
    }
}

/// Runs until nobody has anything to do; prints who worked for how long.
fn run(world: &mut World, what: &str, records: u64) {
    let began = Instant::now();
    world.rest();
    let whole = began.elapsed();
    for node in &world.nodes {
        let rate = records as f64 / node.spent.as_secs_f64().max(1e-9);
        println!("{what}: {} {records} records in {:?} inside the core, {rate:.0}/s", node.name, node.spent);
    }
    println!("{what}: {whole:?} with the model of presto");
    world.check_agreement().unwrap();
}

#[test]
fn forwarding() {
    let mut world = World::new(1, 1);
    let records = records();
    unpack(&mut world, 0, records);
    run(&mut world, "forward", records);
}

#[test]
fn reintegration() {
    let mut world = World::new(1, 1);
    let records = records();
    unpack(&mut world, 1, records);
    run(&mut world, "reintegrate", records);
}

/// Everything in one directory, written while the server is away.
#[test]
fn one_busy_directory() {
    let mut world = World::new(1, 1);
    world.cut(1);
    let count = records() / 4;
    for number in 0..count {
        let file = world.nodes[1].disk.user_make(ROOT, format!("f{number}").as_bytes(), mode::FILE).unwrap();
        let bytes = world.content();
        world.nodes[1].disk.user_store(file, &bytes);
        world.nodes[1].disk.user_close(file);
        if number % 2 == 0 {
            world.nodes[1].disk.user_remove(ROOT, format!("f{number}").as_bytes()).unwrap();
        }
    }
    run(&mut world, "one directory", world_records(count));
}

fn world_records(count: u64) -> u64 {
    count * 5 / 2
}

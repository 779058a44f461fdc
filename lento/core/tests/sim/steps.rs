//! What users do, and see, step by step.

use super::disk::ROOT;
use super::world::World;
use lento_core::io::Output;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::OpId;
use lento_core::types::mode;

pub const SERVER: usize = 0;
pub const CLIENT: usize = 1;
pub const OTHER: usize = 2;

/// A world at rest: everybody welcomed.
pub fn world(clients: usize) -> World {
    let mut world = World::new(7, clients);
    world.rest();
    world
}

pub fn at(world: &World, node: usize, path: &str) -> Option<FileId> {
    let mut file = ROOT;
    for name in path.split('/') {
        file = world.nodes[node].disk.entry(file, name.as_bytes())?;
    }
    Some(file)
}

pub fn dir_and_name(world: &World, node: usize, path: &str) -> (FileId, Vec<u8>) {
    match path.rsplit_once('/') {
        Some((dir, name)) => (at(world, node, dir).unwrap(), name.into()),
        None => (ROOT, path.into()),
    }
}

pub fn read(world: &World, node: usize, path: &str) -> Option<String> {
    let file = at(world, node, path)?;
    Some(String::from_utf8_lossy(&world.nodes[node].disk.inodes[&file].bytes).into_owned())
}

pub fn create(world: &mut World, node: usize, path: &str) -> FileId {
    let (dir, name) = dir_and_name(world, node, path);
    world.nodes[node].disk.user_make(dir, &name, mode::FILE).unwrap()
}

pub fn mkdir(world: &mut World, node: usize, path: &str) -> FileId {
    let (dir, name) = dir_and_name(world, node, path);
    world.nodes[node].disk.user_make(dir, &name, mode::DIR).unwrap()
}

/// Open, write, close.
pub fn store(world: &mut World, node: usize, path: &str, text: &str) {
    let file = match at(world, node, path) {
        Some(file) => file,
        None => create(world, node, path),
    };
    world.nodes[node].disk.user_store(file, text.as_bytes());
    world.nodes[node].disk.user_close(file);
}

pub fn remove(world: &mut World, node: usize, path: &str) {
    let (dir, name) = dir_and_name(world, node, path);
    world.nodes[node].disk.user_remove(dir, &name).unwrap();
}

pub fn rename(world: &mut World, node: usize, from: &str, to: &str) {
    let ((from, from_name), (to, to_name)) = (dir_and_name(world, node, from), dir_and_name(world, node, to));
    world.nodes[node].disk.user_rename(from, &from_name, to, &to_name, false).unwrap();
}

pub fn link(world: &mut World, node: usize, from: &str, to: &str) {
    let file = at(world, node, from).unwrap();
    let (to, to_name) = dir_and_name(world, node, to);
    world.nodes[node].disk.user_link(file, to, &to_name).unwrap();
}

pub fn is_kept(world: &World, text: &str) -> bool {
    world.nodes[SERVER].kept.contains(&Hash::of(text.as_bytes()))
}

/// Whether the server's conflict store has this for a record.
pub fn is_kept_of(world: &World, record: OpId, text: &str) -> bool {
    let kept = world.nodes[SERVER].kept_of.get(&record);
    kept.is_some_and(|kept| kept.contains(&Hash::of(text.as_bytes())))
}

/// So many turns of 20 ms for everybody, whatever does not come to rest.
pub fn go_on(world: &mut World, turns: usize) {
    for _ in 0..turns {
        world.now += 20;
        for each in 0..world.nodes.len() {
            world.read_journal(each, 8);
            while world.run_job(each) {}
            world.timeout(each);
            if each != SERVER {
                while world.deliver(each, SERVER) || world.deliver(SERVER, each) {}
            }
        }
    }
}

pub fn settle(world: &mut World) {
    for client in 1..world.nodes.len() {
        world.connect(client);
    }
    world.rest();
    world.check_agreement().unwrap();
}

pub fn everywhere(world: &World, path: &str, text: Option<&str>) {
    for node in 0..world.nodes.len() {
        assert_eq!(read(world, node, path).as_deref(), text, "{path} at n{node}");
    }
}

/// The server's tree at every step: what a name shows.
pub fn shown(world: &mut World, path: &str) -> Vec<Option<String>> {
    let mut seen = Vec::new();
    for _ in 0..400 {
        world.now += 20;
        for node in 0..world.nodes.len() {
            world.read_journal(node, 1);
            world.run_job(node);
            if node > 0 {
                world.deliver(node, SERVER);
                world.deliver(SERVER, node);
            }
            world.timeout(node);
            let now = read(world, SERVER, path);
            if seen.last() != Some(&now) {
                seen.push(now);
            }
        }
    }
    seen
}

pub fn is_sync(job: &Output) -> bool {
    matches!(job, Output::Sync { .. })
}

/// Goes on until something is seen, while the client's disk makes nothing durable.
pub fn without_syncs(world: &mut World, seen: impl Fn(&World) -> bool) {
    for _ in 0..2000 {
        world.now += 1;
        world.read_journal(CLIENT, 8);
        world.run_job_except(CLIENT, is_sync);
        world.deliver(CLIENT, SERVER);
        world.deliver(SERVER, CLIENT);
        world.run_job(SERVER);
        world.read_journal(SERVER, 8);
        world.timeout(SERVER);
        world.timeout(CLIENT);
        if seen(world) {
            return;
        }
    }
    panic!("it never came");
}

pub fn waiting(world: &World, node: usize) -> Vec<String> {
    let node = &world.nodes[node];
    node.volume.as_ref().unwrap().status(&node.store).unwrap().waiting
}

/// Everything goes on for a while but the fetching of contents: who hears of one does not get it.
pub fn without_fetches(world: &mut World) {
    for _ in 0..400 {
        world.now += 20;
        for node in 0..world.nodes.len() {
            world.read_journal(node, 8);
            while world.run_job_except(node, |job| matches!(job, Output::Fetch { .. })) {}
            world.timeout(node);
        }
        for client in 1..world.nodes.len() {
            while world.deliver(client, SERVER) || world.deliver(SERVER, client) {}
        }
    }
}

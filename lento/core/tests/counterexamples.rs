//! One test for each rule of replication without which something is lost: the counterexample that needs the rule, step
//! by step, judged by what users see.

#![allow(clippy::all, clippy::restriction, missing_docs)]

mod sim;

use lento_core::io::Output;
use lento_core::types::FileId;
use lento_core::types::Hash;
use lento_core::types::mode;
use sim::disk::ROOT;
use sim::world::World;

const SERVER: usize = 0;
const CLIENT: usize = 1;
const OTHER: usize = 2;

/// A world at rest: everybody welcomed.
fn world(clients: usize) -> World {
    let mut world = World::new(7, clients);
    world.rest();
    world
}

fn at(world: &World, node: usize, path: &str) -> Option<FileId> {
    let mut file = ROOT;
    for name in path.split('/') {
        file = world.nodes[node].disk.entry(file, name.as_bytes())?;
    }
    Some(file)
}

fn dir_and_name(world: &World, node: usize, path: &str) -> (FileId, Vec<u8>) {
    match path.rsplit_once('/') {
        Some((dir, name)) => (at(world, node, dir).unwrap(), name.into()),
        None => (ROOT, path.into()),
    }
}

fn read(world: &World, node: usize, path: &str) -> Option<String> {
    let file = at(world, node, path)?;
    Some(String::from_utf8_lossy(&world.nodes[node].disk.inodes[&file].bytes).into_owned())
}

fn create(world: &mut World, node: usize, path: &str) -> FileId {
    let (dir, name) = dir_and_name(world, node, path);
    world.nodes[node].disk.user_make(dir, &name, mode::FILE).unwrap()
}

fn mkdir(world: &mut World, node: usize, path: &str) -> FileId {
    let (dir, name) = dir_and_name(world, node, path);
    world.nodes[node].disk.user_make(dir, &name, mode::DIR).unwrap()
}

/// Open, write, close.
fn store(world: &mut World, node: usize, path: &str, text: &str) {
    let file = match at(world, node, path) {
        Some(file) => file,
        None => create(world, node, path),
    };
    world.nodes[node].disk.user_store(file, text.as_bytes());
    world.nodes[node].disk.user_close(file);
}

fn remove(world: &mut World, node: usize, path: &str) {
    let (dir, name) = dir_and_name(world, node, path);
    world.nodes[node].disk.user_remove(dir, &name).unwrap();
}

fn rename(world: &mut World, node: usize, from: &str, to: &str) {
    let ((from, from_name), (to, to_name)) = (dir_and_name(world, node, from), dir_and_name(world, node, to));
    world.nodes[node].disk.user_rename(from, &from_name, to, &to_name, false).unwrap();
}

fn link(world: &mut World, node: usize, from: &str, to: &str) {
    let file = at(world, node, from).unwrap();
    let (to, to_name) = dir_and_name(world, node, to);
    world.nodes[node].disk.user_link(file, to, &to_name).unwrap();
}

fn is_kept(world: &World, text: &str) -> bool {
    world.nodes[SERVER].kept.contains(&Hash::of(text.as_bytes()))
}

fn settle(world: &mut World) {
    for client in 1..world.nodes.len() {
        world.connect(client);
    }
    world.rest();
    world.check_agreement().unwrap();
}

fn everywhere(world: &World, path: &str, text: Option<&str>) {
    for node in 0..world.nodes.len() {
        assert_eq!(read(world, node, path).as_deref(), text, "{path} at n{node}");
    }
}

/// The server's tree at every step: what a name shows.
fn shown(world: &mut World, path: &str) -> Vec<Option<String>> {
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

fn is_sync(job: &Output) -> bool {
    matches!(job, Output::Sync { .. })
}

/// Goes on until something is seen, while the client's disk makes nothing durable.
fn without_syncs(world: &mut World, seen: impl Fn(&World) -> bool) {
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

#[test]
fn a_file_saved_by_rename_never_shows_without_its_content() {
    let [old, new] = ["old", "new"].map(|text| text.repeat(50_000));
    let mut world = world(1);
    store(&mut world, SERVER, "f", &old);
    // Long in writing: what is new is known everywhere while it is empty.
    create(&mut world, SERVER, "f.new");
    settle(&mut world);
    everywhere(&world, "f.new", Some(""));
    store(&mut world, SERVER, "f.new", &new);
    rename(&mut world, SERVER, "f.new", "f");
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 1);
            world.run_job_except(node, |job| matches!(job, Output::Fetch { .. }));
            world.timeout(node);
        }
        world.deliver(CLIENT, SERVER);
        world.deliver(SERVER, CLIENT);
        assert_eq!(read(&world, CLIENT, "f").as_ref(), Some(&old), "what is new is still on its way");
    }
    settle(&mut world);
    everywhere(&world, "f", Some(&new));
}

#[test]
fn rule_1_a_close_never_travels_empty() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "tmp", "one");
    rename(&mut world, CLIENT, "tmp", "f");
    store(&mut world, CLIENT, "f", "two");
    world.connect(CLIENT);
    let shown = shown(&mut world, "f");
    assert!(!shown.contains(&Some(String::new())), "an empty f in between: {shown:?}");
    assert!(!shown.contains(&None), "no f in between: {shown:?}");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    everywhere(&world, "tmp", None);
}

#[test]
fn rule_1_limbo_keeps_what_is_removed_before_it_was_read() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, SERVER, "f", "the server's");
    store(&mut world, CLIENT, "f", "the client's");
    remove(&mut world, CLIENT, "f");
    settle(&mut world);
    everywhere(&world, "f", Some("the server's"));
    assert!(is_kept(&world, "the client's"));
}

#[test]
fn rule_1_a_file_that_is_never_quiet_while_it_is_read_ends_as_it_is() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    store(&mut world, CLIENT, "f", "v");
    // So that a folded close leaves its time in a record of its own.
    let file = at(&world, CLIENT, "f").unwrap();
    world.nodes[CLIENT].disk.user_setxattr(file, b"user.x", b"y");
    let mut reads = 0;
    // Each read begins before the newest close is known here, and ends after one more.
    for round in 0..12 {
        world.read_journal(CLIENT, 100);
        store(&mut world, CLIENT, "f", &format!("known {round}"));
        world.read_journal(CLIENT, 1);
        store(&mut world, CLIENT, "f", &format!("not known {round}"));
        reads += u32::from(world.run_read(CLIENT, true));
        while world.run_read(CLIENT, false) {}
    }
    assert!(reads > 8, "{reads} reads");
    settle(&mut world);
    everywhere(&world, "f", Some("not known 11"));
}

#[test]
fn rule_2_nothing_is_shown_before_its_content() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    let big = "x".repeat(100_000);
    store(&mut world, SERVER, "tmp", &big);
    rename(&mut world, SERVER, "tmp", "f");
    for _ in 0..2000 {
        world.step();
        let here = read(&world, CLIENT, "f");
        assert!(
            here.as_deref() == Some("old") || here.as_deref() == Some(&big),
            "torn: {:?}",
            here.map(|h| h.len())
        );
    }
    settle(&mut world);
    everywhere(&world, "f", Some(&big));
}

#[test]
fn rule_3_a_power_cut_begins_a_new_incarnation() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "kept");
    // Durable here before it could be sent.
    world.cut(CLIENT);
    world.nodes[CLIENT].disk.make_durable();
    remove(&mut world, CLIENT, "f");
    mkdir(&mut world, CLIENT, "d");
    // The removal cancels the creation; only the directory is sent, under a number that comes back after the cut.
    world.connect(CLIENT);
    without_syncs(&mut world, |world| at(world, SERVER, "d").is_some());
    world.power(CLIENT);
    settle(&mut world);
    everywhere(&world, "f", Some("kept"));
    assert!(at(&world, CLIENT, "d").is_some());
}

#[test]
fn rule_4_what_a_power_cut_forgot_comes_back_whole() {
    let mut world = world(1);
    world.nodes[CLIENT].disk.make_durable();
    store(&mut world, CLIENT, "f", "sent");
    without_syncs(&mut world, |world| read(world, SERVER, "f").as_deref() == Some("sent"));
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f"), None, "the cut took it");
    settle(&mut world);
    everywhere(&world, "f", Some("sent"));
}

#[test]
fn rule_5_nothing_that_is_not_durable_is_forwarded() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "news");
    for _ in 0..200 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.run_job_except(SERVER, is_sync);
        world.deliver(SERVER, CLIENT);
        world.read_journal(CLIENT, 8);
        world.run_job(CLIENT);
        world.timeout(SERVER);
        assert_eq!(read(&world, CLIENT, "f"), None, "forwarded before the sync");
    }
    settle(&mut world);
    everywhere(&world, "f", Some("news"));
}

#[test]
fn rule_6_a_close_is_judged_by_what_was_on_disk_before_it() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    // The user stores over v0; before lento reads that record, the server's v1 reaches base.
    store(&mut world, CLIENT, "f", "mine");
    store(&mut world, SERVER, "f", "v1");
    for _ in 0..100 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.run_job(SERVER);
        world.deliver(SERVER, CLIENT);
        world.timeout(SERVER);
    }
    settle(&mut world);
    everywhere(&world, "f", Some("v1"));
    assert!(is_kept(&world, "mine"));
}

#[test]
fn rule_14_what_is_stored_over_a_loser_is_the_same_conflict() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    for n in 1..=2 {
        for client in [CLIENT, CLIENT + 1] {
            store(&mut world, client, "f", &format!("{n} of {client}"));
        }
        store(&mut world, SERVER, "f", &format!("v{n}"));
        // It reads them and sends them off; no verdict comes back yet.
        for _ in 0..100 {
            world.now += 20;
            for node in 0..world.nodes.len() {
                world.read_journal(node, 8);
                world.run_job(node);
                world.timeout(node);
            }
        }
    }
    settle(&mut world);
    everywhere(&world, "f", Some("v2"));
    let volume = world.nodes[SERVER].volume.as_ref().unwrap();
    let status = volume.status(&world.nodes[SERVER].store).unwrap();
    assert!(status.judged.conflicts > 2, "each was judged by itself: {:?}", status.judged);
    let rows = lento_core::Volume::conflicts(&world.nodes[SERVER].store, 10).unwrap();
    let hashes: Vec<Option<Hash>> = rows.iter().map(|(_, row)| row.hash).collect();
    let of = |client: usize| Some(Hash::of(format!("2 of {client}").as_bytes()));
    assert!(
        hashes.len() == 2 && hashes.contains(&of(CLIENT)) && hashes.contains(&of(CLIENT + 1)),
        "{rows:?}"
    );
    assert_eq!((status.conflicts, Some(status.newest_conflict)), (2, rows.last().map(|(at, _)| *at)));
}

#[test]
fn rule_7_a_treatment_takes_only_what_it_left_itself() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    // One store, the other's store in between, a second store on top of that.
    store(&mut world, CLIENT, "f", "one");
    settle(&mut world);
    store(&mut world, OTHER, "f", "other");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "two");
    remove(&mut world, CLIENT, "f");
    settle(&mut world);
    everywhere(&world, "f", None);
    store(&mut world, OTHER, "f", "again");
    settle(&mut world);
    everywhere(&world, "f", Some("again"));
}

#[test]
fn rule_8_a_removal_says_whether_it_took_the_last_name() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "text");
    link(&mut world, CLIENT, "f", "g");
    settle(&mut world);
    world.cut(CLIENT);
    // Here one name stays under a new name that the server refuses; there one name is gone already.
    store(&mut world, SERVER, "h", "in the way");
    remove(&mut world, SERVER, "g");
    rename(&mut world, CLIENT, "g", "h");
    remove(&mut world, CLIENT, "f");
    settle(&mut world);
    everywhere(&world, "h", Some("in the way"));
    assert!(
        read(&world, SERVER, "f").as_deref() == Some("text") || is_kept(&world, "text"),
        "the content is gone"
    );
}

#[test]
fn rule_9_only_directories_new_to_each_other_are_unified() {
    let mut world = world(1);
    world.cut(CLIENT);
    mkdir(&mut world, CLIENT, "b");
    store(&mut world, CLIENT, "b/one", "1");
    mkdir(&mut world, SERVER, "b");
    store(&mut world, SERVER, "b/two", "2");
    settle(&mut world);
    everywhere(&world, "b/one", Some("1"));
    everywhere(&world, "b/two", Some("2"));
    // Its own first b must not become one with its second.
    world.cut(CLIENT);
    store(&mut world, SERVER, "c", "taken");
    rename(&mut world, CLIENT, "b", "c");
    mkdir(&mut world, CLIENT, "b");
    store(&mut world, CLIENT, "b/three", "3");
    settle(&mut world);
    everywhere(&world, "b/one", Some("1"));
    everywhere(&world, "c", Some("taken"));
    assert!(read(&world, SERVER, "b/three").is_some() || is_kept(&world, "3"));
}

#[test]
fn rule_12_a_verdict_is_given_once_and_again_told() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, SERVER, "f", "server's");
    store(&mut world, CLIENT, "f", "client's");
    world.connect(CLIENT);
    let judged = |world: &World| {
        let conflict = |r: &&lento_core::record::KmlRecord| matches!(r.origin, lento_core::record::KmlOrigin::Replay { verdict, .. } if verdict > 1);
        world.nodes[SERVER].disk.kml.iter().filter(conflict).count()
    };
    for _ in 0..20_000 {
        if judged(&world) > 0 {
            break;
        }
        world.step();
    }
    // The stream breaks before the client hears it; nothing but the KML is left of it at the server.
    world.cut(CLIENT);
    world.kill(SERVER);
    settle(&mut world);
    assert_eq!(judged(&world), 1);
    everywhere(&world, "f", Some("server's"));
    assert!(is_kept(&world, "client's"));
}

#[test]
fn rule_13_a_replay_never_meets_a_user_it_has_not_seen() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "from the server");
    // The replay that makes f is asked for; before it runs, users make f, move it and take it away.
    let mut asked = false;
    for _ in 0..4000 {
        world.now += 20;
        world.read_journal(SERVER, 8);
        world.run_job(SERVER);
        world.deliver(SERVER, CLIENT);
        if world.next_is_replay(CLIENT) {
            asked = true;
            break;
        }
        world.run_job(CLIENT);
        world.timeout(SERVER);
    }
    assert!(asked);
    store(&mut world, CLIENT, "f", "from a user");
    rename(&mut world, CLIENT, "f", "g");
    settle(&mut world);
    everywhere(&world, "f", Some("from the server"));
    assert!(read(&world, SERVER, "g").as_deref() == Some("from a user") || is_kept(&world, "from a user"));
}

#[test]
fn rule_15_the_server_never_waits_for_a_writer() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    // A database that is open for ever at the server, and a client that stores.
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"half a transaction");
    store(&mut world, CLIENT, "f", "client's");
    store(&mut world, CLIENT, "other", "more");
    world.rest();
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("client's"));
    assert_eq!(read(&world, SERVER, "other").as_deref(), Some("more"));
    world.close(SERVER, file);
    settle(&mut world);
    everywhere(&world, "f", Some("client's"));
    assert!(is_kept(&world, "half a transaction"));
}

#[test]
fn rule_15_the_server_decides_about_a_file_of_several_names_too() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    link(&mut world, CLIENT, "f", "g");
    settle(&mut world);
    // Its one inode cannot be replaced under the writer, and must not be shared with him.
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"half a transaction");
    store(&mut world, CLIENT, "f", "client's");
    store(&mut world, CLIENT, "other", "more");
    world.rest();
    assert_eq!(read(&world, SERVER, "other").as_deref(), Some("more"));
    assert!(is_kept(&world, "client's"));
    world.close(SERVER, file);
    settle(&mut world);
    everywhere(&world, "g", Some("half a transaction"));
}

#[test]
fn rule_15_a_busy_file_defers_its_own_change_only() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "v0");
    settle(&mut world);
    let file = at(&world, CLIENT, "f").unwrap();
    world.open_and_store(CLIENT, file, b"being written");
    store(&mut world, SERVER, "f", "server's");
    store(&mut world, SERVER, "g", "beside it");
    for _ in 0..4000 {
        world.step();
    }
    assert_eq!(read(&world, CLIENT, "g").as_deref(), Some("beside it"));
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("being written"));
    let status = world.nodes[CLIENT].volume.as_ref().unwrap().status(&world.nodes[CLIENT].store).unwrap();
    assert!(status.position > status.applied, "acknowledged what waits for the writer: {status:?}");
    world.close(CLIENT, file);
    settle(&mut world);
    everywhere(&world, "f", Some("server's"));
    assert!(is_kept(&world, "being written"));
}

fn waiting(world: &World, node: usize) -> Vec<String> {
    let node = &world.nodes[node];
    node.volume.as_ref().unwrap().status(&node.store).unwrap().waiting
}

#[test]
fn a_server_that_lost_its_data_takes_nothing_from_its_clients() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "dear");
    settle(&mut world);
    store(&mut world, CLIENT, "g", "not sent yet");
    world.wipe(SERVER);
    store(&mut world, SERVER, "h", "new");
    world.rest();
    for node in [CLIENT, OTHER] {
        assert_eq!(read(&world, node, "f").as_deref(), Some("dear"));
        assert_eq!(read(&world, node, "h"), None);
        assert!(waiting(&world, node)[0].contains("another history"), "{:?}", waiting(&world, node));
    }
    assert_eq!(read(&world, SERVER, "g"), None);
    // One that begins anew follows.
    world.wipe(OTHER);
    world.rest();
    assert_eq!(read(&world, OTHER, "h").as_deref(), Some("new"));
}

#[test]
fn a_server_that_does_not_know_that_it_is_a_backup_learns_it_from_its_clients() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    let backup = (world.nodes[SERVER].store.clone(), world.nodes[SERVER].disk.clone());
    store(&mut world, CLIENT, "g", "since then");
    settle(&mut world);
    (world.nodes[SERVER].store, world.nodes[SERVER].disk) = backup;
    world.restart(SERVER);
    settle(&mut world);
    everywhere(&world, "g", Some("since then"));
}

#[test]
fn who_no_longer_has_the_records_since_a_backup_brings_back_what_it_has() {
    let mut world = world(1);
    world.tail = 0;
    world.restart(CLIENT);
    store(&mut world, CLIENT, "f", "old");
    store(&mut world, CLIENT, "same", "same");
    settle(&mut world);
    world.back_up();
    store(&mut world, CLIENT, "f", "new");
    mkdir(&mut world, CLIENT, "dir");
    store(&mut world, CLIENT, "dir/g", "since then");
    link(&mut world, CLIENT, "dir/g", "dir/h");
    settle(&mut world);
    // What is durable everywhere is kept no longer: this tells that it is.
    store(&mut world, CLIENT, "last", "last");
    settle(&mut world);
    store(&mut world, CLIENT, "pending", "not sent yet");
    world.restore();
    settle(&mut world);
    everywhere(&world, "dir/g", Some("since then"));
    everywhere(&world, "dir/h", Some("since then"));
    everywhere(&world, "last", Some("last"));
    everywhere(&world, "pending", Some("not sent yet"));
    everywhere(&world, "same", Some("same"));
    everywhere(&world, "f", Some("old"));
    assert!(is_kept(&world, "new"), "nobody can tell that it was the newer one");
}

#[test]
fn a_content_that_was_superseded_is_asked_for_again_although_nothing_else_happens() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "one");
    settle(&mut world);
    let file = at(&world, SERVER, "f").unwrap();
    world.open_and_store(SERVER, file, b"two");
    store(&mut world, SERVER, "g", "in the way");
    rename(&mut world, CLIENT, "f", "g");
    remove(&mut world, CLIENT, "g");
    let without_time = |world: &mut World| {
        for _ in 0..100 {
            for node in [CLIENT, SERVER] {
                world.read_journal(node, 8);
                world.run_job(node);
            }
            world.deliver(CLIENT, SERVER);
            world.deliver(SERVER, CLIENT);
        }
    };
    // Rename and removal are refused, and what f was is nowhere any more.
    without_time(&mut world);
    assert_eq!(read(&world, CLIENT, "f"), None);
    world.close(SERVER, file);
    without_time(&mut world);
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
}

#[test]
fn rule_18_a_replay_asks_nobody_else() {
    // The core plans replays and never waits for anything but presto's answer and its journal: no output of a batch
    // refers to another batch, and one is under way at a time.
    let mut world = world(1);
    for number in 0..40 {
        store(&mut world, SERVER, &format!("f{number}"), "x");
    }
    for _ in 0..3000 {
        world.step();
        assert!(world.replays_under_way(CLIENT) <= 1);
    }
    settle(&mut world);
}

#[test]
fn rule_11_a_restored_backup_takes_nothing_back() {
    let mut world = world(2);
    store(&mut world, CLIENT, "old", "old");
    store(&mut world, CLIENT, "gone", "gone");
    mkdir(&mut world, OTHER, "dir");
    settle(&mut world);
    world.back_up();

    store(&mut world, CLIENT, "new", "new");
    store(&mut world, SERVER, "at-server", "written there, lost there");
    remove(&mut world, OTHER, "gone");
    rename(&mut world, OTHER, "old", "dir/moved");
    settle(&mut world);
    store(&mut world, CLIENT, "dir/moved", "changed after it was moved");
    settle(&mut world);

    world.restore();
    assert_eq!(read(&world, SERVER, "gone").as_deref(), Some("gone"), "the backup has it");
    settle(&mut world);
    everywhere(&world, "new", Some("new"));
    everywhere(&world, "at-server", Some("written there, lost there"));
    everywhere(&world, "gone", None);
    everywhere(&world, "old", None);
    everywhere(&world, "dir/moved", Some("changed after it was moved"));
    assert!(world.nodes[SERVER].kept.is_empty(), "and nothing of it is a conflict");
}

#[test]
fn rule_11_what_is_written_over_a_backup_and_what_it_had_forgotten_are_both_kept() {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "first");
    settle(&mut world);
    world.back_up();
    store(&mut world, CLIENT, "f", "second");
    settle(&mut world);

    world.restore();
    store(&mut world, SERVER, "f", "over the first");
    store(&mut world, CLIENT, "f", "third");
    settle(&mut world);
    everywhere(&world, "f", Some("over the first"));
    assert!(is_kept(&world, "third"));
}

#[test]
fn rule_11_who_is_furthest_ahead_comes_first() {
    let mut world = world(2);
    store(&mut world, CLIENT, "f", "0");
    settle(&mut world);
    world.back_up();
    store(&mut world, CLIENT, "f", "1");
    settle(&mut world);
    world.cut(OTHER);
    for text in ["2", "3"] {
        store(&mut world, CLIENT, "f", text);
        world.rest_without(&[OTHER]);
    }
    store(&mut world, OTHER, "g", "meanwhile");

    // OTHER, which is behind, comes back first.
    world.restore();
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    settle(&mut world);
    everywhere(&world, "f", Some("3"));
    everywhere(&world, "g", Some("meanwhile"));
    assert!(world.nodes[SERVER].kept.is_empty());
}

#[test]
fn rule_11_a_tree_says_more_than_the_records_that_made_it() {
    let mut world = world(2);
    world.tail = 0;
    world.restart(CLIENT);
    settle(&mut world);
    world.back_up();
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    // So that all of that is durable everywhere, and CLIENT keeps no records of it.
    store(&mut world, SERVER, "g", "g");
    settle(&mut world);
    world.cut(OTHER);
    store(&mut world, CLIENT, "f", "two");
    world.rest_without(&[OTHER]);
    world.restore();
    // OTHER has the records, and brings them back first.
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("one"));
    settle(&mut world);
    assert!(is_kept(&world, "two") || read(&world, SERVER, "f").as_deref() == Some("two"));
}

#[test]
fn rule_11_an_older_content_never_stands_for_one_that_is_not_here_yet() {
    let two = "two".repeat(40_000);
    let mut world = world(2);
    store(&mut world, SERVER, "f", "one");
    settle(&mut world);
    world.back_up();
    store(&mut world, OTHER, "f", &two);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT, OTHER] {
            world.read_journal(node, 8);
            while world.run_job_except(node, |job| matches!(job, Output::Fetch { .. })) {}
            world.timeout(node);
        }
        for client in [CLIENT, OTHER] {
            while world.deliver(client, SERVER) || world.deliver(SERVER, client) {}
        }
    }
    assert_eq!(
        read(&world, CLIENT, "f").as_deref(),
        Some("one"),
        "it knows of the other, and has not got it"
    );
    world.cut(CLIENT);
    let file = at(&world, CLIENT, "f").unwrap();
    world.nodes[CLIENT].disk.user_setattr(file, 0o600);
    world.read_journal(CLIENT, 8);
    world.restore();
    world.connect(CLIENT);
    world.rest_without(&[OTHER]);
    settle(&mut world);
    everywhere(&world, "f", Some(&two));
}

#[test]
fn rule_20_what_a_lost_conflict_store_had_is_told_again_where_it_still_is() {
    let mut world = world(1);
    store(&mut world, SERVER, "f", "old");
    settle(&mut world);
    world.back_up();
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "mine");
    store(&mut world, SERVER, "f", &"theirs".repeat(20_000));
    world.connect(CLIENT);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job_except(node, |job| matches!(job, Output::Fetch { .. })) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    assert!(is_kept(&world, "mine"));
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some("mine"), "the other one is not there yet");
    world.restore();
    settle(&mut world);
    assert!(is_kept(&world, "mine") || read(&world, SERVER, "f").as_deref() == Some("mine"));
}

/// `CLIENT` has half of a tree durably, and the server falls back to a time before that.
fn half_a_tree() -> World {
    let mut world = world(2);
    for number in 0..8 {
        store(&mut world, SERVER, &format!("f{number}"), "old");
    }
    settle(&mut world);
    world.back_up();
    for number in 0..8 {
        store(&mut world, OTHER, &format!("f{number}"), "new");
    }
    settle(&mut world);
    world.wipe(CLIENT);
    world.connect(CLIENT);
    let is_half = |world: &World| waiting(world, CLIENT).iter().any(|why| why.starts_with("6 of about"));
    for _ in 0..20_000 {
        if is_half(&world) {
            break;
        }
        world.step();
    }
    assert!(is_half(&world), "{:?}", waiting(&world, CLIENT));
    for _ in 0..8 {
        world.now += 40;
        world.timeout(CLIENT);
        while world.run_job(CLIENT) {}
    }
    world.restore();
    world
}

#[test]
fn half_a_tree_of_a_log_that_is_lost_is_begun_anew() {
    let mut world = half_a_tree();
    world.rest_without(&[OTHER]);
    assert_eq!(read(&world, CLIENT, "f7").as_deref(), Some("old"));
    settle(&mut world);
    everywhere(&world, "f7", Some("new"));
}

#[test]
fn half_a_tree_of_a_log_that_is_lost_is_void_before_the_next_one_comes() {
    let mut world = half_a_tree();
    world.connect(CLIENT);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            world.read_journal(node, 8);
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) {}
        // The welcome, and nothing behind it.
        if world.deliver(SERVER, CLIENT) {
            break;
        }
    }
    world.cut(CLIENT);
    // Its position is one of the new log as well by the time.
    for number in 0..8 {
        store(&mut world, SERVER, &format!("g{number}"), "since then");
    }
    world.rest_without(&[CLIENT, OTHER]);
    world.rest_without(&[OTHER]);
    assert_eq!(read(&world, CLIENT, "f0").as_deref(), Some("old"));
    settle(&mut world);
    everywhere(&world, "f0", Some("new"));
}

#[test]
fn a_power_cut_of_the_server_costs_no_new_tree() {
    let mut world = world(1);
    for name in ["a", "b", "c", "d"] {
        store(&mut world, SERVER, name, name);
    }
    settle(&mut world);
    let before = world.trees_sent;
    world.power(SERVER);
    store(&mut world, SERVER, "after", "after");
    settle(&mut world);
    everywhere(&world, "after", Some("after"));
    assert_eq!(world.trees_sent, before);
}

#[test]
fn rule_10_a_file_torn_by_a_power_cut_never_takes_the_place_of_a_good_one() {
    for chmod in [false, true] {
        for seed in 0..12 {
            let mut world = World::new(seed, 2);
            world.tears = true;
            store(&mut world, OTHER, "f", "good and whole");
            settle(&mut world);
            let file = at(&world, CLIENT, "f").unwrap();
            world.nodes[CLIENT].disk.user_store(file, b"being written over it");
            if chmod {
                // Its record shows the version that the store has left; it vouches for nothing of that.
                world.nodes[CLIENT].disk.user_setattr(file, 0o600);
            }
            world.power(CLIENT);
            let left = read(&world, CLIENT, "f").unwrap();
            settle(&mut world);
            everywhere(&world, "f", Some("good and whole"));
            assert!(left == "good and whole" || is_kept(&world, &left), "seed {seed}: {left} is nowhere");
        }
    }
}

#[test]
fn rule_10_what_was_closed_and_is_on_the_disk_is_an_update_after_a_power_cut() {
    let mut world = world(1);
    world.tears = true;
    store(&mut world, CLIENT, "f", "first");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", "second, closed");
    world.nodes[CLIENT].disk.make_durable();
    world.power(CLIENT);
    settle(&mut world);
    everywhere(&world, "f", Some("second, closed"));
    assert!(world.nodes[SERVER].kept.is_empty());
}

/// `CLIENT` has made a file that everybody has, and has not heard so; the server falls back to a time before it.
fn made_and_forgotten(text: &str) -> World {
    let mut world = world(2);
    world.back_up();
    store(&mut world, CLIENT, "f", text);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT, OTHER] {
            world.read_journal(node, 8);
            while world.run_job(node) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(OTHER, SERVER) || world.deliver(SERVER, OTHER) {}
    }
    assert_eq!(read(&world, OTHER, "f").as_deref(), Some(text));
    world.cut(CLIENT);
    world.cut(OTHER);
    world
}

#[test]
fn rule_11_what_others_wrote_over_a_record_is_not_what_its_maker_saw() {
    let mut world = made_and_forgotten("one");
    remove(&mut world, CLIENT, "f");
    store(&mut world, OTHER, "f", "two");
    world.read_journal(OTHER, 8);
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
}

#[test]
fn rule_11_the_maker_of_a_record_gets_what_others_wrote_over_it() {
    let mut world = made_and_forgotten("one");
    store(&mut world, OTHER, "f", "two");
    world.read_journal(OTHER, 8);
    world.restore();
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(world.nodes[SERVER].kept.is_empty(), "who wrote it had seen the first");
}

#[test]
fn rule_11_who_has_a_content_brings_it_although_another_had_to_leave_it_out() {
    let big = "x".repeat(100_000);
    let mut world = world(2);
    world.back_up();
    store(&mut world, CLIENT, "f", &big);
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT, OTHER] {
            world.read_journal(node, 8);
            while world.run_job_except(node, |job| matches!(job, Output::Fetch { .. })) {}
            world.timeout(node);
        }
        for client in [CLIENT, OTHER] {
            while world.deliver(client, SERVER) || world.deliver(SERVER, client) {}
        }
    }
    assert_eq!(read(&world, OTHER, "f"), None, "it knows of the file, and has not got it");
    world.restore();
    // For the maker nobody waits for ever.
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    settle(&mut world);
    everywhere(&world, "f", Some(&big));
}

#[test]
fn rule_11_a_newer_content_in_the_place_of_one_that_others_brought_back_is_still_pending() {
    let mut world = made_and_forgotten("one");
    world.restore();
    world.connect(CLIENT);
    // The server knows nothing of the file: its newest content may take the oldest place.
    for _ in 0..400 {
        world.now += 20;
        for node in [SERVER, CLIENT] {
            while world.run_job_except(node, |job| matches!(job, Output::ReadContent { .. })) {}
            world.timeout(node);
        }
        while world.deliver(CLIENT, SERVER) || world.deliver(SERVER, CLIENT) {}
    }
    store(&mut world, CLIENT, "f", "two");
    world.read_journal(CLIENT, 8);
    world.cut(CLIENT);
    world.connect(OTHER);
    world.rest_without(&[CLIENT]);
    assert_eq!(read(&world, SERVER, "f").as_deref(), Some("one"), "the other one has brought it back");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
    assert!(world.nodes[SERVER].kept.is_empty(), "it was made over that very content");
}

/// The client's disk has `here`, closed; the server has got `sent` in the place of that; then the current fails.
fn sent_and_cut(here: &str, sent: &str) -> World {
    let mut world = world(1);
    store(&mut world, CLIENT, "f", "old");
    settle(&mut world);
    world.cut(CLIENT);
    store(&mut world, CLIENT, "f", here);
    world.read_journal(CLIENT, 8);
    world.nodes[CLIENT].disk.make_durable();
    world.nodes[CLIENT].store.make_durable();
    if sent != here {
        store(&mut world, CLIENT, "f", sent);
    }
    world.connect(CLIENT);
    without_syncs(&mut world, |world| read(world, SERVER, "f").as_deref() == Some(sent));
    world.power(CLIENT);
    assert_eq!(read(&world, CLIENT, "f").as_deref(), Some(here));
    world
}

#[test]
fn after_a_power_cut_a_client_shows_what_the_server_has_and_not_what_it_believes_to_have_sent() {
    let mut world = sent_and_cut("one", "two");
    settle(&mut world);
    everywhere(&world, "f", Some("two"));
}

#[test]
fn after_a_power_cut_what_was_sent_and_is_lost_here_is_not_written_over_unseen() {
    let mut world = sent_and_cut("one", "two, longer");
    store(&mut world, CLIENT, "f", "over one");
    settle(&mut world);
    everywhere(&world, "f", Some("two, longer"));
    assert!(is_kept(&world, "over one"));
}

#[test]
fn after_a_power_cut_what_was_sent_and_is_here_is_an_ordinary_content() {
    for again in [None, Some("two")] {
        let mut world = sent_and_cut("one", "one");
        if let Some(text) = again {
            store(&mut world, CLIENT, "f", text);
        }
        settle(&mut world);
        everywhere(&world, "f", Some(again.unwrap_or("one")));
        assert!(world.nodes[SERVER].kept.is_empty(), "nothing of it is a conflict");
    }
}

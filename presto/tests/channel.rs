//! The channel with a far side driven by hand: order, lanes, descriptors, replacement, upcalls and their deadlines.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{
    Attach, Attached, GetPermit, OpenStage, Packet, PermitGranted, Replay, Resolve, Resolved, Stat, Stats,
    Sync, Synced,
};
use presto::channel::transport::{Connection, TransportError};
use presto::channel::{Answer, Link, Reply, Server, Service};
use presto::filter::Wait;
use rustix::io::Errno;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers what it is asked; `Sync` blocks until it is let go.
#[derive(Default)]
struct Fake {
    go: AtomicBool,
}

impl Service for Fake {
    fn call(&self, _volume: &str, body: Body) -> Reply {
        match body {
            Body::Attach(_) => Reply::of(Body::Attached(Attached {
                protocol: intermezzo_channel::PROTOCOL,
                ..Attached::default()
            })),
            Body::Sync(_) => {
                let since = Instant::now();
                while !self.go.load(Ordering::Relaxed) && since.elapsed() < PATIENCE {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Reply::of(Body::Synced(Synced { recno: 7 }))
            }
            Body::Stat(_) => Reply::of(Body::Stats(Stats { last_recno: 5, ..Stats::default() })),
            Body::Resolve(resolve) => {
                let fds = resolve.files.iter().map(|file| temporary(&file.ino.to_string())).collect();
                let found = vec![true; resolve.files.len()];
                Reply { body: Body::Resolved(Resolved { found }), fds }
            }
            _ => Reply::done(),
        }
    }
}

fn temporary(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into()
}

struct World {
    _dir: tempfile::TempDir,
    path: PathBuf,
    link: Arc<Link>,
    fake: Arc<Fake>,
    server: Server,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("presto.sock");
    let (link, fake) = (Link::new(), Arc::new(Fake::default()));
    let server = Server::start(&path, Arc::clone(&link), Arc::clone(&fake) as Arc<dyn Service>).unwrap();
    World { _dir: dir, path, link, fake, server }
}

struct Far {
    connection: Connection,
    scratch: Vec<u8>,
}

impl Far {
    fn connect(world: &World) -> Far {
        Far { connection: Connection::connect(&world.path).unwrap(), scratch: Vec::new() }
    }

    fn attached(world: &World) -> Far {
        let mut far = Far::connect(world);
        far.tell(
            1,
            "",
            Body::Attach(Attach { protocol: intermezzo_channel::PROTOCOL, lento_version: String::new() }),
        );
        assert!(matches!(far.hear().body, Some(Body::Attached(_))));
        let since = Instant::now();
        while !world.link.attached() {
            assert!(since.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        far
    }

    fn tell(&self, id: u64, volume: &str, body: Body) {
        self.connection.send(&Packet { id, volume: volume.to_owned(), body: Some(body) }, &[]).unwrap();
    }

    fn hear(&mut self) -> Packet {
        self.hear_all().0
    }

    fn hear_all(&mut self) -> (Packet, Vec<OwnedFd>) {
        let incoming =
            self.connection.receive_within(&mut self.scratch, PATIENCE).unwrap().expect("an answer in time");
        (incoming.packet, incoming.fds)
    }

    fn gone(&mut self) -> bool {
        matches!(self.connection.receive_within(&mut self.scratch, PATIENCE), Err(TransportError::Closed))
    }
}

#[test]
fn only_root_may_connect() {
    let world = world();
    let mode = std::fs::metadata(&world.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn another_protocol_is_refused_in_words() {
    let world = world();
    let mut far = Far::connect(&world);
    far.tell(1, "", Body::Attach(Attach { protocol: 99, lento_version: String::new() }));
    let Some(Body::Failure(failure)) = far.hear().body else { panic!("no refusal") };
    assert!(failure.message.contains("99"), "{}", failure.message);
}

#[test]
fn a_bad_volume_name_is_refused() {
    let world = world();
    let mut far = Far::attached(&world);
    far.tell(3, "../etc", Body::Sync(Sync {}));
    assert!(
        matches!(far.hear().body, Some(Body::Failure(failure)) if failure.errno == Errno::INVAL.raw_os_error())
    );
}

#[test]
fn quick_calls_and_other_volumes_overtake_a_slow_sync_and_order_holds_within_one() {
    let world = world();
    let mut far = Far::attached(&world);
    far.tell(3, "a/slow", Body::Sync(Sync {}));
    far.tell(5, "a/slow", Body::Replay(Replay::default()));
    far.tell(7, "a/slow", Body::Stat(Stat {}));
    far.tell(9, "a/slow", Body::OpenStage(OpenStage::default()));
    far.tell(11, "a/other", Body::Replay(Replay::default()));
    let mut early = [far.hear().id, far.hear().id, far.hear().id];
    early.sort_unstable();
    assert_eq!(early, [7, 9, 11]);
    world.fake.go.store(true, Ordering::Relaxed);
    assert_eq!([far.hear().id, far.hear().id], [3, 5]);
}

#[test]
fn descriptors_travel_beside_the_answer_in_order() {
    use std::io::{Read, Seek};
    let world = world();
    let mut far = Far::attached(&world);
    let files = (0..64).map(|ino| intermezzo_channel::v1::FileId { ino, generation: 0 }).collect();
    far.tell(3, "a/b", Body::Resolve(Resolve { files }));
    let (packet, fds) = far.hear_all();
    assert_eq!((packet.id, fds.len()), (3, 64));
    for (number, fd) in fds.into_iter().enumerate() {
        let (mut file, mut text) = (std::fs::File::from(fd), String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, number.to_string());
    }
}

#[test]
fn a_second_connection_replaces_the_first() {
    let world = world();
    let mut first = Far::attached(&world);
    let mut second = Far::attached(&world);
    assert!(first.gone());
    second.tell(3, "a/b", Body::Stat(Stat {}));
    assert_eq!(second.hear().id, 3);
}

#[test]
fn a_megabyte_packet_passes() {
    let world = world();
    let mut far = Far::attached(&world);
    let make = intermezzo_channel::v1::Make { name: vec![b'x'; 1 << 20].into(), ..Default::default() };
    let item = intermezzo_channel::v1::ReplayItem {
        op: Some(intermezzo_channel::v1::replay_item::Op::Make(make)),
        ..Default::default()
    };
    far.tell(3, "a/b", Body::Replay(Replay { items: vec![item], untouched_since: 0 }));
    assert_eq!(far.hear().id, 3);
}

#[test]
fn garbage_ends_only_this_connection() {
    let world = world();
    let mut far = Far::attached(&world);
    let raw = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::connect(&raw, &rustix::net::SocketAddrUnix::new(&world.path).unwrap()).unwrap();
    rustix::net::send(&raw, &[0xff; 100], rustix::net::SendFlags::NOSIGNAL).unwrap();
    assert!(far.gone(), "replaced");
    let mut next = Far::attached(&world);
    next.tell(3, "a/b", Body::Stat(Stat {}));
    assert_eq!(next.hear().id, 3);
}

#[test]
fn journal_notices_reach_the_newest_record_and_merge_when_nobody_reads() {
    let world = world();
    world.link.announce("a/b", 1); // Nobody there: dropped.
    let mut far = Far::attached(&world);
    for recno in 10..=20_000 {
        world.link.announce("a/b", recno);
    }
    let (mut last, mut packets) = (9, 0);
    while last < 20_000 {
        let packet = far.hear();
        assert_eq!((packet.id, packet.volume.as_str()), (0, "a/b"));
        let Some(Body::Journal(journal)) = packet.body else { panic!("not a notice") };
        assert_eq!(journal.from, last + 1, "gap-free");
        (last, packets) = (journal.to, packets + 1);
    }
    assert!(packets > 0);
}

fn permit() -> Body {
    Body::GetPermit(GetPermit { deadline_ms: 5000 })
}

#[test]
fn an_upcall_is_answered_by_id() {
    let world = world();
    let mut far = Far::attached(&world);
    let link = Arc::clone(&world.link);
    let asker = std::thread::spawn(move || link.ask("a/b", permit(), Wait::own(PATIENCE)));
    let packet = far.hear();
    assert_eq!(packet.id % 2, 0, "upcalls have even ids");
    far.tell(packet.id + 2, "a/b", Body::PermitGranted(PermitGranted { serial: 8, until_ms: 0 }));
    far.tell(packet.id, "a/b", Body::PermitGranted(PermitGranted { serial: 9, until_ms: 0 }));
    let Answer::Answered(Body::PermitGranted(granted)) = asker.join().unwrap() else { panic!("not granted") };
    assert_eq!(granted.serial, 9);
}

#[test]
fn an_upcall_without_lento_returns_at_once_and_a_late_one_is_interrupted() {
    let world = world();
    assert!(matches!(world.link.ask("a/b", permit(), Wait::own(PATIENCE)), Answer::Away));
    let mut far = Far::attached(&world);
    assert!(matches!(world.link.ask("a/b", permit(), Wait::own(Duration::from_millis(20))), Answer::Late));
    let asked = far.hear();
    let stopped = far.hear();
    assert!(matches!(stopped.body, Some(Body::Interrupt(_))));
    assert_eq!(asked.id, stopped.id);
}

/// A stopped program keeps the signals that would end it.
#[test]
fn a_signal_to_the_user_ends_the_wait_and_one_that_does_nothing_to_him_does_not() {
    let world = world();
    let mut far = Far::attached(&world);
    let mut user = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let id = rustix::process::Pid::from_child(&user);
    let signal = |signal| rustix::process::kill_process(id, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    signal(rustix::process::Signal::WINCH);
    let wait = |deadline| Wait { deadline, thread: user.id(), only_the_end: false };
    let answer = world.link.ask("a/b", permit(), wait(Duration::from_millis(400)));
    assert!(matches!(answer, Answer::Late), "{answer:?}");
    signal(rustix::process::Signal::TERM);
    let answer = world.link.ask("a/b", permit(), wait(PATIENCE));
    assert!(matches!(answer, Answer::Interrupted), "{answer:?}");
    let ids = [(); 4].map(|()| far.hear().id);
    assert!(ids[0] == ids[1] && ids[2] == ids[3], "each is told to stop: {ids:?}");
    signal(rustix::process::Signal::KILL);
    user.wait().unwrap();
}

#[test]
fn lento_dying_ends_the_waits_and_its_successor_is_served() {
    let world = world();
    let far = Far::attached(&world);
    let link = Arc::clone(&world.link);
    let asker = std::thread::spawn(move || link.ask("a/b", permit(), Wait::own(PATIENCE)));
    std::thread::sleep(Duration::from_millis(20));
    drop(far);
    assert!(matches!(asker.join().unwrap(), Answer::Away));
    let mut next = Far::attached(&world);
    next.tell(3, "a/b", Body::Stat(Stat {}));
    assert_eq!(next.hear().id, 3);
}

#[test]
fn stop_hangs_up_and_removes_the_socket() {
    let mut world = world();
    let mut far = Far::attached(&world);
    world.server.stop();
    assert!(far.gone());
    assert!(!world.path.exists());
}

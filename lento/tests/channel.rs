//! The channel, against a presto driven by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that fails says where"
)]

mod common;

use common::HandPresto;
use common::soon;
use intermezzo_channel::v1;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use lento::req_dispatcher::CallError;
use lento::req_dispatcher::Downcalls;
use lento::req_dispatcher::ReqDispatcher;
use lento::req_handler::ReqHandler;
use lento::volume::Mail;
use lento::volume::Permit;
use lento::volume::VolumeHandle;
use lento::volume::Volumes;
use lento_core::io::Demanded;
use lento_core::volume::Millis;
use std::io::Read;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(15);

struct Setup {
    presto: HandPresto,
    downcalls: Downcalls,
    volumes: Volumes,
    _stop: tokio_util::sync::DropGuard,
    dir: tempfile::TempDir,
}

fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("presto.sock");
    let presto = HandPresto::listen(&path);
    let (stop, volumes) = (CancellationToken::new(), Volumes::default());
    let (dispatcher, downcalls) = ReqDispatcher::new(path, ReqHandler::new(volumes.clone()), stop.clone());
    tokio::spawn(dispatcher.run());
    Setup { presto, downcalls, volumes, _stop: stop.drop_guard(), dir }
}

fn stat(
    downcalls: &Downcalls,
) -> impl Future<Output = Result<(Body, Vec<std::os::fd::OwnedFd>), CallError>> + use<> {
    let downcalls = downcalls.clone();
    async move { downcalls.call("ns/v", Body::Stat(v1::Stat {}), "Stat", LONG).await }
}

async fn up(downcalls: &Downcalls) {
    soon(downcalls.state().wait_for(|state| state.generation().is_some())).await.unwrap();
}

fn stats(last_recno: u64) -> Body {
    Body::Stats(v1::Stats { last_recno, ..Default::default() })
}

#[tokio::test]
async fn answers_find_those_who_wait_in_any_order() {
    let setup = setup();
    let mut presto = setup.presto.attach().await;
    up(&setup.downcalls).await;
    let (one, two) = (tokio::spawn(stat(&setup.downcalls)), tokio::spawn(stat(&setup.downcalls)));
    let (first, second) = (presto.receive().await, presto.receive().await);
    assert_eq!(first.volume, "ns/v");
    assert!(first.id % 2 == 1 && second.id % 2 == 1 && first.id != second.id);
    presto.answer(&second, stats(second.id), &[]).await;
    presto.answer(&first, stats(first.id), &[]).await;
    let mut got = Vec::new();
    for call in [one, two] {
        let (Body::Stats(stats), _) = soon(call).await.unwrap().unwrap() else { panic!() };
        got.push(stats.last_recno);
    }
    got.sort_unstable();
    let mut ids = [first.id, second.id];
    ids.sort_unstable();
    assert_eq!(got, ids);
}

#[tokio::test]
async fn descriptors_come_with_their_answer() {
    let setup = setup();
    let mut presto = setup.presto.attach().await;
    up(&setup.downcalls).await;
    let path = setup.dir.path().join("content");
    std::fs::write(&path, b"by descriptor").unwrap();
    let downcalls = setup.downcalls.clone();
    let call = tokio::spawn(async move {
        let ids = [(1, 1), (2, 1)].map(|(ino, generation)| lento_core::types::FileId { ino, generation });
        lento::fetch_service::resolve(&downcalls, "ns/v", &ids, LONG).await
    });
    let packet = presto.receive().await;
    let resolved = Body::Resolved(v1::Resolved { found: vec![false, true] });
    presto.answer(&packet, resolved, &[std::fs::File::open(&path).unwrap()]).await;
    let files = soon(call).await.unwrap().unwrap();
    assert!(files[0].is_none());
    let mut text = String::new();
    files[1].as_deref().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "by descriptor");
}

#[tokio::test]
async fn a_failure_a_deadline_and_a_lost_presto_are_told_apart() {
    let setup = setup();
    assert!(matches!(soon(stat(&setup.downcalls)).await, Err(CallError::Gone)));
    let mut presto = setup.presto.attach().await;
    up(&setup.downcalls).await;

    let call = tokio::spawn(stat(&setup.downcalls));
    let packet = presto.receive().await;
    let failure = v1::Failure { errno: 28, message: "ns/v: full".to_owned() };
    presto.answer(&packet, Body::Failure(failure), &[]).await;
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::Refused { errno: 28, .. })));

    let short = Duration::from_millis(50);
    let late = setup.downcalls.call("ns/v", Body::Sync(v1::Sync {}), "Sync", short);
    assert!(matches!(soon(late).await, Err(CallError::Late { .. })));
    let packet = presto.receive().await;
    presto.answer(&packet, Body::Synced(v1::Synced { recno: 1 }), &[]).await;

    let call = tokio::spawn(stat(&setup.downcalls));
    presto.receive().await;
    drop(presto);
    assert!(matches!(soon(call).await.unwrap(), Err(CallError::Gone)));

    let _again = setup.presto.attach().await;
    soon(setup.downcalls.state().wait_for(|state| state.generation() == Some(2))).await.unwrap();
}

#[tokio::test]
async fn what_is_asked_of_a_presto_that_has_gone_does_not_reach_the_next_one() {
    let setup = setup();
    let first = setup.presto.attach().await;
    up(&setup.downcalls).await;
    let to_first = setup.downcalls.pinned(1);
    drop(first);
    let mut second = setup.presto.attach().await;
    soon(setup.downcalls.state().wait_for(|state| state.generation() == Some(2))).await.unwrap();
    assert!(matches!(soon(stat(&to_first)).await, Err(CallError::Gone)));
    let call = tokio::spawn(stat(&setup.downcalls.pinned(2)));
    let packet = soon(second.receive()).await;
    second.answer(&packet, stats(7), &[]).await;
    assert!(soon(call).await.unwrap().is_ok());
}

#[tokio::test]
async fn upcalls_are_answered_and_a_journal_rings_the_volume() {
    let setup = setup();
    let (volume, mut mailbox) = VolumeHandle::new("ns/v");
    setup.volumes.insert(volume.clone());
    let mut presto = setup.presto.attach().await;
    let upcall = |id, body| Packet { id, volume: "ns/v".to_owned(), body: Some(body) };

    presto.send(&upcall(0, Body::Journal(v1::Journal { from: 1, to: 2 }))).await;
    soon(volume.bell().notified()).await;

    presto.send(&upcall(2, Body::GetPermit(v1::GetPermit { deadline_ms: 9000 }))).await;
    let Some(Mail::Permit(user)) = soon(mailbox.recv()).await else { panic!("no word of it") };
    user.send(Permit::Granted { serial: 3, until: Millis(9) }).unwrap();
    let answer = presto.receive().await;
    let granted = v1::PermitGranted { serial: 3, until_ms: 9 };
    assert!(answer.id == 2 && answer.body == Some(Body::PermitGranted(granted)), "{answer:?}");
    // Who waits too long is told why, a moment before presto gives up.
    presto.send(&upcall(8, Body::GetPermit(v1::GetPermit { deadline_ms: 600 }))).await;
    let Some(Mail::Permit(_waits)) = soon(mailbox.recv()).await else { panic!("no word of it") };
    let answer = presto.receive().await;
    let late = |failure: &v1::Failure| failure.errno == rustix::io::Errno::TIMEDOUT.raw_os_error();
    assert!(matches!(&answer.body, Some(Body::Failure(failure)) if late(failure)), "{answer:?}");
    // Who waits for a content keeps nobody else from being answered.
    let data = || Body::GetData(v1::GetData { deadline_ms: 60_000, ..Default::default() });
    presto.send(&upcall(4, data())).await;
    presto.send(&upcall(6, data())).await;
    let (Some(Mail::Demand(_, first)), Some(Mail::Demand(_, second))) =
        (soon(mailbox.recv()).await, soon(mailbox.recv()).await)
    else {
        panic!("nobody asked for contents");
    };
    presto.send(&upcall(4, Body::Interrupt(v1::Interrupt {}))).await;
    let mut demands = [first, second];
    soon(demands[0].closed()).await;
    let [_, second] = demands;
    second.send(Demanded::Unreachable).unwrap();
    let answer = presto.receive().await;
    let Some(Body::Failure(failure)) = answer.body else { panic!("{answer:?}") };
    assert_eq!((answer.id, failure.errno), (6, 113), "EHOSTUNREACH");
}

#[tokio::test]
async fn a_packet_that_the_socket_cannot_carry_is_told_and_nothing_breaks() {
    let setup = setup();
    let mut presto = setup.presto.attach().await;
    up(&setup.downcalls).await;
    let names = vec!["x".repeat(setup.downcalls.limit() + 1)];
    let long = Body::DropStage(v1::DropStage { names });
    let result = soon(setup.downcalls.call("ns/v", long, "DropStage", LONG)).await;
    assert!(matches!(result, Err(CallError::TooLong(_))), "{result:?}");
    let call = tokio::spawn(stat(&setup.downcalls));
    let packet = presto.receive().await;
    presto.answer(&packet, stats(3), &[]).await;
    assert!(soon(call).await.unwrap().is_ok());
}

//! Agents and an operator's far side in one process: enrolment, desired state, certificates that change, and who may be whom.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails says where"
)]

#[path = "../common/mod.rs"]
mod common;
mod world;

use common::HandChannel;
use common::HandPresto;
use common::node::node;
use common::soon;
use intermezzo_api::wait::Ask;
use intermezzo_api::wait::Scope;
use intermezzo_channel::v1 as v1channel;
use intermezzo_channel::v1::Packet;
use intermezzo_control::Desired;
use intermezzo_identity::Credentials;
use intermezzo_proto::v1;
use intermezzo_proto::v1::agent_frame;
use intermezzo_proto::v1::agent_frame::Hello;
use intermezzo_proto::v1::operator_frame::Body;
use lento::dialer::Peers;
use lento::store::VolumeStore;
use lento_core::message::Message;
use std::time::Duration;
use tokio_stream::StreamExt;
use tonic::Code;
use world::LONG;
use world::World;
use world::desired;
use world::volume;

fn greeting(revision: &str) -> v1::AgentFrame {
    let hello = Hello {
        protocol: 1,
        version: "by hand".to_owned(),
        advertise: "10.0.0.9:7430".to_owned(),
        revision: revision.to_owned(),
    };
    v1::AgentFrame { body: Some(agent_frame::Body::Hello(hello)) }
}

fn hello_of_replication() -> Message {
    Message::Hello(lento_core::message::Hello {
        greeting: 1,
        snapshot: None,
        replica: 7,
        incarnation: 1,
        lineage: Default::default(),
        applied: lento_core::types::Position(0),
        tail_from: lento_core::types::Position(0),
        position: lento_core::types::Position(0),
        has: Default::default(),
        partial: false,
    })
}

#[tokio::test]
async fn an_agent_enrols_does_what_it_is_told_and_says_how_it_goes() {
    let world = World::begin(LONG);
    world.tell("a", desired(&["one"], "a"));
    let a = world.agent("a");
    let report = world.reported("a", |report| report.volumes.len() == 1).await;
    assert_eq!((report.volumes[0].name.as_str(), report.volumes[0].role.as_str()), ("t/one", "Server"));
    assert!(!report.presto_connected);
    assert_eq!(report.revision, desired(&["one"], "a").revision());
    assert_eq!(world.agents()["a"].advertise, a.listen.to_string());

    world.tell("a", desired(&["one", "two"], "a"));
    let report = world.reported("a", |report| report.volumes.len() == 2).await;
    assert_eq!(report.revision, desired(&["one", "two"], "a").revision());
}

#[tokio::test]
async fn one_object_that_cannot_be_carried_out_is_reported_and_the_others_go_on() {
    let world = World::begin(LONG);
    let mut later = volume("later", "a");
    later.spec.exclude = vec!["[z-a]".to_owned()];
    let both = [volume("one", "a"), later];
    let both = Desired::new(&both, [], &Default::default(), &Default::default()).unwrap();
    world.tell("a", both);
    let _a = world.agent("a");
    let report = world.reported("a", |report| !report.volumes.is_empty()).await;
    assert_eq!(report.volumes.iter().map(|volume| &volume.name).collect::<Vec<_>>(), ["t/one"]);
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert_eq!(
        (report.problems[0].volume.as_str(), report.problems[0].field.as_str()),
        ("t/later", "spec.exclude[0]")
    );
}

#[tokio::test]
async fn what_is_to_be_discarded_is_gone_only_when_it_is() {
    let world = World::begin(LONG);
    let gone = ["t/kept".to_owned(), "t/never".to_owned()].into();
    world.tell("a", Desired::new([], [], &Default::default(), &gone).unwrap());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "token-of-a").unwrap();
    let kept = dir.path().join("cache/t/kept");
    std::fs::create_dir_all(&kept).unwrap();
    let _a = world.agent_in("a", dir);
    let report = world.reported("a", |report| !report.discarded.is_empty()).await;
    assert_eq!(report.discarded, ["t/never"]);
    assert_eq!(report.problems[0].volume, "t/kept");
    let reason = |report: &v1::Report| report.problems.first().map(|p| p.reason.clone()).unwrap_or_default();
    let place = kept.display().to_string();
    let report = world.reported("a", |report| reason(report).contains(&place)).await;
    assert!(report.problems[0].reason.contains("remove the directory by hand"), "{:?}", report.problems);
    std::fs::remove_dir(&kept).unwrap();
    world.reported("a", |report| report.discarded.len() == 2 && report.problems.is_empty()).await;
}

/// Presto's answers to the calls about a removal; whatever else is asked is done.
async fn removal(presto: &mut HandChannel) -> (Packet, v1channel::DiscardVolume) {
    loop {
        let asked = presto.receive().await;
        match asked.body.clone() {
            Some(v1channel::packet::Body::DiscardVolume(discard)) => return (asked, discard),
            _ => presto.answer(&asked, v1channel::packet::Body::Done(v1channel::Done {}), &[]).await,
        }
    }
}

async fn discarded(presto: &mut HandChannel, to: &Packet, finished: bool) {
    let body = v1channel::packet::Body::Discarded(v1channel::Discarded { finished, removed: 1 });
    presto.answer(to, body, &[]).await;
}

#[tokio::test]
async fn a_removal_that_has_begun_goes_to_its_end_through_restarts_and_whatever_the_operator_says() {
    let world = World::begin(LONG);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "token-of-a").unwrap();
    let state = dir.path().join("state/t");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::create_dir_all(dir.path().join("cache/t/kept")).unwrap();
    let store = VolumeStore::open(&state.join("kept.redb"), "boot", &dir.path().join("t.kept.life")).unwrap();
    store.set_uid(7).unwrap();
    drop(store);
    let names = |dir: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let listening = HandPresto::listen(&dir.path().join("presto.sock"));
    let gone = ["t/kept".to_owned()].into();
    world.tell("a", Desired::new([], [], &Default::default(), &gone).unwrap());
    let a = world.agent_in("a", dir);
    let mut presto = listening.attach().await;
    let cleared = presto.receive().await;
    let clear = v1channel::packet::Body::ClearVolume(v1channel::ClearVolume { uid: 7 });
    assert_eq!(cleared.body, Some(clear), "first of all it must not be served");
    presto.answer(&cleared, v1channel::packet::Body::Done(v1channel::Done {}), &[]).await;
    let (asked, discard) = removal(&mut presto).await;
    assert_eq!((discard.uid, discard.begun), (7, false));
    assert!(
        names(&state).iter().all(|name| name.starts_with(".discard-")),
        "the name is free: {:?}",
        names(&state)
    );
    discarded(&mut presto, &asked, false).await;
    let (_, discard) = removal(&mut presto).await;
    assert!(discard.begun, "what has the name by now is another's");
    world.reported("a", |report| report.problems.iter().any(|p| p.reason.contains("being removed"))).await;

    // A restart in the middle, and an operator that says no more of it.
    let dir = a.stop().await;
    drop(presto);
    world.tell("a", desired(&[], "a"));
    let _again = world.agent_in("a", dir);
    let mut presto = listening.attach().await;
    let (asked, discard) = removal(&mut presto).await;
    assert_eq!((discard.uid, discard.begun), (7, true));
    discarded(&mut presto, &asked, true).await;
    soon(async {
        while !names(&state).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn is_it_safe_yet_is_answered_only_when_it_is() {
    let world = World::begin(LONG);
    let mut asked = volume("one", "a");
    let ask = Ask { scope: Scope::Everywhere, number: 42 };
    ask.put(&mut asked);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "token-of-a").unwrap();
    let listening = HandPresto::listen(&dir.path().join("presto.sock"));
    world.tell("a", Desired::new([&asked], [], &Default::default(), &Default::default()).unwrap());
    let _a = world.agent_in("a", dir);
    let mut presto = listening.attach().await;
    let stat = loop {
        let asked = presto.receive().await;
        if matches!(asked.body, Some(v1channel::packet::Body::Stat(_))) {
            break asked;
        }
    };
    let stats = v1channel::Stats { last_recno: 5, ..Default::default() };
    presto.answer(&stat, v1channel::packet::Body::Stats(stats), &[]).await;
    // The volume never begins here, so nothing is safe.
    let report = world.reported("a", |report| report.volumes.len() == 1 && report.presto_connected).await;
    assert_eq!(report.volumes[0].reached, "");
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_a_sentence() {
    let world = World::begin(LONG);
    let wrong = world.enrol("a", "stolen").await.unwrap_err();
    assert_eq!(wrong.code(), Code::PermissionDenied);
    assert!(wrong.message().contains("no token of this cluster"), "{wrong}");
    let other = world.enrol("b", "token-of-a").await.unwrap_err();
    assert!(other.message().contains("the token is of node a, the agent says that it is b"), "{other}");
    let none = world.enrol("a", "").await.unwrap_err();
    assert_eq!(none.code(), Code::Unauthenticated);
    assert!(world.enrol("a", "token-of-a").await.is_ok());
}

#[tokio::test]
async fn without_a_nodes_certificate_nobody_attaches() {
    let world = World::begin(LONG);
    let stranger = world.attach(None, greeting("")).await.err().unwrap();
    assert_eq!(stranger.code(), Code::Unauthenticated);
    // The operator's own certificate is no node's either.
    let other = World::begin(LONG);
    let foreign = other.identity("a").await;
    assert!(world.attach(Some(&foreign), greeting("")).await.is_err(), "another cluster's");
    assert!(world.agents().is_empty());
}

#[tokio::test]
async fn a_node_gets_nothing_of_another_and_speaks_for_no_other_at_the_operator() {
    let world = World::begin(LONG);
    world.tell("a", desired(&["of-a"], "a"));
    world.tell("b", desired(&["of-b"], "b"));
    let a = world.identity("a").await;
    let (frames, mut inbound) = world.attach(Some(&a), greeting("")).await.unwrap();
    let mut told = Vec::new();
    while told.len() < 2 {
        told.push(soon(inbound.message()).await.unwrap().unwrap().body.unwrap());
    }
    let [Body::Authorities(_), Body::Desired(desired)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(desired.objects.len(), 1);
    assert!(desired.objects[0].contains("of-a"));

    let status = |name: &str| v1::VolumeStatus { name: name.to_owned(), ..Default::default() };
    let volumes = vec![status("t/of-a"), status("t/of-b")];
    let report = v1::Report { volumes, discarded: vec!["t/of-b".to_owned()], ..Default::default() };
    frames.send(v1::AgentFrame { body: Some(agent_frame::Body::Report(report)) }).await.unwrap();
    let report = world.reported("a", |report| !report.volumes.is_empty()).await;
    assert_eq!(report.volumes.iter().map(|volume| &volume.name).collect::<Vec<_>>(), ["t/of-a"]);
    assert!(report.discarded.is_empty());
    assert_eq!(world.agents().keys().collect::<Vec<_>>(), ["a"]);

    // What it has is not sent again, and a second stream takes the place of the first.
    let (_second, mut again) = world.attach(Some(&a), greeting(&desired.revision)).await.unwrap();
    assert!(matches!(soon(again.message()).await.unwrap().unwrap().body, Some(Body::Authorities(_))));
    assert!(tokio::time::timeout(Duration::from_millis(300), again.message()).await.is_err());
    let end = soon(inbound.message()).await.unwrap_err();
    assert!(end.message().contains("took the place"), "{end}");
}

#[tokio::test]
async fn a_nodes_certificate_does_not_speak_for_another_in_replication() {
    let world = World::begin(LONG);
    let credentials = async |name: &str| Credentials::fixed(world.identity(name).await);
    let mut server = node();
    let address = server.serve_as(credentials("server").await, &["b"]);
    // A is not on the list, and there is no word by which it could say that it is B.
    let mut a = node();
    let peers = Peers::new(credentials("a").await, [("server".to_owned(), address.to_string())].into());
    peers.follow("server", a.volume.clone());
    a.connected("server").await.say(&a.volume.name, hello_of_replication());
    match a.message("server").await {
        Message::Refused { reason, .. } => assert!(reason.contains("node a is not on"), "{reason}"),
        other => panic!("{other:?}"),
    }
    server.nothing_comes().await;
    // Nor can A be the server for those who look for B.
    let mut client = node();
    let mut impostor = node();
    let address = impostor.serve_as(credentials("a").await, &["c"]);
    let peers = Peers::new(credentials("c").await, [("b".to_owned(), address.to_string())].into());
    peers.follow("b", client.volume.clone());
    client.nothing_comes().await;
    impostor.nothing_comes().await;
}

#[tokio::test]
async fn certificates_are_renewed_while_the_agent_runs() {
    let lifetime = Duration::from_secs(4);
    let world = World::begin(lifetime);
    let a = world.agent("a");
    let first = world.certificate_at(&a).await;
    tokio::time::sleep(lifetime + Duration::from_secs(1)).await;
    let later = world.certificate_at(&a).await;
    assert_ne!(first, later, "the first one has ended");
    assert!(world.agents()["a"].attached);
    // The agent's own side shows the new one too, or the operator would not listen to it.
    world.tell("a", desired(&["one"], "a"));
    world.reported("a", |report| report.volumes.len() == 1).await;
}

#[tokio::test]
async fn another_authority_takes_over_and_nobody_loses_touch() {
    let lifetime = Duration::from_secs(4);
    let world = World::begin(lifetime);
    let a = world.agent("a");
    world.reported("a", |_| true).await;
    let old = world.identity("x").await;
    assert!(world.reaches(&a, old.clone()).await);
    world.roll();
    let mut seen = vec![world.state()];
    while world.state() != "Steady" {
        // A certificate of now, whoever issued it, is good at an agent that runs all the time.
        let now = world.identity("x").await;
        assert!(world.reaches(&a, now).await, "while {}", world.state());
        assert!(world.agents()["a"].attached);
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.step();
        if seen.last() != Some(&world.state()) {
            seen.push(world.state());
        }
    }
    assert_eq!(seen, ["Announced", "Retiring", "Steady"]);
    let new = world.identity("x").await;
    assert!(world.reaches(&a, new).await);
}

#[tokio::test]
async fn with_the_operator_away_an_agent_starts_from_what_it_was_told_last() {
    let world = World::begin(LONG);
    world.tell("a", desired(&["one"], "a"));
    let a = world.agent("a");
    world.reported("a", |report| report.volumes.len() == 1).await;
    let friend = world.identity("x").await;
    let dir = a.stop().await;
    world.stop();

    let again = world.agent_in("a", dir);
    soon(async {
        while !again.metrics().await.contains("t/one") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(world.reaches(&again, friend).await, "it serves with the certificate that it has");
}

#[tokio::test]
async fn broken_files_are_not_used_and_the_operator_makes_them_good() {
    let world = World::begin(LONG);
    world.tell("a", desired(&["one"], "a"));
    let a = world.agent("a");
    world.reported("a", |report| report.volumes.len() == 1).await;
    let dir = a.stop().await;
    for file in ["desired", "identity"] {
        let path = dir.path().join("state").join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    world.tell("a", desired(&["one", "two"], "a"));
    let _again = world.agent_in("a", dir);
    world.reported("a", |report| report.volumes.len() == 2).await;
}

#[tokio::test]
async fn an_agent_that_reads_nothing_delays_nobody() {
    let world = World::begin(LONG);
    let lazy = world.identity("lazy").await;
    let (_frames, _unread) = world.attach(Some(&lazy), greeting("")).await.unwrap();
    let _a = world.agent("a");
    let large = "x".repeat(200_000);
    for turn in 0..20 {
        let name = format!("v{turn}");
        let mut one = volume(&name, "lazy");
        one.spec.exclude = vec![large.clone()];
        world.tell("lazy", Desired::new([&one], [], &Default::default(), &Default::default()).unwrap());
        world.tell("a", desired(&[&name], "a"));
    }
    world.reported("a", |report| report.volumes.iter().any(|volume| volume.name == "t/v19")).await;
}

#[tokio::test]
async fn files_of_an_identity_are_followed_and_a_broken_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = common::Authority::new();
    let files = authority.node_files(dir.path(), "a");
    let stop = tokio_util::sync::CancellationToken::new();
    let credentials = files.clone().follow("a", stop.clone()).unwrap();
    let first = credentials.now().unwrap();
    let same = || std::sync::Arc::ptr_eq(&first, &credentials.now().unwrap());
    std::fs::write(&files.certificate, "half").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(same());
    authority.node_files(dir.path(), "a");
    soon(async {
        while same() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    stop.cancel();
}

/// Frames of a stream that a test holds.
fn stream_of(
    receiver: tokio::sync::mpsc::Receiver<v1::AgentFrame>,
) -> impl tokio_stream::Stream<Item = v1::AgentFrame> + Send + 'static {
    tokio_stream::wrappers::ReceiverStream::new(receiver).map(|frame| frame)
}

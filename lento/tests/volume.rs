//! A volume's task with a real core, a real KML and a presto driven by hand.

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

use common::Authority;
use common::HandChannel;
use common::HandPresto;
use common::install_crypto;
use common::soon;
use intermezzo_api::Access;
use intermezzo_api::volume::WhenFull;
use intermezzo_channel::v1;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use lento::desired::DesiredVolume;
use lento::dialer::Peers;
use lento::req_dispatcher::ReqDispatcher;
use lento::req_handler::ReqHandler;
use lento::store::LastTime;
use lento::store::VolumeStore;
use lento::volume::Mail;
use lento::volume::Report;
use lento::volume::VolumeHandle;
use lento::volume::Volumes;
use lento::volume_task::Surroundings;
use lento::volume_task::VolumeTask;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const VOLUME: &str = "ns/v";

fn kml(dir: &Path) -> intermezzo_kml::Journal {
    let config = intermezzo_kml::Config {
        segment_bytes: 1 << 20,
        max_bytes: 16 << 20,
        reserve_bytes: 2 << 20,
        ..Default::default()
    };
    intermezzo_kml::Journal::open(Arc::new(intermezzo_kml::fs::Os), dir, config).unwrap().0
}

fn info(kml: &Path) -> Body {
    Body::VolumeInfo(v1::VolumeInfo {
        name: VOLUME.to_owned(),
        kml: kml.display().to_string(),
        root: Some(v1::FileId { ino: 2, generation: 1 }),
        staging: Some(v1::FileId { ino: 3, generation: 1 }),
        first_recno: 1,
        ..Default::default()
    })
}

/// The next downcall that is asked for; others are answered with `Done` on the way.
async fn downcall(presto: &mut HandChannel, wanted: fn(&Body) -> bool) -> Packet {
    loop {
        let packet = presto.receive().await;
        if packet.body.as_ref().is_some_and(wanted) {
            return packet;
        }
        let answer = match packet.body {
            Some(Body::Sync(_)) => Body::Synced(v1::Synced { recno: 0 }),
            _ => Body::Done(v1::Done {}),
        };
        presto.answer(&packet, answer, &[]).await;
    }
}

async fn report(volume: &VolumeHandle) -> Report {
    let (reply, answer) = oneshot::channel();
    assert!(volume.send(Mail::Report(reply)).await);
    soon(answer).await.unwrap()
}

async fn until(volume: &VolumeHandle, right: impl Fn(&Report) -> bool) -> Report {
    for _ in 0..500 {
        let report = report(volume).await;
        if right(&report) {
            return report;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never so: {:?}", report(volume).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_fails_and_lives_again() {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let kml_dir = dir.path().join("kml");
    std::fs::create_dir(&kml_dir).unwrap();
    let socket = dir.path().join("presto.sock");
    let hand = HandPresto::listen(&socket);
    let stop = CancellationToken::new();
    let _end = stop.clone().drop_guard();
    let (dispatcher, downcalls) =
        ReqDispatcher::new(socket, ReqHandler::new(Volumes::default()), stop.clone());
    tokio::spawn(dispatcher.run());
    let around = Surroundings {
        node: "a".to_owned(),
        downcalls,
        peers: Peers::new(Authority::new().identity("a"), BTreeMap::new()),
        contents: Arc::new(Semaphore::new(4)),
        state: dir.path().join("state"),
        cache: dir.path().join("cache"),
        mounts: dir.path().join("mounts"),
        boot: "boot".to_owned(),
        run: dir.path().to_owned(),
    };
    let wanted = DesiredVolume {
        server: "a".to_owned(),
        replication_list: ["b".to_owned()].into(),
        paused: BTreeSet::new(),
        lento_access: Access::ReadWrite,
        access: Access::ReadWrite,
        log_max_bytes: None,
        when_full: WhenFull::Wait,
        limits: Default::default(),
        durability: Default::default(),
        conflicts: Default::default(),
        writes: Default::default(),
        mass: Default::default(),
        history: None,
        source: None,
        exclude: Vec::new(),
        keeping: Default::default(),
    };
    let (volume, mailbox) = VolumeHandle::new(VOLUME);
    let task = tokio::spawn(VolumeTask::new(around, volume.clone(), mailbox, wanted.clone()).run());
    assert!(report(&volume).await.fault.contains("presto"));
    assert_eq!(volume.refusal("b"), None);
    assert!(volume.refusal("c").is_some());

    // Paused, it stays on the list and may not speak.
    let paused = DesiredVolume { paused: ["b".to_owned()].into(), ..wanted.clone() };
    volume.send(Mail::Desired(Box::new(paused))).await;
    let paused = report(&volume).await;
    assert!(volume.refusal("b").unwrap().contains("node b is paused"));
    assert!(paused.status.waiting.iter().any(|why| why == "node b: its Replicator is paused"));
    volume.send(Mail::Desired(Box::new(wanted))).await;
    assert!(report(&volume).await.status.waiting.is_empty());
    assert_eq!(volume.refusal("b"), None);

    // No journal where presto says it is: the reason stays in the report, and it is tried again.
    let mut presto = hand.attach().await;
    let set = downcall(&mut presto, |body| matches!(body, Body::SetVolume(_))).await;
    let Some(Body::SetVolume(options)) = &set.body else { panic!() };
    assert!(options.uid != 0 && options.mountpoint.ends_with("mounts/ns/v"));
    presto.answer(&set, info(&kml_dir), &[]).await;
    let broken = until(&volume, |report| !report.fault.is_empty() && !report.fault.contains("waiting")).await;
    assert!(broken.fault.contains("kml"), "{}", broken.fault);

    // It has gone on meanwhile: presto says anew where the journal ends.
    let journal = kml(&kml_dir);
    let set = downcall(&mut presto, |body| matches!(body, Body::SetVolume(_))).await;
    presto.answer(&set, info(&kml_dir), &[]).await;
    downcall(&mut presto, |body| matches!(body, Body::Mark(_))).await;
    until(&volume, |report| report.fault.is_empty()).await;

    // Presto comes back: the volume is set again, and the life goes on.
    drop(presto);
    let mut presto = hand.attach().await;
    let set = downcall(&mut presto, |body| matches!(body, Body::SetVolume(_))).await;
    presto.answer(&set, info(&kml_dir), &[]).await;
    downcall(&mut presto, |body| matches!(body, Body::Mark(_))).await;
    until(&volume, |report| report.fault.is_empty()).await;

    let (done, stopped) = oneshot::channel();
    volume.send(Mail::Stop(done)).await;
    let sync = downcall(&mut presto, |body| matches!(body, Body::Sync(_))).await;
    presto.answer(&sync, Body::Synced(v1::Synced { recno: 0 }), &[]).await;
    soon(stopped).await.unwrap();
    soon(task).await.unwrap();
    let (path, witness) = (dir.path().join("state/ns/v.redb"), dir.path().join("ns.v.life"));
    let store = VolumeStore::open(&path, "boot", &witness).unwrap();
    assert_eq!(store.last_time(), LastTime::Whole);
    assert_eq!(store.uid().unwrap(), Some(options.uid));
    drop(journal);
}

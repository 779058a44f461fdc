//! A whole agent with `--metrics`, beside a presto driven by hand: what a scraper and a prober see.

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

use clap::Parser;
use common::Authority;
use common::HandChannel;
use common::HandPresto;
use common::install_crypto;
use common::soon;
use intermezzo_channel::v1;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use intermezzo_kml::Class;
use intermezzo_kml::Opcode;
use lento::agent::Agent;
use lento::clock;
use lento::options::Options;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const SERVED: &str = "ns/served";
const FOLLOWED: &str = "ns/followed";
const CONTENT: &[u8] = b"twelve bytes";
const ROOT: intermezzo_kml::FileId = intermezzo_kml::FileId { ino: 2, generation: 1 };
/// How long ago the users' updates seem to have been made, in seconds.
const AGO: i64 = 100;

/// The KML of one volume, written as presto would.
struct Journal {
    dir: PathBuf,
    kml: intermezzo_kml::Journal,
}

impl Journal {
    fn new(dir: PathBuf) -> Journal {
        std::fs::create_dir_all(&dir).unwrap();
        let config = intermezzo_kml::Config {
            segment_bytes: 1 << 20,
            max_bytes: 16 << 20,
            reserve_bytes: 2 << 20,
            ..Default::default()
        };
        let kml = intermezzo_kml::Journal::open(Arc::new(intermezzo_kml::fs::Os), &dir, config).unwrap().0;
        Journal { dir, kml }
    }

    /// A user makes a file and fills it.
    fn user_writes(&self, name: &str) {
        let now = clock::wall();
        let time = intermezzo_kml::Time { sec: now.sec - AGO, nsec: 0 };
        let object = intermezzo_kml::FileId { ino: 10, generation: 1 };
        let intent = |opcode| intermezzo_kml::Intent { opcode: Some(opcode), time, ..Default::default() };
        let empty =
            intermezzo_kml::Attributes { mode: 0o100_644, nlink: 1, mtime: time, ..Default::default() };
        let outcome = |after| intermezzo_kml::Outcome { object, after, ..Default::default() };
        let create = intermezzo_kml::Intent { parent: ROOT, name: name.into(), ..intent(Opcode::Create) };
        self.kml.append(Class::User, &create, &outcome(empty)).unwrap();
        let full = intermezzo_kml::Attributes { size: CONTENT.len() as u64, ..empty };
        let close = intermezzo_kml::Intent { object, before: empty, ..intent(Opcode::Close) };
        self.kml.append(Class::User, &close, &outcome(full)).unwrap();
    }
}

struct Presto {
    hand: HandPresto,
    journals: BTreeMap<&'static str, Journal>,
    content: PathBuf,
}

impl Presto {
    /// Serves one connection until told to go away.
    async fn serve(&self, gone: CancellationToken) {
        let mut channel = self.hand.attach().await;
        while let Some(packet) = gone.run_until_cancelled(channel.receive()).await {
            self.answer(&channel, packet).await;
        }
    }

    async fn answer(&self, channel: &HandChannel, packet: Packet) {
        let journal = &self.journals[packet.volume.as_str()];
        let last = journal.kml.published().0;
        let mut files = Vec::new();
        let body = match &packet.body {
            Some(Body::SetVolume(_)) => Body::VolumeInfo(v1::VolumeInfo {
                name: packet.volume.clone(),
                kml: journal.dir.display().to_string(),
                root: Some(v1::FileId { ino: ROOT.ino, generation: ROOT.generation }),
                staging: Some(v1::FileId { ino: 3, generation: 1 }),
                first_recno: 1,
                last_recno: last,
                ..Default::default()
            }),
            Some(Body::Sync(_)) => Body::Synced(v1::Synced { recno: last }),
            Some(Body::Stat(_)) => Body::Stats(v1::Stats {
                first_recno: 1,
                last_recno: last,
                log_bytes: 4096,
                log_max_bytes: 1 << 30,
                limbo_files: 3,
                ..Default::default()
            }),
            Some(Body::Resolve(wanted)) => {
                files.extend(wanted.files.iter().map(|_| std::fs::File::open(&self.content).unwrap()));
                Body::Resolved(v1::Resolved { found: vec![true; wanted.files.len()] })
            }
            _ => Body::Done(v1::Done {}),
        };
        channel.answer(&packet, body, &files).await;
    }
}

fn manifests(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let volume = |name: &str, server: &str| {
        format!(
            "apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\nmetadata: {{name: {name}, namespace: ns}}\nspec: {{server: {{nodeName: {server}}}}}\n"
        )
    };
    let replicator = |volume: &str, node: &str| {
        format!(
            "apiVersion: intermezzo.dev/v1alpha1\nkind: Replicator\nmetadata: {{name: {volume}-{node}, namespace: ns}}\nspec: {{volume: {volume}, nodeName: {node}}}\n"
        )
    };
    let all = [
        volume("served", "a"),
        replicator("served", "b"),
        volume("followed", "b"),
        replicator("followed", "a"),
    ];
    std::fs::write(dir.join("all.yaml"), all.join("---\n")).unwrap();
}

fn options(dir: &Path, metrics: SocketAddr) -> Options {
    let [cert, key, ca] = Authority::new().files(dir, "a");
    let (metrics, listen) = (metrics.to_string(), "127.0.0.1:0".to_owned());
    let path = |name: &str| dir.join(name).display().to_string();
    let words = [
        ("--node", "a".to_owned()),
        ("--manifests", path("manifests")),
        ("--listen", listen),
        ("--metrics", metrics),
        ("--presto-socket", path("presto.sock")),
        ("--state", path("state")),
        ("--cache", path("cache")),
        ("--mounts", path("mounts")),
        ("--tls-cert", cert.display().to_string()),
        ("--tls-key", key.display().to_string()),
        ("--tls-ca", ca.display().to_string()),
        ("--admin-socket", path("admin.sock")),
    ];
    let words = words.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    Options::parse_from(std::iter::once("lento".to_owned()).chain(words))
}

/// Status, headers and body.
async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let ask = async {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = soon(ask).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

/// What a scraper keeps: series and their values.
#[derive(Debug)]
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads the text as a scraper does, and holds it to what the format asks for.
    fn parse(text: &str) -> Scrape {
        assert!(text.ends_with("# EOF\n"), "the end is missing: {text}");
        let (mut helped, mut typed, mut series) = (Vec::new(), Vec::new(), BTreeMap::new());
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                helped.push(rest.split_once(' ').expect("a help text").0.to_owned());
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                typed.push(rest.split_once(' ').unwrap().0.to_owned());
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let (name, unit) = rest.split_once(' ').unwrap();
                assert!(name.ends_with(unit), "{line}");
            } else {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let family = typed.last().expect("a type before the first series");
                assert!(name.starts_with(family.as_str()), "{line} is in the family {family}");
                let before = series.insert(name.to_owned(), value.parse().unwrap());
                assert!(before.is_none(), "twice: {line}");
            }
        }
        assert_eq!(helped, typed);
        let mut once = typed.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), typed.len(), "a family twice: {typed:?}");
        Scrape(series)
    }

    fn has(&self, series: &str) -> bool {
        self.0.contains_key(series)
    }

    fn value(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.0.keys()))
    }
}

async fn scrape(address: SocketAddr) -> Scrape {
    let (status, head, text) = get(address, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    Scrape::parse(&text)
}

/// Asks again until it is so.
async fn until<T: Debug, F: Future<Output = T>>(ask: impl Fn() -> F, right: impl Fn(&T) -> bool) -> T {
    for _ in 0..200 {
        let answer = ask().await;
        if right(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never so: {:#?}", ask().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scraper_sees_values_move_and_a_prober_sees_presto_go_away() {
    install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let content = dir.path().join("content");
    std::fs::write(&content, CONTENT).unwrap();
    manifests(&dir.path().join("manifests"));
    let presto = Arc::new(Presto {
        hand: HandPresto::listen(&dir.path().join("presto.sock")),
        journals: [SERVED, FOLLOWED]
            .map(|name| (name, Journal::new(dir.path().join("kml").join(name))))
            .into(),
        content,
    });
    // A free port, given back a moment before the agent takes it.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stop = CancellationToken::new();
    let agent = tokio::spawn(Agent::run(options(dir.path(), address), stop.clone()));

    // Nobody is there for it yet.
    let (status, _, _) = get(address, "/healthz").await;
    assert_eq!(status, 200);
    let (_, _, why) =
        until(|| get(address, "/readyz"), |(status, _, why)| *status == 503 && why.lines().count() == 3)
            .await;
    assert!(why.contains("presto is not attached"), "{why}");
    assert!(why.contains("volume ns/served: waiting for presto"), "{why}");
    assert_eq!(get(address, "/elsewhere").await.0, 404);
    let before = scrape(address).await;
    assert_eq!(before.value("intermezzo_presto_attached"), 0.0);
    assert_eq!(before.value(r#"intermezzo_volume_ready{volume="ns/served",role="server"}"#), 0.0);
    let position = r#"intermezzo_volume_position{volume="ns/served",role="server"}"#;
    assert!(!before.has(position), "a volume that has not begun has no position, not even 0");

    let gone = CancellationToken::new();
    let served = tokio::spawn({
        let (presto, gone) = (presto.clone(), gone.clone());
        async move { presto.serve(gone).await }
    });
    until(|| get(address, "/readyz"), |(status, _, _)| *status == 200).await;
    let idle = scrape(address).await;
    assert_eq!(idle.value("intermezzo_presto_attached"), 1.0);
    assert_eq!(idle.value(position), 0.0);
    let lag = |what: &str| {
        format!(r#"intermezzo_replicator_lag_{what}{{volume="ns/served",role="server",peer="b"}}"#)
    };
    assert_eq!(idle.value(&lag("records")), 0.0);
    assert!(!idle.has(&lag("bytes")), "b has never been here: it gets the whole tree");
    let pending =
        |what: &str| format!(r#"intermezzo_volume_pending_{what}{{volume="ns/followed",role="client"}}"#);
    assert_eq!(idle.value(&pending("records")), 0.0);
    assert_eq!(idle.value(r#"intermezzo_kml_bytes{volume="ns/served",role="server"}"#), 4096.0);
    assert_eq!(idle.value(r#"intermezzo_limbo_files{volume="ns/followed",role="client"}"#), 3.0);
    let build = format!(r#"intermezzo_build_info{{version="{}",node="a"}}"#, env!("CARGO_PKG_VERSION"));
    assert_eq!(idle.value(&build), 1.0);

    // Users write on both volumes. Node b is away, so both wait for it.
    for journal in presto.journals.values() {
        journal.user_writes("file");
    }
    let size = CONTENT.len() as f64;
    let moved = until(
        || scrape(address),
        // A client makes one record of a file's creation and its close.
        |scrape| scrape.value(&lag("records")) == 2.0 && scrape.value(&pending("records")) == 1.0,
    )
    .await;
    assert_eq!(moved.value(position), 2.0);
    assert_eq!(moved.value(&pending("bytes")), size);
    let age = moved.value(r#"intermezzo_volume_pending_age_seconds{volume="ns/followed",role="client"}"#);
    assert!((AGO as f64..AGO as f64 + 30.0).contains(&age), "{age}");
    assert_eq!(
        moved.value(r#"intermezzo_volume_connected{volume="ns/followed",role="client",peer="b"}"#),
        0.0
    );
    assert_eq!(moved.value(r#"intermezzo_volume_connected{volume="ns/served",role="server",peer="b"}"#), 0.0);
    assert_eq!(moved.value(r#"intermezzo_content_read_bytes_total{volume="ns/served",role="server"}"#), size);
    assert!(
        moved.value(r#"intermezzo_sync_duration_seconds_count{volume="ns/served",role="server"}"#) >= 1.0
    );

    // Presto goes away: the agent is alive and not ready; what it knows stays.
    gone.cancel();
    soon(served).await.unwrap();
    // The volumes may say so a moment earlier.
    let says_so =
        |(status, _, why): &(u16, String, String)| *status == 503 && why.contains("presto is not attached\n");
    until(|| get(address, "/readyz"), says_so).await;
    assert_eq!(get(address, "/healthz").await.0, 200);
    let away = scrape(address).await;
    assert_eq!(away.value("intermezzo_presto_attached"), 0.0);
    assert_eq!(away.value(position), 2.0);
    assert!(!away.has(r#"intermezzo_kml_bytes{volume="ns/served",role="server"}"#));

    // And comes back: pending and lag are told from the store and the log, not only from what was seen happening.
    let gone = CancellationToken::new();
    let served = tokio::spawn({
        let (presto, gone) = (presto.clone(), gone.clone());
        async move { presto.serve(gone).await }
    });
    until(|| get(address, "/readyz"), |(status, _, _)| *status == 200).await;
    stop.cancel();
    soon(agent).await.unwrap().unwrap();
    // By hand it ends when lento has closed the channel.
    assert!(soon(served).await.is_err());
}

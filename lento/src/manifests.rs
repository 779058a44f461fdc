//! Follows a directory of manifests. What is wrong is said with file, object and field, and the last good state stays.

use crate::desired::Desired;
use crate::desired::desired;
use intermezzo_api::manifest::Manifests;
use lento_core::io::NodeName;
use notify::Watcher;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

/// Events may be lost, and some file systems have none.
const POLL: Duration = Duration::from_secs(2);
/// Several files often change together.
const SETTLE: Duration = Duration::from_millis(50);

/// Reads `dir` now and whenever it changes, until told to stop.
#[must_use]
pub fn follow(dir: PathBuf, node: NodeName, stop: CancellationToken) -> watch::Receiver<Option<Desired>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        stop.run_until_cancelled(run(&dir, &node, &sender)).await;
    });
    receiver
}

async fn run(dir: &Path, node: &str, sender: &watch::Sender<Option<Desired>>) {
    let changed = Arc::new(Notify::new());
    let _watcher = watch(dir, changed.clone());
    let mut said = String::new();
    loop {
        match read(dir).await {
            Ok(manifests) => {
                if !said.is_empty() {
                    info!(target: "manifests", dir = %dir.display(), "the manifests are right again");
                    said.clear();
                }
                let now = Some(desired(&manifests, node));
                sender.send_if_modified(|last| {
                    let modified = *last != now;
                    *last = now;
                    modified
                });
            }
            Err(problems) if problems != said => {
                for problem in problems.lines() {
                    error!(target: "manifests", problem, "wrong manifest; the last good state stays");
                }
                said = problems;
            }
            Err(_) => {}
        }
        if tokio::time::timeout(POLL, changed.notified()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
    }
}

async fn read(dir: &Path) -> Result<Manifests, String> {
    let dir = dir.to_owned();
    let read = tokio::task::spawn_blocking(move || Manifests::read_dir(&dir)).await;
    read.map_err(|error| error.to_string())?.map_err(|problems| problems.to_string())
}

fn watch(dir: &Path, changed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            changed.notify_one();
        }
    })
    .and_then(|mut watcher| {
        watcher.watch(dir, notify::RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| warn!(target: "manifests", dir = %dir.display(), %error, "changes are noticed by looking only"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\nmetadata: {name: home, namespace: x}\nspec:\n  server: {nodeName: a}\n";
    const REPLICATOR: &str = "apiVersion: intermezzo.dev/v1alpha1\nkind: Replicator\nmetadata: {name: home-b, namespace: x}\nspec: {volume: home, nodeName: b}\n";

    async fn next(receiver: &mut watch::Receiver<Option<Desired>>) -> Desired {
        let wait = async {
            loop {
                receiver.changed().await.unwrap();
                if let Some(desired) = receiver.borrow_and_update().clone() {
                    return desired;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap()
    }

    #[tokio::test]
    async fn changes_are_followed_and_a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        std::fs::write(dir.path().join("volume.yaml"), VOLUME).unwrap();
        let mut server = follow(dir.path().to_owned(), "a".to_owned(), stop.clone());
        let mut client = follow(dir.path().to_owned(), "b".to_owned(), stop.clone());
        assert!(next(&mut server).await["x/home"].replication_list.is_empty());
        assert!(next(&mut client).await.is_empty());

        std::fs::write(dir.path().join("replicator.yaml"), REPLICATOR).unwrap();
        let at_server = next(&mut server).await;
        assert!(at_server["x/home"].is_server("a"));
        assert_eq!(at_server["x/home"].replication_list.iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(next(&mut client).await["x/home"].server, "a");

        let broken = VOLUME.replace("nodeName", "nodeNmae");
        std::fs::write(dir.path().join("volume.yaml"), broken).unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(500), server.changed()).await;
        assert!(waited.is_err(), "the last good state stays");

        std::fs::write(dir.path().join("volume.yaml"), VOLUME.replace("nodeName: a", "nodeName: c")).unwrap();
        assert!(next(&mut server).await.is_empty());
        stop.cancel();
    }
}

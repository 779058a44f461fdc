//! `kubectl intermezzo wait`: is it safe yet?
//!
//! The question goes to the agents by an annotation (`intermezzo_api::wait`); each answers for what its journal held when it
//! heard it. Another's question, asked after ours, answers ours too.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use anyhow::{Result, bail};
use intermezzo::Exit;
use intermezzo::output::say;
use intermezzo::progress::Progress;
use intermezzo_api::condition::{ACCEPTED, CONNECTED, READY};
use intermezzo_api::wait::{ANNOTATION, Ask, Scope};
use intermezzo_api::{Condition, Replicator, Volume};
use serde_json::json;
use tokio::time::Instant;

use crate::args::WaitArgs;
use crate::cluster::{Cluster, Space};

/// How often the objects are looked at.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) async fn run(cluster: &Cluster, args: &WaitArgs) -> Result<Exit> {
    if cluster.space == Space::All {
        bail!("wait is for one volume: name its namespace with -n, not -A");
    }
    let progress = Progress::spinner(&format!("Waiting for {}", args.volume));
    let outcome = wait(cluster, args, &progress).await;
    progress.finish();
    match outcome? {
        behind if behind.is_empty() => Ok(Exit::Done),
        behind => {
            say(format_args!("kubectl intermezzo: {} is not safe yet: {}", args.volume, lines(&behind)));
            Ok(Exit::NotTrue)
        }
    }
}

/// Who has not answered, and why; empty: it is safe.
type Behind = BTreeMap<String, String>;

async fn wait(cluster: &Cluster, args: &WaitArgs, progress: &Progress) -> Result<Behind> {
    let scope = if args.all { Scope::Everywhere } else { Scope::Server };
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    let mut ask = None;
    loop {
        let volume = cluster.volume(&args.volume).await?;
        if volume.metadata.deletion_timestamp.is_some() {
            bail!("Volume {} is being deleted", volume.id());
        }
        let now = Ask::of(&volume);
        let mine = match (ask, now) {
            // Whoever asked after us asked for what we wrote as well.
            (Some(_), Some(now)) if now.scope >= scope => now,
            _ => {
                let new = Ask { scope, number: RandomState::new().hash_one(&args.volume) };
                let patch = json!({"metadata": {"annotations": {ANNOTATION: new.to_string()}}});
                cluster.patch_volume(&args.volume, &patch).await?;
                new
            }
        };
        ask = Some(mine);
        let replicators: Vec<Replicator> = cluster.list().await?;
        let behind = behind(&volume, &replicators, mine, args.node.as_deref())?;
        progress.note(&lines(&behind));
        if behind.is_empty() || deadline.is_some_and(|deadline| Instant::now() + LOOK > deadline) {
            return Ok(behind);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn behind(volume: &Volume, replicators: &[Replicator], ask: Ask, only: Option<&str>) -> Result<Behind> {
    let (id, status) = (volume.id(), volume.status.clone().unwrap_or_default());
    let answered = |reached: Option<&str>| reached.and_then(Ask::parse) == Some(ask);
    let mut behind = Behind::new();
    let Some(server) = &status.server else {
        let why = find(&status.conditions, ACCEPTED).map_or("it has no server yet", |c| &c.message);
        behind.insert(id, why.to_owned());
        return Ok(behind);
    };
    let meant = |node: &str| only.is_none_or(|only| only == node);
    if let Some(node) =
        only.filter(|node| node != server && !status.replication_list.iter().any(|n| n == node))
    {
        bail!(
            "node {node} has no part in Volume {id}: it has {server} (server), {}",
            status.replication_list.join(", ")
        );
    }
    if meant(server) && !answered(status.reached.as_deref()) {
        behind.insert(server.clone(), why(&status.conditions));
    }
    for node in status.replication_list.iter().filter(|node| meant(node)) {
        let of_node = |one: &&Replicator| one.spec.node_name == *node && one.volume_id() == id;
        let found: Vec<&Replicator> = replicators.iter().filter(of_node).collect();
        let status = |one: &Replicator| one.status.clone().unwrap_or_default();
        if found.iter().any(|one| answered(status(one).reached.as_deref())) {
            continue;
        }
        let reason = match found.first() {
            None => "its Replicator is gone".to_owned(),
            Some(one) if one.spec.paused => "its Replicator is paused".to_owned(),
            Some(one) => match status(one).pending {
                Some(pending) if pending > 0 => format!("{pending} records without a verdict"),
                _ => why(&status(one).conditions),
            },
        };
        behind.insert(node.clone(), reason);
    }
    Ok(behind)
}

/// The condition that says why there is no answer.
fn why(conditions: &[Condition]) -> String {
    let wrong = [READY, CONNECTED].iter().filter_map(|type_| find(conditions, type_));
    let wrong = wrong.into_iter().find(|condition| condition.status != "True");
    wrong.map_or_else(|| "no answer yet".to_owned(), |condition| condition.message.clone())
}

fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

fn lines(behind: &Behind) -> String {
    behind.iter().map(|(node, why)| format!("{node}: {why}")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, cluster, some};

    fn args(node: Option<&str>) -> WaitArgs {
        let timeout = Some(Duration::from_secs(2));
        WaitArgs { volume: "shared".into(), all: true, node: node.map(str::to_owned), timeout }
    }

    async fn outcome(objects: Objects, node: Option<&str>) -> Result<Behind> {
        let (cluster, _) = cluster(objects);
        wait(&cluster, &args(node), &Progress::spinner("")).await
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_safe_once_every_agent_has_answered_this_question() {
        let all = Objects { answer: vec!["a", "b", "c", "d"], ..some() };
        assert_eq!(outcome(all, None).await.unwrap(), Behind::new());
        let mut old = Objects { answer: vec!["a", "b", "d"], ..some() };
        old.replicators[1]["status"]["reached"] = json!("all/0000000000000001");
        let behind = outcome(old, None).await.unwrap();
        let why = "not connected to the server; updates wait on the node";
        assert_eq!(behind, Behind::from([("c".to_owned(), why.to_owned())]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_behind_is_named_with_the_reason() {
        let behind = outcome(some(), None).await.unwrap();
        let expected = [
            ("a", "no answer yet"),
            ("b", "3 records without a verdict"),
            ("c", "not connected to the server; updates wait on the node"),
            ("d", "its Replicator is paused"),
        ];
        assert_eq!(behind, expected.map(|(node, why)| (node.to_owned(), why.to_owned())).into());
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_is_enough_where_only_it_is_asked_for() {
        let only_b = Objects { answer: vec!["b"], ..some() };
        assert_eq!(outcome(only_b, Some("b")).await.unwrap(), Behind::new());
        let error = outcome(some(), Some("x")).await.unwrap_err().to_string();
        assert!(error.contains("node x has no part in Volume team/shared"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_question_is_asked_once_and_a_later_one_of_somebody_else_will_do() {
        let (cluster, shared) = cluster(some());
        let other = {
            let shared = shared.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(700)).await;
                let mut objects = shared.lock();
                let later = json!("all/00000000000000ff");
                objects.volumes[0]["metadata"]["annotations"] = json!({ANNOTATION: later});
                objects.volumes[0]["status"]["reached"] = later.clone();
                objects.replicators.iter_mut().for_each(|one| one["status"]["reached"] = later.clone());
            })
        };
        let behind = wait(&cluster, &args(None), &Progress::spinner("")).await.unwrap();
        other.await.unwrap();
        assert_eq!(behind, Behind::new());
        assert_eq!(shared.lock().patches.len(), 1);
    }
}

//! `kubectl intermezzo pause | resume | pin | unpin`: changes of one Replicator's spec, which are kept whoever made the Replicator.

use anyhow::{Result, bail};
use intermezzo::Exit;
use intermezzo::output::say;
use intermezzo_api::{Mode, Replicator};
use serde_json::json;

use crate::args::{NodeArgs, PinArgs};
use crate::cluster::{Cluster, Space};

pub(crate) async fn pause(cluster: &Cluster, args: &NodeArgs, paused: bool) -> Result<Exit> {
    let replicator = find(cluster, args).await?;
    let name = replicator.metadata.name.clone().unwrap_or_default();
    cluster.patch_replicator(&name, &json!({"spec": {"paused": paused}})).await?;
    let NodeArgs { volume, node } = args;
    match (paused, replicator.spec.paused) {
        (true, true) => say(format_args!("{volume} was paused on {node} already")),
        (true, false) => say(format_args!(
            "{volume} is paused on {node}: programs go on, and nothing is sent or received until `resume`"
        )),
        (false, _) => say(format_args!("{volume} is replicated on {node}")),
    }
    Ok(Exit::Done)
}

/// Adds patterns, or takes them away.
pub(crate) async fn pin(cluster: &Cluster, args: &PinArgs, add: bool) -> Result<Exit> {
    let replicator = find(cluster, &args.node).await?;
    let volume = cluster.volume(&args.node.volume).await?;
    let mode = replicator.spec.mode.unwrap_or(volume.spec.replication.mode);
    if add && mode == Mode::Full {
        bail!("{} has all contents of {} in any case: its mode is Full", args.node.node, args.node.volume);
    }
    let pins = changed(&replicator.spec.pins, &args.patterns, add)?;
    let name = replicator.metadata.name.clone().unwrap_or_default();
    // Refused where somebody else has changed it in between: a list is replaced as a whole.
    let version = &replicator.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"pins": pins}});
    cluster.patch_replicator(&name, &patch).await?;
    match pins.is_empty() {
        true => say(format_args!("nothing is pinned on {}", args.node.node)),
        false => say(format_args!("pinned on {}: {}", args.node.node, pins.join(" "))),
    }
    Ok(Exit::Done)
}

fn changed(pins: &[String], patterns: &[String], add: bool) -> Result<Vec<String>> {
    let mut pins = pins.to_vec();
    for pattern in patterns {
        match (pins.iter().position(|pin| pin == pattern), add) {
            (None, true) => pins.push(pattern.clone()),
            (Some(at), false) => drop(pins.remove(at)),
            (Some(_), true) => {}
            (None, false) => bail!("{pattern} is not pinned; pinned are: {}", pins.join(" ")),
        }
    }
    Ok(pins)
}

async fn find(cluster: &Cluster, NodeArgs { volume, node }: &NodeArgs) -> Result<Replicator> {
    if cluster.space == Space::All {
        bail!("this is for one volume: name its namespace with -n, not -A");
    }
    let of_volume: Vec<Replicator> = cluster
        .list::<Replicator>()
        .await?
        .into_iter()
        .filter(|replicator| replicator.spec.volume == *volume)
        .collect();
    let nodes: Vec<String> = of_volume.iter().map(|replicator| replicator.spec.node_name.clone()).collect();
    if let Some(found) = of_volume.into_iter().find(|replicator| replicator.spec.node_name == *node) {
        return Ok(found);
    }
    // That there is no such Volume is worth more to know.
    let serves = cluster.volume(volume).await?.status.and_then(|status| status.server);
    if serves.as_deref() == Some(node) {
        bail!("{node} serves {volume}: it has no Replicator, and all contents");
    }
    bail!("{volume} has no Replicator on {node}; it has them on {}", nodes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, some};

    fn on(node: &str) -> NodeArgs {
        NodeArgs { volume: "shared".to_owned(), node: node.to_owned() }
    }

    fn pins(node: &str, patterns: &[&str]) -> PinArgs {
        PinArgs { node: on(node), patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect() }
    }

    #[tokio::test]
    async fn a_replicator_is_paused_and_resumed() {
        let (cluster, shared) = cluster(some());
        pause(&cluster, &on("b"), true).await.unwrap();
        assert_eq!(shared.lock().replicators[0]["spec"]["paused"], json!(true));
        pause(&cluster, &on("b"), false).await.unwrap();
        assert_eq!(shared.lock().replicators[0]["spec"]["paused"], json!(false));
    }

    #[tokio::test]
    async fn pins_are_added_once_and_taken_away() {
        let mut objects = some();
        objects.replicators[0]["spec"]["mode"] = json!("OnDemand");
        let (cluster, shared) = cluster(objects);
        let pinned = || shared.lock().replicators[0]["spec"]["pins"].clone();
        pin(&cluster, &pins("b", &["/a", "/b"]), true).await.unwrap();
        pin(&cluster, &pins("b", &["/b", "**/*.md"]), true).await.unwrap();
        assert_eq!(pinned(), json!(["/a", "/b", "**/*.md"]));
        pin(&cluster, &pins("b", &["/a"]), false).await.unwrap();
        assert_eq!(pinned(), json!(["/b", "**/*.md"]));
        let error = pin(&cluster, &pins("b", &["/a"]), false).await.unwrap_err().to_string();
        assert_eq!(error, "/a is not pinned; pinned are: /b **/*.md");
    }

    #[tokio::test]
    async fn what_has_no_replicator_or_has_everything_is_refused_with_a_sentence() {
        let (cluster, shared) = cluster(some());
        let error = pause(&cluster, &on("a"), true).await.unwrap_err().to_string();
        assert_eq!(error, "a serves shared: it has no Replicator, and all contents");
        let error = pause(&cluster, &on("x"), true).await.unwrap_err().to_string();
        assert_eq!(error, "shared has no Replicator on x; it has them on b, c, d");
        let error = pin(&cluster, &pins("b", &["/a"]), true).await.unwrap_err().to_string();
        assert_eq!(error, "b has all contents of shared in any case: its mode is Full");
        assert!(shared.lock().patches.is_empty());
    }
}

//! `kubectl intermezzo status`: one line for each Volume and each Replicator, and what is wrong below.

use anyhow::Result;
use intermezzo::Exit;
use intermezzo::output::{Table, print_text, print_value, say};

use crate::args::ListArgs;
use crate::cluster::Cluster;
use crate::view::{self, ReplicatorView, Truth, VolumeView, position};

pub(crate) async fn run(cluster: &Cluster, args: &ListArgs) -> Result<Exit> {
    let (volumes, orphans) = view::all(cluster, args.volume.as_deref()).await?;
    if !args.output.is_table() {
        print_value(args.output, &volumes)?;
        return Ok(Exit::Done);
    }
    if volumes.is_empty() && orphans.is_empty() {
        say("there are no volumes here; -A looks into all namespaces");
        return Ok(Exit::Done);
    }
    print_text(&text(&volumes, &orphans))?;
    Ok(Exit::Done)
}

pub(crate) fn text(volumes: &[VolumeView], orphans: &[ReplicatorView]) -> String {
    let mut table = Table::new(&[
        "VOLUME",
        "NODE",
        "ROLE",
        "READY",
        "CONNECTED",
        "POSITION",
        "PENDING",
        "LAG",
        "CONFLICTS",
    ]);
    for volume in volumes {
        let there = volume.replicators.iter().filter(|one| one.connected == Truth::Yes).count();
        table.row([
            volume.name.clone(),
            volume.server.clone().unwrap_or_default(),
            "Server".to_owned(),
            volume.ready.to_string(),
            format!("{there}/{}", volume.replicators.len()),
            position(volume.position.as_ref()),
            String::new(),
            String::new(),
            volume.conflicts.map(|count| count.to_string()).unwrap_or_default(),
        ]);
        for replicator in &volume.replicators {
            table.row([
                volume.name.clone(),
                format!("└ {}", replicator.node),
                "Replicator".to_owned(),
                String::new(),
                connected(replicator),
                position(replicator.position.as_ref()),
                replicator.pending.map(|pending| pending.to_string()).unwrap_or_default(),
                lag(replicator),
                String::new(),
            ]);
        }
    }
    let mut text = table.render();
    let replicators = volumes.iter().flat_map(|volume| &volume.replicators).chain(orphans);
    let of_volumes = volumes.iter().map(|volume| (format!("Volume {}", volume.name), &volume.problems));
    let of_replicators = replicators.map(|one| (format!("Replicator {}", one.name), &one.problems));
    for (name, problems) in of_volumes.chain(of_replicators) {
        for problem in problems {
            text.push_str(&format!("{name}: {problem}\n"));
        }
    }
    text
}

pub(crate) fn connected(replicator: &ReplicatorView) -> String {
    if replicator.paused { "paused".to_owned() } else { replicator.connected.to_string() }
}

/// Positions behind the server and the age of the oldest: `20 (2.0 s)`.
pub(crate) fn lag(replicator: &ReplicatorView) -> String {
    match (replicator.behind, replicator.lag_seconds) {
        (Some(0), _) => "0".to_owned(),
        (Some(behind), Some(seconds)) => format!("{behind} ({seconds:.1} s)"),
        (Some(behind), None) => behind.to_string(),
        (None, Some(seconds)) => format!("{seconds:.1} s"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, cluster, some};

    #[tokio::test]
    async fn everything_is_in_one_table_and_what_is_wrong_below() {
        let (cluster, _) = cluster(some());
        let (volumes, orphans) = view::all(&cluster, None).await.unwrap();
        insta::assert_snapshot!(text(&volumes, &orphans));
    }

    #[tokio::test]
    async fn a_cluster_without_the_definitions_is_told_from_a_wrong_name() {
        let refuse = Some((404, "404 page not found"));
        let (without, _) = cluster(Objects { refuse, ..Objects::default() });
        for only in [None, Some("shared")] {
            let error = view::all(&without, only).await.err().unwrap().to_string();
            assert!(error.contains("InterMezzo is not installed in it"), "{error}");
        }
        let (with, _) = cluster(some());
        let error = view::all(&with, Some("shard")).await.err().unwrap().to_string();
        assert!(error.contains("\"shard\" not found; there are shared, wrong"), "{error}");
    }

    #[tokio::test]
    async fn who_may_not_is_told_what() {
        let refuse = Some((403, "volumes.intermezzo.dev is forbidden: User \"eve\" cannot list resource"));
        let (cluster, _) = cluster(Objects { refuse, ..Objects::default() });
        let error = view::all(&cluster, None).await.err().unwrap().to_string();
        assert!(error.starts_with("you may not list volumes: ") && error.contains("eve"), "{error}");
    }
}

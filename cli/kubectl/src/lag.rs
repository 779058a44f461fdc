//! `kubectl intermezzo lag`: what each Replicator lacks, the furthest behind first.

use anyhow::Result;
use intermezzo::Exit;
use intermezzo::output::{Table, print_text, print_value, say};
use serde::Serialize;

use crate::args::ListArgs;
use crate::cluster::Cluster;
use crate::status::{connected, lag};
use crate::view::{self, ReplicatorView, VolumeView};

#[derive(Serialize)]
struct Line<'a> {
    volume: &'a str,
    #[serde(flatten)]
    replicator: &'a ReplicatorView,
}

pub(crate) async fn run(cluster: &Cluster, args: &ListArgs) -> Result<Exit> {
    let (volumes, _) = view::all(cluster, args.volume.as_deref()).await?;
    let lines = lines(&volumes);
    if !args.output.is_table() {
        print_value(args.output, &lines)?;
        return Ok(Exit::Done);
    }
    if lines.is_empty() {
        say("there are no Replicators here; -A looks into all namespaces");
        return Ok(Exit::Done);
    }
    print_text(&text(&lines))?;
    Ok(Exit::Done)
}

/// Who is not known to be anywhere is the furthest behind.
fn lines(volumes: &[VolumeView]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = volumes
        .iter()
        .flat_map(|volume| {
            volume.replicators.iter().map(|replicator| Line { volume: &volume.name, replicator })
        })
        .collect();
    let far = |line: &Line<'_>| {
        let one = line.replicator;
        (one.behind.unwrap_or(u64::MAX), one.lag_seconds.unwrap_or(0.0))
    };
    lines.sort_by(|a, b| far(b).partial_cmp(&far(a)).unwrap_or(std::cmp::Ordering::Equal));
    lines
}

fn text(lines: &[Line<'_>]) -> String {
    let mut table = Table::new(&["VOLUME", "NODE", "CONNECTED", "IN SYNC", "LAG", "PENDING"]);
    for Line { volume, replicator } in lines {
        table.row([
            (*volume).to_owned(),
            replicator.node.clone(),
            connected(replicator),
            replicator.in_sync.to_string(),
            lag(replicator),
            replicator.pending.map(|pending| pending.to_string()).unwrap_or_default(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, some};

    #[tokio::test]
    async fn the_furthest_behind_comes_first() {
        let (cluster, _) = cluster(some());
        let (volumes, _) = view::all(&cluster, None).await.unwrap();
        insta::assert_snapshot!(text(&lines(&volumes)));
    }
}

//! `kubectl intermezzo conflicts list`: updates that lost and are kept, as the Conflict objects tell.

use anyhow::Result;
use intermezzo::Exit;
use intermezzo::output::{Table, bytes, print_text, print_value, say};
use intermezzo_api::Conflict;
use serde::Serialize;

use crate::args::ListArgs;
use crate::cluster::Cluster;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConflictView {
    volume: String,
    position: u64,
    kind: String,
    path: String,
    node: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    size: u64,
}

impl From<Conflict> for ConflictView {
    fn from(conflict: Conflict) -> ConflictView {
        let namespace = conflict.metadata.namespace.unwrap_or_default();
        let spec = conflict.spec;
        ConflictView {
            volume: format!("{namespace}/{}", spec.volume),
            position: spec.position,
            kind: spec.kind,
            path: spec.path,
            node: spec.node_name,
            time: spec.time,
            size: spec.size,
        }
    }
}

pub(crate) async fn run(cluster: &Cluster, args: &ListArgs) -> Result<Exit> {
    let mut all: Vec<Conflict> = cluster.list().await?;
    all.retain(|conflict| args.volume.as_ref().is_none_or(|volume| conflict.spec.volume == *volume));
    let mut views: Vec<ConflictView> = all.into_iter().map(ConflictView::from).collect();
    views.sort_by(|a, b| (&a.volume, a.position).cmp(&(&b.volume, b.position)));
    if !args.output.is_table() {
        print_value(args.output, &views)?;
        return Ok(Exit::Done);
    }
    if views.is_empty() {
        say("there are no conflicts here");
        return Ok(Exit::Done);
    }
    print_text(&text(views))?;
    Ok(Exit::Done)
}

fn text(views: Vec<ConflictView>) -> String {
    let mut table = Table::new(&["VOLUME", "POSITION", "KIND", "FROM", "TIME", "SIZE", "PATH"]);
    for view in views {
        let (position, size) = (view.position.to_string(), bytes(view.size));
        table.row([
            view.volume,
            position,
            view.kind,
            view.node,
            view.time.unwrap_or_default(),
            size,
            view.path,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, some};

    #[tokio::test]
    async fn they_are_listed_as_the_command_line_of_a_node_does() {
        let (cluster, _) = cluster(some());
        let all: Vec<Conflict> = cluster.list().await.unwrap();
        let text = text(all.into_iter().map(ConflictView::from).collect());
        assert!(
            text.ends_with("team/shared  7         StoreStore  b     2026-01-01T00:00:00Z  1.5 KiB  a/f\n"),
            "{text}"
        );
    }
}

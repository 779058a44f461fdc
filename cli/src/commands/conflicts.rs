//! `intermezzo conflicts`: updates that lost and are kept.

use anyhow::Result;
use serde::Serialize;

use super::agents;
use crate::Exit;
use crate::admin::{self, Admin};
use crate::args::Conflicts;
use crate::fleet::layout::volume_id;
use crate::output::{Format, Table, bytes, print_text, print_value};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConflictView {
    position: u64,
    kind: String,
    path: String,
    node: String,
    time: String,
    size: u64,
    content: String,
}

pub(super) fn run(conflicts: &Conflicts) -> Result<Exit> {
    let Conflicts::List(args) = conflicts;
    let volume = volume_id(&args.volume)?;
    let mut views: Vec<ConflictView> = Vec::new();
    for agent in agents::find(&args.agents)? {
        let records = admin::block_on(async {
            Admin::connect(&agent.socket).await?.conflicts(&volume).await?.collect().await
        })?;
        for record in records {
            let time = record.time.unwrap_or_default();
            let nanos = i32::try_from(time.nsec).unwrap_or_default();
            let time =
                jiff::Timestamp::new(time.sec, nanos).map_or_else(|_| String::new(), |t| t.to_string());
            let (position, kind, path, node) = (record.position, record.kind, record.path, record.node);
            views.push(ConflictView {
                position,
                kind,
                path,
                node,
                time,
                size: record.size,
                content: record.content,
            });
        }
    }
    // The server keeps them all and a client its own: the same one may be told twice, with content first.
    views.sort_by(|a, b| a.position.cmp(&b.position).then_with(|| b.content.cmp(&a.content)));
    views.dedup_by_key(|view| view.position);
    let format = args.print.output;
    if !format.is_table() {
        print_value(format, &views)?;
        return Ok(Exit::Done);
    }
    let mut header = vec!["POSITION", "KIND", "FROM", "TIME", "SIZE", "PATH"];
    if format == Format::Wide {
        header.push("CONTENT");
    }
    let mut table = Table::new(&header);
    for view in views {
        let mut row =
            vec![view.position.to_string(), view.kind, view.node, view.time, bytes(view.size), view.path];
        if format == Format::Wide {
            row.push(view.content);
        }
        table.row(row);
    }
    print_text(&table.render())?;
    Ok(Exit::Done)
}

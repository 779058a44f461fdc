//! `intermezzo cml`: an agent's records that have no verdict yet.

use anyhow::Result;
use serde::Serialize;

use super::agents;
use crate::Exit;
use crate::admin::{self, Admin};
use crate::args::Cml;
use crate::fleet::layout::volume_id;
use crate::output::{Table, bytes, print_text, print_value};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordView {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    recno: u64,
    operation: String,
    path: String,
    state: String,
    size: u64,
}

pub(super) fn run(cml: &Cml) -> Result<Exit> {
    let Cml::List(args) = cml;
    let volume = volume_id(&args.volume)?;
    let mut views = Vec::new();
    for agent in agents::find(&args.agents)? {
        let records = admin::block_on(async {
            Admin::connect(&agent.socket).await?.cml(&volume).await?.collect().await
        })?;
        views.extend(records.into_iter().map(|record| RecordView {
            node: agent.node.clone(),
            recno: record.recno,
            operation: record.operation,
            path: record.path,
            state: record.state,
            size: record.size,
        }));
    }
    if !args.print.output.is_table() {
        print_value(args.print.output, &views)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["NODE", "RECNO", "OPERATION", "STATE", "SIZE", "PATH"]);
    for view in views {
        let node = view.node.unwrap_or_default();
        table.row([node, view.recno.to_string(), view.operation, view.state, bytes(view.size), view.path]);
    }
    print_text(&table.render())?;
    Ok(Exit::Done)
}

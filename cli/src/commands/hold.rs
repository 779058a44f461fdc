//! `intermezzo hold`: one node is about to remove a large part of the tree, and a person says whether that is meant.

use anyhow::Result;
use intermezzo_proto::v1::JudgeRequest;
use intermezzo_proto::v1::judge_request::Judgement;
use serde::Serialize;

use super::agents;
use super::resolve::server_of;
use crate::Exit;
use crate::admin;
use crate::args::{Hold, HoldArgs, VolumeArgs};
use crate::fleet::layout::volume_id;
use crate::output::{Table, print_text, print_value, say};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeldView {
    volume: String,
    node: String,
    removals: u64,
    objects: u64,
    paths: Vec<String>,
}

pub(super) fn run(hold: &Hold) -> Result<Exit> {
    match hold {
        Hold::List(args) => list(args),
        Hold::Approve(args) => judge(args, Judgement::Approve),
        Hold::Refuse(args) => judge(args, Judgement::Refuse),
    }
}

fn list(args: &VolumeArgs) -> Result<Exit> {
    let volume = volume_id(&args.volume)?;
    let mut views = Vec::new();
    for agent in agents::find(&args.agents)? {
        let status = admin::status(&agent.socket)?;
        for found in status.volumes.into_iter().filter(|found| found.name == volume) {
            views.extend(found.held.into_iter().map(|held| HeldView {
                volume: volume.clone(),
                node: held.node,
                removals: held.removals,
                objects: held.objects,
                paths: held.paths,
            }));
        }
    }
    if !args.print.output.is_table() {
        print_value(args.print.output, &views)?;
        return Ok(Exit::Done);
    }
    if views.is_empty() {
        say(format_args!("no removals wait on volume {volume}"));
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["NODE", "REMOVES", "OF", "SOME OF THEM"]);
    for view in views {
        table.row([view.node, view.removals.to_string(), view.objects.to_string(), view.paths.join(" ")]);
    }
    print_text(&table.render())?;
    Ok(Exit::Done)
}

fn judge(args: &HoldArgs, judgement: Judgement) -> Result<Exit> {
    let volume = volume_id(&args.of.volume)?;
    let socket = server_of(&args.of.agents, &args.of.volume)?;
    let request =
        JudgeRequest { volume: volume.clone(), node: args.whose.clone(), judgement: judgement.into() };
    admin::judge(&socket, request)?;
    let what = match judgement {
        Judgement::Approve => "are approved: they are done on every node",
        _ => "are refused: it gets back what it has removed",
    };
    say(format_args!("the removals of node {} on volume {volume} {what}", args.whose));
    Ok(Exit::Done)
}

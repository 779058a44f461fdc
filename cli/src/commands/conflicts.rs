//! `intermezzo conflicts`: updates that lost and are kept.

use std::fs::File;
use std::io;

use anyhow::{Context, Result, ensure};
use intermezzo_proto::v1::ConflictRecord;
use serde::Serialize;

use super::agents;
use super::diff;
use super::resolve;
use crate::Exit;
use crate::admin;
use crate::args::{ConflictArgs, Conflicts, VolumeArgs};
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
    match conflicts {
        Conflicts::List(args) => list(args),
        Conflicts::Show(args) => show(args),
        Conflicts::Diff(args) => diff::run(args),
        Conflicts::Resolve(args) => resolve::run(args),
    }
}

fn views(args: &VolumeArgs) -> Result<Vec<ConflictView>> {
    let volume = volume_id(&args.volume)?;
    let mut views: Vec<ConflictView> = Vec::new();
    for agent in agents::find(&args.agents)? {
        views.extend(admin::conflicts(&agent.socket, &volume)?.into_iter().map(view));
    }
    // The server keeps them all and a client its own: the same one may be told twice, with content first.
    views.sort_by(|a, b| a.position.cmp(&b.position).then_with(|| b.content.cmp(&a.content)));
    views.dedup_by_key(|view| view.position);
    Ok(views)
}

fn view(record: ConflictRecord) -> ConflictView {
    let time = record.time.unwrap_or_default();
    let nanos = i32::try_from(time.nsec).unwrap_or_default();
    let time = jiff::Timestamp::new(time.sec, nanos).map_or_else(|_| String::new(), |t| t.to_string());
    let ConflictRecord { position, kind, path, node, size, content, .. } = record;
    ConflictView { position, kind, path, node, time, size, content }
}

fn list(args: &VolumeArgs) -> Result<Exit> {
    let views = views(args)?;
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

fn show(args: &ConflictArgs) -> Result<Exit> {
    let volume = &args.of.volume;
    let found = views(&args.of)?.into_iter().find(|view| view.position == args.position);
    let view =
        found.with_context(|| format!("volume {volume} has no conflict at position {}", args.position))?;
    if args.content {
        ensure!(!view.content.is_empty(), "the conflict at position {} has no content", view.position);
        let mut kept =
            File::open(&view.content).with_context(|| format!("the losing content of {}", view.path))?;
        io::copy(&mut kept, &mut io::stdout().lock())?;
        return Ok(Exit::Done);
    }
    let format = args.of.print.output;
    if !format.is_table() {
        print_value(format, &view)?;
        return Ok(Exit::Done);
    }
    let content = if view.content.is_empty() { "none".to_owned() } else { view.content };
    let rows = [
        ("Path", view.path),
        ("Kind", view.kind),
        ("Position", view.position.to_string()),
        ("From", view.node),
        ("Time", view.time),
        ("Size", bytes(view.size)),
        ("Content", content),
    ];
    let text: String =
        rows.iter().map(|(name, value)| format!("{:<10}{value}\n", format!("{name}:"))).collect();
    print_text(&text)?;
    Ok(Exit::Done)
}

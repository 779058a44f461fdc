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
    state: String,
    kept: String,
    #[serde(skip_serializing_if = "is_none")]
    group: u64,
    operation: String,
}

/// Of no group.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(group: &u64) -> bool {
    *group == 0
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
    let ConflictRecord { position, kind, path, node, size, content, state, kept, group, operation, .. } =
        record;
    ConflictView { position, kind, path, node, time, size, content, state, kept, group, operation }
}

fn list(args: &VolumeArgs) -> Result<Exit> {
    let views = views(args)?;
    let format = args.print.output;
    if !format.is_table() {
        print_value(format, &views)?;
        return Ok(Exit::Done);
    }
    let mut header = vec!["POSITION", "KIND", "STATE", "FROM", "TIME", "SIZE", "PATH"];
    if format == Format::Wide {
        header.push("CONTENT");
    }
    let mut table = Table::new(&header);
    let (parts, heads): (Vec<ConflictView>, Vec<ConflictView>) =
        views.into_iter().partition(|view| view.group != 0);
    for view in heads {
        let own: Vec<&ConflictView> = parts.iter().filter(|part| part.group == view.position).collect();
        let size = view.size + own.iter().map(|part| part.size).sum::<u64>();
        let path = if own.is_empty() { view.path } else { format!("{} (+{})", view.path, own.len()) };
        let mut row =
            vec![view.position.to_string(), view.kind, view.state, view.node, view.time, bytes(size), path];
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
    let mut all = views(&args.of)?;
    let found = all.iter().position(|view| view.position == args.position);
    let found =
        found.with_context(|| format!("volume {volume} has no conflict at position {}", args.position))?;
    let view = all.swap_remove(found);
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
    let state = match (view.state.as_str(), view.kept.as_str()) {
        ("Decided", "Tree") => "Decided: the update is in the tree; kept is what stood there",
        ("Decided", _) => "Decided: the tree is as the server had it; kept is the update",
        ("Held", _) => "Held: waits for a person, and until then no other node's update changes it",
        _ => "Open: waits for a person; kept is the update",
    };
    let mut rows = vec![
        ("Path", view.path),
        ("Kind", view.kind),
        ("State", state.to_owned()),
        ("Position", view.position.to_string()),
        ("From", view.node),
        ("Time", view.time),
        ("Size", bytes(view.size)),
        ("Content", content),
    ];
    if view.group != 0 {
        rows.push(("Part of", view.group.to_string()));
    }
    let parts = all.into_iter().filter(|part| part.group == view.position);
    rows.extend(parts.map(|part| {
        ("Part", format!("{} {} {} ({})", part.position, part.operation, part.path, bytes(part.size)))
    }));
    let text: String =
        rows.iter().map(|(name, value)| format!("{:<10}{value}\n", format!("{name}:"))).collect();
    print_text(&text)?;
    Ok(Exit::Done)
}

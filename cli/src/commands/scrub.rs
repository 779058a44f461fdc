//! `intermezzo scrub`: what came to be behind presto's back.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::agents;
use crate::Exit;
use crate::admin::{self, Looking, ScrubProgress};
use crate::args::ScrubArgs;
use crate::fleet::layout::volume_id;
use crate::output::{Table, print_text, print_value, say};
use crate::progress::Progress;

/// Steps of the bar.
const STEPS: u64 = 1000;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    node: String,
    path: String,
    what: String,
    taken: bool,
}

pub(super) fn run(args: &ScrubArgs) -> Result<Exit> {
    let volume = volume_id(&args.of.volume)?;
    let what = if args.take { Looking::Take } else { Looking::Show };
    let (mut findings, mut found) = (Vec::new(), 0);
    for agent in agents::find(&args.of.agents)? {
        let node = agent.node.clone().unwrap_or_else(|| agent.socket.display().to_string());
        let end = follow(&agent.socket, &volume, what, &format!("Looking through {volume} on {node}"))?;
        found += end.found;
        if !end.trouble.is_empty() {
            say(format_args!("{node}: {}", end.trouble));
        }
        say(format_args!("{node}: {} names looked at, {} not as known", end.looked, end.found));
        findings.extend(end.findings.into_iter().map(|one| Finding {
            node: node.clone(),
            path: one.path,
            what: one.what,
            taken: end.taken,
        }));
    }
    if args.of.print.output.is_table() {
        let mut table = Table::new(&["NODE", "WHAT", "PATH"]);
        for one in &findings {
            table.row([one.node.clone(), one.what.clone(), one.path.clone()]);
        }
        if !findings.is_empty() {
            print_text(&table.render())?;
        }
    } else {
        print_value(args.of.print.output, &findings)?;
    }
    Ok(if found > 0 && !args.take { Exit::NotTrue } else { Exit::Done })
}

/// Follows a scrub to its end, with a bar.
pub(super) fn follow(socket: &Path, volume: &str, what: Looking, title: &str) -> Result<ScrubProgress> {
    let progress = Progress::steps(title, STEPS);
    let mut at = 0;
    let end = admin::scrub(socket, volume, what, &mut |answer| {
        let now = (answer.done.clamp(0.0, 1.0) * STEPS as f64) as u64;
        progress.advance(now.saturating_sub(at));
        at = at.max(now);
    });
    progress.finish();
    Ok(end?)
}

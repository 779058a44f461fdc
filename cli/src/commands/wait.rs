//! `intermezzo wait`: is it safe yet?

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;

use super::agents::{self, Agent};
use crate::Exit;
use crate::admin::{Admin, AdminError, Scope};
use crate::args::WaitArgs;
use crate::fleet::layout::volume_id;
use crate::output::say;
use crate::progress::Progress;

pub(super) fn run(args: &WaitArgs) -> Result<Exit> {
    let volume = volume_id(&args.volume)?;
    let scope = if args.all { Scope::Everywhere } else { Scope::Server };
    let agents = agents::find(&args.agents)?;
    let progress = Progress::spinner(&format!("Waiting for {volume}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(wait(agents, &volume, scope, args.timeout, &progress));
    progress.finish();
    match outcome? {
        Outcome::Reached => Ok(Exit::Done),
        Outcome::Late(behind) => {
            say(format_args!("intermezzo: {volume} is not safe yet: {}", behind.join("; ")));
            Ok(Exit::NotTrue)
        }
    }
}

enum Outcome {
    Reached,
    Late(Vec<String>),
}

/// What one agent says while it waits; `None`: reached.
type Said = (String, Option<String>);

async fn wait(
    agents: Vec<Agent>,
    volume: &str,
    scope: Scope,
    timeout: Option<Duration>,
    progress: &Progress,
) -> Result<Outcome, AdminError> {
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel::<Said>();
    let mut tasks = JoinSet::new();
    let mut behind = BTreeMap::new();
    for agent in agents {
        let name = agent.node.clone().unwrap_or_else(|| agent.socket.display().to_string());
        behind.insert(name.clone(), "no answer yet".to_owned());
        tasks.spawn(one(agent, name, volume.to_owned(), scope, said.clone()));
    }
    drop(said);
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(deadline);
    while !behind.is_empty() {
        tokio::select! {
            () = &mut deadline => return Ok(Outcome::Late(lines(&behind))),
            Some((name, waiting)) = heard.recv() => {
                match waiting {
                    Some(waiting) => drop(behind.insert(name, waiting)),
                    None => drop(behind.remove(&name)),
                }
                progress.note(&lines(&behind).join("; "));
            }
            Some(ended) = tasks.join_next() => {
                if let Ok(Err(error)) = ended {
                    return Err(error);
                }
            }
            else => break,
        }
    }
    Ok(if behind.is_empty() { Outcome::Reached } else { Outcome::Late(lines(&behind)) })
}

async fn one(
    agent: Agent,
    name: String,
    volume: String,
    scope: Scope,
    said: tokio::sync::mpsc::UnboundedSender<Said>,
) -> Result<(), AdminError> {
    let mut answers = Admin::connect(&agent.socket).await?.wait(&volume, scope).await?;
    while let Some(answer) = answers.next().await? {
        let waiting =
            (!answer.done).then(|| format!("{} records pending, {}", answer.pending, answer.waiting));
        let done = waiting.is_none();
        // Who does not listen any more has had enough.
        if said.send((name.clone(), waiting)).is_err() || done {
            break;
        }
    }
    Ok(())
}

fn lines(behind: &BTreeMap<String, String>) -> Vec<String> {
    behind.iter().map(|(node, waiting)| format!("{node}: {waiting}")).collect()
}

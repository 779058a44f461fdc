//! `intermezzo wait`: is it safe yet?

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
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

/// What one agent says: what it still waits for, or `None` when it is reached.
type Said = (String, Result<Option<String>, AdminError>);

async fn wait(
    agents: Vec<Agent>,
    volume: &str,
    scope: Scope,
    timeout: Option<Duration>,
    progress: &Progress,
) -> Result<Outcome, AdminError> {
    let (said, mut heard) = unbounded_channel::<Said>();
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
            said = heard.recv() => {
                let Some((name, waiting)) = said else { break };
                match waiting? {
                    Some(waiting) => drop(behind.insert(name, waiting)),
                    None => drop(behind.remove(&name)),
                }
                progress.note(&lines(&behind).join("; "));
            }
        }
    }
    Ok(if behind.is_empty() { Outcome::Reached } else { Outcome::Late(lines(&behind)) })
}

async fn one(agent: Agent, name: String, volume: String, scope: Scope, said: UnboundedSender<Said>) {
    let listen = async {
        let mut answers = Admin::connect(&agent.socket).await?.wait(&volume, scope).await?;
        while let Some(answer) = answers.next().await? {
            let waiting =
                (!answer.done).then(|| format!("{} records pending, {}", answer.pending, answer.waiting));
            let done = waiting.is_none();
            // Who does not listen any more has had enough.
            if said.send((name.clone(), Ok(waiting))).is_err() || done {
                break;
            }
        }
        Ok(())
    };
    if let Err(error) = listen.await {
        let _ = said.send((name.clone(), Err(error)));
    }
}

fn lines(behind: &BTreeMap<String, String>) -> Vec<String> {
    behind.iter().map(|(node, waiting)| format!("{node}: {waiting}")).collect()
}

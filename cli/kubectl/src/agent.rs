//! What only the agent of a volume's server knows, or may do: asked by `kubectl exec` into its pod, where `intermezzo` is. It
//! takes the right to do that, which is an administrator's.

use std::process::Command;

use anyhow::{Context, Result, bail};
use intermezzo::Exit;

use crate::args::{OneArgs, ResolveArgs, ShowArgs, Take, Target};
use crate::cluster::{Cluster, Space};

pub(crate) async fn show(cluster: &Cluster, target: &Target, args: &ShowArgs) -> Result<Exit> {
    let more = if args.content { vec!["--content"] } else { Vec::new() };
    ask(cluster, target, &args.one, "show", &more).await
}

pub(crate) async fn diff(cluster: &Cluster, target: &Target, args: &OneArgs) -> Result<Exit> {
    ask(cluster, target, args, "diff", &[]).await
}

pub(crate) async fn resolve(cluster: &Cluster, target: &Target, args: &ResolveArgs) -> Result<Exit> {
    let take = match args.take {
        Take::Mine => "mine",
        Take::Theirs => "theirs",
        Take::Drop => "drop",
    };
    ask(cluster, target, &args.one, "resolve", &["--take", take]).await
}

async fn ask(cluster: &Cluster, target: &Target, one: &OneArgs, verb: &str, more: &[&str]) -> Result<Exit> {
    if cluster.space == Space::All {
        bail!("a conflict is of one volume: name its namespace with -n, not -A");
    }
    let volume = cluster.volume(&one.volume).await?;
    let server = volume.status.as_ref().and_then(|status| status.server.clone());
    let server = server.with_context(|| format!("Volume {} has no server yet", volume.id()))?;
    let pod = cluster.agent_on(&server).await?;
    let mut command = conflict(target, &pod, &volume.id(), one.position, verb, more);
    let status = command.status().context("cannot run kubectl: is it in PATH?")?;
    Ok(if status.success() { Exit::Done } else { Exit::Failed })
}

fn conflict(
    target: &Target,
    pod: &(String, String),
    volume: &str,
    position: u64,
    verb: &str,
    more: &[&str],
) -> Command {
    let mut command =
        exec(target, pod, &["intermezzo", "conflicts", verb, &position.to_string(), "--volume", volume]);
    command.args(more);
    command
}

/// Runs `words` beside the agent in this pod. The image holds one program, which is either by the name it is called.
pub(crate) fn exec(target: &Target, (namespace, pod): &(String, String), words: &[&str]) -> Command {
    let mut command = Command::new("kubectl");
    if let Some(context) = &target.context {
        command.args(["--context", context]);
    }
    command.args(["exec", "--namespace", namespace, pod, "--container", "lento", "--"]);
    command.args(words);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_asked_in_the_words_of_its_own_command_line() {
        let target = Target { context: Some("lab".into()), ..Target::default() };
        let pod = ("intermezzo-system".to_owned(), "lento-x7".to_owned());
        let command = conflict(&target, &pod, "team/shared", 41, "resolve", &["--take", "drop"]);
        let words: Vec<&str> = command.get_args().filter_map(|word| word.to_str()).collect();
        assert_eq!(
            words.join(" "),
            "--context lab exec --namespace intermezzo-system lento-x7 --container lento -- \
             intermezzo conflicts resolve 41 --volume team/shared --take drop"
        );
    }
}

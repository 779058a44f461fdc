//! What only the agent of a volume's server knows, or may do: asked by `kubectl exec` into its pod, where `intermezzo` is. It
//! takes the right to do that, which is an administrator's.

use std::process::Command;

use anyhow::{Context, Result, bail};
use intermezzo::Exit;

use crate::args::{HistoryArgs, OneArgs, ResolveArgs, ShowArgs, Take, Target};
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

pub(crate) async fn history(cluster: &Cluster, target: &Target, args: &HistoryArgs) -> Result<Exit> {
    let limit = format!("--limit={}", args.limit);
    let at = args.at.as_ref().map(|at| format!("--at={at}"));
    let before = args.before.map(|before| format!("--before={before}"));
    let mut words = vec!["history", args.path.as_str(), &limit];
    words.extend(
        [at.as_deref(), before.as_deref(), args.content.then_some("--content")].into_iter().flatten(),
    );
    on_server(cluster, target, &args.volume, &words).await
}

async fn ask(cluster: &Cluster, target: &Target, one: &OneArgs, verb: &str, more: &[&str]) -> Result<Exit> {
    let position = one.position.to_string();
    let words = [&["conflicts", verb, &position], more].concat();
    on_server(cluster, target, &one.volume, &words).await
}

/// Runs `intermezzo` with these words beside the agent of the volume's server.
async fn on_server(cluster: &Cluster, target: &Target, volume: &str, words: &[&str]) -> Result<Exit> {
    if cluster.space == Space::All {
        bail!("this is about one volume: name its namespace with -n, not -A");
    }
    let volume = cluster.volume(volume).await?;
    let server = volume.status.as_ref().and_then(|status| status.server.clone());
    let server = server.with_context(|| format!("Volume {} has no server yet", volume.id()))?;
    let pod = cluster.agent_on(&server).await?;
    let mut command = about(target, &pod, &volume.id(), words);
    let status = command.status().context("cannot run kubectl: is it in PATH?")?;
    Ok(if status.success() { Exit::Done } else { Exit::Failed })
}

fn about(target: &Target, pod: &(String, String), volume: &str, words: &[&str]) -> Command {
    let mut command = exec(target, pod, &["intermezzo"]);
    command.args(words).args(["--volume", volume]);
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
        let words = ["conflicts", "resolve", "41", "--take", "drop"];
        let command = about(&target, &pod, "team/shared", &words);
        let words: Vec<&str> = command.get_args().filter_map(|word| word.to_str()).collect();
        assert_eq!(
            words.join(" "),
            "--context lab exec --namespace intermezzo-system lento-x7 --container lento -- \
             intermezzo conflicts resolve 41 --take drop --volume team/shared"
        );
    }
}

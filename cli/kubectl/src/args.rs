//! The words of the command line, as kubectl's users know them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use intermezzo::output::Format;
use intermezzo::seconds;

use crate::support::new_directory;

/// InterMezzo's volumes in a cluster: how they are, how far, and whether what was written is safe.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-intermezzo",
    bin_name = "kubectl intermezzo",
    version,
    about,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not true (yet), 4 the cluster does not answer.\n\
        kubectl finds this program by its name, kubectl-intermezzo, in PATH."
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster and which namespace.
#[derive(Debug, Default, Args)]
pub(crate) struct Target {
    /// Namespace of the volumes [default: the context's]
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, global = true, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show volumes and Replicators, how far they are, and what is wrong
    #[command(after_help = "Examples:\n  kubectl intermezzo status\n  kubectl intermezzo status -A -o json")]
    Status(ListArgs),
    /// Show what Replicators lack, those furthest behind first
    #[command(after_help = "Example:\n  kubectl intermezzo lag -n team shared")]
    Lag(ListArgs),
    /// Wait until what was written so far is safe: durable at the server, or with --all at every Replicator
    #[command(
        after_help = "Examples:\n  kubectl intermezzo wait shared --all --timeout 60\n  kubectl intermezzo wait shared --node node2 && kubectl drain node2\n\nIt annotates the Volume, which takes the right to patch it. Exit code 3: not in time; the message says who is behind."
    )]
    Wait(WaitArgs),
    /// A node neither sends nor receives a volume's updates for now; its programs go on
    #[command(
        after_help = "Example:\n  kubectl intermezzo pause shared node2\n\nIt sets `paused` of the Replicator, which takes the right to patch it."
    )]
    Pause(NodeArgs),
    /// It does again
    #[command(after_help = "Example:\n  kubectl intermezzo resume shared node2")]
    Resume(NodeArgs),
    /// Have contents on a node in any case, where they come on demand
    #[command(
        after_help = "Example:\n  kubectl intermezzo pin models node2 /current '**/*.json'\n\n`*` and `?` stand for what is in one name, `**` for any names. It changes `pins` of the Replicator, which takes the right to\npatch it. What is to come now and once: `intermezzo prefetch` on the node."
    )]
    Pin(PinArgs),
    /// Have them on demand again; what is there stays
    #[command(after_help = "Example:\n  kubectl intermezzo unpin models node2 /current")]
    Unpin(PinArgs),
    /// Updates that lost against another and are kept
    #[command(subcommand)]
    Conflicts(Conflicts),
    /// What happened to a file or directory of a volume, and what it was like
    #[command(
        after_help = "Examples:\n  kubectl intermezzo history shared /notes.txt\n  kubectl intermezzo history shared /notes.txt --at 2h --content | kubectl exec -i my-pod -- tee /data/notes.txt\n\nIt asks the agent of the volume's server, by `kubectl exec`. The Volume needs `history` in its spec."
    )]
    History(HistoryArgs),
    /// Collect what somebody needs to see who is to help: objects, events, logs, what agents say; no contents, no keys
    #[command(
        after_help = "Examples:\n  kubectl intermezzo support-bundle -A\n  kubectl intermezzo support-bundle -n team --out /tmp/bundle && tar -czf bundle.tgz -C /tmp bundle\n\nObjects of the namespace, or with -A of all; pods wherever they are. It asks agents by `kubectl exec`. Exit code 1: some of it\ncould not be had, and the file `missing` says why."
    )]
    SupportBundle(SupportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SupportArgs {
    /// Directory to make [default: intermezzo-support-TIME in the working directory]
    #[arg(long, value_name = "DIR", value_parser = new_directory)]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Conflicts {
    /// List conflicts
    #[command(after_help = "Example:\n  kubectl intermezzo conflicts list shared")]
    List(ListArgs),
    /// Show one conflict, or with --content what was kept of it
    #[command(
        after_help = "Example:\n  kubectl intermezzo conflicts show shared 1234 --content > kept.txt\n\nIt asks the agent of the volume's server, by `kubectl exec`."
    )]
    Show(ShowArgs),
    /// Show what differs between what is in the tree and what was kept, as diff -u does
    #[command(
        after_help = "Example:\n  kubectl intermezzo conflicts diff shared 1234\n\nIt asks the agent of the volume's server, by `kubectl exec`."
    )]
    Diff(OneArgs),
    /// Resolve a conflict: what is in the tree stays, and it is struck off the list
    #[command(
        after_help = "Examples:\n  kubectl intermezzo conflicts resolve shared 1234 --take theirs\n  kubectl intermezzo conflicts show shared 1234 --content | kubectl exec -i my-pod -- tee /data/notes.txt &&\n    kubectl intermezzo conflicts resolve shared 1234 --take drop\n\nIt tells the agent of the volume's server, by `kubectl exec`. Agents write nothing into volumes: where what was kept is to\nbe in the tree, write it there from a pod that has the volume, as in the second example."
    )]
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// File or directory, from the volume's root on; it may be gone
    #[arg(value_name = "PATH")]
    pub path: String,
    /// As it was then: after the update at a position, at a time, or so long ago (2h)
    #[arg(long, value_name = "WHEN")]
    pub at: Option<String>,
    /// As it was before the update at this position
    #[arg(long, value_name = "POSITION", conflicts_with = "at")]
    pub before: Option<u64>,
    /// Only the content of the file, as it was
    #[arg(long)]
    pub content: bool,
    /// So many lines at most, the newest; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
}

/// A replica.
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// The node
    #[arg(value_name = "NODE")]
    pub node: String,
}

#[derive(Debug, Args)]
pub(crate) struct PinArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Paths from the volume's root on, or patterns of them, each with everything below
    #[arg(value_name = "PATTERN", required = true)]
    pub patterns: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Its position, as `conflicts list` prints it
    pub position: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub one: OneArgs,
    /// Only what was kept, as it is
    #[arg(long)]
    pub content: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    #[command(flatten)]
    pub one: OneArgs,
    /// Which version stays
    #[arg(long, value_enum)]
    pub take: Take,
}

/// Which version stays: one that is in the tree already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Take {
    /// The update that clashed, where it is in the tree (policy ClientWins)
    Mine,
    /// What the server had, where that is in the tree
    Theirs,
    /// What is in the tree, whichever that is
    Drop,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only this volume
    #[arg(value_name = "VOLUME")]
    pub volume: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Until every Replicator has it, not only the server
    #[arg(long)]
    pub all: bool,
    /// Only what was written on this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Give up after this many seconds [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kubectls_flags_stand_anywhere() {
        let cli =
            Cli::try_parse_from(["kubectl-intermezzo", "wait", "v", "-n", "team", "--context", "c"]).unwrap();
        assert_eq!(
            (cli.target.namespace.as_deref(), cli.target.context.as_deref()),
            (Some("team"), Some("c"))
        );
        assert!(Cli::try_parse_from(["kubectl-intermezzo", "status", "-A", "-n", "team"]).is_err());
    }
}

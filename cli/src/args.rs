//! The words of the command line. Every command says what it does, shows an example and says whether it takes root.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::output::Format;

mod history;

pub(crate) use history::{HistoryArgs, PlaceArgs, RestoreArgs, When};

/// InterMezzo: volumes that live as plain files on every node that needs them.
#[derive(Debug, Parser)]
#[command(
    name = "intermezzo",
    version,
    about,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 not true (yet), 4 no agent answers.\n\
        Try it: sudo intermezzo dev up --dir /tmp/fleet"
)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try InterMezzo out: a fleet of nodes on this machine
    #[command(subcommand)]
    Dev(Dev),
    /// Show volumes, replicators and how far they are (root, or whoever may use the agent's socket)
    #[command(
        after_help = "Examples:\n  intermezzo status --dir /tmp/fleet\n  intermezzo status -o json --admin-socket /run/intermezzo/lento.sock"
    )]
    Status(StatusArgs),
    /// Wait until what was written so far is safe: durable at the server, or with --all at every replicator
    #[command(
        after_help = "Examples:\n  intermezzo wait --dir /tmp/fleet --volume demo --all\n  intermezzo wait --volume team/home --timeout 30 && echo safe\n\nExit code 3: not in time; the message says who is behind."
    )]
    Wait(WaitArgs),
    /// Look into a journal (KML) on disk (root: journals belong to presto)
    #[command(subcommand)]
    Kml(Kml),
    /// Look at what an agent has not had accepted yet
    #[command(subcommand)]
    Cml(Cml),
    /// Updates that lost against another and are kept
    #[command(subcommand)]
    Conflicts(Conflicts),
    /// What happened to a file or directory, and what it was like: who made, wrote, renamed or removed it, and when
    #[command(
        after_help = "Examples:\n  intermezzo history /mnt/home/notes.txt\n  intermezzo history --volume team/home /projects --limit 20\n  intermezzo history /mnt/home/notes.txt --at 2h --content > notes-of-then.txt\n  intermezzo history /mnt/home/projects --before 4711\n\nThe Volume needs `history` in its spec. It can be asked on every node of the volume; the server must be reachable.\nPaths that no longer exist can be asked for. See also: intermezzo restore"
    )]
    History(HistoryArgs),
    /// Bring back a file, or a whole directory, as it was (root)
    #[command(
        after_help = "Examples:\n  sudo intermezzo restore /mnt/home/notes.txt --at 4711\n  sudo intermezzo restore /mnt/home/projects --before 4712 --dry-run\n  sudo intermezzo restore /mnt/home/projects --at '2027-01-15 08:00' --to /mnt/home/projects-then\n\nWhat is written is an update of this node like any other: it goes to all nodes, and can be undone the same way. What stands\nthere now becomes history. Files that have come since then stay, unless --exact is given.\nExit code 3: some contents are not kept any more, or something is in the way; they are named."
    )]
    Restore(RestoreArgs),
    /// Bring the contents below some paths now, on a node that keeps contents on demand
    #[command(
        after_help = "Examples:\n  intermezzo prefetch /mnt/models/current\n  intermezzo prefetch /mnt/home/notes.txt /mnt/home/projects\n\nIt opens what is not here yet, with the rights of whoever asks; what has come stays. To have something here in any case,\nalso after others change it, pin it: `pins` of a Replicator.\nExit code 3: some contents could not be had; they are named."
    )]
    Prefetch(PrefetchArgs),
    /// Removals of a large part of a volume's tree by one node, which wait until somebody approves or refuses them
    #[command(subcommand)]
    Hold(Hold),
    /// Look through the plain files under a volume for changes that were made behind presto's back
    #[command(
        after_help = "Examples:\n  intermezzo scrub --dir /tmp/fleet --volume demo\n  intermezzo scrub --volume team/home --take\n\nExit code 3: something was found and not taken."
    )]
    Scrub(ScrubArgs),
    /// Make a CA and node certificates
    #[command(subcommand)]
    Pki(Pki),
    /// Make an initramfs that boots a machine from a Volume as its root file system
    #[command(
        after_help = "Examples:\n  intermezzo initramfs --kernel-modules /lib/modules/$(uname -r) --out initramfs.img\n  intermezzo initramfs --kernel-modules /lib/modules/6.12.1 --module xfs --shell /bin/busybox --compress --out initramfs.img\n  intermezzo initramfs --diskless --kernel-modules /lib/modules/6.12.1 --compress --out diskless.img\n\nKernel command line: rootfstype=intermezzo root=UUID=..., or root=intermezzo:NAMESPACE/NAME@NODE=ADDRESS (docs/root-filesystem.md)"
    )]
    Initramfs(InitramfsArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  intermezzo completions bash > /etc/bash_completion.d/intermezzo")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dev {
    /// Start a local fleet, or resume the one in DIR (takes root: it mounts)
    #[command(
        after_help = "Examples:\n  sudo intermezzo dev up --dir /tmp/fleet\n  sudo intermezzo dev up --dir /tmp/fleet --nodes 3 --volume team/home\n  sudo intermezzo dev up --dir /tmp/fleet --lower /mnt/xfs --lower /mnt/btrfs\n  sudo intermezzo dev up --dir /tmp/fleet --adopt /srv/data"
    )]
    Up(UpArgs),
    /// End a local fleet and unmount it; all data stays (takes root)
    #[command(after_help = "Example:\n  sudo intermezzo dev down --dir /tmp/fleet")]
    Down(DirArgs),
    /// Pause a node's Replicator: programs on it go on, and nothing is sent or received until `dev resume`
    #[command(after_help = "Example:\n  intermezzo dev pause b --dir /tmp/fleet")]
    Pause(DevNodeArgs),
    /// Let a paused Replicator go on
    #[command(after_help = "Example:\n  intermezzo dev resume b --dir /tmp/fleet")]
    Resume(DevNodeArgs),
    /// Show which processes of a local fleet run and where it is mounted
    Status(DevStatusArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// Directory of the fleet
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DevNodeArgs {
    /// Name of the node
    pub node: String,
    #[command(flatten)]
    pub at: DirArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub at: DirArgs,
    /// Number of nodes, named a, b, c...; a is the server [default: 2, or as many as there are]
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,
    /// Name of the volume, or namespace/name [default: default/demo, or the one there is]
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,
    /// Keep caches below this directory (another file system, say); given several times, nodes take turns
    #[arg(long, value_name = "DIR")]
    pub lower: Vec<PathBuf>,
    /// Make this existing directory the volume: it stays where it is, node a serves it, the others get copies
    #[arg(long, value_name = "DIR")]
    pub adopt: Option<PathBuf>,
    /// Keep what is overwritten and removed, for `intermezzo history` and `intermezzo restore`
    #[arg(long)]
    pub history: bool,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct DevStatusArgs {
    #[command(flatten)]
    pub at: DirArgs,
    #[command(flatten)]
    pub print: PrintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PrintArgs {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
}

/// Which agents are meant.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Directory of a local fleet: all its agents
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Only this node of the fleet
    #[arg(long, value_name = "NODE", requires = "dir")]
    pub node: Option<String>,
    /// Socket of one agent, where no fleet is named
    #[arg(long, value_name = "PATH", env = "INTERMEZZO_ADMIN_SOCKET", default_value = crate::admin::DEFAULT_SOCKET)]
    pub admin_socket: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub agents: AgentArgs,
    #[command(flatten)]
    pub print: PrintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PrefetchArgs {
    /// Files, or directories with everything below
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub agents: AgentArgs,
    /// The volume: name, or namespace/name
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    /// Until every replicator has it, not only the server
    #[arg(long)]
    pub all: bool,
    /// Give up after this many seconds [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Kml {
    /// Print the records of a journal
    #[command(
        after_help = "Examples:\n  sudo intermezzo kml dump /tmp/fleet/node-a/cache/default/demo\n  sudo intermezzo kml dump --from 1000 -o json PATH | jq .opcode"
    )]
    Dump(DumpArgs),
    /// Read a whole journal and check every record
    #[command(
        after_help = "Example:\n  sudo intermezzo kml verify /tmp/fleet/node-a/cache/default/demo\n\nExit code 3: the journal is damaged; the message names segment and offset."
    )]
    Verify {
        /// Directory of the journal, or of the volume's cache that holds it
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// Directory of the journal, or of the volume's cache that holds it
    pub path: PathBuf,
    /// First record number to print [default: the oldest kept]
    #[arg(long, value_name = "RECNO")]
    pub from: Option<u64>,
    /// Print at most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// json and yaml: one document for each record
    #[command(flatten)]
    pub print: PrintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(flatten)]
    pub agents: AgentArgs,
    /// The volume: name, or namespace/name
    #[arg(long, value_name = "VOLUME")]
    pub volume: String,
    #[command(flatten)]
    pub print: PrintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ScrubArgs {
    /// Make what is found this node's updates, as if programs had made them through the mount
    #[arg(long)]
    pub take: bool,
    #[command(flatten)]
    pub of: VolumeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cml {
    /// List records that wait for the server's verdict
    #[command(after_help = "Example:\n  intermezzo cml list --dir /tmp/fleet --volume demo --node b")]
    List(VolumeArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Conflicts {
    /// List conflicts and where the losing content is kept
    #[command(after_help = "Example:\n  intermezzo conflicts list --dir /tmp/fleet --volume demo")]
    List(VolumeArgs),
    /// Show one conflict, and write its losing content to standard output with --content
    #[command(
        after_help = "Examples:\n  intermezzo conflicts show 1234 --dir /tmp/fleet --volume demo\n  intermezzo conflicts show 1234 --volume team/home --content > theirs.txt"
    )]
    Show(ConflictArgs),
    /// Show what differs between what is in the tree and what was kept, as diff -u does (root, on the volume's server)
    #[command(after_help = "Example:\n  sudo intermezzo conflicts diff 1234 --volume team/home")]
    Diff(DiffArgs),
    /// Resolve a conflict: say which version stays, and strike it off the list (root, on the volume's server)
    #[command(
        after_help = "Examples:\n  sudo intermezzo conflicts resolve 1234 --volume team/home --take theirs\n  sudo intermezzo conflicts resolve 1234 --volume team/home --take both --name notes-of-anna.txt\n  sudo intermezzo conflicts resolve 1234 --volume team/home --take mine\n\nWhat is written is an update of the server like any other, and goes to all nodes; that the conflict is resolved is told\nto all as well. The content that was kept is removed then. A conflict with parts (a tree made in a directory that was\nremoved) is resolved as a whole: `mine` makes the directory again, `both` under another name."
    )]
    Resolve(ResolveArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Hold {
    /// List what waits: which node, how much of the tree, and some of the paths
    #[command(after_help = "Example:\n  intermezzo hold list --dir /tmp/fleet --volume demo")]
    List(VolumeArgs),
    /// Let a node's removals be done, everywhere (root, on the volume's server)
    #[command(after_help = "Example:\n  sudo intermezzo hold approve node2 --volume team/home")]
    Approve(HoldArgs),
    /// Refuse a node's removals: it gets back what it has removed (root, on the volume's server)
    #[command(after_help = "Example:\n  sudo intermezzo hold refuse node2 --volume team/home")]
    Refuse(HoldArgs),
}

#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// The node that removed it, as `hold list` prints it
    #[arg(value_name = "NODE")]
    pub whose: String,
    #[command(flatten)]
    pub of: VolumeArgs,
}

/// Which version of a conflict stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Take {
    /// The update that clashed: where it lost, it is done now, over what is in the tree
    Mine,
    /// What the server had: where it gave way, it is put back over the update
    Theirs,
    /// Both: what was kept gets another name, beside what is in the tree
    Both,
    /// What is in the tree, whichever that is: what was kept is removed
    Drop,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Its position, as `conflicts list` prints it
    pub position: u64,
    #[command(flatten)]
    pub of: VolumeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// Its position, as `conflicts list` prints it
    pub position: u64,
    /// Which version stays
    #[arg(long, value_enum)]
    pub take: Take,
    /// Name for what was kept, in the same directory; of a conflict with parts, for the directory that was removed
    #[arg(long, required_if_eq("take", "both"))]
    pub name: Option<String>,
    #[command(flatten)]
    pub of: VolumeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConflictArgs {
    /// Its position, as `conflicts list` prints it
    pub position: u64,
    /// Only the losing content, as it is (root, on the node that keeps it)
    #[arg(long, conflicts_with = "output")]
    pub content: bool,
    #[command(flatten)]
    pub of: VolumeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InitramfsArgs {
    /// Modules of the kernel that will boot, like /lib/modules/6.12.1
    #[arg(long, value_name = "DIR")]
    pub kernel_modules: PathBuf,
    /// Another module that the machine needs before its disk can be read; may be given several times
    #[arg(long, value_name = "NAME")]
    pub module: Vec<String>,
    /// For machines without a disk (root=intermezzo:...): lento and the modules of network interfaces as well
    #[arg(long)]
    pub diskless: bool,
    /// Where the programs intermezzo-boot, presto, presto-holder and lento are, best static ones [default: beside this program]
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
    /// A shell for emergencies (`intermezzo.shell` on the kernel's command line), for example a static busybox
    #[arg(long, value_name = "PATH")]
    pub shell: Option<PathBuf>,
    /// Another file; may be given several times
    #[arg(long, value_name = "FROM[:TO]")]
    pub file: Vec<String>,
    /// Compress it (zstd; the kernel needs CONFIG_RD_ZSTD, as distributions have it)
    #[arg(long)]
    pub compress: bool,
    /// Where to write it
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pki {
    /// Make a CA: ca.crt and ca.key in DIR, mode 0600
    #[command(
        after_help = "Example:\n  intermezzo pki ca --out ./pki\n\nKeep ca.key away from the nodes: whoever has it can be any node."
    )]
    Ca {
        /// Directory for the files
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Name in the certificate
        #[arg(long, default_value = "InterMezzo CA")]
        name: String,
        /// Days it is valid
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Make a node's certificate: NODE.crt and NODE.key in DIR, mode 0600
    #[command(
        after_help = "Example:\n  intermezzo pki node --ca ./pki --out ./pki node-7\n\nThe node's identity is the name NODE.node.intermezzo.internal in it."
    )]
    Node {
        /// Directory of the CA
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Directory for the files
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Days it is valid
        #[arg(long, default_value_t = 365)]
        days: u32,
        /// Names of the nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Pack a node's identity for a machine without a disk: an archive behind its initramfs, mode 0600
    #[command(
        after_help = "Example:\n  intermezzo pki archive --pki ./pki --out node-7.img node-7\n\nThe boot loader loads it as a second initrd, or `cat initramfs.img node-7.img` makes one of both. Whoever reads it can be that node."
    )]
    Archive {
        /// Directory with NODE.crt, NODE.key and ca.crt
        #[arg(long, value_name = "DIR")]
        pki: PathBuf,
        /// Directory with manifests of the node's volume and Replicator [default: what the kernel's command line says]
        #[arg(long, value_name = "DIR")]
        manifests: Option<PathBuf>,
        /// Where to write it
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Name of the node
        node: String,
    },
}

/// A number of seconds, perhaps with a fraction.
///
/// # Errors
/// It is none.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("\"{text}\" is not a number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
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
    fn seconds_may_have_a_fraction() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("-1").is_err());
        assert!(seconds("soon").is_err());
    }
}

//! `make cluster`, `make cluster-down`, `make cluster-tools`: the test cluster by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use intermezzo::output::say;
use intermezzo_tests::cluster::parts::{self, Parts};
use intermezzo_tests::cluster::{Cluster, Wanted, images, logs, teardown};

/// Until the chart's programs run everywhere.
const INSTALL: Duration = Duration::from_secs(300);

/// A real Kubernetes on this machine: for trying InterMezzo out, and for its tests. Takes root.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Build Kubernetes, CoreDNS and helm, if they are absent or out of date
    Tools,
    /// Bring a cluster up, with InterMezzo installed and a Volume to try
    Up {
        #[command(flatten)]
        place: Place,
        /// Nodes, besides the control plane
        #[arg(long, env = "NODES", default_value_t = 2)]
        nodes: usize,
        /// Kubernetes only: no images, no chart, no Volume
        #[arg(long)]
        bare: bool,
        /// Where `make images` left the archives
        #[arg(long, default_value = "target/images")]
        images: PathBuf,
    },
    /// Take the cluster away: processes, mounts, links and files
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// Cut a node off: its link goes down
    Partition {
        #[command(flatten)]
        place: Place,
        /// For example node2
        node: String,
    },
    /// Undo `partition`
    Heal {
        #[command(flatten)]
        place: Place,
        /// For example node2
        node: String,
    },
    /// Run a command on a node, as its root
    Run {
        #[command(flatten)]
        place: Place,
        /// For example node2
        node: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Copy all logs and descriptions into a directory
    Logs {
        #[command(flatten)]
        place: Place,
        /// The directory
        into: PathBuf,
    },
}

#[derive(clap::Args)]
struct Place {
    /// Directory of the cluster [default: intermezzo/cluster in the user's cache]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Place {
    fn dir(&self) -> Result<PathBuf> {
        let tools = parts::tools()?;
        Ok(self.dir.clone().unwrap_or_else(|| tools.with_file_name("cluster")))
    }

    fn open(&self) -> Result<Cluster> {
        Cluster::open(&self.dir()?)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("cluster: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(what: &What) -> Result<()> {
    match what {
        What::Tools => Parts::ready(&mut |text| say(text)).map(|_| ()),
        What::Up { place, nodes, bare, images } => up(&place.dir()?, *nodes, (!bare).then_some(images)),
        What::Down { place } => {
            let dir = place.dir()?;
            if !dir.join("cluster.json").exists() {
                say(format_args!("There is no cluster in {}.", dir.display()));
                return Ok(());
            }
            let begin = Instant::now();
            teardown::down(&dir)?;
            say(format_args!("The cluster is gone ({:.1} s).", begin.elapsed().as_secs_f64()));
            Ok(())
        }
        What::Partition { place, node } => place.open()?.partition(node),
        What::Heal { place, node } => place.open()?.heal(node),
        What::Run { place, node, command } => {
            let cluster = place.open()?;
            let (program, arguments) = command.split_first().context("no command")?;
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            intermezzo::output::print_text(&cluster.node(node)?.run(program, &arguments)?)?;
            Ok(())
        }
        What::Logs { place, into } => {
            fs::create_dir_all(into)?;
            logs::collect(&place.open()?, into);
            Ok(())
        }
    }
}

fn up(dir: &Path, nodes: usize, with_images: Option<&PathBuf>) -> Result<()> {
    let begin = Instant::now();
    let mut step = |text: &str| say(format_args!("[{:5.1} s] {text}", begin.elapsed().as_secs_f64()));
    let images = with_images.map(|dir| images::ours(dir)).transpose()?.unwrap_or_default();
    let cluster = Cluster::up(&Wanted { dir: dir.to_owned(), nodes, images }, &mut step)?;
    let installed = if with_images.is_some() { install(&cluster, &mut step)? } else { Installed::Nothing };
    say(format_args!("[{:5.1} s] The cluster is up.\n", begin.elapsed().as_secs_f64()));
    tell(&cluster, installed);
    Ok(())
}

/// What runs in the cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Installed {
    Nothing,
    Chart,
}

fn install(cluster: &Cluster, step: &mut dyn FnMut(&str)) -> Result<Installed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let chart = root.join("charts/intermezzo");
    if !chart.join("Chart.yaml").exists() {
        step(
            "There is no chart in charts/intermezzo: Kubernetes only (--bare says so without asking for images)",
        );
        return Ok(Installed::Nothing);
    }
    step("Installing the chart");
    let timeout = format!("{}s", INSTALL.as_secs());
    let chart = chart.canonicalize()?;
    cluster.helm().run_within(
        &[
            "upgrade",
            "--install",
            "intermezzo",
            &chart.to_string_lossy(),
            "--namespace",
            "intermezzo-system",
            "--create-namespace",
            "--wait",
            "--timeout",
            &timeout,
        ],
        INSTALL + Duration::from_secs(30),
    )?;
    step("Making a Volume and two pods that use it");
    cluster.kubectl().apply(include_str!("../../cluster/manifests/sample.yaml"))?;
    Ok(Installed::Chart)
}

fn tell(cluster: &Cluster, installed: Installed) {
    say(format_args!("  export KUBECONFIG={}", cluster.kubeconfig().display()));
    say(format_args!(
        "  export PATH={}:$PATH   # kubectl and helm of this cluster's version",
        cluster.programs().display()
    ));
    say("  kubectl get nodes -o wide");
    if installed == Installed::Chart {
        say("  kubectl get volumes,replicators --all-namespaces");
        say("  kubectl exec writer-node1 -- sh -c 'echo hello > /shared/hello'");
        say("  kubectl exec writer-node2 -- cat /shared/hello");
    }
    say("\nmake cluster-down takes it away.");
}

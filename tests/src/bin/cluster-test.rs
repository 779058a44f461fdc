//! `make test-cluster`: InterMezzo on a real Kubernetes of three nodes, from `helm install` to `helm uninstall`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use intermezzo::output::{Table, print_text, say};
use intermezzo_tests::cluster::{Cluster, Wanted, images, logs, teardown};
use intermezzo_tests::scenarios::{ALL, NODES, Scenario, Suite};

/// Brings a cluster up, runs every scenario in it, and takes it down again.
#[derive(Parser)]
struct Args {
    /// Directory below which the cluster is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
    /// Where `make images` left the archives
    #[arg(long, default_value = "target/images")]
    images: PathBuf,
    /// Where the logs of everything go if a scenario fails
    #[arg(long, default_value = "target/cluster-logs")]
    logs: PathBuf,
    /// Scenarios to run, by name; `install` before all others unless the cluster is kept [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// A cluster of `cluster up --nodes 3 --bare`, or of an earlier run with this: it is used, made if it is absent, and stays
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    match test(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("cluster-test: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

struct Report {
    begin: Instant,
    table: Table,
}

impl Report {
    fn step(&mut self, name: &str, what: &str, took: Duration) {
        let took = format!("{:.1} s", took.as_secs_f64());
        say(format_args!("✓ {name}: {what} ({took})"));
        self.table.row([name.to_owned(), took, what.to_owned()]);
    }
}

/// Takes the cluster away whatever happens, a panic too.
struct Guard(Option<PathBuf>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take()
            && let Err(error) = teardown::down(&dir)
        {
            say(format_args!("cluster-test: {error:#}"));
        }
    }
}

fn test(args: &Args) -> Result<()> {
    let chosen = chosen(&args.only)?;
    let mut report = Report { begin: Instant::now(), table: Table::new(&["STEP", "TIME", "WHAT"]) };
    let mut cluster = match &args.keep {
        Some(dir) if dir.join("cluster.json").exists() => Cluster::open(dir)?,
        other => {
            let made = || {
                let made = tempfile::Builder::new().prefix("intermezzo-cluster-").tempdir_in(&args.base)?;
                Ok::<_, std::io::Error>(made.keep())
            };
            up(args, &other.clone().map_or_else(made, Ok)?, &mut report)?
        }
    };
    let mut guard = Guard(args.keep.is_none().then(|| cluster.dir.clone()));
    let tested = run(args, &mut cluster, &chosen, &mut report);
    if tested.is_err() {
        say(format_args!(
            "Logs of agents, operator, nodes and pods, and all objects: {}",
            collect(&cluster, &args.logs)
        ));
    }
    if let Some(dir) = guard.0.take() {
        let begin = Instant::now();
        cluster.down()?;
        ensure!(!dir.exists(), "{} is left", dir.display());
        report.step("down", "the cluster is gone: processes, mounts, links, files", begin.elapsed());
    }
    let total = format!("{:.1} s", report.begin.elapsed().as_secs_f64());
    report.table.row(["total".into(), total, String::new()]);
    print_text(&format!("\n{}", report.table.render()))?;
    tested
}

fn chosen(only: &[String]) -> Result<Vec<(&'static str, Scenario)>> {
    for name in only {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        ensure!(
            known.contains(&name.as_str()),
            "there is no scenario {name}; there are: {}",
            known.join(", ")
        );
    }
    let is_chosen =
        |(name, _): &(&str, Scenario)| only.is_empty() || only.iter().any(|chosen| chosen == name);
    Ok(ALL.into_iter().filter(is_chosen).collect())
}

fn up(args: &Args, dir: &Path, report: &mut Report) -> Result<Cluster> {
    let begin = Instant::now();
    let wanted = Wanted { dir: dir.to_owned(), nodes: NODES.len(), images: images::ours(&args.images)? };
    let cluster = Cluster::up(&wanted, &mut |text| say(text))?;
    report.step("up", "three nodes ready, images loaded, names of Services resolve", begin.elapsed());
    Ok(cluster)
}

fn run(args: &Args, cluster: &mut Cluster, chosen: &[(&str, Scenario)], report: &mut Report) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("intermezzo-scenarios-").tempdir_in(&args.base)?;
    let mut suite = Suite::new(cluster, scratch.path())?;
    for (name, scenario) in chosen {
        let begin = Instant::now();
        let saw = scenario(&mut suite).with_context(|| format!("scenario {name:?}"))?;
        report.step(name, &saw, begin.elapsed());
    }
    Ok(())
}

/// A directory of its own for each failure, so that an earlier one is not mixed with it.
fn collect(cluster: &Cluster, below: &Path) -> String {
    let name = cluster.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let into = below.join(name);
    match fs::create_dir_all(&into) {
        Ok(()) => {
            logs::collect(cluster, &into);
            into.display().to_string()
        }
        Err(error) => format!("nowhere: {}: {error}", into.display()),
    }
}

//! `make cluster-check`: the test cluster is what its users take it for. Everything is seen from outside, with kubectl.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use intermezzo::fleet::mounts;
use intermezzo::output::{Table, print_text, say};
use intermezzo_tests::cluster::command::until;
use intermezzo_tests::cluster::parts::Parts;
use intermezzo_tests::cluster::pod::Pod;
use intermezzo_tests::cluster::{Cluster, Wanted, images, logs};

const MANIFESTS: &str = include_str!("../../cluster/manifests/check.yaml");
/// For pods to start, and for what was cut to be noticed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Brings a cluster of two nodes up, tries what the end-to-end tests rely on, and takes it down again.
#[derive(Parser)]
struct Args {
    /// Directory below which the cluster is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
    /// Where logs go if it fails
    #[arg(long, default_value = "target/cluster-logs")]
    logs: PathBuf,
}

fn main() -> ExitCode {
    match check(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("cluster-check: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Says what was seen and how long it took.
type Step<'a> = &'a mut dyn FnMut(&str, &str, Duration);

fn check(args: &Args) -> Result<()> {
    let mut table = Table::new(&["STEP", "WHAT", "TIME"]);
    let mut step = |name: &str, what: &str, took: Duration| {
        say(format_args!("✓ {name}: {what} ({:.1} s)", took.as_secs_f64()));
        table.row([name.to_owned(), what.to_owned(), format!("{:.1} s", took.as_secs_f64())]);
    };
    let dir = tempfile::Builder::new().prefix("intermezzo-cluster-").tempdir_in(&args.base)?.keep();
    let parts = Parts::ready(&mut |text| say(text))?;
    let before = machine()?;
    let begin = Instant::now();
    // Not those of the cache: building them is one of the things that could change this machine.
    let (once, again) = (tempfile::tempdir_in(&args.base)?, tempfile::tempdir_in(&args.base)?);
    let made = images::for_cluster_in(once.path(), &parts)?;
    for (one, other) in made.iter().zip(images::for_cluster_in(again.path(), &parts)?) {
        ensure!(fs::read(one)? == fs::read(other)?, "{} is another when it is made again", name(one));
    }
    step("images", "busybox and CoreDNS, made twice: the same bytes", begin.elapsed());
    let begin = Instant::now();
    let mut cluster =
        Cluster::up(&Wanted { dir: dir.clone(), nodes: 2, images: Vec::new() }, &mut |text| say(text))?;
    step("up", "two nodes ready, names of Services resolve", begin.elapsed());

    let tried = tried(&mut cluster, &mut step);
    if tried.is_err() {
        fs::create_dir_all(&args.logs)?;
        logs::collect(&cluster, &args.logs);
        say(format_args!("Logs are in {}.", args.logs.display()));
    }
    let traces = traces(&cluster)?;
    let begin = Instant::now();
    cluster.down()?;
    step("down", "the command says that nothing is left", begin.elapsed());
    tried?;

    let begin = Instant::now();
    nothing_is_left(&dir, &traces)?;
    let changed: Vec<PathBuf> =
        machine()?.symmetric_difference(&before).map(|(path, _)| path.clone()).collect();
    ensure!(changed.is_empty(), "changed on this machine meanwhile: {changed:?}");
    let what = "no process, namespace, mount, link, control group, file; /etc, /opt, /usr/libexec as before";
    step("left", what, begin.elapsed());
    print_text(&format!("\n{}", table.render()))?;
    Ok(())
}

fn tried(cluster: &mut Cluster, step: Step<'_>) -> Result<()> {
    let kubectl = cluster.kubectl();
    let begin = Instant::now();
    kubectl.apply(MANIFESTS)?;
    for what in ["daemonset/mounter", "daemonset/reader"] {
        kubectl.rolled_out("default", what, PATIENCE)?;
    }
    kubectl.run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=120s"])?;
    step("pods", "a DaemonSet that mounts, one that reads, a web server", begin.elapsed());

    let begin = Instant::now();
    for node in ["node1", "node2"] {
        let reader = Pod::of(&kubectl, "default", "app=reader", node)?;
        // Its pod may have started before the mount was made.
        until("the mount to be seen", PATIENCE, || sees(&reader, "/mounts/volume/node", node))?;
        let said = kubectl.run(&["logs", &Pod::of(&kubectl, "default", "app=mounter", node)?.name])?;
        ensure!(said == format!("mounted on {node}\n"), "the log of {node}'s mounter is {said:?}");
    }
    step("mounts", "what a pod mounts, another pod of the node sees, by exec; logs", begin.elapsed());

    let begin = Instant::now();
    let far = Pod::of(&kubectl, "default", "app=reader", "node2")?;
    for name in ["web", "web.default.svc.cluster.local"] {
        until("the Service to answer", PATIENCE, || fetches(&far, name))?;
    }
    let unknown = fetches(&far, "nobody.default.svc.cluster.local");
    ensure!(unknown.is_err(), "a Service that does not exist answers");
    step("names", "a Service of node1 by its name from node2", begin.elapsed());

    let begin = Instant::now();
    cluster.partition("node2")?;
    until("node2 to be seen as cut off", PATIENCE, || {
        let ready = kubectl.ready_nodes()?;
        ensure!(ready == BTreeSet::from(["node1".to_owned()]), "ready are {ready:?}");
        Ok(())
    })?;
    step("partition", "node2 cut off: not ready, node1 is", begin.elapsed());

    let begin = Instant::now();
    cluster.heal("node2")?;
    until("node2 to be ready again", PATIENCE, || {
        ensure!(kubectl.ready_nodes()?.len() == 2, "node2 is not ready");
        Ok(())
    })?;
    until("the Service to answer", PATIENCE, || fetches(&far, "web"))?;
    step("heal", "node2 ready, its pod reaches node1 by name", begin.elapsed());

    let begin = Instant::now();
    cluster.stop("kube-apiserver")?;
    ensure!(kubectl.run(&["get", "--raw", "/readyz"]).is_err(), "the API server answers though it was ended");
    cluster.restart("kube-apiserver")?;
    until("the API server to be back", PATIENCE, || kubectl.run(&["get", "--raw", "/readyz"]))?;
    until("exec to work again", PATIENCE, || fetches(&far, "web"))?;
    step("apiserver", "ended and started again", begin.elapsed());
    Ok(())
}

fn sees(pod: &Pod, path: &str, content: &str) -> Result<()> {
    let seen = pod.exec(&["busybox", "cat", path])?;
    ensure!(seen.trim_end() == content, "{} sees {seen:?} in {path}", pod.name);
    Ok(())
}

/// With nc: Debian's static busybox ends its wget with a segmentation fault where there are no shared libraries.
fn fetches(pod: &Pod, host: &str) -> Result<()> {
    let request = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {host} 80");
    let page = pod.exec(&["sh", "-c", &request])?;
    ensure!(page.ends_with("\nhello from node1\n"), "http://{host}/ is {page:?}");
    Ok(())
}

/// What a cluster could leave behind: namespaces and control groups of its processes.
struct Traces {
    namespaces: BTreeSet<PathBuf>,
    groups: BTreeSet<PathBuf>,
    links: BTreeSet<PathBuf>,
}

fn traces(cluster: &Cluster) -> Result<Traces> {
    let mut machines = vec![&cluster.control];
    machines.extend(&cluster.nodes);
    let mut namespaces = BTreeSet::new();
    for machine in machines {
        for kind in ["net", "mnt", "uts", "pid"] {
            namespaces.insert(fs::read_link(format!("/proc/{}/ns/{kind}", machine.pid()?))?);
        }
    }
    let links = listing("/sys/class/net")?.into_iter().filter(|link| name(link).starts_with("imz")).collect();
    let traces = Traces { namespaces, groups: groups(), links };
    // Else nothing could be left of them, and the check would prove nothing.
    ensure!(
        !traces.groups.is_empty() && !traces.links.is_empty(),
        "the cluster's control groups or link are not found"
    );
    Ok(traces)
}

fn nothing_is_left(dir: &Path, traces: &Traces) -> Result<()> {
    ensure!(!dir.exists(), "{} is left", dir.display());
    ensure!(mounts::below(dir).is_empty(), "mounts are left: {:?}", mounts::below(dir));
    let links: Vec<&PathBuf> =
        traces.links.iter().filter(|link| fs::symlink_metadata(link).is_ok()).collect();
    ensure!(links.is_empty(), "links are left: {links:?}");
    let left: Vec<&PathBuf> = traces.groups.iter().filter(|group| group.exists()).collect();
    ensure!(left.is_empty(), "control groups are left: {left:?}");
    for process in listing("/proc")?.iter().filter(|path| name(path).parse::<u32>().is_ok()) {
        for kind in ["net", "mnt", "uts", "pid"] {
            if let Ok(namespace) = fs::read_link(process.join("ns").join(kind))
                && traces.namespaces.contains(&namespace)
            {
                bail!("process {} is left, in the namespace {}", name(process), namespace.display());
            }
        }
    }
    Ok(())
}

fn groups() -> BTreeSet<PathBuf> {
    let mut hierarchies = listing("/sys/fs/cgroup").unwrap_or_default();
    hierarchies.push("/sys/fs/cgroup".into());
    let below = |hierarchy: PathBuf| listing(hierarchy.join("k8s.io")).unwrap_or_default();
    hierarchies.into_iter().flat_map(below).filter(|path| path.is_dir()).collect()
}

fn listing(dir: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let dir = dir.as_ref();
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Names and times of what programs of a cluster write to unless told otherwise.
fn machine() -> Result<BTreeSet<(PathBuf, std::time::SystemTime)>> {
    let mut found = BTreeSet::new();
    let mut waiting: Vec<PathBuf> = ["/etc", "/opt", "/usr/libexec"].map(PathBuf::from).into();
    waiting.retain(|dir| dir.is_dir());
    // A directory that is made at the top is seen too.
    for top in ["/", "/usr", "/usr/libexec", "/var/lib", "/var/log"] {
        found.extend(listing(top)?.into_iter().map(|path| (path, std::time::SystemTime::UNIX_EPOCH)));
    }
    while let Some(dir) = waiting.pop() {
        for path in listing(&dir)? {
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            found.insert((path, metadata.modified()?));
        }
    }
    Ok(found)
}

//! `make bench`: figures of replication, and of the file system beside the native one under it, as a table and as JSON.
//!
//! It asserts nothing: targets stand beside the figures. Native and mount alternate, so that a slow minute hits both.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use intermezzo::admin::Scope;
use intermezzo::fleet::Daemon;
use intermezzo::output::{Table, print_text, say};
use intermezzo_tests::fleet::{Keep, Temporary};
use intermezzo_tests::run::timed;
use intermezzo_tests::sources::{self, Kind};
use intermezzo_tests::walk::walk_both;
use serde::Serialize;

const PATIENCE: Duration = Duration::from_secs(300);

/// Measures replication, and the file system against the native directory beside it.
#[derive(Parser)]
struct Args {
    /// What to measure
    #[arg(value_enum, default_values_t = [Part::Replication, Part::Files])]
    parts: Vec<Part>,
    /// Pairs of runs of each file system figure
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Directory below which everything is made; it says which native file system is measured
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Two nodes
    Replication,
    /// One node and no network: programs and presto on one CPU, lento on another if there is one
    Files,
}

/// One figure.
#[derive(Clone, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    /// In the same unit; what is wanted.
    target: Option<f64>,
    /// Whether less is better.
    less: bool,
    detail: String,
}

fn main() -> ExitCode {
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> Result<()> {
    let mut figures = Vec::new();
    if args.parts.contains(&Part::Replication) {
        figures.extend(replication(&args.base).context("replication")?);
    }
    if args.parts.contains(&Part::Files) {
        figures.extend(files(&args.base, args.pairs).context("files")?);
    }
    let mut table = Table::new(&["FIGURE", "VALUE", "TARGET", "", "DETAIL"]);
    for figure in &figures {
        let met = |target: f64| if figure.less { figure.value <= target } else { figure.value >= target };
        let sign = if figure.less { "<=" } else { ">=" };
        let target = figure.target.map_or(String::new(), |target| format!("{sign} {target} {}", figure.unit));
        let verdict = figure.target.map_or("", |target| if met(target) { "met" } else { "MISSED" });
        let value = format!("{:.3} {}", figure.value, figure.unit);
        table.row([figure.name.clone(), value, target, verdict.to_owned(), figure.detail.clone()]);
    }
    print_text(&table.render())?;
    if let Some(dir) = args.json.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&args.json, serde_json::to_vec_pretty(&figures)?)?;
    say(format_args!("JSON: {}", args.json.display()));
    Ok(())
}

fn seconds(name: &str, took: Duration, target: f64, detail: impl Into<String>) -> Figure {
    let (name, detail) = (name.to_owned(), detail.into());
    Figure { name, value: took.as_secs_f64(), unit: "s", target: Some(target), less: true, detail }
}

/// Packs at most this many files of the dependencies' sources and says how many bytes they have.
fn archive(dir: &Path, most: usize) -> Result<(PathBuf, usize, u64)> {
    let tree = dir.join("tree");
    fs::create_dir_all(&tree)?;
    let (mut files, mut bytes) = (0, 0);
    for item in sources::dependencies()? {
        if item.kind == Kind::File {
            // The few huge generated ones would make it a test of something else.
            if item.size > 1 << 20 {
                continue;
            }
            files += 1;
            bytes += item.size;
        }
        sources::copy(&item, &tree)?;
        if files == most {
            break;
        }
    }
    let archive = dir.join("tree.tar");
    timed("tar", &[Path::new("cf"), &archive, Path::new("tree")], dir)?;
    #[allow(clippy::disallowed_methods)] // Made above.
    fs::remove_dir_all(&tree)?;
    Ok((archive, files, bytes))
}

fn replication(base: &Path) -> Result<Vec<Figure>> {
    let scratch = tempfile::Builder::new().prefix("intermezzo-bench-").tempdir_in(base)?;
    let fleet = Temporary::up(base, "intermezzo-bench", 2, Keep::Nothing)?;
    let (a, b) = (fleet.mount("a")?, fleet.mount("b")?);
    let safe =
        || -> Result<()> { Ok(fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?) };
    let mut figures = Vec::new();

    let (tar, files, bytes) = archive(scratch.path(), 11_000)?;
    let untar = timed("tar", &[Path::new("xf"), &tar, Path::new("-C"), &a], scratch.path())?;
    let begin = Instant::now();
    safe()?;
    let detail =
        format!("{files} files, {} MB, untar itself {:.2} s", bytes / 1_000_000, untar.as_secs_f64());
    figures.push(seconds("second node equal after untar", begin.elapsed(), 1.0, detail));
    equal(&a, &b)?;

    let mut latencies = Vec::new();
    fs::create_dir(a.join("small"))?;
    visible(|| b.join("small").is_dir())?;
    for n in 0..300 {
        let name = format!("small/{n}");
        fs::write(a.join(&name), [b'x'; 1024])?;
        let begin = Instant::now();
        visible(|| fs::read(b.join(&name)).is_ok_and(|content| content.len() == 1024))?;
        latencies.push(begin.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    latencies.sort();
    let at = |part: usize| {
        latencies.get(latencies.len() * part / 100).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    for (part, target) in [(50, 3.0), (90, 5.0)] {
        let name = format!("small file visible, p{part}");
        let detail = "300 files of 1 KiB, one by one".to_owned();
        figures.push(Figure { name, value: at(part), unit: "ms", target: Some(target), less: true, detail });
    }
    figures.extend(large(scratch.path(), &a, &b, &safe)?);

    for n in 0..2_000 {
        let dir = a.join("many");
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(n.to_string()), "x")?;
    }
    safe()?;
    visible(|| b.join("many/1999").exists())?;
    let begin = Instant::now();
    fs::rename(a.join("many"), a.join("moved"))?;
    visible(|| b.join("moved/1999").exists() && !b.join("many").exists())?;
    let value = begin.elapsed().as_secs_f64() * 1e3;
    let (name, detail) = ("rename of a 2,000-file directory seen".to_owned(), String::new());
    figures.push(Figure { name, value, unit: "ms", target: Some(5.0), less: true, detail });

    let removal = timed("rm", &["-rf", "tree"], &a)?;
    let begin = Instant::now();
    visible(|| !b.join("tree").exists())?;
    let detail = format!("{files} files, rm itself {:.2} s", removal.as_secs_f64());
    figures.push(seconds("rm -rf seen after it ends", begin.elapsed(), 0.2, detail));
    safe()?;
    equal(&a, &b)?;
    Ok(figures)
}

fn large(scratch: &Path, a: &Path, b: &Path, safe: &dyn Fn() -> Result<()>) -> Result<Vec<Figure>> {
    const SIZE: u64 = 256 << 20;
    let source = scratch.join("large");
    let mut file = File::create(&source)?;
    let mut random = File::open("/dev/urandom")?.take(SIZE);
    std::io::copy(&mut random, &mut file)?;
    file.sync_all()?;

    let begin = Instant::now();
    fs::copy(&source, scratch.join("copy"))?;
    File::open(scratch.join("copy"))?.sync_all()?;
    let native = begin.elapsed();
    fs::remove_file(scratch.join("copy"))?;

    let begin = Instant::now();
    fs::copy(&source, a.join("large"))?;
    visible(|| fs::metadata(b.join("large")).is_ok_and(|meta| meta.len() == SIZE))?;
    safe()?;
    let took = begin.elapsed();
    let detail = format!("{:.2} s against {:.2} s for cp and sync", took.as_secs_f64(), native.as_secs_f64());
    let (name, value) = ("256 MiB file on both nodes".to_owned(), took.as_secs_f64() / native.as_secs_f64());
    let whole = Figure { name, value, unit: "x", target: Some(1.2), less: true, detail };

    let begin = Instant::now();
    let file = File::options().write(true).open(a.join("large"))?;
    file.write_all_at(&[7; 4096], SIZE / 2)?;
    drop(file);
    let mut seen = [0; 4096];
    visible(|| {
        let read = File::open(b.join("large")).and_then(|file| file.read_exact_at(&mut seen, SIZE / 2));
        read.is_ok() && seen == [7; 4096]
    })?;
    Ok(vec![whole, seconds("4 KiB changed in it seen", begin.elapsed(), 0.15, "")])
}

fn visible(mut there: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !there() {
        if begin.elapsed() > PATIENCE {
            bail!("a change did not arrive in {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

fn equal(a: &Path, b: &Path) -> Result<()> {
    let (first, second) = walk_both(a, b)?;
    let different = first.differences(&second);
    ensure!(
        different.is_empty(),
        "the nodes differ in {} names, first {:?}",
        different.len(),
        different.first()
    );
    Ok(())
}

/// One workload in a directory: what is to be there first, and what is timed.
type Workload = (fn(&Path, &Path) -> Result<()>, fn(&Path, &Path) -> Result<()>);

fn files(base: &Path, pairs: usize) -> Result<Vec<Figure>> {
    let (cpu, other) = two_cpus()?;
    pin(None, cpu)?;
    let scratch = tempfile::Builder::new().prefix("intermezzo-bench-").tempdir_in(base)?;
    let native = scratch.path().join("native");
    fs::create_dir(&native)?;
    // Daemons inherit the CPU; lento works behind the programs' backs, as it does wherever there is more than one.
    let fleet = Temporary::up(base, "intermezzo-bench", 1, Keep::Nothing)?;
    let node = fleet.fleet.node("a")?;
    let lento = fleet.fleet.running(node, Daemon::Lento).context("lento does not run")?;
    for task in fs::read_dir(format!("/proc/{}/task", lento.pid))? {
        pin(Some(task?.file_name().to_string_lossy().parse()?), other)?;
    }
    let quiet = || -> Result<()> {
        fleet.fleet.wait(node, Scope::Server, PATIENCE)?;
        // Nor does what was written before still go to the disk.
        rustix::fs::sync();
        Ok(())
    };
    let mount = fleet.mount("a")?;
    archive(scratch.path(), 2_000)?;

    let mut figures = Vec::new();
    let workloads: [(&str, f64, bool, Workload); 12] = [
        ("untar", 3.3, true, (nothing, untar)),
        ("rm -rf", 1.9, true, (untar, remove_tree)),
        ("create + 4k", 3.2, true, (nothing, make)),
        ("unlink", 2.2, true, (make, unlink)),
        ("rename", 2.6, true, (make, rename)),
        ("mkdir", 2.3, true, (nothing, mkdir)),
        ("open + close", 6.0, true, (make, open_close)),
        ("stat", 1.1, true, (make_and_stat, stat)),
        ("second readdir", 0.6, true, (make_and_list, readdir)),
        ("fsync loop", 1.05, true, (nothing, fsync)),
        ("write throughput", 0.95, false, (nothing, write)),
        ("read throughput", 0.95, false, (write, read)),
    ];
    for (name, target, less, workload) in workloads {
        let mut ratios = Vec::new();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..=pairs {
            let dir = format!("{}-{pair}", name.replace(' ', "-"));
            let run = |root: &Path| -> Result<f64> {
                let dir = root.join(&dir);
                fs::create_dir(&dir)?;
                workload.0(&dir, scratch.path())?;
                quiet()?;
                let begin = Instant::now();
                workload.1(&dir, scratch.path())?;
                let took = begin.elapsed().as_secs_f64();
                timed("rm", &[Path::new("-rf"), &dir], root)?;
                quiet()?;
                Ok(took)
            };
            // Who goes first changes from pair to pair.
            let (n, m) = if pair % 2 == 0 {
                let n = run(&native)?;
                (n, run(&mount)?)
            } else {
                let m = run(&mount)?;
                (run(&native)?, m)
            };
            if pair > 0 {
                ratios.push(if less { m / n } else { n / m });
                ours.push(m * 1e3);
                theirs.push(n * 1e3);
            }
        }
        let detail =
            format!("{:.2} ms against {:.2} ms, median of {pairs} pairs", median(ours), median(theirs));
        say(format_args!("{name}: {detail}"));
        figures.push(Figure {
            name: name.into(),
            value: median(ratios),
            unit: "x",
            target: Some(target),
            less,
            detail,
        });
    }
    Ok(figures)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Two CPUs this process may use, the same one twice if there is no other.
fn two_cpus() -> Result<(usize, usize)> {
    let all = rustix::thread::sched_getaffinity(None)?;
    let mut cpus = (0..rustix::thread::CpuSet::MAX_CPU).rev().filter(|cpu| all.is_set(*cpu));
    let first = cpus.next().context("no CPU")?;
    Ok((first, cpus.next().unwrap_or(first)))
}

/// The thread (this one, and all it starts, if none is named) runs on one CPU.
fn pin(thread: Option<i32>, cpu: usize) -> Result<()> {
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpu);
    let thread = thread.map(|id| rustix::process::Pid::from_raw(id).context("no thread")).transpose()?;
    Ok(rustix::thread::sched_setaffinity(thread, &one)?)
}

const COUNT: usize = 1_000;

fn nothing(_: &Path, _: &Path) -> Result<()> {
    Ok(())
}

fn each(mut work: impl FnMut(usize) -> std::io::Result<()>) -> Result<()> {
    Ok((0..COUNT).try_for_each(&mut work)?)
}

fn make(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::write(dir.join(n.to_string()), [1; 4096]))
}

fn untar(dir: &Path, scratch: &Path) -> Result<()> {
    timed("tar", &[Path::new("xf"), &scratch.join("tree.tar")], dir).map(drop)
}

fn remove_tree(dir: &Path, _: &Path) -> Result<()> {
    timed("rm", &["-rf", "tree"], dir).map(drop)
}

fn unlink(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::remove_file(dir.join(n.to_string())))
}

fn rename(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::rename(dir.join(n.to_string()), dir.join(format!("r{n}"))))
}

fn mkdir(dir: &Path, _: &Path) -> Result<()> {
    each(|n| fs::create_dir(dir.join(n.to_string())))
}

fn open_close(dir: &Path, _: &Path) -> Result<()> {
    each(|n| File::open(dir.join(n.to_string())).map(drop))
}

fn stat(dir: &Path, _: &Path) -> Result<()> {
    (0..10).try_for_each(|_| each(|n| fs::metadata(dir.join(n.to_string())).map(drop)))
}

fn make_and_stat(dir: &Path, scratch: &Path) -> Result<()> {
    make(dir, scratch)?;
    stat(dir, scratch)
}

fn readdir(dir: &Path, _: &Path) -> Result<()> {
    for _ in 0..10 {
        ensure!(fs::read_dir(dir)?.count() == COUNT, "names are missing");
    }
    Ok(())
}

fn make_and_list(dir: &Path, scratch: &Path) -> Result<()> {
    make(dir, scratch)?;
    readdir(dir, scratch)
}

fn fsync(dir: &Path, _: &Path) -> Result<()> {
    let mut file = File::create(dir.join("file"))?;
    for _ in 0..100 {
        file.write_all(&[1; 4096])?;
        file.sync_all()?;
    }
    Ok(())
}

const BLOCK: usize = 128 << 10;
const BLOCKS: u64 = 1024;

fn write(dir: &Path, _: &Path) -> Result<()> {
    let file = File::create(dir.join("file"))?;
    let block = vec![1; BLOCK];
    Ok((0..BLOCKS).try_for_each(|n| file.write_all_at(&block, n * BLOCK as u64))?)
}

fn read(dir: &Path, _: &Path) -> Result<()> {
    let file = File::open(dir.join("file"))?;
    let mut block = vec![0; BLOCK];
    Ok((0..BLOCKS).try_for_each(|n| file.read_exact_at(&mut block, n * BLOCK as u64))?)
}

//! `make demo`: two nodes on this machine, real files, proof that they are equal.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use intermezzo::admin::Scope;
use intermezzo::fleet::HistorySpec;
use intermezzo::fleet::process::binary;
use intermezzo::output::{Table, bytes, print_text, say};
use intermezzo::progress::Progress;
use intermezzo_tests::cluster::command::output;
use intermezzo_tests::fleet::{Keep, Temporary};
use intermezzo_tests::sources::{self, Kind};
use intermezzo_tests::walk::{walk, walk_both};

/// Fewer files than this would prove little.
const ENOUGH: usize = 10_000;
/// For what should take seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// Copies the sources of this project's dependencies into a volume on node a and shows that node b becomes equal.
#[derive(Parser)]
struct Args {
    /// Leave the fleet running
    #[arg(long, env = "KEEP", num_args = 0..=1, default_missing_value = "1", value_parser = clap::builder::BoolishValueParser::new(), default_value = "0", hide_env_values = true)]
    keep: bool,
    /// Directory below which the fleet is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    match demo(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("demo: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Says what was done and how long it took.
type Step<'a> = &'a mut dyn FnMut(&str, String, Duration);

fn demo(args: &Args) -> Result<()> {
    let keep = if args.keep { Keep::Everything } else { Keep::Nothing };
    let mut steps = Table::new(&["STEP", "WHAT", "TIME"]);
    let mut step = |name: &str, what: String, took: Duration| {
        say(format_args!("✓ {name}: {what} ({:.2} s)", took.as_secs_f64()));
        steps.row([name.to_owned(), what, format!("{:.2} s", took.as_secs_f64())]);
    };

    let begin = Instant::now();
    let mut fleet = Temporary::up(&args.base, "intermezzo-demo", 2, keep)?;
    fleet.fleet.set_history(Some(HistorySpec::default()))?;
    let (a, b) = (fleet.mount("a")?, fleet.mount("b")?);
    step("fleet", "nodes a (server) and b, each presto and lento".into(), begin.elapsed());

    let shown = show(&fleet, &a, &b, &mut step);
    if shown.is_err() && args.keep {
        fleet.keep();
    }
    shown?;
    print_text(&format!("\n{}", steps.render()))?;
    if args.keep {
        print_text(&format!("\nnode a: {}\nnode b: {}\n", a.display(), b.display()))?;
    }
    Ok(())
}

fn show(fleet: &Temporary, a: &Path, b: &Path, step: Step<'_>) -> Result<()> {
    let items = sources::dependencies()?;
    let files = items.iter().filter(|item| item.kind == Kind::File).count();
    let size = items.iter().map(|item| item.size).sum();
    ensure!(files >= ENOUGH, "the dependencies have only {files} files, which is too few to prove anything");

    let progress = Progress::steps("Copying to node a", items.len() as u64);
    for item in &items {
        sources::copy(item, a)?;
        progress.advance(1);
    }
    let copied = progress.finish();
    step("copy", format!("{files} files, {} into node a", bytes(size)), copied);

    let node = |name: &str| fleet.fleet.node(name);
    let progress = Progress::spinner("Waiting for node b");
    let waited = fleet.fleet.wait(node("a")?, Scope::Everywhere, PATIENCE);
    let took = progress.finish();
    waited?;
    step("wait", "node b has everything, durable".into(), took);

    let progress = Progress::spinner("Comparing both nodes");
    let both = walk_both(a, b);
    let took = progress.finish();
    let (first, second) = both?;
    let different = first.differences(&second);
    for difference in different.iter().take(20) {
        say(difference);
    }
    ensure!(different.is_empty(), "the nodes differ in {} names", different.len());
    ensure!(first.files() == files, "node a shows {} files, copied were {files}", first.files());
    let what =
        format!("{} names equal: type, mode, owner, size, mtime, xattrs, links, sha256", first.entries.len());
    step("compare", what, took);

    edit(fleet, a, b, &items, step)?;
    two_names(fleet, a, b, step)?;
    excluded(fleet, a, b, step)?;
    both_sides(fleet, a, b, &items, step)?;
    undo(fleet, a, b, &items, step)?;
    mass_removal(fleet, a, b, step)
}

/// The other direction: an edit on b is seen on a.
fn edit(fleet: &Temporary, a: &Path, b: &Path, items: &[sources::Item], step: Step<'_>) -> Result<()> {
    let chosen =
        items.iter().find(|item| item.to.ends_with("src/lib.rs")).context("no src/lib.rs among the files")?;
    let line = "// edited on node b\n";
    let mut expected = fs::read(b.join(&chosen.to))?;
    expected.extend_from_slice(line.as_bytes());

    let begin = Instant::now();
    let mut file = fs::OpenOptions::new().append(true).open(b.join(&chosen.to))?;
    file.write_all(line.as_bytes())?;
    drop(file);
    while fs::read(a.join(&chosen.to))? != expected {
        if begin.elapsed() > PATIENCE {
            bail!("the edit of {} on b did not reach a", chosen.to.display());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    step("edit", format!("{} changed on b, read on a", chosen.to.display()), begin.elapsed());

    equal_again(fleet, a, b, step)?;
    for (at, wanted) in [(b, "server"), (a, "everywhere")] {
        is_safe(&at.join(&chosen.to), wanted)?;
    }
    Ok(())
}

/// What a file says of itself.
fn is_safe(path: &Path, wanted: &str) -> Result<()> {
    let mut value = [0_u8; 64];
    let length = rustix::fs::getxattr(path, "user.intermezzo.safe", &mut value)?;
    let safe = String::from_utf8_lossy(value.get(..length).unwrap_or_default()).into_owned();
    ensure!(safe == wanted, "{} is safe: {safe}, not {wanted}", path.display());
    Ok(())
}

/// A large file with two names is changed in both directions: it stays one file everywhere, the same one.
fn two_names(fleet: &Temporary, a: &Path, b: &Path, step: Step<'_>) -> Result<()> {
    const SIZE: usize = 8 << 20;
    let identity = |dir: &Path| -> Result<u64> {
        let [one, two] = ["one", "two"].map(|name| fs::metadata(dir.join(name)));
        let (one, two) = (one?, two?);
        ensure!(one.ino() == two.ino() && one.nlink() == 2, "{}: two files", dir.display());
        Ok(one.ino())
    };
    let mut content: Vec<u8> = (0..SIZE).map(|at| at.wrapping_mul(at >> 7).to_le_bytes()[0]).collect();
    fs::write(a.join("one"), &content)?;
    fs::hard_link(a.join("one"), a.join("two"))?;
    fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    let before = [identity(a)?, identity(b)?];

    let begin = Instant::now();
    for (nth, (near, far)) in [(b, a), (a, b)].into_iter().enumerate() {
        let start = SIZE / 4 * (nth + 1);
        content.get_mut(start..start + 200_000).context("a part of the file")?.fill(b'x');
        let file = fs::OpenOptions::new().write(true).open(near.join("two"))?;
        file.write_all_at(&vec![b'x'; 200_000], start as u64)?;
        drop(file);
        fleet.fleet.wait(fleet.fleet.node(if nth == 0 { "b" } else { "a" })?, Scope::Everywhere, PATIENCE)?;
        ensure!(
            fs::read(far.join("one"))? == content,
            "the change of two names did not reach {}",
            far.display()
        );
    }
    ensure!(before == [identity(a)?, identity(b)?], "the file with two names was replaced by another");
    step("links", "8 MiB under two names changed on b and on a: still one file".into(), begin.elapsed());
    Ok(())
}

/// Patterns are set on a volume in use: what is made by their names stays on its node, and a file that is renamed to another
/// name arrives.
fn excluded(fleet: &Temporary, a: &Path, b: &Path, step: Step<'_>) -> Result<()> {
    let begin = Instant::now();
    fleet.fleet.set_exclude(&["*.part", "/build/"])?;
    // The agents read their manifests when these change.
    let probe = |number: u32| a.join(format!("probe-{number}.part"));
    for number in 0.. {
        fs::write(probe(number), "stays on a?")?;
        fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
        if !b.join(format!("probe-{number}.part")).exists() {
            break;
        }
        ensure!(begin.elapsed() < PATIENCE, "the patterns are not followed");
    }
    fs::create_dir(a.join("build"))?;
    fs::write(a.join("build/object"), "of a")?;
    fs::write(a.join("download.part"), "whole")?;
    fs::rename(a.join("download.part"), a.join("download"))?;
    fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    ensure!(fs::read_to_string(b.join("download"))? == "whole", "the download is not on b");
    ensure!(!b.join("build").exists() && !b.join("download.part").exists(), "what was excluded is on b");
    ensure!(fs::read_to_string(a.join("build/object"))? == "of a", "what was excluded is not on a");
    is_safe(&a.join("build/object"), "excluded")?;
    // For the comparisons that follow.
    fs::remove_file(a.join("build/object"))?;
    fs::remove_dir(a.join("build"))?;
    for name in (0..).map_while(|number| Some(probe(number)).filter(|path| path.exists())) {
        fs::remove_file(name)?;
    }
    step("exclude", "*.part and /build/ stay on a, a finished download is on b".into(), begin.elapsed());
    equal_again(fleet, a, b, step)
}

fn equal_again(fleet: &Temporary, a: &Path, b: &Path, step: Step<'_>) -> Result<()> {
    let begin = Instant::now();
    fleet.fleet.wait(fleet.fleet.node("b")?, Scope::Everywhere, PATIENCE)?;
    fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    let (first, second) = walk_both(a, b)?;
    let different = first.differences(&second);
    ensure!(
        different.is_empty(),
        "the nodes differ: {}",
        different.iter().map(|d| d.to_string() + " ").collect::<String>()
    );
    step("compare", format!("{} names equal on both nodes again", first.entries.len()), begin.elapsed());
    Ok(())
}

/// Both nodes are written to while nothing goes between them: everything comes together afterwards, and of the one file
/// that both changed neither version is lost.
fn both_sides(fleet: &Temporary, a: &Path, b: &Path, items: &[sources::Item], step: Step<'_>) -> Result<()> {
    let cut = &fleet.fleet;
    let node = cut.node("b")?;
    let is_connected = || -> Result<bool> {
        let status = cut.status(node)?;
        Ok(status.volumes.iter().any(|volume| volume.connected))
    };
    let until = |wanted: bool| -> Result<()> {
        let begin = Instant::now();
        while is_connected()? != wanted {
            ensure!(
                begin.elapsed() < PATIENCE,
                "node b is {} still",
                if wanted { "cut off" } else { "connected" }
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };

    let begin = Instant::now();
    cut.set_paused(node, true)?;
    until(false)?;
    let roots: Vec<&Path> = items
        .iter()
        .filter(|item| item.kind == Kind::Directory && item.to.components().count() == 1)
        .map(|item| item.to.as_path())
        .take(2)
        .collect();
    let [moved, gone] = roots[..] else { bail!("the dependencies have fewer than two directories") };
    let both = items
        .iter()
        .rev()
        .find(|item| {
            item.to.ends_with("src/lib.rs") && !item.to.starts_with(moved) && !item.to.starts_with(gone)
        })
        .context("no src/lib.rs to change")?;
    fs::write(a.join(&both.to), "changed on a\n")?;
    #[allow(clippy::disallowed_methods, reason = "a directory that this demo copied")]
    fs::remove_dir_all(a.join(gone))?;
    fs::write(b.join(&both.to), "changed on b\n")?;
    is_safe(&b.join(&both.to), "local")?;
    fs::rename(b.join(moved), b.join("moved-on-b"))?;
    for number in 0..100 {
        fs::write(b.join("moved-on-b").join(format!("new-{number}")), format!("{number}\n"))?;
    }
    let what = "b paused; a removed a directory, b moved one and wrote 100 files, both changed one file";
    step("cut", what.into(), begin.elapsed());

    let begin = Instant::now();
    cut.set_paused(node, false)?;
    until(true)?;
    cut.wait(node, Scope::Everywhere, PATIENCE)?;
    step("reconnect", "what b had done meanwhile is on a".into(), begin.elapsed());
    equal_again(fleet, a, b, step)?;

    let winner = fs::read_to_string(a.join(&both.to))?;
    ensure!(winner == "changed on a\n", "{} is now {winner:?}, not the server's version", both.to.display());
    let conflicts = cut.conflicts()?;
    let [conflict] = &conflicts[..] else {
        bail!("{} conflicts instead of one: {conflicts:?}", conflicts.len())
    };
    ensure!(conflict.node == "b", "a conflict of node {}", conflict.node);
    ensure!(conflict.path.ends_with(&*both.to.to_string_lossy()), "a conflict about {}", conflict.path);
    let kept = fs::read_to_string(&conflict.content).context("the losing version")?;
    ensure!(kept == "changed on b\n", "the losing version is kept as {kept:?}");
    let what = format!("one, about {}: a's version has the name, b's is kept", both.to.display());
    step("conflicts", what, Duration::ZERO);

    let begin = Instant::now();
    let beside = both.to.with_file_name("lib-of-b.rs");
    let position = conflict.position.to_string();
    let mut diff = Command::new(binary("intermezzo")?);
    diff.args(["conflicts", "diff", &position, "--volume", &cut.config.volume, "--dir"]).arg(&cut.layout.dir);
    let shown = output(&mut diff, PATIENCE)?;
    ensure!(shown.contains("-changed on a\n+changed on b\n"), "the difference is shown as\n{shown}");
    let mut resolve = Command::new(binary("intermezzo")?);
    resolve.args(["conflicts", "resolve", &position, "--volume", &cut.config.volume, "--take", "both"]);
    resolve.args(["--name", "lib-of-b.rs", "--dir"]).arg(&cut.layout.dir);
    output(&mut resolve, PATIENCE)?;
    cut.wait(cut.node("a")?, Scope::Everywhere, PATIENCE)?;
    ensure!(fs::read_to_string(b.join(&beside))? == "changed on b\n", "{} on b", beside.display());
    let left = cut.conflicts()?;
    ensure!(left.is_empty() && !Path::new(&conflict.content).exists(), "not resolved: {left:?}");
    step(
        "resolve",
        format!("both are in the tree of both nodes, b's as {}", beside.display()),
        begin.elapsed(),
    );
    Ok(())
}

/// A directory is removed on b, and brought back by its history there.
fn undo(fleet: &Temporary, a: &Path, b: &Path, items: &[sources::Item], step: Step<'_>) -> Result<()> {
    let cut = &fleet.fleet;
    let root = items.iter().rev().find(|item| {
        item.kind == Kind::Directory && item.to.components().count() == 1 && b.join(&item.to).is_dir()
    });
    let root = root.context("the dependencies have no directory left")?.to.as_path();
    let before = walk(&b.join(root))?;

    let begin = Instant::now();
    #[allow(clippy::disallowed_methods, reason = "a directory that this demo copied")]
    fs::remove_dir_all(b.join(root))?;
    cut.wait(cut.node("b")?, Scope::Everywhere, PATIENCE)?;
    ensure!(!a.join(root).exists(), "{} is still on a", root.display());
    let program = || Ok::<_, anyhow::Error>(Command::new(binary("intermezzo")?));
    let mut history = program()?;
    history.args(["history", "--limit=0", "-o", "json", "--dir"]).arg(&cut.layout.dir).arg(b.join(root));
    let told: Vec<serde_json::Value> = serde_json::from_str(&output(&mut history, PATIENCE)?)?;
    let removed = told.iter().filter(|line| line["what"] == "removed" && line["node"] == "b");
    let first = removed.filter_map(|line| line["position"].as_u64()).min();
    let first = first.context("the history tells of no removal on b")?;
    let mut restore = program()?;
    restore.args(["restore", &format!("--before={first}"), "--dir"]).arg(&cut.layout.dir).arg(b.join(root));
    output(&mut restore, PATIENCE)?;
    cut.wait(cut.node("b")?, Scope::Everywhere, PATIENCE)?;
    let after = walk(&b.join(root))?;
    let different = before.differences(&after);
    ensure!(different.is_empty(), "{} came back otherwise: {different:?}", root.display());
    let what = format!("{}, {} names, removed on b and brought back", root.display(), after.entries.len());
    step("undo", what, begin.elapsed());
    equal_again(fleet, a, b, step)
}

/// Somebody removes everything on b: nothing of it happens on a, and refused, b has it back.
fn mass_removal(fleet: &Temporary, a: &Path, b: &Path, step: Step<'_>) -> Result<()> {
    let cut = &fleet.fleet;
    let begin = Instant::now();
    let ask = |words: &[&str]| -> Result<String> {
        let mut command = Command::new(binary("intermezzo")?);
        command.arg("hold").args(words).args(["--volume", &cut.config.volume, "--dir"]).arg(&cut.layout.dir);
        output(&mut command, PATIENCE)
    };
    let node = cut.node("b")?;
    cut.set_paused(node, true)?;
    let mut removed = 0;
    for entry in fs::read_dir(b)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            #[allow(clippy::disallowed_methods, reason = "what this demo copied")]
            fs::remove_dir_all(entry.path())?;
            removed += 1;
        }
    }
    cut.set_paused(node, false)?;
    let held = loop {
        let held = ask(&["list"])?;
        if held.contains("REMOVES") {
            break held;
        }
        ensure!(begin.elapsed() < PATIENCE, "nobody is asked about the removal of everything");
        std::thread::sleep(Duration::from_millis(100));
    };
    let left = fs::read_dir(a)?.count();
    ensure!(left >= removed, "only {left} of {removed} directories are left on a");
    ask(&["refuse", "b"])?;
    cut.wait(node, Scope::Everywhere, PATIENCE)?;
    let what = held.lines().nth(1).unwrap_or_default().split_whitespace().take(3).collect::<Vec<_>>();
    let what = format!("{} (node, removes, of) was held and refused: b has everything back", what.join(" "));
    step("removal", what, begin.elapsed());
    equal_again(fleet, a, b, step)
}

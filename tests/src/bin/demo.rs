//! `make demo`: two nodes on this machine, real files, proof that they are equal.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use intermezzo::admin::Scope;
use intermezzo::output::{Table, bytes, print_text, say};
use intermezzo::progress::Progress;
use intermezzo_tests::fleet::{Keep, Temporary};
use intermezzo_tests::sources::{self, Kind};
use intermezzo_tests::walk::walk_both;

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

fn demo(args: &Args) -> Result<()> {
    let keep = if args.keep { Keep::Everything } else { Keep::Nothing };
    let mut steps = Table::new(&["STEP", "WHAT", "TIME"]);
    let mut step = |name: &str, what: String, took: Duration| {
        say(format_args!("✓ {name}: {what} ({:.2} s)", took.as_secs_f64()));
        steps.row([name.to_owned(), what, format!("{:.2} s", took.as_secs_f64())]);
    };

    let begin = Instant::now();
    let mut fleet = Temporary::up(&args.base, "intermezzo-demo", 2, keep)?;
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

fn show(fleet: &Temporary, a: &Path, b: &Path, step: &mut dyn FnMut(&str, String, Duration)) -> Result<()> {
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

    edit(fleet, a, b, &items, step)
}

/// The other direction: an edit on b is seen on a.
fn edit(
    fleet: &Temporary,
    a: &Path,
    b: &Path,
    items: &[sources::Item],
    step: &mut dyn FnMut(&str, String, Duration),
) -> Result<()> {
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

    let begin = Instant::now();
    fleet.fleet.wait(fleet.fleet.node("b")?, Scope::Everywhere, PATIENCE)?;
    let (first, second) = walk_both(a, b)?;
    let different = first.differences(&second);
    ensure!(
        different.is_empty(),
        "after the edit the nodes differ: {}",
        different.iter().map(|d| d.to_string() + " ").collect::<String>()
    );
    step("compare", "both nodes are equal again".into(), begin.elapsed());
    Ok(())
}

//! `make adopt`: an existing directory becomes a volume through kills, changes behind presto's back are found, and a node
//! whose disk was wiped gets the tree anew while others write.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use intermezzo::admin::{self, Looking, Scope, ScrubProgress};
use intermezzo::fleet::{Daemon, Fleet};
use intermezzo::output::say;
use intermezzo_tests::fleet::{Killed, Temporary, kill};
use intermezzo_tests::sources;
use intermezzo_tests::walk::{walk, walk_both};

/// For what should take seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// Adopts a directory, kills what adopts it, and shows that nodes agree
#[derive(Parser)]
struct Args {
    /// Most names that are copied into the directory first
    #[arg(long, default_value_t = 6_000)]
    names: usize,
    /// Directory below which everything is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    match adopt(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("adopt: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn adopt(args: &Args) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("intermezzo-adopt-tree-").tempdir_in(&args.base)?;
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree)?;
    for item in sources::dependencies()?.iter().take(args.names) {
        sources::copy(item, &tree)?;
    }
    fs::hard_link(tree.join(first_file(&tree)?), tree.join("a second name"))?;
    let before = walk(&tree)?;

    let mut fleet = Temporary::adopting(&args.base, "intermezzo-adopt", 3, &tree)?;
    let begin = Instant::now();
    let kills = interrupt(&fleet.fleet, &tree)?;
    scrub(&fleet.fleet, Looking::Follow)?;
    equal_everywhere(&fleet, &before)?;
    say(format_args!(
        "✓ {} files adopted through {kills} kills, equal on three nodes after {:.1} s",
        before.files(),
        begin.elapsed().as_secs_f64()
    ));

    fs::write(tree.join("through the mount"), "seen by presto")?;
    fleet.fleet.down(&mut |_| ())?;
    let changed = behind(&tree)?;
    fleet.fleet.up(PATIENCE, &mut |_| ())?;
    let shown = scrub(&fleet.fleet, Looking::Show)?;
    ensure!(shown.found > 0 && !shown.taken, "a scrub finds nothing: {shown:?}");
    let quiet = walk(&fleet.mount("b")?)?;
    ensure!(!quiet.differences(&walk(&tree)?).is_empty(), "what is only shown must not travel");
    scrub(&fleet.fleet, Looking::Take)?;
    equal_everywhere(&fleet, &changed)?;
    ensure!(scrub(&fleet.fleet, Looking::Show)?.found == 0, "a second scrub finds something");
    say(format_args!("✓ {} changes behind presto's back found, taken and replicated", shown.found));

    let took = begin_anew(&mut fleet)?;
    say(format_args!("✓ a wiped node has the tree again while others write: {took:.1} s"));
    Ok(())
}

fn first_file(tree: &Path) -> Result<PathBuf> {
    let mut at = tree.to_owned();
    loop {
        let mut entries = fs::read_dir(&at)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        if let Some(file) = entries.iter().find(|entry| entry.path().is_file()) {
            return Ok(file.path().strip_prefix(tree)?.to_owned());
        }
        at = entries.first().context("there is no file")?.path();
    }
}

/// Kills lento and presto of the server in turns while it adopts.
fn interrupt(fleet: &Fleet, tree: &Path) -> Result<usize> {
    let server = fleet.node("a")?;
    let mut kills = 0;
    for daemon in [Daemon::Lento, Daemon::Presto, Daemon::Lento] {
        std::thread::sleep(Duration::from_millis(400));
        let refused = fs::write(tree.join("too early"), "").is_err();
        ensure!(kill(fleet, server, daemon)? == Killed::Running, "{daemon} does not run");
        fleet.start(server, daemon)?;
        fleet.wait_ready(PATIENCE, &mut |_| ())?;
        if !refused {
            // It was faster: what was written is part of the volume and goes again.
            fs::remove_file(tree.join("too early"))?;
        }
        kills += 1;
    }
    Ok(kills)
}

fn scrub(fleet: &Fleet, what: Looking) -> Result<ScrubProgress> {
    let socket = fleet.layout.admin_socket(fleet.node("a")?);
    let end = admin::scrub(&socket, &fleet.config.volume, what, &mut |_| ())?;
    ensure!(end.trouble.is_empty(), "{}", end.trouble);
    Ok(end)
}

/// Every node shows this tree.
fn equal_everywhere(fleet: &Temporary, wanted: &intermezzo_tests::walk::Tree) -> Result<()> {
    fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    for node in &fleet.fleet.config.nodes {
        let here = walk(&fleet.mount(&node.name)?)?;
        let mut different = wanted.differences(&here);
        // What presto needs is made in the root, which moves the root's own time.
        different.retain(|difference| difference.path.components().next().is_some());
        if let Some(first) = different.first() {
            bail!("node {} differs in {} names, first {first}", node.name, different.len());
        }
    }
    Ok(())
}

/// Changes of each kind while nothing is mounted.
fn behind(tree: &Path) -> Result<intermezzo_tests::walk::Tree> {
    let mut dirs = fs::read_dir(tree)?.collect::<std::io::Result<Vec<_>>>()?;
    dirs.retain(|entry| entry.path().is_dir() && entry.file_name() != ".intermezzo");
    dirs.sort_by_key(fs::DirEntry::file_name);
    let [first, second, third, ..] = dirs.as_slice() else { bail!("too few directories") };
    fs::rename(first.path(), tree.join("moved as a whole"))?;
    #[allow(clippy::disallowed_methods)] // Made by this test.
    fs::remove_dir_all(second.path())?;
    fs::set_permissions(third.path(), fs::Permissions::from_mode(0o750))?;
    fs::write(tree.join("a second name"), "both names have this")?;
    fs::create_dir_all(tree.join("new/deep"))?;
    fs::write(tree.join("new/deep/file"), vec![7; 200_000])?;
    let hidden = tree.join(".intermezzo");
    let aside = tree.with_extension("aside");
    fs::rename(&hidden, &aside)?;
    let seen = walk(tree);
    fs::rename(&aside, &hidden)?;
    seen
}

/// Node c loses its disk, comes back empty and is killed while it gets the tree; node a goes on writing.
fn begin_anew(fleet: &mut Temporary) -> Result<f64> {
    let (a, c) = (fleet.mount("a")?, fleet.mount("c")?);
    fleet.fleet.down(&mut |_| ())?;
    let own = fleet.fleet.layout.dir.join("node-c");
    for part in ["cache", "lento", "presto"] {
        fs::rename(own.join(part), own.join(format!("{part}.lost")))?;
        fs::create_dir(own.join(part))?;
    }
    fleet.fleet.up(PATIENCE, &mut |_| ())?;
    let begin = Instant::now();
    let (stop, fleet) = (AtomicBool::new(false), &fleet.fleet);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| -> Result<()> {
            for number in 0.. {
                fs::write(a.join(format!("while it came {number}")), number.to_string())?;
                std::thread::sleep(Duration::from_millis(5));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(())
        });
        let killed = (|| -> Result<()> {
            for node in ["c", "c", "a"] {
                std::thread::sleep(Duration::from_millis(150));
                let node = fleet.node(node)?;
                kill(fleet, node, Daemon::Lento)?;
                fleet.start(node, Daemon::Lento)?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        killed.and(written)
    })?;
    fleet.wait_ready(PATIENCE, &mut |_| ())?;
    fleet.wait(fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    let (first, second) = walk_both(&a, &c)?;
    if let Some(first) = first.differences(&second).first() {
        bail!("the wiped node differs, first {first}");
    }
    Ok(begin.elapsed().as_secs_f64())
}

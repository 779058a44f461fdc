//! Contents on demand, on real mounts: a node has the whole tree at once, contents come when they are opened.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use intermezzo::admin::Scope;
use intermezzo::fleet::Daemon;
use intermezzo::fleet::process::binary;
use intermezzo::output::say;
use intermezzo_api::Mode;
use intermezzo_tests::fleet::{Temporary, kill, proof};
use intermezzo_tests::run::until;

/// For what should take moments.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an open may wait for a server that is away: what is promised, and what a busy machine adds.
const AWAY: Duration = Duration::from_secs(45);
const SMALL: usize = 200;
const LARGE: usize = 24 << 20;
const EHOSTUNREACH: i32 = 113;

/// Shows that a node with `mode: OnDemand` has names and attributes, and contents when they are opened.
#[derive(Parser)]
struct Args {
    /// Directory below which the fleet is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    proof("on-demand", &Args::parse().base, 2, show)
}

fn content(nth: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| u8::try_from((at / 7 + nth * 31) % 251).unwrap_or(0)).collect()
}

fn show(fleet: &mut Temporary) -> Result<()> {
    let (a, b) = (fleet.mount("a")?, fleet.mount("b")?);
    let (server, node) = (&fleet.fleet.node("a")?.clone(), &fleet.fleet.node("b")?.clone());
    fleet.fleet.set_mode(node, Mode::OnDemand, &["/kept"])?;
    std::thread::sleep(Duration::from_secs(2));

    fs::create_dir_all(a.join("d"))?;
    fs::create_dir_all(a.join("kept"))?;
    for nth in 0..SMALL {
        fs::write(a.join(format!("d/{nth}")), content(nth, 100 + nth * 50))?;
    }
    fs::write(a.join("large"), content(0, LARGE))?;
    fs::write(a.join("kept/k"), content(1, 300_000))?;
    fs::hard_link(a.join("d/7"), a.join("d/seven"))?;
    fleet.fleet.wait(server, Scope::Everywhere, PATIENCE)?;

    // The tree is complete, and nothing of it takes room.
    let size = |at: &Path| -> Result<u64> { Ok(fs::metadata(at)?.len()) };
    let taken = |at: &Path| -> Result<u64> { Ok(fs::metadata(at)?.blocks() * 512) };
    for nth in 0..SMALL {
        let (here, there) =
            (fs::metadata(b.join(format!("d/{nth}")))?, fs::metadata(a.join(format!("d/{nth}")))?);
        let same = (here.len(), here.mtime(), here.mtime_nsec(), here.mode());
        ensure!(same == (there.len(), there.mtime(), there.mtime_nsec(), there.mode()), "d/{nth} differs");
    }
    ensure!(size(&b.join("large"))? == LARGE as u64 && taken(&b.join("large"))? == 0, "large came unasked");
    let names = fs::read_dir(b.join("d"))?.count();
    ensure!(names == SMALL + 1, "d shows {names} names");
    let still: u64 = (0..SMALL).map(|nth| taken(&b.join(format!("d/{nth}")))).sum::<Result<u64>>()?;
    ensure!(still == 0, "walks have fetched {still} bytes");
    say(format_args!("✓ the tree is here: {SMALL} files and a large one, and none of their bytes"));

    // What is pinned comes by itself.
    until("the pinned file", PATIENCE, || Ok(taken(&b.join("kept/k"))? > 0))?;
    ensure!(fs::read(b.join("kept/k"))? == content(1, 300_000), "the pinned file is another one");
    say("✓ what is pinned is here");

    // Names and attributes need no content.
    fs::rename(b.join("d/1"), b.join("d/one"))?;
    fs::set_permissions(b.join("d/one"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    fs::hard_link(b.join("d/2"), b.join("d/two"))?;
    fs::remove_file(b.join("d/3"))?;
    ensure!(taken(&b.join("d/one"))? == 0 && taken(&b.join("d/two"))? == 0, "a rename or chmod has fetched");
    until("the rename on a", PATIENCE, || Ok(a.join("d/one").exists() && !a.join("d/3").exists()))?;

    // Contents at the first open; identity and times stay.
    let before = fs::metadata(b.join("d/one"))?;
    let begin = Instant::now();
    ensure!(fs::read(b.join("d/one"))? == content(1, 150), "d/one is another one");
    let first = begin.elapsed();
    let after = fs::metadata(b.join("d/one"))?;
    let stays = |m: &fs::Metadata| (m.ino(), m.mtime(), m.mtime_nsec(), m.len(), m.mode());
    ensure!(stays(&before) == stays(&after), "opening has changed the file: {before:?} {after:?}");
    let begin = Instant::now();
    ensure!(fs::read(b.join("large"))? == content(0, LARGE), "large is another one");
    say(format_args!(
        "✓ contents come at the first open: small {first:?}, {LARGE} bytes {:?}",
        begin.elapsed()
    ));
    for nth in 4..SMALL {
        ensure!(
            fs::read(b.join(format!("d/{nth}")))? == content(nth, 100 + nth * 50),
            "d/{nth} is another one"
        );
    }
    ensure!(fs::read(b.join("d/two"))? == content(2, 200), "d/two is another one");

    // Or before, for whoever asks.
    let prefetch = |paths: &[PathBuf]| -> Result<(bool, String)> {
        let done = Command::new(binary("intermezzo")?).arg("prefetch").args(paths).output()?;
        Ok((done.status.success(), String::from_utf8_lossy(&done.stderr).into_owned()))
    };
    fs::create_dir(a.join("ahead"))?;
    for nth in 0..SMALL {
        fs::write(a.join(format!("ahead/{nth}")), content(nth, 5000))?;
    }
    fleet.fleet.wait(server, Scope::Everywhere, PATIENCE)?;
    ensure!(taken(&b.join("ahead/7"))? == 0, "ahead/7 came unasked");
    let (done, said) = prefetch(&[b.join("ahead")])?;
    ensure!(done && said.contains("200 of 200 contents"), "{said}");
    for nth in 0..SMALL {
        ensure!(taken(&b.join(format!("ahead/{nth}")))? > 0, "ahead/{nth} is not here: {said}");
    }
    ensure!(fs::read(b.join("ahead/7"))? == content(7, 5000), "ahead/7 is another one");
    // Of the others one has not been opened yet.
    let (done, said) = prefetch(&[b.join("ahead"), b.join("d")])?;
    ensure!(done && said.contains("1 of 1 contents"), "what is here is fetched once more: {said}");
    say(format_args!("✓ {SMALL} contents are fetched ahead"));

    // Writing to what is not here.
    for (name, nth) in [("w1", 1), ("w2", 2), ("w3", 3), ("w4", 4)] {
        fresh(fleet, name, nth)?;
    }
    let mut middle = content(1, 100_000);
    middle.get_mut(50_000..50_005).context("short")?.copy_from_slice(b"hello");
    fs::OpenOptions::new().write(true).open(b.join("w1"))?.write_all_at(b"hello", 50_000)?;
    fs::write(b.join("w2"), "anew")?;
    fs::OpenOptions::new().write(true).open(b.join("w3"))?.set_len(10)?;
    fs::OpenOptions::new().append(true).open(b.join("w4"))?.write_all_at(b"", 0)?;
    fleet.fleet.wait(node, Scope::Server, PATIENCE)?;
    ensure!(fs::read(a.join("w1"))? == middle, "what was written into a missing file is not what a has");
    ensure!(fs::read(a.join("w2"))? == b"anew", "what was written over a missing file is not what a has");
    ensure!(fs::read(a.join("w3"))? == content(3, 10), "what was cut is not what a has");
    ensure!(fs::read(a.join("w4"))? == content(4, 100_000), "what was only opened is not what it was");
    say("✓ missing files are written to: in the middle, anew, cut");

    // The server is away: an error, in time, and everything else goes on.
    fresh(fleet, "away", 5)?;
    fresh(fleet, "interrupted", 6)?;
    kill(&fleet.fleet, server, Daemon::Lento)?;
    let begin = Instant::now();
    let Err(error) = fs::read(b.join("away")) else { bail!("read without a server") };
    ensure!(error.raw_os_error() == Some(EHOSTUNREACH), "{error}");
    ensure!(begin.elapsed() < AWAY, "it took {:?}", begin.elapsed());
    say(format_args!("✓ without the server: {error}, after {:?}", begin.elapsed()));
    ensure!(fs::read(b.join("d/one"))? == content(1, 150), "what is here is not readable");
    let (done, said) = prefetch(&[b.join("away"), b.join("d")])?;
    ensure!(!done && said.contains("0 of 1 contents") && said.contains("No route to host"), "{said}");
    let mut waits = Command::new("cat").arg(b.join("interrupted")).spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    waits.kill()?;
    waits.wait()?;
    ensure!(begin.elapsed() < Duration::from_secs(4), "a signal took {:?}", begin.elapsed());
    say(format_args!("✓ a signal ends the wait after {:?}", begin.elapsed()));

    // Presto is killed while somebody waits; everything comes back.
    fleet.fleet.up(PATIENCE, &mut |_| ())?;
    until("away", PATIENCE, || Ok(fs::read(b.join("away")).is_ok_and(|bytes| bytes == content(5, 100_000))))?;

    // And all of it, for whoever wants that after all.
    fresh(fleet, "last", 7)?;
    fleet.fleet.set_mode(node, Mode::Full, &[])?;
    until("everything", PATIENCE, || Ok(taken(&b.join("last"))? > 0 && taken(&b.join("interrupted"))? > 0))?;
    ensure!(fs::read(b.join("last"))? == content(7, 100_000), "last is another one");
    say("✓ from OnDemand to Full: everything is here");
    Ok(())
}

/// A new file on a, whose content is not on b.
fn fresh(fleet: &Temporary, name: &str, nth: usize) -> Result<()> {
    fs::write(fleet.mount("a")?.join(name), content(nth, 100_000))?;
    fleet.fleet.wait(fleet.fleet.node("a")?, Scope::Everywhere, PATIENCE)?;
    let blocks = fs::metadata(fleet.mount("b")?.join(name))?.blocks();
    ensure!(blocks == 0, "{name} came unasked");
    Ok(())
}

//! Runs ordinary programs with a deadline: a file system that hangs must fail a test, not stop it.

use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// So much of what a program says is looked at, in bytes.
const SAID: u64 = 64 << 10;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With status 0: what it did is acknowledged.
    Well,
    /// With another status; what it said.
    Badly(String),
    /// Not in time. It was killed, and may still hang in the kernel.
    Stuck,
}

/// Looks again until it is so. An error is one at once, unlike in `cluster::command::until`: a program must not see any.
///
/// # Errors
/// It is not so in time, or a look at it fails.
pub fn until(what: &str, deadline: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is_so()? {
        ensure!(begin.elapsed() < deadline, "{what}: not so after {deadline:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Runs a program.
///
/// # Errors
/// It cannot be started.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S], dir: &Path, deadline: Duration) -> Result<Ended> {
    // A pipe would stop who has much to say.
    let mut said = tempfile::tempfile()?;
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let begin = Instant::now();
    let mut pause = Duration::from_micros(200);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > deadline {
            let _ = child.kill();
            return Ok(Ended::Stuck);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    };
    if status.success() {
        return Ok(Ended::Well);
    }
    let mut first = Vec::new();
    said.rewind()?;
    said.take(SAID).read_to_end(&mut first)?;
    Ok(Ended::Badly(String::from_utf8_lossy(&first).lines().next().unwrap_or_default().to_owned()))
}

/// Runs a program that must do well, and says how long it took.
///
/// # Errors
/// It does not.
pub fn timed<S: AsRef<OsStr>>(program: &str, arguments: &[S], dir: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let status = Command::new(program).args(arguments).current_dir(dir).stdin(Stdio::null()).status()?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(begin.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_complains_at_length_ends() {
        let script = "echo why >&2; head -c 1000000 /dev/zero >&2; exit 1";
        let ended = run("sh", &["-c", script], Path::new("/"), Duration::from_secs(20)).unwrap();
        assert_eq!(ended, Ended::Badly("why".to_owned()));
    }
}

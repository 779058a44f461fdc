//! Programs that are run and waited for, and things that are waited for: each with a deadline and its reason.

use std::fmt::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long an ordinary command may take.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Runs a command to its end and returns what it wrote to standard output.
///
/// # Errors
/// It cannot be started, does not end in time (it is killed), or fails; with what it wrote to standard error.
pub fn output(command: &mut Command, deadline: Duration) -> Result<String> {
    fed(command, None, deadline)
}

/// The same with something to read.
///
/// # Errors
/// As [`output`].
pub fn fed(command: &mut Command, input: Option<&str>, deadline: Duration) -> Result<String> {
    let shown = show(command);
    let mut child = command
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let stdin = child.stdin.take();
    let pid = rustix::process::Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        let is_late = ended.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if is_late {
            // Nobody has waited for it yet: the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        is_late
    });
    let output = std::thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            scope.spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
        }
        child.wait_with_output()
    });
    drop(done);
    if guard.join().unwrap_or(true) {
        bail!("{shown} did not end within {} s", deadline.as_secs());
    }
    succeeded(&shown, &output?)
}

fn succeeded(shown: &str, output: &Output) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = if said.trim().is_empty() { out.trim() } else { said.trim() };
    bail!("{shown}: {}: {said}", output.status)
}

fn show(command: &Command) -> String {
    let mut shown = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(shown, " {}", argument.to_string_lossy());
    }
    shown
}

/// Tries until it succeeds.
///
/// # Errors
/// It has not within `deadline`; with the last reason.
pub fn until<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Ok(found) => return Ok(found),
            Err(error) if begin.elapsed() > deadline => {
                return Err(error.context(format!("waited {} s for {what}", deadline.as_secs())));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_ended_and_named() {
        let begin = Instant::now();
        let error = output(Command::new("sleep").arg("60"), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.to_string(), "sleep 60 did not end within 0 s");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error =
            output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]), DEADLINE).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3: no such thing"), "{error}");
    }

    #[test]
    fn what_is_waited_for_in_vain_says_the_last_reason() {
        let error = until("rain", Duration::ZERO, || -> Result<()> { bail!("dry") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0 s for rain: dry");
    }
}

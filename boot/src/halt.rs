//! When the machine goes: presto brings the disk to rest, or, without one, waits until the server has everything. systemd calls it at the very end, from its directory
//! `system-shutdown`; with another init it is the last thing that a shutdown script does.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use intermezzo_channel::ROOT_SOCKET;
use intermezzo_channel::v1::Rest;
use intermezzo_channel::v1::packet::Body;

use crate::client::{ask, ask_at};
use crate::console::{self, say};
use crate::diskless::{self, PROGRESS};
use crate::progress::{Lento, Still};

/// As long as something moves, the server is waited for; then for so much longer.
const STILL: Duration = Duration::from_secs(60);
/// It is said after so long that it is waited for, and then as often as this.
const SOON: Duration = Duration::from_secs(2);
const WORD: Duration = Duration::from_secs(10);

/// Says how it went on standard error and in the kernel's log: there may be no other witness.
pub fn run() -> ExitCode {
    let (text, code) = if diskless::is_here() {
        match wait_for_server(Path::new(ROOT_SOCKET), STILL, &mut tell) {
            Ok(()) => ("everything is on the server".to_owned(), ExitCode::SUCCESS),
            Err(error) => (format!("lost with this machine: {error:#}"), ExitCode::FAILURE),
        }
    } else {
        match ask(Body::Rest(Rest::default())) {
            Ok(()) => ("everything is on disk".to_owned(), ExitCode::SUCCESS),
            Err(error) => (format!("the disk is not brought to rest: {error:#}"), ExitCode::FAILURE),
        }
    };
    tell(&text);
    code
}

fn tell(text: &str) {
    if let Ok(mut log) = console::log() {
        let _ = log.write_all(format!("intermezzo: {text}\n").as_bytes());
    }
    say(text);
}

/// Asks until the server has everything, or nothing has moved for so long.
fn wait_for_server(socket: &Path, still: Duration, told: &mut dyn FnMut(&str)) -> Result<()> {
    let progress = socket.with_file_name(PROGRESS);
    let begun = Instant::now();
    let (mut quiet, mut said) = (Still::new(begun), None::<Instant>);
    loop {
        let wish = Rest { again: true, now: false };
        let records = match ask_at(socket, Body::Rest(wish))? {
            Body::Resting(resting) => resting.records,
            _ => return Ok(()),
        };
        let lento = Lento::read(&progress);
        let idle = quiet.hear(Instant::now(), (records, lento.moved));
        if idle >= still {
            let wish = Rest { again: true, now: true };
            return match ask_at(socket, Body::Rest(wish)) {
                // It came in the last moment.
                Ok(_) => Ok(()),
                Err(error) => {
                    bail!("{error:#}; nothing has moved for {} s{}", idle.as_secs(), lento.why(": "))
                }
            };
        }
        if said.map_or(begun.elapsed() >= SOON, |said| said.elapsed() >= WORD) {
            said = Some(Instant::now());
            let left = still.saturating_sub(idle).as_secs();
            told(&format!(
                "the machine waits for the server to have its last {records} records{} ({} s; if nothing moves, {left} s more)",
                lento.why(": "),
                begun.elapsed().as_secs()
            ));
        }
        // Presto takes its time where something is left; should it not, nobody is to be kept busy.
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use intermezzo_channel::v1::{Done, Failure, Resting};

    use super::*;
    use crate::client::tests::answering;

    #[test]
    fn as_long_as_something_moves_the_server_is_waited_for_and_then_it_is_said_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("root.sock");
        let still = Duration::from_millis(700);
        // Fewer and fewer, for longer than anybody waits for nothing.
        let mut left = 10;
        let server = answering(&socket, move |wish: Rest| {
            assert!(wish.again && !wish.now);
            std::thread::sleep(Duration::from_millis(200));
            left -= 1;
            if left == 0 { Body::Done(Done {}) } else { Body::Resting(Resting { records: left }) }
        });
        assert!(wait_for_server(&socket, still, &mut |_| ()).is_ok());
        server.end();
        // Always the same, but contents travel.
        let progress = dir.path().join(PROGRESS);
        let mut asked = 0;
        let server = answering(&socket, move |_| {
            std::thread::sleep(Duration::from_millis(200));
            asked += 1;
            std::fs::write(&progress, format!("a/b whole\na/b moved {asked}\n")).unwrap();
            if asked == 8 { Body::Done(Done {}) } else { Body::Resting(Resting { records: 1 }) }
        });
        assert!(wait_for_server(&socket, still, &mut |_| ()).is_ok());
        server.end();
        // Nothing moves.
        std::fs::write(dir.path().join(PROGRESS), "a/b whole\na/b waits not connected to s\n").unwrap();
        let server = answering(&socket, |wish| {
            if wish.now {
                return Body::Failure(Failure { errno: 5, message: "the last 3 records".to_owned() });
            }
            std::thread::sleep(Duration::from_millis(200));
            Body::Resting(Resting { records: 3 })
        });
        let mut told = Vec::new();
        let begun = Instant::now();
        let error = wait_for_server(&socket, Duration::from_secs(3), &mut |text| told.push(text.to_owned()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the last 3 records") && error.contains("not connected to s"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(30));
        assert!(told.iter().any(|text| text.contains("its last 3 records: not connected to s")), "{told:?}");
        server.end();
    }
}

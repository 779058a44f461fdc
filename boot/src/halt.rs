//! When the machine goes: presto brings the disk to rest, or, without one, waits until the server has everything. systemd calls it at the very end, from its directory
//! `system-shutdown`; with another init it is the last thing that a shutdown script does.

use std::io::Write;
use std::process::ExitCode;

use intermezzo_channel::v1::Rest;
use intermezzo_channel::v1::packet::Body;

use crate::client::ask;
use crate::console::{self, say};
use crate::diskless;

/// Says how it went on standard error and in the kernel's log: there may be no other witness.
pub fn run() -> ExitCode {
    let (text, code) = match ask(Body::Rest(Rest {})) {
        Ok(()) if diskless::is_here() => ("everything is on the server".to_owned(), ExitCode::SUCCESS),
        Ok(()) => ("everything is on disk".to_owned(), ExitCode::SUCCESS),
        Err(error) if diskless::is_here() => {
            (format!("lost with this machine: {error:#}"), ExitCode::FAILURE)
        }
        Err(error) => (format!("the disk is not brought to rest: {error:#}"), ExitCode::FAILURE),
    };
    if let Ok(mut log) = console::log() {
        let _ = log.write_all(format!("intermezzo: {text}\n").as_bytes());
    }
    say(text);
    code
}

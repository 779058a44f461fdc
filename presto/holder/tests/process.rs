//! The program itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use presto_holder::Client;
use rustix::process::{Pid, Signal};

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sigterm_ends_it_and_leaves_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("holder.sock");
    let child = Command::new(env!("CARGO_BIN_EXE_presto-holder"))
        .arg("--socket")
        .arg(&socket)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut holder = Holder(child);
    let end = Instant::now() + Duration::from_secs(20);
    let client = loop {
        match Client::connect(&socket) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(client.find("ns/volume").unwrap().is_none());
    rustix::process::kill_process(Pid::from_child(&holder.0), Signal::TERM).unwrap();
    while holder.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(holder.0.wait().unwrap().success(), "it was killed and did not end by itself");
    assert!(!socket.exists());
}

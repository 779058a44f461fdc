//! The socket of the root file system: remounts that a mount helper passes on, and the end of the machine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{self, Packet};
use rustix::io::Errno;

use super::Root;
use crate::channel::Reply;
use crate::channel::transport::{Connection, Listener, TransportError};

/// How often the thread looks whether it should end.
const BREATH: Duration = Duration::from_millis(200);
/// For a helper to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// Brings everything to rest; an error is for people.
pub type Rest = Box<dyn Fn(v1::Rest) -> Result<Rested, String> + Send>;

/// How far that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rested {
    /// All of it.
    Done,
    /// The server does not have so many records yet. Only for who asks again.
    Waiting(u64),
}

/// Listens until dropped.
#[derive(Debug)]
pub struct Control {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Listens at `path`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(path: &Path, root: Arc<Root>, rest: Rest) -> Result<Control, TransportError> {
        let listener = Listener::bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let serve = move || {
            while !seen.load(Ordering::Relaxed) {
                match listener.accept(BREATH) {
                    Ok(None) => {}
                    Ok(Some(connection)) => answer(&connection, &root, &rest),
                    Err(error) => {
                        tracing::warn!(target: "root", %error, "cannot accept a mount helper");
                        std::thread::sleep(BREATH);
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("root".to_owned())
            .spawn(serve)
            .map_err(|_| TransportError::Io(Errno::AGAIN))?;
        Ok(Control { stop, thread: Some(thread) })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(connection: &Connection, root: &Root, rest: &Rest) {
    let mut scratch = Vec::new();
    let packet = match connection.receive_within(&mut scratch, PATIENCE) {
        Ok(Some(incoming)) => incoming.packet,
        Ok(None) => return,
        Err(error) => {
            return tracing::warn!(target: "root", %error, "a mount helper said nothing to be understood");
        }
    };
    let done = match packet.body {
        Some(Body::Remount(remount)) => root.remount(&remount.options).map(|()| Rested::Done),
        Some(Body::Rest(wish)) => rest(wish),
        _ => Err("only remounts are told here; is the mount helper newer than presto?".to_owned()),
    };
    let reply = match done {
        Ok(Rested::Done) => Reply::done(),
        Ok(Rested::Waiting(records)) => Reply::of(Body::Resting(v1::Resting { records })),
        Err(why) => {
            tracing::warn!(target: "root", why, "refused");
            Reply::failure(Errno::INVAL, why)
        }
    };
    let packet = Packet { id: packet.id, volume: String::new(), body: Some(reply.body) };
    if let Err(error) = connection.send(&packet, &[]) {
        tracing::warn!(target: "root", %error, "a mount helper did not wait for the answer");
    }
}

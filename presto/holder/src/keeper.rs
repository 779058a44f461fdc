//! What is kept, and the one loop that answers.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::link::{self, Link};
use crate::notices;
use crate::protocol::{Kept, Kind, Word};

/// Sessions at once.
const MAX_SESSIONS: usize = 4096;
/// Connections at once: presto's, the next presto's, and somebody who looks.
const MAX_CLIENTS: usize = 16;
/// How often sessions are looked at whose mount has gone while presto was away.
const SWEEP: Duration = Duration::from_secs(10);

#[derive(PartialEq, Eq)]
enum Turn {
    Served,
    Stopped,
}

/// The holder.
pub struct Keeper {
    path: PathBuf,
    listener: OwnedFd,
    clients: Vec<Link>,
    sessions: BTreeMap<Vec<u8>, Kept>,
    swept: Instant,
}

impl Keeper {
    /// Listens at this path.
    ///
    /// # Errors
    /// The path cannot be used.
    pub fn bind(path: &Path) -> Result<Keeper, Errno> {
        let listener = link::listen(path)?;
        Ok(Keeper {
            path: path.to_owned(),
            listener,
            clients: Vec::new(),
            sessions: BTreeMap::new(),
            swept: Instant::now(),
        })
    }

    /// Answers until there is something to read at `stop`.
    ///
    /// # Errors
    /// The sockets cannot be waited for any more.
    pub fn run(&mut self, stop: impl AsFd) -> Result<(), Errno> {
        while self.turn(stop.as_fd())? == Turn::Served {}
        Ok(())
    }

    fn turn(&mut self, stop: BorrowedFd<'_>) -> Result<Turn, Errno> {
        let ready: Vec<bool> = {
            let own = [stop, self.listener.as_fd()];
            let all = own.into_iter().chain(self.clients.iter().map(AsFd::as_fd));
            let mut fds: Vec<PollFd<'_>> =
                all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut fds, Some(&link::timespec(SWEEP))) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            fds.iter().map(|fd| !fd.revents().is_empty()).collect()
        };
        let [stopped, coming, ready @ ..] = ready.as_slice() else { return Ok(Turn::Stopped) };
        if *stopped {
            return Ok(Turn::Stopped);
        }
        let clients = std::mem::take(&mut self.clients);
        for (client, ready) in clients.into_iter().zip(ready) {
            if !ready || self.serve(&client) {
                self.clients.push(client);
            }
        }
        if *coming {
            self.welcome();
        }
        if self.swept.elapsed() >= SWEEP {
            self.sweep();
        }
        Ok(Turn::Served)
    }

    fn welcome(&mut self) {
        let Ok(client) = link::accept(&self.listener) else { return };
        // The socket's mode keeps other users out. The peer's credentials are not looked at: its number in another pid
        // namespace is 0, which rustix takes for an error.
        if self.clients.len() >= MAX_CLIENTS {
            say("too many connections; the newest was refused");
        } else {
            self.clients.push(client);
        }
    }

    /// Answers one question. Whether the connection goes on.
    fn serve(&mut self, client: &Link) -> bool {
        let Ok((bytes, fds)) = client.receive() else { return false };
        let word = match Word::decode(&bytes) {
            Ok(word) => word,
            Err(malformed) => {
                say(&format!("a packet was refused: {malformed}"));
                let refusal = Word::new(Kind::Refused, malformed.to_string().as_bytes());
                let _ = client.send(&refusal.encode(), &[], SendFlags::DONTWAIT);
                return false;
            }
        };
        let (answer, fds) = self.answer(&word, fds);
        // Who does not take its answer is none of ours.
        client.send(&answer.encode(), &fds, SendFlags::DONTWAIT).is_ok()
    }

    fn answer(&mut self, word: &Word, fds: Vec<OwnedFd>) -> (Word, Vec<BorrowedFd<'_>>) {
        let refused = |why: &str| (Word::new(Kind::Refused, why.as_bytes()), Vec::new());
        match word.kind {
            Kind::Keep => match self.keep(word, fds) {
                Ok(()) => (Word::new(Kind::Done, b""), Vec::new()),
                Err(why) => refused(&why),
            },
            Kind::Find => match self.sessions.get(&word.name) {
                Some(session) => (Word::new(Kind::Found, b""), session.beside(None)),
                None => (Word::new(Kind::Absent, b""), Vec::new()),
            },
            Kind::Forget => {
                if self.sessions.remove(&word.name).is_some() {
                    say(&format!("{}: forgotten", String::from_utf8_lossy(&word.name)));
                }
                (Word::new(Kind::Done, b""), Vec::new())
            }
            Kind::Done | Kind::Found | Kind::Absent | Kind::Refused => refused("not a question"),
        }
    }

    fn keep(&mut self, word: &Word, fds: Vec<OwnedFd>) -> Result<(), String> {
        let (session, corrections) = Kept::asked(fds)
            .ok_or_else(|| "a session has a device, a memory, a socket and at most a directory".to_owned())?;
        if self.sessions.len() >= MAX_SESSIONS && !self.sessions.contains_key(&word.name) {
            return Err("too many sessions".to_owned());
        }
        let own = rustix::io::fcntl_dupfd_cloexec(&session.device, 3).map_err(|errno| errno.to_string())?;
        notices::spawn(Link::from(corrections), own).map_err(|error| error.to_string())?;
        say(&format!("{}: kept", String::from_utf8_lossy(&word.name)));
        self.sessions.insert(word.name.clone(), session);
        Ok(())
    }

    /// A session whose mount is gone is of no use, and its memory is large.
    fn sweep(&mut self) {
        self.swept = Instant::now();
        self.sessions.retain(|name, session| {
            let mut fds = [PollFd::new(&session.device, PollFlags::empty())];
            let polled = poll(&mut fds, Some(&link::timespec(Duration::ZERO)));
            let gone = polled.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR));
            if gone {
                say(&format!("{}: unmounted", String::from_utf8_lossy(name)));
            }
            !gone
        });
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = rustix::fs::unlink(&self.path);
    }
}

/// One line to standard error. Whether somebody reads it does not matter.
pub(crate) fn say(what: &str) {
    let line = format!("holder: {what}\n");
    // At once: in the kernel's log each write is a line.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

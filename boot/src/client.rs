//! One question to presto at the socket of the root file system.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use intermezzo_channel::ROOT_SOCKET;
use intermezzo_channel::v1::Packet;
use intermezzo_channel::v1::packet::Body;
use prost::Message;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with,
};

/// A sync of a slow disk with much to write.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks, and waits for the answer.
///
/// # Errors
/// Presto does not answer, or refuses; for people.
pub fn ask(body: Body) -> Result<()> {
    match ask_at(Path::new(ROOT_SOCKET), body)? {
        Body::Done(_) => Ok(()),
        _ => bail!("presto at {ROOT_SOCKET} gives an answer that is not understood: is it older or newer?"),
    }
}

/// The same at this socket; `Done`, or `Resting`.
///
/// # Errors
/// As above.
pub fn ask_at(path: &Path, body: Body) -> Result<Body> {
    let shown = path.display();
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for side in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, side, Some(PATIENCE))?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?).with_context(|| {
        format!("presto does not answer at {shown}: is the root file system of this machine a volume?")
    })?;
    let packet = Packet { id: 1, volume: String::new(), body: Some(body) };
    let mut answer = vec![0; 64 << 10];
    let length = send(&socket, &packet.encode_to_vec(), SendFlags::NOSIGNAL)
        .and_then(|_| recv(&socket, &mut answer, RecvFlags::empty()))
        .with_context(|| format!("presto at {shown} gives no answer"))?;
    match Packet::decode(answer.get(..length.0).unwrap_or_default())?.body {
        Some(body @ (Body::Done(_) | Body::Resting(_))) => Ok(body),
        Some(Body::Failure(failure)) => bail!("{}", failure.message),
        _ => bail!("presto at {shown} gives an answer that is not understood: is it older or newer?"),
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

    use intermezzo_channel::v1::{Done, Failure, Rest};
    use rustix::net::{accept, bind, listen};

    use super::*;

    /// Answers at a socket.
    pub struct Answering {
        stop: Arc<AtomicBool>,
        thread: JoinHandle<()>,
        path: std::path::PathBuf,
    }

    impl Answering {
        pub fn end(self) {
            self.stop.store(true, Ordering::Relaxed);
            let _ = ask_at(&self.path, Body::Done(Done {}));
            self.thread.join().unwrap();
            std::fs::remove_file(&self.path).unwrap();
        }
    }

    /// Answers every wish for rest so, until it is told to end.
    pub fn answering(path: &Path, mut answer: impl FnMut(Rest) -> Body + Send + 'static) -> Answering {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, 1).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            loop {
                let one = accept(&socket).unwrap();
                let mut asked = vec![0; 1000];
                let (length, _) = recv(&one, &mut asked, RecvFlags::empty()).unwrap();
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                let packet = Packet::decode(&asked[..length]).unwrap();
                let Some(Body::Rest(wish)) = packet.body else { panic!("{packet:?}") };
                let packet = Packet { body: Some(answer(wish)), ..packet };
                send(&one, &packet.encode_to_vec(), SendFlags::NOSIGNAL).unwrap();
            }
        });
        Answering { stop, thread, path: path.to_owned() }
    }

    #[test]
    fn an_answer_is_passed_on_and_nobody_there_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.sock");
        let rest = || ask_at(&path, Body::Rest(Rest::default())).map_err(|error| error.to_string());
        assert!(rest().unwrap_err().contains("is the root file system of this machine a volume?"));
        let failure = Failure { errno: 5, message: "volume a/b: no disk".to_owned() };
        for (answer, expected) in [
            (Body::Done(Done {}), Ok(Body::Done(Done {}))),
            (Body::Failure(failure), Err("volume a/b: no disk".to_owned())),
        ] {
            let server = answering(&path, move |_| answer.clone());
            assert_eq!(rest(), expected);
            server.end();
        }
    }
}

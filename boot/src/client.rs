//! One question to presto at the socket of the root file system.

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
    ask_at(ROOT_SOCKET, body)
}

fn ask_at(path: &str, body: Body) -> Result<()> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for side in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, side, Some(PATIENCE))?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?).with_context(|| {
        format!("presto does not answer at {path}: is the root file system of this machine a volume?")
    })?;
    let packet = Packet { id: 1, volume: String::new(), body: Some(body) };
    let mut answer = vec![0; 64 << 10];
    let length = send(&socket, &packet.encode_to_vec(), SendFlags::NOSIGNAL)
        .and_then(|_| recv(&socket, &mut answer, RecvFlags::empty()))
        .with_context(|| format!("presto at {path} gives no answer"))?;
    match Packet::decode(answer.get(..length.0).unwrap_or_default())?.body {
        Some(Body::Done(_)) => Ok(()),
        Some(Body::Failure(failure)) => bail!("{}", failure.message),
        _ => bail!("presto at {path} gives an answer that is not understood: is it older or newer?"),
    }
}

#[cfg(test)]
mod tests {
    use intermezzo_channel::v1::{Done, Failure, Rest};
    use rustix::net::{accept, bind, listen};

    use super::*;

    #[test]
    fn an_answer_is_passed_on_and_nobody_there_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.sock").display().to_string();
        let rest = || ask_at(&path, Body::Rest(Rest {})).map_err(|error| error.to_string());
        assert!(rest().unwrap_err().contains("is the root file system of this machine a volume?"));
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path.as_str()).unwrap()).unwrap();
        listen(&socket, 1).unwrap();
        let failure = Failure { errno: 5, message: "volume a/b: no disk".to_owned() };
        for (answer, expected) in
            [(Body::Done(Done {}), Ok(())), (Body::Failure(failure), Err("volume a/b: no disk".to_owned()))]
        {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let one = accept(&socket).unwrap();
                    let mut asked = vec![0; 1000];
                    let (length, _) = recv(&one, &mut asked, RecvFlags::empty()).unwrap();
                    let packet = Packet::decode(&asked[..length]).unwrap();
                    assert!(matches!(packet.body, Some(Body::Rest(_))));
                    let packet = Packet { body: Some(answer), ..packet };
                    send(&one, &packet.encode_to_vec(), SendFlags::NOSIGNAL).unwrap();
                });
                assert_eq!(rest(), expected);
            });
        }
    }
}

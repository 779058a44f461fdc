//! A TLS listener for tonic whose certificate and authorities may change: every new connection takes those of now. tonic's
//! own is bound to the ones that it was started with.

use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::time::Sleep;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::transport::server::TcpConnectInfo;
use tonic::transport::server::TlsConnectInfo;
use tracing::debug;
use tracing::warn;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection without a certificate may last: it enrols and goes.
const STRANGER_DEADLINE: Duration = Duration::from_secs(30);
/// Most connections at a time that have not proved who they are.
const STRANGERS: usize = 256;
/// How long to rest when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What tonic serves from.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Listens at `address` until `stop`; `config` gives what holds now, `None`: not yet, and the connection is closed. The port
/// may be 0: the answer says which one it became.
///
/// # Errors
/// The address cannot be had.
pub fn listen(
    address: SocketAddr,
    config: impl Fn() -> Option<Arc<ServerConfig>> + Send + 'static,
    stop: CancellationToken,
) -> io::Result<(SocketAddr, Incoming)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let local = listener.local_addr()?;
    let (ready, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        stop.run_until_cancelled(accept(listener, config, ready)).await;
    });
    Ok((local, ReceiverStream::new(incoming)))
}

async fn accept(
    listener: TcpListener,
    config: impl Fn() -> Option<Arc<ServerConfig>>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let room = Arc::new(Semaphore::new(STRANGERS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(target: "tls", %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(config) = config() else {
            debug!(target: "tls", %from, "closed: there is no certificate yet");
            continue;
        };
        let ready = ready.clone();
        tokio::spawn(async move {
            match timeout(HANDSHAKE_DEADLINE, handshake(stream, config, permit)).await {
                Ok(Ok(connection)) => drop(ready.send(Ok(connection)).await),
                Ok(Err(error)) => warn!(target: "tls", %from, %error, "a connection was refused"),
                Err(_) => debug!(target: "tls", %from, "a handshake took too long"),
            }
        });
    }
}

async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    permit: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let known = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
    let stranger = (!known)
        .then(|| Stranger { deadline: Box::pin(tokio::time::sleep(STRANGER_DEADLINE)), _permit: permit });
    Ok(Connection { stream, stranger })
}

/// One that has not proved who it is.
#[derive(Debug)]
struct Stranger {
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    stranger: Option<Stranger>,
}

impl Connected for Connection {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(stranger) = &mut self.stranger
            && stranger.deadline.as_mut().poll(context).is_ready()
        {
            let late = "a connection without a certificate lasts no longer";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, late)));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

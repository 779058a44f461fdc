//! What machines ask over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever starts agents.
//!
//! Plain HTTP without identities: it tells names of volumes and nodes and numbers, never paths or contents. A scrape
//! asks each volume's task and Presto once and reads no large table.

mod page;
mod readiness;

use crate::clock;
use crate::desired::Desired;
use crate::meters::Meters;
use crate::req_dispatcher::ChannelState;
use crate::req_dispatcher::Downcalls;
use crate::volume::Report;
use crate::volume::VolumeHandle;
use crate::volume::Volumes;
use futures_util::future::join_all;
use http_body_util::Full;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::header::ALLOW;
use hyper::header::CONTENT_TYPE;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use intermezzo_channel::v1::Stat;
use intermezzo_channel::v1::Stats;
use intermezzo_channel::v1::packet::Body;
use lento_core::io::NodeName;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use tracing::warn;

/// How long one connection may last; each carries one request.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(20);
/// Most connections at a time.
const CONNECTIONS: usize = 16;
/// How long Presto may take to answer.
const STAT_DEADLINE: Duration = Duration::from_secs(2);
/// How long to rest when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers for this node.
#[derive(Clone, Debug)]
pub struct MetricsService {
    /// This node.
    pub node: NodeName,
    /// Its volumes.
    pub volumes: Volumes,
    /// Presto.
    pub downcalls: Downcalls,
    /// What the manifests say; `None` until they were read.
    pub desired: watch::Receiver<Option<Desired>>,
}

/// Listens at `address`. The port may be 0: the answer says which one it became.
///
/// # Errors
/// The address cannot be had.
pub fn listen(
    service: MetricsService,
    address: SocketAddr,
    stop: CancellationToken,
) -> Result<SocketAddr, String> {
    let fail = |error: std::io::Error| format!("listen for metrics at {address}: {error}");
    let listener = std::net::TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let listener = TcpListener::from_std(listener).map_err(fail)?;
    let local = listener.local_addr().map_err(fail)?;
    tokio::spawn(async move {
        stop.run_until_cancelled(accept(service, listener)).await;
    });
    Ok(local)
}

async fn accept(service: MetricsService, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    serve(service, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(target: "metrics", %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(service: MetricsService, stream: TcpStream) {
    let answer = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(target: "metrics", %error, "a connection broke"),
        Err(_) => debug!(target: "metrics", "a connection took too long"),
    }
}

impl MetricsService {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET is wanted\n".to_owned());
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match request.uri().path() {
            "/metrics" => match self.metrics().await {
                Ok(text) => response(StatusCode::OK, OPEN_METRICS, text),
                Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
            },
            "/healthz" => response(StatusCode::OK, PLAIN, "alive\n".to_owned()),
            "/readyz" => {
                let reasons = self.not_ready().await;
                if reasons.is_empty() {
                    response(StatusCode::OK, PLAIN, "ready\n".to_owned())
                } else {
                    response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reasons.join("\n") + "\n")
                }
            }
            _ => {
                let text = "there are /metrics, /healthz and /readyz\n".to_owned();
                response(StatusCode::NOT_FOUND, PLAIN, text)
            }
        }
    }

    async fn metrics(&self) -> Result<String, std::fmt::Error> {
        let presto = self.presto_is_attached();
        let volumes = self.volumes.all();
        let seen = join_all(volumes.iter().map(|volume| self.look_at(volume, presto))).await;
        page::text(&self.node, presto, &seen, clock::wall())
    }

    async fn look_at(&self, volume: &VolumeHandle, presto: bool) -> Seen {
        let stats = async {
            let body = Body::Stat(Stat {});
            let call = self.downcalls.call(&volume.name, body, "Stat", STAT_DEADLINE);
            match call.await {
                Ok((Body::Stats(stats), _)) => Some(stats),
                _ => None,
            }
        };
        let stats = async { if presto { stats.await } else { None } };
        let (report, stats) = futures_util::future::join(volume.report(), stats).await;
        Seen {
            name: volume.name.clone(),
            role: if volume.admission().read().serving { "server" } else { "client" },
            report,
            stats,
            meters: volume.meters().clone(),
        }
    }

    async fn not_ready(&self) -> Vec<String> {
        let presto = self.presto_is_attached();
        let wanted: Option<Vec<String>> =
            self.desired.borrow().as_ref().map(|desired| desired.keys().cloned().collect());
        let volumes = self.volumes.all();
        let reports = join_all(volumes.iter().map(VolumeHandle::report)).await;
        let reports = volumes.into_iter().map(|volume| volume.name.to_string()).zip(reports).collect();
        readiness::reasons(presto, wanted.as_deref(), &reports)
    }

    fn presto_is_attached(&self) -> bool {
        matches!(&*self.downcalls.state().borrow(), ChannelState::Up(..))
    }
}

/// One volume at the time of a scrape.
#[derive(Debug)]
struct Seen {
    name: Arc<str>,
    role: &'static str,
    report: Report,
    /// Presto's numbers; `None` while it does not answer.
    stats: Option<Stats>,
    meters: Arc<Meters>,
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

//! What machines ask over HTTP: `/metrics`, `/healthz`, `/readyz`. Plain, without identities; names and numbers only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::metrics::Metrics;

const CONNECTION_DEADLINE: Duration = Duration::from_secs(20);
const CONNECTIONS: usize = 16;
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Listens at `address`. The port may be 0: the answer says which one it became.
///
/// # Errors
/// The address cannot be had.
pub async fn listen(
    metrics: Metrics,
    address: SocketAddr,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    tokio::spawn(async move {
        stop.run_until_cancelled(accept(metrics, listener)).await;
    });
    Ok(local)
}

async fn accept(metrics: Metrics, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = metrics.clone();
                tokio::spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let answer = answer(&metrics, request.method(), request.uri().path());
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(stream), answer);
                    if let Ok(Err(error)) = timeout(CONNECTION_DEADLINE, connection).await {
                        debug!(target: "metrics", %error, "a connection broke");
                    }
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

fn answer(metrics: &Metrics, method: &Method, path: &str) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET is wanted\n".to_owned());
    }
    match path {
        "/metrics" => match metrics.text() {
            Ok(text) => response(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
        },
        "/healthz" => response(StatusCode::OK, PLAIN, "alive\n".to_owned()),
        "/readyz" if metrics.is_listed() => response(StatusCode::OK, PLAIN, "ready\n".to_owned()),
        "/readyz" => {
            let text = "the lists of objects have not been read yet: is the API server there, are the definitions?\n";
            response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text.to_owned())
        }
        _ => response(StatusCode::NOT_FOUND, PLAIN, "there are /metrics, /healthz and /readyz\n".to_owned()),
    }
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn machines_are_told_what_they_ask() {
        let metrics = Metrics::default();
        metrics.turn("Volume", true);
        assert_eq!(answer(&metrics, &Method::GET, "/healthz").status(), StatusCode::OK);
        assert_eq!(answer(&metrics, &Method::GET, "/readyz").status(), StatusCode::SERVICE_UNAVAILABLE);
        metrics.listed(true);
        assert_eq!(answer(&metrics, &Method::GET, "/readyz").status(), StatusCode::OK);
        assert_eq!(answer(&metrics, &Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        let body = answer(&metrics, &Method::GET, "/metrics").into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("intermezzo_operator_reconcile_errors_total{kind=\"Volume\"} 1"), "{text}");
    }
}

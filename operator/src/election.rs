//! Which of several operators writes: the one that holds the Lease.
//!
//! Deciding is pure (`evaluate`); the loop reads, decides, writes with the version it read, and tells the rest. A holder that
//! cannot renew stops writing before anybody else may take over.

mod evaluate;

use std::time::Duration;

use evaluate::{Decision, Lead, evaluate};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube_client::api::{ObjectMeta, PostParams};
use kube_client::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::names;

/// How long a Lease is good for without a renewal.
pub const LEASE: Duration = Duration::from_secs(15);
/// A holder renews this often, the others look this often.
const PERIOD: Duration = Duration::from_secs(3);
/// A holder that has not renewed for so long stops: earlier than others may take over.
const GIVE_UP: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(4);

/// Takes part until told to stop; the answer is true while this operator leads. On stop the Lease is given back.
#[must_use]
pub fn run(client: Client, namespace: &str, me: String, stop: CancellationToken) -> watch::Receiver<bool> {
    let (leads, receiver) = watch::channel(false);
    let leases = Api::namespaced(client, namespace);
    tokio::spawn(async move {
        let mut candidate = Candidate { leases, me, watched: None, renewed: None };
        stop.run_until_cancelled(candidate.take_part(&leads)).await;
        if candidate.renewed.is_some() {
            leads.send_replace(false);
            candidate.give_back().await;
        }
    });
    receiver
}

struct Candidate {
    leases: Api<Lease>,
    me: String,
    /// Another's Lease as seen last, and since when: its expiry is counted on this node's clock.
    watched: Option<Lead>,
    renewed: Option<Instant>,
}

impl Candidate {
    async fn take_part(&mut self, leads: &watch::Sender<bool>) {
        loop {
            // Others count from when they see the renewal, which is after it was begun here.
            let began = Instant::now();
            match timeout(self.at_most(CALL), self.turn()).await {
                Ok(Ok(true)) => self.renewed = Some(began),
                Ok(Ok(false)) => self.renewed = None,
                Ok(Err(error)) => {
                    warn!(target: "election", %error, "cannot read or write the Lease {}", names::OPERATOR);
                }
                Err(_) => warn!(target: "election", "the API server does not answer"),
            }
            if self.renewed.is_some_and(|at| at.elapsed() >= GIVE_UP) {
                self.renewed = None;
            }
            let now = self.renewed.is_some();
            if leads.send_if_modified(|was| std::mem::replace(was, now) != now) {
                info!(target: "election", me = self.me, leads = now, "leadership");
            }
            sleep(self.at_most(PERIOD)).await;
        }
    }

    /// A holder waits for nothing beyond the moment when it must have given up.
    fn at_most(&self, wait: Duration) -> Duration {
        self.renewed.map_or(wait, |at| wait.min(GIVE_UP.saturating_sub(at.elapsed())))
    }

    /// One look and, where due, one write. Whether this operator holds the Lease now.
    async fn turn(&mut self) -> Result<bool, kube_client::Error> {
        let found = self.leases.get_opt(names::OPERATOR).await?;
        let now = Timestamp::now();
        let spec = match evaluate(found.as_ref(), &self.me, &mut self.watched, now, Instant::now(), LEASE) {
            Decision::Yield => return Ok(false),
            Decision::Write(spec) => spec,
        };
        let metadata = found.map_or_else(
            || ObjectMeta {
                name: Some(names::OPERATOR.into()),
                labels: Some(names::labels("operator")),
                ..ObjectMeta::default()
            },
            |lease| lease.metadata,
        );
        let lease = Lease { metadata, spec: Some(*spec) };
        let params = PostParams { field_manager: Some(names::MANAGER.into()), ..PostParams::default() };
        // The version that was read goes along: of two that want it, one is refused.
        let written = match lease.metadata.resource_version {
            Some(_) => self.leases.replace(names::OPERATOR, &params, &lease).await,
            None => self.leases.create(&params, &lease).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube_client::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn give_back(&self) {
        let back = async {
            let mut lease = self.leases.get(names::OPERATOR).await?;
            if let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_ref() == Some(&self.me)) {
                spec.holder_identity = None;
                self.leases.replace(names::OPERATOR, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube_client::Error>(())
        };
        if let Ok(Err(error)) = timeout(CALL, back).await {
            warn!(target: "election", %error, "the Lease could not be given back; others wait until it ends");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Request, Response};
    use kube_client::client::Body;

    #[tokio::test(start_paused = true)]
    async fn a_holder_gives_up_before_anybody_may_take_over() {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let server = tokio::spawn(async move {
            let mut unanswered = Vec::new();
            let mut renewed = None;
            while let Some((request, send)) = handle.next_request().await {
                // The first write is taken; after that the API server says nothing any more.
                if renewed.is_some() {
                    unanswered.push(send);
                    continue;
                }
                let (code, body) = match request.method().as_str() {
                    "GET" => (404, r#"{"kind":"Status","apiVersion":"v1","status":"Failure","code":404,"reason":"NotFound","message":""}"#.to_owned()),
                    _ => {
                        renewed = Some(Instant::now());
                        let bytes = request.into_body().collect_bytes().await.unwrap();
                        (201, String::from_utf8(bytes.to_vec()).unwrap())
                    }
                };
                send.send_response(
                    Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap(),
                );
            }
            renewed
        });
        let stop = CancellationToken::new();
        let mut leads = run(Client::new(service, "ns"), "ns", "a".to_owned(), stop.clone());
        leads.wait_for(|leads| *leads).await.unwrap();
        let renewed = Instant::now();
        leads.wait_for(|leads| !*leads).await.unwrap();
        let held = renewed.elapsed();
        assert!(held <= GIVE_UP && held < LEASE, "{held:?}");
        stop.cancel();
        server.abort();
    }
}

//! Plugs the far side of the agents in: keeps their authority, hands out what nodes shall do, takes in what they say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use intermezzo_control::{Agent, Agents, Authority, Desired, Lifetimes, Settings, listen};
use intermezzo_proto::v1;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::authority_store::{AuthorityStore, Stored};
use crate::control::{FarEnds, NodeDesired, Problem, Report, Reports};
use crate::review::TokenReviews;

/// How often the authority's age is looked at; what agents trust is published anew each time.
const LOOK: Duration = Duration::from_secs(600);
/// After the API server did not take it.
const AGAIN: Duration = Duration::from_secs(5);

/// What it needs.
#[derive(Debug)]
pub struct FarSide {
    /// Desired states out, reports in.
    pub ends: FarEnds,
    /// Looks at agents' tokens.
    pub reviews: TokenReviews,
    /// Where the authority is kept.
    pub store: AuthorityStore,
    /// Where agents attach.
    pub listen: SocketAddr,
    /// The end.
    pub stop: CancellationToken,
}

/// Serves agents until the end.
///
/// # Errors
/// The stored authority is broken, or the address cannot be had.
pub async fn serve(side: FarSide) -> anyhow::Result<()> {
    let FarSide { ends, reviews, store, listen: address, stop } = side;
    let lifetimes = Lifetimes::default();
    let Some(first) = stop.run_until_cancelled(first(&store, &lifetimes)).await else { return Ok(()) };
    let (authority, stored) = first?;
    let (put_authority, authority) = watch::channel(Arc::new(authority));
    let (put_desired, desired) = watch::channel(BTreeMap::new());
    let settings = Settings {
        listen: address,
        lifetime: lifetimes.certificate(),
        authority,
        reviewer: Arc::new(reviews),
        desired,
    };
    let listening = listen(settings, stop.clone())?;
    info!(target: "control", address = %listening.address, "agents are served");
    let work = async {
        tokio::join!(
            keep(&store, stored, &put_authority, &lifetimes),
            hand_out(ends.desired, &put_desired),
            take_in(listening.agents, &ends.reports),
        );
    };
    stop.run_until_cancelled(work).await;
    Ok(())
}

/// The authority that is stored, or the first one. A broken one is left as it is: nodes trust it, and a person may mend it.
async fn first(store: &AuthorityStore, lifetimes: &Lifetimes) -> anyhow::Result<(Authority, Stored)> {
    loop {
        match store.load().await {
            Ok(Some(stored)) => {
                let authority = Authority::from_pem(&stored.parts)
                    .context("the Secret intermezzo-ca cannot be used; restore it, or delete it and every node enrols anew")?;
                return Ok((authority, stored));
            }
            Ok(None) => {
                let authority = Authority::create(SystemTime::now(), lifetimes)?;
                match store.save(&authority.to_pem(), None).await {
                    Ok(stored) => return Ok((authority, stored)),
                    Err(error) => warn!(target: "control", %error, "the new authority could not be stored"),
                }
            }
            Err(error) => warn!(target: "control", %error, "the authority could not be read"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Renews the authority in time. Each state is stored before it is used, and published before anything rests on it.
async fn keep(
    store: &AuthorityStore,
    mut stored: Stored,
    authority: &watch::Sender<Arc<Authority>>,
    lifetimes: &Lifetimes,
) {
    loop {
        let now = authority.borrow().clone();
        let turn = async {
            if let Some(next) = now.due(SystemTime::now(), lifetimes)? {
                stored = store.save(&next.to_pem(), Some(&stored)).await?;
                info!(target: "control", state = next.state_name(), "the authority");
                authority.send_replace(Arc::new(next));
            }
            let bundle = authority.borrow().bundle();
            store.publish(&bundle).await?;
            anyhow::Ok(())
        };
        let wait = match turn.await {
            Ok(()) => LOOK,
            Err(error) => {
                warn!(target: "control", error = format!("{error:#}"), "the authority could not be kept; trying again");
                AGAIN
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn hand_out(
    mut from: watch::Receiver<crate::control::DesiredByNode>,
    to: &watch::Sender<intermezzo_control::DesiredByNode>,
) {
    loop {
        if let Some(all) = from.borrow_and_update().as_ref() {
            let said: BTreeMap<_, _> = all
                .iter()
                .filter_map(|(node, desired)| Some((node.clone(), message(node, desired)?)))
                .collect();
            to.send_replace(said);
        }
        if from.changed().await.is_err() {
            return;
        }
    }
}

fn message(node: &str, desired: &NodeDesired) -> Option<Arc<Desired>> {
    let made = Desired::new(&desired.volumes, &desired.replicators, &desired.peers, &desired.discard);
    made.inspect_err(|error| error!(target: "control", node, %error, "what the node shall do is not JSON"))
        .ok()
        .map(Arc::new)
}

async fn take_in(mut from: watch::Receiver<Agents>, to: &watch::Sender<Reports>) {
    loop {
        let now: Reports = from
            .borrow_and_update()
            .iter()
            .filter_map(|(node, agent)| Some((node.clone(), report(agent)?)))
            .collect();
        to.send_if_modified(|before| {
            let modified = *before != now;
            *before = now;
            modified
        });
        if from.changed().await.is_err() {
            return;
        }
    }
}

/// What an agent says; nothing of one that is away, or has not said how it is since it came.
fn report(agent: &Agent) -> Option<Report> {
    let said = agent.report.as_deref().filter(|_| agent.attached)?;
    let conflicts = said.conflicts.iter().map(|c| (c.volume.clone(), c.records.clone())).collect();
    Some(Report {
        since: Timestamp::try_from(agent.since).unwrap_or_default(),
        advertise: agent.advertise.clone(),
        version: agent.version.clone(),
        revision: said.revision.clone(),
        presto_connected: said.presto_connected,
        volumes: said.volumes.clone(),
        problems: said.problems.iter().map(problem).collect(),
        conflicts,
        discarded: said.discarded.iter().cloned().collect(),
    })
}

fn problem(from: &v1::VolumeProblem) -> Problem {
    Problem { volume: from.volume.clone(), field: from.field.clone(), reason: from.reason.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_away_or_has_not_spoken_says_nothing() {
        let said =
            v1::Report { revision: "7".into(), discarded: vec!["ns/v".into()], ..v1::Report::default() };
        let agent = |attached, report| Agent {
            attached,
            since: SystemTime::UNIX_EPOCH,
            version: "1".into(),
            advertise: "10.0.0.1:7430".into(),
            report,
        };
        assert_eq!(report(&agent(true, None)), None);
        assert_eq!(report(&agent(false, Some(Arc::new(said.clone())))), None);
        let heard = report(&agent(true, Some(Arc::new(said)))).unwrap();
        assert_eq!((heard.revision.as_str(), heard.discarded.contains("ns/v")), ("7", true));
    }
}

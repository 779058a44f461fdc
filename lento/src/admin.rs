//! What the command line asks: `Admin` over a Unix socket that only its owner may open.

use crate::clock;
use crate::history;
use crate::history::Historian;
use crate::req_dispatcher::ChannelState;
use crate::req_dispatcher::Downcalls;
use crate::volume::Mail;
use crate::volume::Report;
use crate::volume::VolumeHandle;
use crate::volume::Volumes;
use intermezzo_channel::v1::Stat;
use intermezzo_channel::v1::packet::Body;
use intermezzo_proto::v1;
use intermezzo_proto::v1::admin_server::Admin;
use intermezzo_proto::v1::admin_server::AdminServer;
use lento_core::io::Judgement;
use lento_core::scrub::Found;
use lento_core::types::Position;
use lento_core::types::Recno;
use lento_core::types::Time;
use lento_core::volume::PermitState;
use lento_core::volume::ReplicatorStatus;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::Response;
use tonic::Status;
use tonic::transport::Server;
use tracing::warn;

/// How long Presto may take to say how a volume's journal is.
const STAT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a volume may take to strike a conflict off.
const RESOLVED: Duration = Duration::from_secs(8);
/// How often somebody who waits is told what for.
const PROGRESS: Duration = Duration::from_millis(500);

/// Answers for this node.
#[derive(Clone, Debug)]
pub struct AdminService {
    /// This node.
    pub node: String,
    /// Its volumes.
    pub volumes: Volumes,
    /// Presto.
    pub downcalls: Downcalls,
    /// What was.
    pub historian: Historian,
}

/// The socket in the file system; it goes when dropped, unless another agent has put its own there meanwhile.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| now.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`; a socket left over from before is replaced.
///
/// # Errors
/// Text for people.
pub fn listen(service: AdminService, path: &Path, stop: CancellationToken) -> Result<SocketFile, String> {
    let fail = |error: std::io::Error| format!("admin socket {}: {error}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    let inode = std::fs::symlink_metadata(path).map_err(fail)?.ino();
    tokio::spawn(async move {
        let incoming = UnixListenerStream::new(listener);
        let serve = Server::builder().serve_with_incoming(AdminServer::new(service), incoming);
        if let Some(Err(error)) = stop.run_until_cancelled(serve).await {
            warn!(target: "admin", %error, "the admin socket ended");
        }
    });
    Ok(SocketFile { path: path.to_owned(), inode })
}

type Reply<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Admin for AdminService {
    type WaitStream = Reply<v1::WaitProgress>;
    type CmlListStream = Reply<v1::CmlRecord>;
    type ConflictsStream = Reply<v1::ConflictRecord>;
    type ScrubStream = Reply<v1::ScrubProgress>;
    type HistoryStream = history::Answers<v1::HistoryLine>;
    type PastStream = history::Answers<v1::PastReply>;
    type FormerStream = history::Answers<v1::FormerChunk>;

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let (kernel, presto_connected) = match &*self.downcalls.state().borrow() {
            ChannelState::Up(_, attached) => (attached.kernel.clone(), true),
            ChannelState::Down => (Vec::new(), false),
        };
        let mut volumes = Vec::new();
        for volume in self.volumes.all() {
            let report = volume.report().await;
            let kml = newest(&self.downcalls, &volume, presto_connected, &report).await;
            volumes.push(volume_status(&volume.name, report, kml));
        }
        Ok(Response::new(v1::StatusReply {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            volumes,
            kernel,
            presto_connected,
        }))
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let request = request.into_inner();
        let volume = self.find(&request.volume)?;
        let stat = self.downcalls.call(&volume.name, Body::Stat(Stat {}), "Stat", STAT_DEADLINE).await;
        let upto = match stat {
            Ok((Body::Stats(stats), _)) => Recno(stats.last_recno),
            Ok(_) => return Err(Status::internal("presto answered Stat with another message")),
            Err(error) => return Err(Status::unavailable(format!("volume {}: {error}", volume.name))),
        };
        let (progress, stream) = mpsc::channel(4);
        tokio::spawn(wait(volume, upto, request.all, progress));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cml_list(
        &self,
        request: Request<v1::CmlListRequest>,
    ) -> Result<Response<Self::CmlListStream>, Status> {
        let volume = self.find(&request.into_inner().volume)?;
        Ok(Response::new(rows(crate::listing::cml(&volume))))
    }

    async fn conflicts(
        &self,
        request: Request<v1::ConflictsRequest>,
    ) -> Result<Response<Self::ConflictsStream>, Status> {
        let volume = self.find(&request.into_inner().volume)?;
        Ok(Response::new(rows(crate::listing::conflicts(&volume))))
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveReply>, Status> {
        let v1::ResolveRequest { volume, position } = request.into_inner();
        let volume = self.find(&volume)?;
        let report = volume.report().await;
        if !report.serving {
            return Err(Status::failed_precondition(format!(
                "conflicts of volume {} are resolved on its server, node {}",
                volume.name, report.server
            )));
        }
        let is_listed = || {
            let listed = crate::listing::has_conflict(&volume, Position(position));
            listed.map_err(Status::unavailable)
        };
        if !is_listed()? {
            return Err(Status::not_found(format!(
                "volume {} has no conflict at position {position}",
                volume.name
            )));
        }
        volume.send(Mail::Resolved(Position(position))).await;
        let deadline = tokio::time::Instant::now() + RESOLVED;
        while is_listed()? {
            if tokio::time::Instant::now() > deadline {
                return Err(Status::unavailable(format!("volume {} is busy or stopped", volume.name)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Response::new(v1::ResolveReply {}))
    }

    async fn judge(&self, request: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeReply>, Status> {
        let request = request.into_inner();
        let volume = self.find(&request.volume)?;
        let judgement = match request.judgement() {
            v1::judge_request::Judgement::Approve => Judgement::Approved,
            v1::judge_request::Judgement::Refuse => Judgement::Refused,
            v1::judge_request::Judgement::Unspecified => {
                return Err(Status::invalid_argument("neither approved nor refused"));
            }
        };
        let report = volume.report().await;
        if !report.serving {
            return Err(Status::failed_precondition(format!(
                "removals of volume {} are held by its server, node {}",
                volume.name, report.server
            )));
        }
        let is_held = |report: &Report| report.status.held.iter().any(|(node, _)| *node == request.node);
        if !is_held(&report) {
            return Err(Status::not_found(format!(
                "no removals of node {} are held on volume {}",
                request.node, volume.name
            )));
        }
        volume.send(Mail::Judged(request.node.clone(), judgement)).await;
        let deadline = tokio::time::Instant::now() + RESOLVED;
        while is_held(&volume.report().await) {
            if tokio::time::Instant::now() > deadline {
                return Err(Status::unavailable(format!("volume {} is busy or stopped", volume.name)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Response::new(v1::JudgeReply {}))
    }

    async fn scrub(&self, request: Request<v1::ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let request = request.into_inner();
        let volume = self.find(&request.volume)?;
        let found = match request.what() {
            v1::scrub_request::What::Follow => None,
            v1::scrub_request::What::Show => Some(Found::Show),
            v1::scrub_request::What::Take => Some(Found::Take),
        };
        if let Some(found) = found {
            volume.send(Mail::Scrub(found)).await;
        }
        let (progress, stream) = mpsc::channel(4);
        tokio::spawn(follow_scrub(volume, progress));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<Self::HistoryStream>, Status> {
        let volume = self.find(&request.get_ref().volume)?;
        self.historian.lines(&volume, request.into_inner()).await.map(Response::new)
    }

    async fn past(&self, request: Request<v1::PastRequest>) -> Result<Response<Self::PastStream>, Status> {
        let volume = self.find(&request.get_ref().volume)?;
        self.historian.past(&volume, request.into_inner()).await.map(Response::new)
    }

    async fn former(
        &self,
        request: Request<v1::FormerRequest>,
    ) -> Result<Response<Self::FormerStream>, Status> {
        let volume = self.find(&request.get_ref().volume)?;
        self.historian.former(&volume, request.into_inner()).await.map(Response::new)
    }
}

/// Tells how a scrub goes until it is finished.
async fn follow_scrub(volume: VolumeHandle, progress: mpsc::Sender<Result<v1::ScrubProgress, Status>>) {
    loop {
        let report = volume.report().await;
        if !report.fault.is_empty() {
            let _ = progress.send(Err(Status::unavailable(report.fault))).await;
            return;
        }
        let scrub = report.status.scrub;
        let finished = !scrub.running;
        let shown = if finished { scrub.paths.as_slice() } else { &[] };
        let finding =
            |(path, what): &(String, String)| v1::ScrubFinding { path: path.clone(), what: what.clone() };
        let so_far = v1::ScrubProgress {
            finished,
            done: scrub.done,
            looked: scrub.looked,
            found: scrub.found,
            adopting: scrub.adopting,
            taken: scrub.taken,
            trouble: scrub.trouble,
            findings: shown.iter().map(finding).collect(),
        };
        if progress.send(Ok(so_far)).await.is_err() || finished {
            return;
        }
        tokio::time::sleep(PROGRESS).await;
    }
}

impl AdminService {
    fn find(&self, name: &str) -> Result<VolumeHandle, Status> {
        let missing = || Status::not_found(format!("volume {name} is not on node {}", self.node));
        self.volumes.get(name).ok_or_else(missing)
    }
}

/// A stream of rows that are at hand.
fn rows<T: Send + 'static>(rows: Result<Vec<T>, String>) -> Reply<T> {
    let (sender, stream) = mpsc::channel(64);
    tokio::spawn(async move {
        match rows {
            Ok(rows) => {
                for row in rows {
                    if sender.send(Ok(row)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => drop(sender.send(Err(Status::internal(error))).await),
        }
    });
    ReceiverStream::new(stream)
}

/// First and last record of the KML now, or as last heard.
async fn newest(downcalls: &Downcalls, volume: &VolumeHandle, up: bool, report: &Report) -> (u64, u64) {
    let known = (report.kml.0.0, report.kml.1.0);
    if !up {
        return known;
    }
    match downcalls.call(&volume.name, Body::Stat(Stat {}), "Stat", STAT_DEADLINE).await {
        Ok((Body::Stats(stats), _)) => (stats.first_recno, stats.last_recno),
        _ => known,
    }
}

async fn wait(
    volume: VolumeHandle,
    upto: Recno,
    all: bool,
    progress: mpsc::Sender<Result<v1::WaitProgress, Status>>,
) {
    let mut waiting = None;
    loop {
        // A volume that began a new life has forgotten who waits, so it is asked again.
        let reached = match &mut waiting {
            Some(reached) => reached,
            None => {
                let (sender, receiver) = oneshot::channel();
                if !volume.send(Mail::Wait { upto, all, reached: sender }).await {
                    let stopped = format!("volume {} has been stopped", volume.name);
                    let _ = progress.send(Err(Status::unavailable(stopped))).await;
                    return;
                }
                waiting.insert(receiver)
            }
        };
        tokio::select! {
            () = progress.closed() => return,
            result = reached => {
                if result.is_ok() {
                    let done = v1::WaitProgress { done: true, ..Default::default() };
                    let _ = progress.send(Ok(done)).await;
                    return;
                }
                waiting = None;
                tokio::time::sleep(PROGRESS).await;
            }
            () = tokio::time::sleep(PROGRESS) => {}
        }
        let report = volume.report().await;
        let waits_for = waits_for(&report, all);
        let pending = report.status.pending;
        let so_far = v1::WaitProgress { done: false, pending, waiting: waits_for };
        if progress.send(Ok(so_far)).await.is_err() {
            return;
        }
    }
}

/// What stands between now and "it is safe", in words.
fn waits_for(report: &Report, all: bool) -> String {
    if !report.fault.is_empty() {
        return report.fault.clone();
    }
    if let Some(reason) = report.status.waiting.first() {
        return reason.clone();
    }
    let status = &report.status;
    if !report.serving && !status.connected {
        return format!("server {} is not connected", report.server);
    }
    if status.pending > 0 {
        return format!("{} records without a verdict", status.pending);
    }
    let behind = status.replicators.iter().filter(|replicator| replicator.durable < status.position);
    let behind: Vec<String> = behind
        .map(|replicator| match (replicator.connected, replicator.other_history, replicator.must_resync) {
            (true, ..) => format!("{} is behind", replicator.node),
            (_, true, _) => format!("{} has another history of the volume", replicator.node),
            (_, _, true) => format!("{} is not connected, and will get the whole tree", replicator.node),
            _ => format!("{} is not connected", replicator.node),
        })
        .collect();
    if all && !behind.is_empty() {
        return behind.join(", ");
    }
    "the newest records are on their way".to_owned()
}

fn position(position: Position) -> Option<v1::Position> {
    Some(v1::Position { epoch: 0, number: position.0 })
}

/// One volume in the words of the wire; `kml`: first and last record.
pub(crate) fn volume_status(name: &str, report: Report, kml: (u64, u64)) -> v1::VolumeStatus {
    let now = clock::wall();
    let status = report.status;
    v1::VolumeStatus {
        name: name.to_owned(),
        role: if report.serving { "Server" } else { "Client" }.to_owned(),
        server: report.server,
        position: position(status.position),
        applied: position(status.applied),
        pending: status.pending,
        dirty: status.dirty,
        connected: status.connected,
        replicators: status.replicators.into_iter().map(|one| replicator_status(one, now)).collect(),
        conflicts: status.conflicts,
        newest_conflict: status.newest_conflict.0,
        history_from: status.history.map(|extent| extent.from.0),
        conflicts_decided: status.conflicts_decided,
        conflict_bytes: status.conflict_bytes.0,
        conflict_decided_bytes: status.conflict_bytes.1,
        held: status.held.into_iter().map(held_removal).collect(),
        mountpoint: report.mountpoint,
        cache: report.cache,
        kml_first: kml.0,
        kml_last: kml.1,
        waiting: status.waiting,
        fault: report.fault,
        pending_bytes: status.pending_bytes,
        pending_seconds: clock::seconds_since(status.pending_since, now),
        reached: String::new(),
        permit: permit(status.permit).into(),
        permit_holder: status.permit_holder.unwrap_or_default(),
        permit_waiting: status.permit_waiting,
    }
}

fn permit(state: PermitState) -> v1::Permit {
    match state {
        PermitState::NotNeeded => v1::Permit::NotNeeded,
        PermitState::Without => v1::Permit::Without,
        PermitState::Asked => v1::Permit::Asked,
        PermitState::Held => v1::Permit::Held,
        PermitState::Leaving => v1::Permit::Leaving,
        PermitState::Stolen => v1::Permit::Stolen,
        PermitState::ReadOnly => v1::Permit::ReadOnly,
    }
}

fn held_removal((node, held): (String, lento_core::Held)) -> v1::HeldRemoval {
    let lento_core::Held { removals, objects, paths, .. } = held;
    v1::HeldRemoval { node, removals, objects, paths }
}

fn replicator_status(replicator: ReplicatorStatus, now: Time) -> v1::ReplicatorStatus {
    v1::ReplicatorStatus {
        lag_records: replicator.lag_records,
        lag_bytes: replicator.lag.map(|lag| lag.bytes),
        node: replicator.node,
        connected: replicator.connected,
        applied: position(replicator.applied),
        durable: position(replicator.durable),
        lag_seconds: replicator.lag.map(|lag| clock::seconds_since(lag.since, now)),
        syncing: replicator.syncing,
        must_resync: replicator.must_resync,
        other_history: replicator.other_history,
    }
}

//! The agent of one node: puts the rooms together and makes the volumes be what the desired state says.

use crate::admin;
use crate::control;
use crate::desired::Desired;
use crate::desired::DesiredVolume;
use crate::dialer::Peers;
use crate::history::Historian;
use crate::jobs;
use crate::manifests;
use crate::metrics;
use crate::options::OperatorOptions;
use crate::options::Options;
use crate::options::Source;
use crate::progress;
use crate::replication::ReplicationService;
use crate::replication::listen;
use crate::req_dispatcher::ChannelState;
use crate::req_dispatcher::Downcalls;
use crate::req_dispatcher::ReqDispatcher;
use crate::req_handler::ReqHandler;
use crate::rooms::Limits;
use crate::rooms::Rooms;
use crate::stage_names::StageNames;
use crate::store::boot_id;
use crate::volume::Mail;
use crate::volume::VolumeHandle;
use crate::volume::Volumes;
use crate::volume_task::Surroundings;
use crate::volume_task::VolumeTask;
use intermezzo_channel::v1::ClearVolume;
use intermezzo_channel::v1::packet::Body;
use intermezzo_identity::Credentials;
use intermezzo_identity::Identity;
use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing::warn;

/// How long a volume may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(3);
/// Unmounting may have to wait for users.
const CLEAR_DEADLINE: Duration = Duration::from_secs(30);

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its identity.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// Its directories or sockets.
    #[error("{0}")]
    Setup(String),
}

/// Where the desired state comes from, once it is known how to be somebody.
enum Origin {
    Manifests(PathBuf),
    Operator(OperatorOptions, watch::Sender<Option<Arc<Identity>>>),
}

/// One node's agent.
pub struct Agent {
    around: Surroundings,
    volumes: Volumes,
    running: BTreeMap<String, (VolumeHandle, DesiredVolume)>,
}

impl Agent {
    /// Runs until `stop`; then takes leave, within 5 s.
    ///
    /// # Errors
    /// It cannot begin.
    pub async fn run(options: Options, stop: CancellationToken) -> Result<(), AgentError> {
        let source = options.source().map_err(AgentError::Setup)?;
        let setup = |what: &str, error: std::io::Error| AgentError::Setup(format!("{what}: {error}"));
        std::fs::create_dir_all(&options.state)
            .map_err(|error| setup(&options.state.display().to_string(), error))?;
        let boot = boot_id().map_err(|error| setup("boot id", error))?;

        // The rooms outlive the volumes, so that these can take leave.
        let rooms = CancellationToken::new();
        let _end = rooms.clone().drop_guard();
        let (origin, credentials) = match source {
            Source::Manifests { dir, files } => {
                (Origin::Manifests(dir), files.follow(&options.node, rooms.clone())?)
            }
            Source::Operator(operator) => {
                let (put, credentials) = Credentials::channel();
                (Origin::Operator(operator, put), credentials)
            }
        };
        let volumes = Volumes::default();
        let handler = ReqHandler::new(volumes.clone());
        let (dispatcher, downcalls) =
            ReqDispatcher::new(options.presto_socket.clone(), handler, rooms.clone());
        tokio::spawn(dispatcher.run());
        let contents = Arc::new(Semaphore::new(jobs::CONCURRENCY));
        let peers = Peers::new(credentials.clone(), options.peers.iter().cloned().collect());
        let historian = Historian::new(&options.node, downcalls.clone(), peers.clone())
            .map_err(|error| setup("random numbers", error))?;
        let service = ReplicationService {
            volumes: volumes.clone(),
            downcalls: downcalls.clone(),
            contents: contents.clone(),
            names: StageNames::default(),
            rooms: Rooms::default(),
            limits: Limits::default(),
            historian: historian.clone(),
        };
        let address =
            listen(service, options.listen, credentials, rooms.clone()).map_err(AgentError::Setup)?;
        let _socket = admin::listen(
            admin::AdminService {
                node: options.node.clone(),
                volumes: volumes.clone(),
                downcalls: downcalls.clone(),
                historian,
            },
            &options.admin_socket,
            rooms.clone(),
        )
        .map_err(AgentError::Setup)?;
        let run = options.admin_socket.parent().map(Path::to_owned).unwrap_or_default();
        info!(target: "agent", node = options.node, %address, "listening");

        let mut desired = match origin {
            Origin::Manifests(dir) => manifests::follow(dir, options.node.clone(), rooms.clone()),
            Origin::Operator(operator, identity) => {
                let settings = control::Settings {
                    node: options.node.clone(),
                    operator,
                    state: options.state.clone(),
                    volumes: volumes.clone(),
                    downcalls: downcalls.clone(),
                    peers: peers.clone(),
                    identity,
                    cache: options.cache.clone(),
                    run: run.clone(),
                };
                control::start(settings, rooms.clone())
            }
        };
        if let Some(address) = options.metrics {
            let service = metrics::MetricsService {
                node: options.node.clone(),
                volumes: volumes.clone(),
                downcalls: downcalls.clone(),
                desired: desired.clone(),
            };
            let address = metrics::listen(service, address, rooms.clone()).map_err(AgentError::Setup)?;
            info!(target: "agent", %address, "metrics are served");
        }
        if let Some(file) = options.progress {
            progress::tell(file, volumes.clone(), rooms.clone()).map_err(AgentError::Setup)?;
        }
        let around = Surroundings {
            node: options.node,
            downcalls,
            peers,
            contents,
            state: options.state,
            cache: options.cache,
            mounts: options.mounts,
            boot,
            run,
        };
        let mut channel = around.downcalls.state();
        let mut agent = Agent { around, volumes, running: BTreeMap::new() };
        let mut told = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = channel.changed() => {
                    let state = channel.borrow_and_update().clone();
                    if told {
                        agent.clear_others(&state);
                    }
                }
                changed = desired.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let now = desired.borrow_and_update().clone();
                    if let Some(now) = now {
                        agent.reconcile(now).await;
                        if !std::mem::replace(&mut told, true) {
                            let state = channel.borrow_and_update().clone();
                            agent.clear_others(&state);
                        }
                    }
                }
            }
        }
        agent.stop_all().await;
        Ok(())
    }

    async fn reconcile(&mut self, desired: Desired) {
        let gone: Vec<String> =
            self.running.keys().filter(|name| !desired.contains_key(*name)).cloned().collect();
        for name in gone {
            info!(target: "agent", volume = name, "this node has no part in it any more; its data stays");
            self.stop(&name).await;
            clear(&self.around.downcalls, &name);
        }
        for (name, volume) in desired {
            match self.running.get(&name) {
                None => self.start(&name, volume),
                Some((_, before)) if *before == volume => {}
                // Another server is another role, or another far side: from the start.
                Some((_, before)) if before.server != volume.server => {
                    self.stop(&name).await;
                    self.start(&name, volume);
                }
                Some((handle, _)) => {
                    let handle = handle.clone();
                    handle.send(Mail::Desired(Box::new(volume.clone()))).await;
                    self.running.insert(name, (handle, volume));
                }
            }
        }
    }

    /// What presto remembers and this node has no part in any more: it was away when it should have let go.
    fn clear_others(&self, state: &ChannelState) {
        let ChannelState::Up(_, attached) = state else { return };
        for volume in attached.volumes.iter().filter(|volume| !self.running.contains_key(&volume.name)) {
            info!(target: "agent", volume = volume.name, "presto serves it and this node has no part in it; its data stays");
            clear(&self.around.downcalls, &volume.name);
        }
    }

    fn start(&mut self, name: &str, desired: DesiredVolume) {
        let serving = desired.is_server(&self.around.node);
        info!(target: "agent", volume = name, server = desired.server, serving, "starting");
        let (handle, mailbox) = VolumeHandle::new(name);
        let task = VolumeTask::new(self.around.clone(), handle.clone(), mailbox, desired.clone());
        tokio::spawn(task.run());
        self.volumes.insert(handle.clone());
        if !serving {
            self.around.peers.follow(&desired.server, handle.clone());
        }
        self.running.insert(name.to_owned(), (handle, desired));
    }

    async fn stop(&mut self, name: &str) {
        let Some((handle, desired)) = self.running.remove(name) else { return };
        self.volumes.remove(name);
        stop_task(&handle).await;
        self.around.peers.unfollow(&desired.server, name);
    }

    async fn stop_all(&mut self) {
        let stopping: Vec<_> =
            std::mem::take(&mut self.running).into_values().map(|(handle, _)| handle).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for handle in stopping {
            self.volumes.remove(&handle.name);
            tasks.spawn(async move { stop_task(&handle).await });
        }
        while tasks.join_next().await.is_some() {}
        // The goodbyes are on their way; a moment for them to leave.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stop_task(handle: &VolumeHandle) {
    let stopped = async {
        let (done, waiting) = oneshot::channel();
        if handle.send(Mail::Stop(done)).await {
            let _ = waiting.await;
        }
    };
    if timeout(STOP_DEADLINE, stopped).await.is_err() {
        warn!(target: "agent", volume = &*handle.name, "did not stop in time; its store recovers when opened");
    }
}

fn clear(downcalls: &Downcalls, name: &str) {
    let (downcalls, name) = (downcalls.clone(), name.to_owned());
    tokio::spawn(async move {
        let body = Body::ClearVolume(ClearVolume::default());
        if let Err(error) = downcalls.call(&name, body, "ClearVolume", CLEAR_DEADLINE).await {
            warn!(target: "agent", volume = name, %error, "presto still serves it");
        }
    });
}

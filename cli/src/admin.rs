//! An agent's admin socket, from outside: one connection, deadlines on everything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use intermezzo_proto::v1::admin_client::AdminClient;
use intermezzo_proto::v1::{
    CmlListRequest, CmlRecord, ConflictRecord, ConflictsRequest, FormerChunk, FormerRequest, HistoryLine,
    HistoryRequest, JudgeRequest, PastReply, PastRequest, ResolveRequest, ScrubRequest, StatusReply,
    StatusRequest, WaitProgress, WaitRequest,
};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub use intermezzo_proto::v1::ScrubProgress;
pub use intermezzo_proto::v1::scrub_request::What as Looking;

/// Where an agent's socket is unless somebody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/intermezzo/lento.sock";

/// How long an agent may take for an answer that needs no waiting.
pub const ANSWER: Duration = Duration::from_secs(10);

/// How long an agent may take that has to look through what was.
const LOOKING: Duration = Duration::from_secs(120);

/// What can go wrong on the way to an agent.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens there.
    #[error(
        "no agent answers at {path}: {reason}; is lento running, and is this its --admin-socket? (it takes root)"
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the transport says.
        reason: String,
    },
    /// The agent refused or failed.
    #[error("the agent at {path} says: {}", .status.message())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its answer.
        status: tonic::Status,
    },
    /// The agent accepted the connection and then was silent.
    #[error("the agent at {path} did not answer within {seconds} s")]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long it was given.
        seconds: u64,
    },
    /// The agent stopped telling how a scrub goes.
    #[error("the scrub of {volume} ended before it was finished; begin it again")]
    Unfinished {
        /// The volume.
        volume: String,
    },
    /// This process cannot run a runtime.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl AdminError {
    /// Whether no agent is there (as opposed to one that refuses).
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            AdminError::Unreachable { .. } | AdminError::Silent { .. } => true,
            AdminError::Refused { status, .. } => status.code() == tonic::Code::Unavailable,
            AdminError::Unfinished { .. } | AdminError::Runtime(_) => false,
        }
    }
}

/// A connection to one agent.
#[derive(Clone, Debug)]
pub struct Admin {
    path: PathBuf,
    client: AdminClient<Channel>,
}

impl Admin {
    /// Connects to the agent's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(path: &Path) -> Result<Admin, AdminError> {
        let unreachable = |reason: String| AdminError::Unreachable { path: path.to_owned(), reason };
        // The transport's own words for a missing socket are "transport error".
        std::os::unix::net::UnixStream::connect(path).map_err(|error| unreachable(error.to_string()))?;
        let absolute = std::path::absolute(path).map_err(|error| unreachable(error.to_string()))?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", absolute.display()))
            .map_err(|error| unreachable(error.to_string()))?
            .connect_timeout(ANSWER);
        let channel = endpoint.connect().await.map_err(|error| unreachable(error.to_string()))?;
        Ok(Admin { path: path.to_owned(), client: AdminClient::new(channel) })
    }

    /// What the agent does.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn status(&mut self) -> Result<StatusReply, AdminError> {
        let reply = tokio::time::timeout(ANSWER, self.client.status(StatusRequest {})).await;
        let reply = reply.map_err(|_| self.silent())?;
        reply.map(tonic::Response::into_inner).map_err(|status| self.refused(status))
    }

    /// Progress until what was written so far is on the server (and, with `everywhere`, on every Replicator).
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn wait(
        &mut self,
        volume: &str,
        everywhere: Scope,
    ) -> Result<Answers<WaitProgress>, AdminError> {
        let request = WaitRequest { volume: volume.to_owned(), all: everywhere == Scope::Everywhere };
        let reply = tokio::time::timeout(ANSWER, self.client.wait(request)).await;
        self.answers(reply)
    }

    /// Own records without a verdict.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn cml(&mut self, volume: &str) -> Result<Answers<CmlRecord>, AdminError> {
        let request = CmlListRequest { volume: volume.to_owned() };
        let reply = tokio::time::timeout(ANSWER, self.client.cml_list(request)).await;
        self.answers(reply)
    }

    /// Conflicts that nobody has resolved.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn conflicts(&mut self, volume: &str) -> Result<Answers<ConflictRecord>, AdminError> {
        let request = ConflictsRequest { volume: volume.to_owned() };
        let reply = tokio::time::timeout(ANSWER, self.client.conflicts(request)).await;
        self.answers(reply)
    }

    /// Decides about removals that the server holds.
    ///
    /// # Errors
    /// The agent does not answer, is no server of the volume, or holds none of that node.
    pub async fn judge(&mut self, request: JudgeRequest) -> Result<(), AdminError> {
        let reply = tokio::time::timeout(ANSWER, self.client.judge(request)).await;
        reply.map_err(|_| self.silent())?.map(drop).map_err(|status| self.refused(status))
    }

    /// Strikes a conflict off.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn resolve(&mut self, volume: &str, position: u64) -> Result<(), AdminError> {
        let request = ResolveRequest { volume: volume.to_owned(), position };
        let reply = tokio::time::timeout(ANSWER, self.client.resolve(request)).await;
        reply.map_err(|_| self.silent())?.map(drop).map_err(|status| self.refused(status))
    }

    /// Progress of a scrub until it is finished.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn scrub(&mut self, volume: &str, what: Looking) -> Result<Answers<ScrubProgress>, AdminError> {
        let request = ScrubRequest { volume: volume.to_owned(), what: what.into() };
        let reply = tokio::time::timeout(ANSWER, self.client.scrub(request)).await;
        self.answers(reply)
    }

    /// What happened to a path.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn history(&mut self, request: HistoryRequest) -> Result<Answers<HistoryLine>, AdminError> {
        let reply = tokio::time::timeout(LOOKING, self.client.history(request)).await;
        self.answers(reply)
    }

    /// A part of an earlier tree.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn past(&mut self, request: PastRequest) -> Result<Answers<PastReply>, AdminError> {
        let reply = tokio::time::timeout(LOOKING, self.client.past(request)).await;
        self.answers(reply)
    }

    /// A content that one of these has named.
    ///
    /// # Errors
    /// The agent is gone, silent or refuses.
    pub async fn former(&mut self, request: FormerRequest) -> Result<Answers<FormerChunk>, AdminError> {
        let reply = tokio::time::timeout(LOOKING, self.client.former(request)).await;
        self.answers(reply)
    }

    fn answers<T>(
        &self,
        reply: Result<Result<tonic::Response<Streaming<T>>, tonic::Status>, tokio::time::error::Elapsed>,
    ) -> Result<Answers<T>, AdminError> {
        let stream = reply.map_err(|_| self.silent())?.map_err(|status| self.refused(status))?.into_inner();
        Ok(Answers { path: self.path.clone(), stream })
    }

    fn silent(&self) -> AdminError {
        AdminError::Silent { path: self.path.clone(), seconds: ANSWER.as_secs() }
    }

    fn refused(&self, status: tonic::Status) -> AdminError {
        AdminError::Refused { path: self.path.clone(), status }
    }
}

/// How far an update must have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Durable at the server.
    Server,
    /// Durable at every Replicator.
    Everywhere,
}

/// Several answers, one by one.
#[derive(Debug)]
pub struct Answers<T> {
    path: PathBuf,
    stream: Streaming<T>,
}

impl<T> Answers<T> {
    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// The agent went away or ended with an error.
    pub async fn next(&mut self) -> Result<Option<T>, AdminError> {
        let path = &self.path;
        self.stream.message().await.map_err(|status| AdminError::Refused { path: path.clone(), status })
    }

    /// All of them.
    ///
    /// # Errors
    /// The agent went away or ended with an error.
    pub async fn collect(mut self) -> Result<Vec<T>, AdminError> {
        let mut all = Vec::new();
        while let Some(one) = self.next().await? {
            all.push(one);
        }
        Ok(all)
    }
}

/// A connection over which many contents are asked for, one after the other.
#[derive(Debug)]
pub struct Contents {
    runtime: tokio::runtime::Runtime,
    admin: Admin,
}

impl Contents {
    /// Connects to the agent's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Contents, AdminError> {
        let runtime = runtime()?;
        let admin = runtime.block_on(Admin::connect(path))?;
        Ok(Contents { runtime, admin })
    }

    /// Hands a content of the past over, piece by piece. The inner error is that of whoever takes it.
    ///
    /// # Errors
    /// The agent is gone or refuses; then what was taken so far is good for nothing.
    pub fn fetch(
        &mut self,
        request: FormerRequest,
        take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<std::io::Result<()>, AdminError> {
        self.runtime.block_on(async {
            let mut pieces = self.admin.former(request).await?;
            while let Some(piece) = pieces.next().await? {
                if let Err(error) = take(&piece.data) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(()))
        })
    }
}

/// What the agent at this socket does.
///
/// # Errors
/// It does not answer.
pub fn status(socket: &Path) -> Result<StatusReply, AdminError> {
    block_on(async { Admin::connect(socket).await?.status().await })
}

/// All conflicts of a volume that the agent at this socket keeps.
///
/// # Errors
/// It does not answer, or not to the end.
pub fn conflicts(socket: &Path, volume: &str) -> Result<Vec<ConflictRecord>, AdminError> {
    block_on(async { Admin::connect(socket).await?.conflicts(volume).await?.collect().await })
}

/// Decides about removals that the server at this socket holds.
///
/// # Errors
/// The agent does not answer, is no server of the volume, or holds none of that node.
pub fn judge(socket: &Path, request: JudgeRequest) -> Result<(), AdminError> {
    block_on(async { Admin::connect(socket).await?.judge(request).await })
}

/// Strikes a conflict off that the server at this socket keeps.
///
/// # Errors
/// The agent does not answer, is no server of the volume, or has no such conflict.
pub fn resolve(socket: &Path, volume: &str, position: u64) -> Result<(), AdminError> {
    block_on(async { Admin::connect(socket).await?.resolve(volume, position).await })
}

/// Follows a scrub to its end; `told` hears of the progress. Gives the last answer.
///
/// # Errors
/// The agent does not answer, or the scrub is not brought to its end.
pub fn scrub(
    socket: &Path,
    volume: &str,
    what: Looking,
    told: &mut dyn FnMut(&ScrubProgress),
) -> Result<ScrubProgress, AdminError> {
    let last = block_on(async {
        let mut answers = Admin::connect(socket).await?.scrub(volume, what).await?;
        let mut last = ScrubProgress::default();
        while let Some(answer) = answers.next().await? {
            told(&answer);
            last = answer;
        }
        Ok(last)
    })?;
    if last.finished { Ok(last) } else { Err(AdminError::Unfinished { volume: volume.to_owned() }) }
}

/// Runs one conversation to its end on this thread.
///
/// # Errors
/// What the conversation says, or no runtime.
pub fn block_on<T>(talk: impl Future<Output = Result<T, AdminError>>) -> Result<T, AdminError> {
    runtime()?.block_on(talk)
}

fn runtime() -> Result<tokio::runtime::Runtime, AdminError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(AdminError::Runtime)
}

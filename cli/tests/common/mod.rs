//! A stand-in for an agent: answers on an admin socket from a thread of its own.

#![allow(dead_code)] // Each test uses a part.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use intermezzo_proto::v1::admin_server::{Admin, AdminServer};
use intermezzo_proto::v1::*;
use tokio::sync::Mutex;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// What the stand-in answers.
#[derive(Clone, Default)]
pub struct Script {
    pub status: StatusReply,
    pub wait: Vec<WaitProgress>,
    /// After `wait`: never end.
    pub hang: bool,
    pub wait_error: Option<String>,
    pub cml: Vec<CmlRecord>,
    pub conflicts: Vec<ConflictRecord>,
    pub scrub: Vec<ScrubProgress>,
    pub history: Vec<HistoryLine>,
    /// What was, by the names of the path asked for.
    pub past: std::collections::BTreeMap<Vec<u8>, Vec<PastNode>>,
    /// What it was told about removals that it holds.
    pub judged: Arc<Mutex<Vec<String>>>,
    /// Conflicts that it was told are resolved.
    pub resolved: Arc<Mutex<Vec<u64>>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Admin for Script {
    type WaitStream = Answers<WaitProgress>;
    type CmlListStream = Answers<CmlRecord>;
    type ConflictsStream = Answers<ConflictRecord>;
    type ScrubStream = Answers<ScrubProgress>;
    type HistoryStream = Answers<HistoryLine>;
    type PastStream = Answers<PastReply>;
    type FormerStream = Answers<FormerChunk>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.status.clone()))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<Self::WaitStream>, Status> {
        let volume = request.into_inner().volume;
        if volume != "default/demo" {
            return Err(Status::not_found(format!("there is no volume {volume} here")));
        }
        let mut all: Vec<Result<WaitProgress, Status>> = self.wait.iter().cloned().map(Ok).collect();
        all.extend(self.wait_error.clone().map(|text| Err(Status::failed_precondition(text))));
        let told = stream::iter(all);
        let answers: Self::WaitStream = match self.hang {
            true => Box::pin(futures_util::StreamExt::chain(told, stream::pending())),
            false => Box::pin(told),
        };
        Ok(Response::new(answers))
    }

    async fn cml_list(&self, _: Request<CmlListRequest>) -> Result<Response<Self::CmlListStream>, Status> {
        Ok(Response::new(Box::pin(stream::iter(self.cml.clone().into_iter().map(Ok)))))
    }

    async fn conflicts(
        &self,
        _: Request<ConflictsRequest>,
    ) -> Result<Response<Self::ConflictsStream>, Status> {
        Ok(Response::new(Box::pin(stream::iter(self.conflicts.clone().into_iter().map(Ok)))))
    }

    async fn resolve(&self, request: Request<ResolveRequest>) -> Result<Response<ResolveReply>, Status> {
        self.resolved.lock().await.push(request.into_inner().position);
        Ok(Response::new(ResolveReply {}))
    }

    async fn history(&self, _: Request<HistoryRequest>) -> Result<Response<Self::HistoryStream>, Status> {
        Ok(Response::new(Box::pin(stream::iter(self.history.clone().into_iter().map(Ok)))))
    }

    async fn past(&self, request: Request<PastRequest>) -> Result<Response<Self::PastStream>, Status> {
        let past = self.past.get(&request.into_inner().path.concat()).cloned().unwrap_or_default();
        let head = PastReply { what: Some(past_reply::What::Position(7)) };
        let nodes = past.into_iter().map(|node| PastReply { what: Some(past_reply::What::Node(node)) });
        Ok(Response::new(Box::pin(stream::iter(
            std::iter::once(head).chain(nodes).map(Ok).collect::<Vec<_>>(),
        ))))
    }

    async fn former(&self, request: Request<FormerRequest>) -> Result<Response<Self::FormerStream>, Status> {
        // What a file held is its seal, in this world.
        let content = request.into_inner().content.unwrap_or_default();
        let piece = FormerChunk { data: content.seal };
        Ok(Response::new(Box::pin(stream::iter([Ok(piece)]))))
    }

    async fn judge(&self, request: Request<JudgeRequest>) -> Result<Response<JudgeReply>, Status> {
        let request = request.into_inner();
        let text = format!("{} {} {:?}", request.volume, request.node, request.judgement());
        self.judged.lock().await.push(text);
        Ok(Response::new(JudgeReply {}))
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<Self::ScrubStream>, Status> {
        let taken = request.into_inner().what() == scrub_request::What::Take;
        let all = self.scrub.clone().into_iter().map(move |one| Ok(ScrubProgress { taken, ..one }));
        Ok(Response::new(Box::pin(stream::iter(all))))
    }
}

/// A running stand-in; its socket lives as long as this.
pub struct Agent {
    dir: tempfile::TempDir,
}

impl Agent {
    pub fn start(script: Script) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::bind(&socket).unwrap();
                ready.send(()).unwrap();
                let incoming = UnixListenerStream::new(listener);
                let server = tonic::transport::Server::builder();
                server.serve_with_incoming(AdminServer::new(script), incoming).await.unwrap();
            });
        });
        is_ready.recv().unwrap();
        Agent { dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }
}

/// What a run of the program gave.
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `intermezzo` with these words.
pub fn intermezzo<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Run {
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_intermezzo"));
    let output = command.args(words).timeout(std::time::Duration::from_secs(60)).output().unwrap();
    Run {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs `intermezzo` against the socket of an agent.
pub fn ask(socket: &Path, words: &[&str]) -> Run {
    let socket = socket.to_str().unwrap();
    intermezzo(words.iter().copied().chain(["--admin-socket", socket]))
}

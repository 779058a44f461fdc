//! A person at any node of the volume is answered: a client's agent asks the server and passes on what it says.

use super::Answers;
use super::Historian;
use super::TAKEN_WITHIN;
use super::serves;
use super::stopped;
use crate::volume::VolumeHandle;
use crate::wire;
use intermezzo_proto::v1;
use intermezzo_proto::v1::replication_client::ReplicationClient;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Response;
use tonic::Status;
use tonic::Streaming;
use tonic::transport::Channel;

impl Historian {
    /// What happened to a path.
    ///
    /// # Errors
    /// Neither this node nor the server can tell.
    pub async fn lines(
        &self,
        volume: &VolumeHandle,
        request: v1::HistoryRequest,
    ) -> Result<Answers<v1::HistoryLine>, Status> {
        if serves(volume) {
            return self.lines_here(volume, &request, None);
        }
        let (server, mut client) = self.server(volume).await?;
        pass_on(&server, timeout(TAKEN_WITHIN, client.history(request)).await)
    }

    /// A part of an earlier tree.
    ///
    /// # Errors
    /// Neither this node nor the server can tell.
    pub async fn past(
        &self,
        volume: &VolumeHandle,
        request: v1::PastRequest,
    ) -> Result<Answers<v1::PastReply>, Status> {
        if serves(volume) {
            return self.past_here(volume, &request, None);
        }
        let (server, mut client) = self.server(volume).await?;
        pass_on(&server, timeout(TAKEN_WITHIN, client.past(request)).await)
    }

    /// A content that one of these has named.
    ///
    /// # Errors
    /// Neither this node nor the server has it.
    pub async fn former(
        &self,
        volume: &VolumeHandle,
        request: v1::FormerRequest,
    ) -> Result<Answers<v1::FormerChunk>, Status> {
        if serves(volume) {
            return self.former_here(volume, request.content.as_ref(), None);
        }
        let (server, mut client) = self.server(volume).await?;
        pass_on(&server, timeout(TAKEN_WITHIN, client.former(request)).await)
    }

    async fn server(&self, volume: &VolumeHandle) -> Result<(String, ReplicationClient<Channel>), Status> {
        let server = volume.report().await.server;
        let channel = self.peers.channel(&server);
        let away = || {
            stopped(volume, format!("its history is on its server, node {server}, which is not connected"))
        };
        let channel = channel.ok_or_else(away)?;
        let client = ReplicationClient::new(channel).max_decoding_message_size(wire::MESSAGE_MAX);
        Ok((server, client))
    }
}

fn pass_on<T: Send + 'static>(
    server: &str,
    reply: Result<Result<Response<Streaming<T>>, Status>, tokio::time::error::Elapsed>,
) -> Result<Answers<T>, Status> {
    let silent = || Status::unavailable(format!("node {server}, the server, does not answer"));
    let mut stream = reply.map_err(|_| silent())??.into_inner();
    let silent = silent();
    let (way, answers) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let answer = match timeout(TAKEN_WITHIN, stream.message()).await {
                Ok(Ok(Some(answer))) => Ok(answer),
                Ok(Ok(None)) => return,
                Ok(Err(status)) => Err(status),
                Err(_) => Err(silent.clone()),
            };
            let is_last = answer.is_err();
            if way.send(answer).await.is_err() || is_last {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(answers))
}

//! Contents that files had: presto finds them, and the hash says whether they are what they are said to be.

use super::Answers;
use super::Historian;
use super::answered;
use super::say;
use super::stopped;
use super::words;
use crate::channel::convert;
use crate::jobs::DEADLINE;
use crate::req_dispatcher::CallError;
use crate::rooms::Open;
use crate::volume::VolumeHandle;
use bytes::Bytes;
use intermezzo_channel::v1::ContentOf;
use intermezzo_channel::v1::FindContents;
use intermezzo_channel::v1::packet::Body;
use intermezzo_proto::v1;
use lento_core::history::Former;
use lento_core::types::Hash;
use std::fs::File;
use std::io::Read;
use std::io::Seek;
use tokio::runtime::Handle;
use tonic::Status;

/// Bytes of one answer.
const PIECE: usize = 256 << 10;
/// Contents of one file, time and size among which the one that is meant is looked for.
const ALIKE: u32 = 8;
/// So many that nobody has taken yet.
const PIECES: usize = 8;

/// What is told and may have a content.
pub(super) type Sought<'a> = Vec<&'a mut v1::Condition>;

fn wanted(former: &Former, nth: u32) -> ContentOf {
    ContentOf {
        nth,
        file: Some(convert::file_id(former.file)),
        mtime: Some(intermezzo_channel::v1::Time { sec: former.mtime.sec, nsec: former.mtime.nsec }),
        size: former.size,
    }
}

/// The one that is meant, of those that have its time and size: its hash tells, where it is known.
fn one_of(files: Vec<File>, former: &Former) -> std::io::Result<Option<File>> {
    let mut files = files.into_iter().peekable();
    while let Some(mut file) = files.next() {
        // The last one is looked at while it is sent.
        let Some(hash) = former.hash.filter(|_| files.peek().is_some()) else { return Ok(Some(file)) };
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut (&file).take(former.size), &mut hasher)?;
        if hash == Hash(*hasher.finalize().as_bytes()) {
            file.rewind()?;
            return Ok(Some(file));
        }
    }
    Ok(None)
}

impl Historian {
    /// Notes which contents can be had. At most as many as presto looks for at a time.
    pub(super) fn look_for<'a>(
        &self,
        volume: &VolumeHandle,
        told: impl IntoIterator<Item = &'a mut v1::Condition>,
    ) -> Result<(), Status> {
        let contents = told.into_iter().filter_map(|told| told.content.as_mut());
        let mut sought: Vec<_> = contents.filter(|content| content.size > 0).collect();
        let mut contents = Vec::with_capacity(sought.len());
        for content in &sought {
            contents.push(wanted(
                &words::former(content).map_err(|error| Status::internal(error.to_string()))?,
                0,
            ));
        }
        if contents.is_empty() {
            return Ok(());
        }
        let (Body::FoundContents(answer), _) = self.find(volume, contents, false)? else {
            return Err(stopped(volume, CallError::Confused("FindContents")));
        };
        for (content, found) in sought.iter_mut().zip(answer.found) {
            content.kept = found;
        }
        Ok(())
    }

    fn find(
        &self,
        volume: &VolumeHandle,
        contents: Vec<ContentOf>,
        open: bool,
    ) -> Result<crate::req_dispatcher::Answer, Status> {
        let body = Body::FindContents(FindContents { contents, open });
        let call = self.downcalls.call(&volume.name, body, "FindContents", DEADLINE);
        Handle::current().block_on(call).map_err(|error| stopped(volume, error))
    }

    /// Sends a content that this node has told of.
    ///
    /// # Errors
    /// It has not.
    pub fn former_here(
        &self,
        volume: &VolumeHandle,
        content: Option<&v1::FormerContent>,
        room: Option<Open>,
    ) -> Result<Answers<v1::FormerChunk>, Status> {
        let content = content.ok_or_else(|| Status::invalid_argument("no content is named"))?;
        let former = words::former(content).map_err(|error| Status::invalid_argument(error.to_string()))?;
        if content.seal != self.seal(volume, &former).as_slice() {
            return Err(stopped(
                volume,
                "the agent has been restarted since it told of this content: ask once more",
            ));
        }
        let (historian, volume) = (self.clone(), volume.clone());
        Ok(answered(self.content(room), PIECES, move |way| {
            historian.send(&volume, &former, |data| say(way, v1::FormerChunk { data }))
        }))
    }

    fn send(
        &self,
        volume: &VolumeHandle,
        former: &Former,
        mut take: impl FnMut(Bytes) -> Result<(), Status>,
    ) -> Result<(), Status> {
        if former.size == 0 {
            return Ok(());
        }
        let missing = || Status::not_found(format!("volume {}: this content is not kept", volume.name));
        let several = (0..ALIKE).map(|nth| wanted(former, nth)).collect();
        let (_, fds) = self.find(volume, several, true)?;
        let files = fds.into_iter().map(File::from).collect();
        let mut file = one_of(files, former).map_err(|error| stopped(volume, error))?.ok_or_else(missing)?;
        let mut hasher = blake3::Hasher::new();
        let mut left = former.size;
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            let read = match piece.get_mut(..most).map(|room| file.read(room)) {
                Some(Ok(read)) => read,
                Some(Err(error)) => return Err(stopped(volume, error)),
                None => 0,
            };
            let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            left = left.saturating_sub(read as u64);
            take(Bytes::copy_from_slice(bytes))?;
        }
        if left > 0 || former.hash.is_some_and(|hash| hash != Hash(*hasher.finalize().as_bytes())) {
            let text = format!("volume {}: what is kept of this content is not what it was", volume.name);
            return Err(Status::data_loss(text));
        }
        Ok(())
    }
}

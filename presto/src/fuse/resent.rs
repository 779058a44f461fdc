//! Requests that come a second time, because the presto that had read them died: answered by what became of them, exactly.

use std::sync::Arc;

use fuser::Errno;
use intermezzo_kml::record::FileId;

use super::convert::Asked;
use super::convert::errno;
use super::serving::Serving;
use crate::filter::Access;
use crate::filter::Entry;
use crate::filter::Handle;
use crate::session;
use crate::session::Earlier;

impl Serving {
    /// While this lives, what is journaled belongs to this request.
    pub(super) fn serving(&self, asked: Asked) -> Option<session::Request<'_>> {
        self.volume.session().map(|memory| memory.serve(asked.unique))
    }

    fn earlier(&self, asked: Asked) -> Option<Earlier> {
        let unique = asked.unique;
        if !session::is_resent(unique) {
            return None;
        }
        self.volume.session()?.earlier(unique)
    }

    /// The handle that this request has opened already.
    pub(super) fn claim(&self, asked: Asked) -> Option<Arc<Handle>> {
        let unique = asked.unique;
        if !session::is_resent(unique) {
            return None;
        }
        self.volume.files.claim(session::number(unique))
    }

    /// Makes an object, unless this request has made it already.
    pub(super) fn made(
        &self,
        asked: Asked,
        make: impl FnOnce() -> Result<Entry, Errno>,
    ) -> Result<Entry, Errno> {
        match self.earlier(asked) {
            Some(earlier) => self.volume.made_earlier(earlier.object).map_err(errno),
            None => make(),
        }
    }

    /// The same for one that is opened as well.
    pub(super) fn created(
        &self,
        asked: Asked,
        access: Access,
        create: impl FnOnce() -> Result<(Entry, Arc<Handle>), Errno>,
    ) -> Result<(Entry, Arc<Handle>), Errno> {
        match self.earlier(asked) {
            Some(earlier) => {
                self.volume.created_earlier(earlier.object, access, self.claim(asked)).map_err(errno)
            }
            None => create(),
        }
    }

    /// Changes something, unless this request has done so already.
    pub(super) fn changed(
        &self,
        asked: Asked,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match self.earlier(asked) {
            Some(_) => Ok(()),
            None => change(),
        }
    }

    /// A directory's stream may be an earlier presto's.
    pub(super) fn resumed_stream(&self, stream: u64, dir: Result<FileId, Errno>) -> Result<(), Errno> {
        self.volume.resume_stream(stream, dir?).map_err(errno)
    }
}

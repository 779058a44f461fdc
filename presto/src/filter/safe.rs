//! Where a file is safe, told by an extended attribute that is in no list, so that no copy takes it along.

use std::time::Duration;

use intermezzo_kml::record::FileId;
use intermezzo_kml::record::Recno;
use rustix::io::Errno;

use super::Volume;
use super::Wait;
use super::close::Doubt;
use crate::lower::Stat;

/// Its name.
pub const SAFE: &[u8] = b"user.intermezzo.safe";
/// How long Lento may think about it.
const DEADLINE: Duration = Duration::from_secs(2);

/// Where a file as it is now would still be if this node were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Safety {
    /// Nowhere.
    Local,
    /// On the server.
    Server,
    /// On every node.
    Everywhere,
    /// Nowhere, and it will not be: its name is excluded.
    Excluded,
    /// Lento is not there to ask.
    Unknown,
}

impl Safety {
    fn word(self) -> &'static str {
        match self {
            Safety::Local => "local",
            Safety::Server => "server",
            Safety::Everywhere => "everywhere",
            Safety::Excluded => "excluded",
            Safety::Unknown => "unknown",
        }
    }
}

impl Volume {
    /// The newest record about a file, whoever made it; `None`: it has been forgotten.
    pub(crate) fn newest(&self, id: FileId) -> Option<Recno> {
        self.touched.newest(id).max(self.replayed.newest(id))
    }

    /// The attribute's value.
    pub(super) fn safe(&self, id: FileId) -> Result<Vec<u8>, Errno> {
        Ok(self.safety(id)?.word().as_bytes().to_vec())
    }

    fn safety(&self, id: FileId) -> Result<Safety, Errno> {
        let object = self.object(id)?;
        if self.is_local(&object)? {
            return Ok(Safety::Excluded);
        }
        // What has been written and not closed is nobody else's yet.
        let stat = Stat::of(&object)?;
        if self
            .writers
            .get(id)
            .is_some_and(|writer| self.compare(&writer, &object, &stat, Doubt::Differs).changed)
        {
            return Ok(Safety::Local);
        }
        let newest = self.newest(id).unwrap_or(Recno::NONE);
        Ok(self.upcalls.safety(&self.name, id, newest, Wait::own(DEADLINE)))
    }
}

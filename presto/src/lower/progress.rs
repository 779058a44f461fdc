//! Notes on the directory beside the tree that lie as deep in the file system as the tree itself: how far the tree is
//! durable, and what became of that when the power went.
//!
//! They are extended attributes, so that the file system writes them in its own order: a note that is there after a power cut
//! was made after every change of the tree before it. The journal cannot say as much, because its pages reach the disk by
//! themselves.

use intermezzo_kml::record::Recno;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Lower;
use super::xattr;

/// Every update up to this record is in the tree, durably.
const SYNCED: &[u8] = b"trusted.intermezzo.synced";
/// What the records from this one on say is not in the tree: a recovery is about to say so in the journal.
const MISSING: &[u8] = b"trusted.intermezzo.missing";
/// Names the last power cut.
const LOSS: &[u8] = b"trusted.intermezzo.loss";

impl Lower {
    /// Everything that the journal tells up to here is in the tree, whatever a power cut has taken.
    pub fn synced(&self) -> Result<Recno, Errno> {
        Ok(Recno(self.number(SYNCED)?.unwrap_or_default()))
    }

    /// To be called before a sync of the file system: it makes the note durable together with the tree.
    pub fn note_synced(&self, upto: Recno) -> Result<(), Errno> {
        self.set_number(SYNCED, Some(upto.0))
    }

    /// The first record that an interrupted recovery was about to disown.
    pub fn missing(&self) -> Result<Option<Recno>, Errno> {
        Ok(self.number(MISSING)?.map(Recno))
    }

    /// Notes it durably, or that it is done.
    pub fn note_missing(&self, from: Option<Recno>) -> Result<(), Errno> {
        self.set_number(MISSING, from.map(|recno| recno.0))?;
        rustix::fs::syncfs(&self.home)
    }

    /// A number that stands for the last power cut; 0: there was none.
    pub fn loss(&self) -> Result<u64, Errno> {
        Ok(self.number(LOSS)?.unwrap_or_default())
    }

    /// Notes a power cut durably.
    pub fn note_loss(&self, loss: u64) -> Result<(), Errno> {
        self.set_number(LOSS, Some(loss))?;
        rustix::fs::syncfs(&self.home)
    }

    fn number(&self, name: &[u8]) -> Result<Option<u64>, Errno> {
        match xattr::get(&self.home, name) {
            Ok(value) => {
                let number = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                number.map(Some).ok_or(Errno::ILSEQ)
            }
            Err(Errno::NODATA) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn set_number(&self, name: &[u8], number: Option<u64>) -> Result<(), Errno> {
        match number {
            Some(number) => {
                rustix::fs::fsetxattr(&self.home, name, number.to_string().as_bytes(), XattrFlags::empty())
            }
            None => match xattr::remove(&self.home, name) {
                Err(Errno::NODATA) => Ok(()),
                result => result,
            },
        }
    }
}

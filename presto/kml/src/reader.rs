//! A reader in another process. (Signatures first; the body follows.)

use std::path::Path;

use crate::error::KmlError;
use crate::record::{Recno, Record};

/// Reads the published prefix.
#[derive(Debug)]
pub struct Reader;

#[allow(missing_docs, unused_variables, clippy::todo)]
impl Reader {
    pub fn open(dir: &Path) -> Result<Reader, KmlError> {
        todo!()
    }
    pub fn seek(&mut self, next: Recno) -> Result<(), KmlError> {
        todo!()
    }
    pub fn next(&mut self) -> Result<Option<Record>, KmlError> {
        todo!()
    }
    pub fn previous(&mut self) -> Result<Option<Record>, KmlError> {
        todo!()
    }
    pub fn first(&mut self) -> Result<Recno, KmlError> {
        todo!()
    }
}

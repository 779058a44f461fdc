//! Which contents somebody has waited for since the machine began, in order: the next boot can fetch them before.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use intermezzo_kml::record::FileId;
use parking_lot::Mutex;

use crate::filter::Volume;

/// Beside the socket: a path on each line, from the root.
const FILE: &str = "opened";
/// A machine that runs for long opens more; the first ones are its boot.
const LINES: usize = 16_384;

/// The list.
#[derive(Debug)]
pub(super) struct Opened(Mutex<(File, usize)>);

impl Opened {
    /// Goes on with the list that is there.
    pub fn open(run: &Path) -> std::io::Result<Opened> {
        let file = File::options().create(true).append(true).open(run.join(FILE))?;
        Ok(Opened(Mutex::new((file, 0))))
    }

    /// One more. What has no name any more, or one of two lines, is left out.
    pub fn note(&self, volume: &Volume, id: FileId) {
        let path = volume.lower.path_fd(id).and_then(|file| volume.lower.a_path_of(file));
        let Some(path) = path.ok().filter(|path| !path.contains(&b'\n')) else { return };
        let mut list = self.0.lock();
        if list.1 < LINES {
            list.1 = list.1.saturating_add(1);
            let line = [b"/", path.as_slice(), b"\n"].concat();
            // What is not noted is fetched when it is opened, as without a list.
            let _ = list.0.write_all(&line);
        }
    }
}

//! A disk with a volatile write cache, served to QEMU by the NBD protocol over a Unix socket.
//!
//! A write is acknowledged when it is in the cache; a flush brings all of it to the image. At a power cut each write since the
//! last flush is there, or not, or torn between two sectors, as the dice say: what nobody flushed may have reached the medium
//! in any order.

mod cache;
mod nbd;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use rand::rngs::StdRng;

use cache::Cache;
pub use cache::Lost;

/// A disk under power. Its machine is the only one that talks to it.
#[derive(Debug)]
pub struct Disk {
    server: JoinHandle<io::Result<Cache>>,
}

impl Disk {
    /// Serves an image at a socket, to one client.
    ///
    /// # Errors
    /// The image cannot be opened, or the socket not be made.
    pub fn serve(image: &Path, socket: &Path) -> Result<Disk> {
        let image = File::options().read(true).write(true).open(image)?;
        let mut cache = Cache::new(image)?;
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)?;
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            // Its client was killed: where it stopped says nothing.
            let _ = nbd::serve(stream, &mut cache);
            Ok(cache)
        });
        Ok(Disk { server })
    }

    /// Cuts its power. The machine must be gone already: its last requests are done, or they never will be.
    ///
    /// # Errors
    /// The image cannot be written.
    pub fn cut(self, random: &mut StdRng) -> Result<Lost> {
        let cache = self.server.join().map_err(|_| anyhow!("the disk panicked"))?;
        Ok(cache.context("the disk")?.cut(random)?)
    }
}

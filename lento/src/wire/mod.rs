//! What travels, to core types and back: every length, enum and missing field is checked here and nowhere else.
//!
//! A [`WireError`] ends the stream of the peer that sent it, and only that one.

mod content;
mod message;
mod operation;
mod words;

pub use content::have;
pub use content::have_back;
pub use message::client_frames;
pub use message::from_client;
pub use message::from_server;
pub use message::server_frames;
pub use words::hash;
pub use words::object_id;
pub use words::tag;

/// Version of the replication protocol. 3: contents that a power cut took from a server come back (`Backfetch`). 4: conflicts
/// are resolved for all nodes, removals wait for a person (`Ahead`). 5: permits; contents may lack at a client
/// (`Hello.partial`); a server tells what was (`History`, `Past`, `Former`).
pub const PROTOCOL: u32 = 5;
/// Metadata of a stream: a number of the process that opens it, which another one does not have.
pub const PROCESS: &str = "intermezzo-process";
/// Messages are split so that none is longer, in bytes.
pub const MESSAGE_TARGET: usize = 3 << 20;
/// Longest message that is accepted, in bytes.
pub const MESSAGE_MAX: usize = 8 << 20;
/// Most records, operations or objects in one message.
pub const BATCH_MAX: usize = 16 << 10;
/// Most contents in one Fetch.
pub const FETCH_MAX: usize = 1024;
/// Longest name of an entry or extended attribute, in bytes.
pub const NAME_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes.
pub const XATTR_MAX: usize = 64 << 10;
/// Most extended attributes of one object.
pub const XATTRS_MAX: usize = 4096;
/// Longest target of a symbolic link, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Longest text for people, in bytes.
pub const TEXT_MAX: usize = 4096;
/// Most names of one object in a snapshot.
pub const LINKS_MAX: usize = 65_536;

/// What a peer sent that cannot be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number this version does not know.
    #[error("{field} {value} is unknown: the peer is newer than this lento")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// Too long.
    #[error("{field} has {length}, more than {max}")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// How long it is.
        length: usize,
        /// How long it may be.
        max: usize,
    },
    /// Wrong.
    #[error("{field}: {reason}")]
    Wrong {
        /// Which field.
        field: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Another protocol.
    #[error("the peer speaks replication protocol {0}, this lento {PROTOCOL}: upgrade the older of the two")]
    Protocol(u32),
}

pub(crate) fn limit(field: &'static str, length: usize, max: usize) -> Result<(), WireError> {
    if length > max { Err(WireError::TooLong { field, length, max }) } else { Ok(()) }
}

pub(crate) fn need<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing(field))
}

#[cfg(test)]
mod tests;

//! The messages of the channel between Presto and Lento, and how one becomes a packet.
//!
//! Owns nothing but types: the sockets are in `presto/src/channel/` and `lento/src/channel/`.

/// Generated from `proto/intermezzo/channel/v1/channel.proto`.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/intermezzo.channel.v1.rs"));
}

/// Version both sides must speak. 2: a version without ctime is one of which the ctime is not known. 3: permits
/// (`AdmitWriters`, `RevokePermit`); contents that are not here (`GetData`, `Fill`); earlier contents are
/// kept and found (`SetVolume.history`, `FindContents`).
pub const PROTOCOL: u32 = 4;

/// Longest packet either side accepts, in bytes.
pub const MAX_PACKET: usize = 4 << 20;

/// Most descriptors beside one packet (the kernel allows 253).
pub const MAX_FDS: usize = 64;

/// Where presto of a node whose root file system is a volume is told of remounts and of the end.
pub const ROOT_SOCKET: &str = "/run/intermezzo/root.sock";

/// Where the disk with the caches is mounted on such a node.
pub const ROOT_DISK: &str = "/run/intermezzo/disk";

//! The channel's messages <-> the journal's words.

use intermezzo_channel::v1;
use intermezzo_kml::record::{FileId, Tag, Time, Version};

/// Wire to journal.
#[must_use]
pub fn file_id(id: &v1::FileId) -> FileId {
    FileId { ino: id.ino, generation: id.generation }
}

/// Journal to wire.
#[must_use]
pub fn to_file_id(id: FileId) -> v1::FileId {
    v1::FileId { ino: id.ino, generation: id.generation }
}

/// Wire to journal; a nanosecond field out of range is refused.
#[must_use]
pub fn time(time: &v1::Time) -> Option<Time> {
    (time.nsec < 1_000_000_000).then_some(Time { sec: time.sec, nsec: time.nsec })
}

/// Journal to wire.
#[must_use]
pub fn to_time(time: Time) -> v1::Time {
    v1::Time { sec: time.sec, nsec: time.nsec }
}

/// Wire to journal; `None` if a time is missing or out of range.
#[must_use]
pub fn version(version: &v1::Version) -> Option<Version> {
    Some(Version {
        mtime: time(version.mtime.as_ref()?)?,
        ctime: time(version.ctime.as_ref()?)?,
        size: version.size,
    })
}

/// Wire to journal.
#[must_use]
pub fn tag(tag: &v1::Tag) -> Tag {
    Tag { replica: tag.replica, incarnation: tag.incarnation, number: tag.number }
}

//! The hidden staging directory: what replays put aside for a moment, and what is whole there before it takes its place.
//!
//! It exists in the lower tree only. A name in it says which object stands there, so that it can be known again after a
//! power cut that took the record of how it came there.

use crate::types::Name;
use crate::types::ObjectId;
use crate::types::Tag;

/// The name of an object in it.
pub fn name_of(object: ObjectId) -> Name {
    let tag = object.0;
    format!("{:x}-{:x}-{:x}", tag.replica, tag.incarnation, tag.number).into_bytes()
}

/// The object that has this name in it.
pub fn object_of(name: &[u8]) -> Option<ObjectId> {
    let mut parts = std::str::from_utf8(name).ok()?.split('-');
    let replica = u64::from_str_radix(parts.next()?, 16).ok()?;
    let incarnation = u32::from_str_radix(parts.next()?, 16).ok()?;
    let number = u64::from_str_radix(parts.next()?, 16).ok()?;
    let object = ObjectId(Tag { replica, incarnation, number });
    (name_of(object) == name).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_object_it_is_and_no_other_one_does() {
        let object = ObjectId(Tag { replica: u64::MAX, incarnation: 7, number: 1 << 60 });
        assert_eq!(object_of(&name_of(object)), Some(object));
        for other in [b"".as_slice(), b"1-2", b"1-2-3-4", b"01-2-3", b"+1-2-3", b"1-2-x", b"\xff-1-1"] {
            assert_eq!(object_of(other), None, "{other:?}");
        }
    }
}

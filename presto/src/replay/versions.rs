//! Which versions of a file stand for the content that the journal already accounts for.
//!
//! A link, a rename or a replayed attribute changes ctime and thus the version, but not the content. Lento may name an
//! earlier version of the same content; and a version that a record vouches for is no missed store.

use std::collections::BTreeMap;

use intermezzo_kml::record::{FileId, Recno, Time, Version};

/// Earlier versions remembered per file.
const EARLIER: usize = 16;

/// What is known of one file.
#[derive(Debug)]
struct Known {
    now: Version,
    earlier: Vec<Version>,
    recno: Recno,
}

/// The newest recorded version of files, as far as Lento may not know it.
#[derive(Debug, Default)]
pub struct Versions {
    files: BTreeMap<FileId, Known>,
}

impl Versions {
    /// A record left the file in this version, with new content.
    pub fn content(&mut self, file: FileId, now: Version, recno: Recno) {
        self.files.insert(file, Known { now, earlier: Vec::new(), recno });
    }

    /// A record changed the file's version from `before` to `now`, its content not.
    pub fn same_content(&mut self, file: FileId, before: Version, now: Version, recno: Recno) {
        let known = self.files.entry(file).or_insert(Known { now: before, earlier: Vec::new(), recno });
        if known.now != before {
            // Somebody changed it in between: earlier versions stand for another content.
            known.earlier.clear();
        }
        if before != now {
            known.earlier.push(before);
        }
        if known.earlier.len() > EARLIER {
            known.earlier.remove(0);
        }
        known.now = now;
        known.recno = recno;
    }

    /// Whether `expected` and `present` stand for the same content. Lento does not know the ctime of a file that has lost
    /// a name, since no record tells it.
    #[must_use]
    pub fn same(&self, file: FileId, expected: Version, present: Version) -> bool {
        let is_known = expected.ctime != Time::default();
        expected == (if is_known { present } else { Version { ctime: expected.ctime, ..present } })
            || self
                .files
                .get(&file)
                .is_some_and(|known| known.now == present && known.earlier.contains(&expected))
    }

    /// The record that vouches for the present version, if one does.
    #[must_use]
    pub fn recorded(&self, file: FileId, present: Version) -> Option<Recno> {
        self.files.get(&file).filter(|known| known.now == present).map(|known| known.recno)
    }

    /// Lento knows everything up to here.
    pub fn forget_upto(&mut self, recno: Recno) {
        self.files.retain(|_, known| known.recno > recno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_attribute_changes_stands_for_one_content_until_it_changes() {
        let file = FileId { ino: 1, generation: 1 };
        let version = |size| Version { size, ..Version::default() };
        let mut versions = Versions::default();
        versions.same_content(file, version(1), version(2), Recno(1));
        versions.same_content(file, version(2), version(3), Recno(2));
        assert!(versions.same(file, version(1), version(3)));
        assert!(versions.same(file, version(2), version(3)));
        assert!(!versions.same(file, version(1), version(4)));
        assert_eq!(versions.recorded(file, version(3)), Some(Recno(2)));
        versions.same_content(file, version(9), version(10), Recno(3));
        assert!(!versions.same(file, version(1), version(10)), "changed in between");
        versions.content(file, version(11), Recno(4));
        assert!(!versions.same(file, version(10), version(11)));
        let known = Time { sec: 7, nsec: 0 };
        let present = Version { ctime: known, ..version(20) };
        assert!(versions.same(file, version(20), present), "no record tells the ctime");
        assert!(!versions.same(file, version(21), present));
        assert!(!versions.same(file, Version { ctime: Time { sec: 8, nsec: 0 }, ..present }, present));
        versions.forget_upto(Recno(4));
        assert_eq!(versions.recorded(file, version(11)), None);
    }
}

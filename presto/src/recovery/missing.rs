//! After a power cut the journal may tell more than is in the tree: its pages reach the disk by themselves, and with any
//! fsync, while what they tell of is still in memory.
//!
//! What was synced with the tree is out of question. Of the records behind it, each name and each attribute that they change
//! has a story: what was there before the first of them, and what each of them left. If the tree shows the end of it, all is
//! well. If it shows an earlier state, the records from there on are not in it. (If it shows neither, the tree is ahead of the
//! journal, and the scrub will tell.) File systems bring changes of names and attributes to the disk in their order, so
//! the first missing record and all behind it are disowned; what of them is there all the same, the scrub finds as well.

use std::collections::BTreeMap;

use intermezzo_kml::record::{Attributes, FileId, Flags, Mask, Opcode, OriginKind, Recno, Record, State};
use rustix::io::Errno;

use super::decide::gone;
use crate::filter::Volume;
use crate::lower::Local;

/// What a record changes, one thing at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Facet {
    Name(FileId, Vec<u8>),
    Mode(FileId),
    Owner(FileId),
    Group(FileId),
}

/// What it is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// A name leads to this; to nothing, if it is none.
    File(FileId),
    Number(u32),
    /// Cannot be told.
    Unknown,
}

#[derive(Debug)]
struct Story {
    before: Is,
    after: Vec<(Recno, Is)>,
}

/// The stories of some records.
#[derive(Debug, Default)]
pub(super) struct Stories {
    facets: BTreeMap<Facet, Story>,
}

impl Stories {
    /// One more record.
    pub fn note(&mut self, record: &Record) {
        if record.state != State::Done {
            return;
        }
        let (intent, outcome, recno) = (&record.intent, &record.outcome, record.recno);
        let name = || Facet::Name(intent.parent, intent.name.clone());
        let nothing = Is::File(FileId::default());
        match record.opcode {
            Opcode::Create | Opcode::Mkdir | Opcode::Mknod | Opcode::Symlink | Opcode::Link => {
                self.tell(recno, name(), nothing, Is::File(outcome.object));
            }
            Opcode::Unlink | Opcode::Rmdir => self.tell(recno, name(), Is::File(intent.object), nothing),
            Opcode::Rename => {
                let left = if intent.flags.contains(Flags::EXCHANGE) {
                    Is::File(intent.replaced)
                } else if intent.flags.contains(Flags::WHITEOUT) {
                    Is::Unknown
                } else {
                    nothing
                };
                let target = Facet::Name(intent.target_parent, intent.target_name.clone());
                self.tell(recno, name(), Is::File(intent.object), left);
                self.tell(recno, target, Is::File(intent.replaced), Is::File(intent.object));
            }
            Opcode::Close if intent.origin.kind == OriginKind::Replay && !intent.parent.is_none() => {
                self.tell(recno, name(), Is::File(intent.object), Is::File(outcome.object));
            }
            Opcode::Setattr => {
                self.attributes(recno, intent.object, intent.mask, [&intent.before, &outcome.after])
            }
            Opcode::Close | Opcode::Setxattr | Opcode::Delxattr | Opcode::Noop => {}
        }
    }

    fn attributes(&mut self, recno: Recno, object: FileId, mask: Mask, states: [&Attributes; 2]) {
        let mut tell = |facet, of: fn(&Attributes) -> u32| {
            let [before, after] = states.map(|attributes| Is::Number(of(attributes)));
            self.tell(recno, facet, before, after);
        };
        if mask.contains(Mask::MODE) {
            tell(Facet::Mode(object), |attributes| attributes.mode & 0o7777);
        }
        if mask.contains(Mask::UID) {
            tell(Facet::Owner(object), |attributes| attributes.uid);
        }
        if mask.contains(Mask::GID) {
            tell(Facet::Group(object), |attributes| attributes.gid);
        }
    }

    fn tell(&mut self, recno: Recno, facet: Facet, before: Is, after: Is) {
        self.facets.entry(facet).or_insert(Story { before, after: Vec::new() }).after.push((recno, after));
    }

    /// The first record whose update the tree does not show.
    pub fn first_missing(&self, volume: &Volume) -> Result<Option<Recno>, (Recno, Errno)> {
        let mut seen = Vec::with_capacity(self.facets.len());
        for (facet, story) in &self.facets {
            let recno = story.after.first().map_or(Recno::NONE, |(recno, _)| *recno);
            seen.push((story, look(volume, facet).map_err(|errno| (recno, errno))?));
        }
        Ok(first_of(&seen))
    }
}

/// The first record that has not happened. Whatever comes behind it has not either, so other stories end earlier as well, and
/// may be found to lack more: a name that is absent was given away by a rename, or, without that, never made.
fn first_of(seen: &[(&Story, Is)]) -> Option<Recno> {
    let mut first = None;
    loop {
        let missing = seen.iter().filter_map(|(story, is)| story.missing(*is, first)).min();
        match missing {
            Some(earlier) if first.is_none_or(|first| earlier < first) => first = Some(earlier),
            _ => return first,
        }
    }
}

impl Story {
    /// The first of its records that has not happened, as what is there now says, where those from `end` on have not.
    fn missing(&self, is: Is, end: Option<Recno>) -> Option<Recno> {
        let told = self.after.partition_point(|(recno, _)| end.is_none_or(|end| *recno < end));
        let after = self.after.get(..told).unwrap_or_default();
        let (_, last) = after.last()?;
        if *last == is || *last == Is::Unknown || is == Is::Unknown {
            return None;
        }
        let earlier = std::iter::once(&self.before).chain(after.iter().map(|(_, after)| after));
        let mut steps = earlier.zip(after);
        steps.find(|(earlier, _)| **earlier == is).map(|(_, (recno, _))| *recno)
    }
}

fn look(volume: &Volume, facet: &Facet) -> Result<Is, Errno> {
    let lower = &volume.lower;
    match facet {
        Facet::Name(dir, name) => {
            let dir = match lower.dir(*dir) {
                Ok(dir) => dir,
                Err(errno) if gone(errno) => return Ok(Is::File(FileId::default())),
                Err(errno) => return Err(errno),
            };
            match lower.find(&*dir, name) {
                // A directory that was removed for all others.
                Ok(Some(_)) if lower.local_mark(&*dir, name)? == Some(Local::Left) => Ok(Is::Unknown),
                Ok(found) => Ok(Is::File(found.unwrap_or_default())),
                Err(Errno::XDEV) => Ok(Is::Unknown),
                Err(errno) => Err(errno),
            }
        }
        Facet::Mode(object) => attribute(volume, *object, |attributes| attributes.mode & 0o7777),
        Facet::Owner(object) => attribute(volume, *object, |attributes| attributes.uid),
        Facet::Group(object) => attribute(volume, *object, |attributes| attributes.gid),
    }
}

fn attribute(volume: &Volume, object: FileId, of: fn(&Attributes) -> u32) -> Result<Is, Errno> {
    match volume.lower.stat(object) {
        Ok(stat) => Ok(Is::Number(of(&stat.attributes))),
        Err(errno) if gone(errno) => Ok(Is::Unknown),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Is = Is::File(FileId { ino: 1, generation: 1 });
    const B: Is = Is::File(FileId { ino: 2, generation: 1 });
    const NOTHING: Is = Is::File(FileId { ino: 0, generation: 0 });

    #[test]
    fn a_story_says_which_of_its_records_the_tree_has_not_seen() {
        let story = Story { before: NOTHING, after: vec![(Recno(5), A), (Recno(7), NOTHING), (Recno(9), B)] };
        assert_eq!(story.missing(B, None), None);
        assert_eq!(story.missing(A, None), Some(Recno(7)));
        // Never made, or removed again: the earlier one is right whatever it was.
        assert_eq!(story.missing(NOTHING, None), Some(Recno(5)));
        // Something later: the journal does not know of it.
        assert_eq!(story.missing(Is::File(FileId { ino: 3, generation: 1 }), None), None);
        assert_eq!(story.missing(Is::Unknown, None), None);
        // As if the last had not been told.
        assert_eq!(story.missing(NOTHING, Some(Recno(9))), None);
        assert_eq!(story.missing(NOTHING, Some(Recno(7))), Some(Recno(5)));
        assert_eq!(story.missing(NOTHING, Some(Recno(5))), None);
    }

    #[test]
    fn what_a_missing_rename_took_away_was_never_made() {
        // A file is made under one name and renamed over another one; the tree has neither.
        let temporary = Story { before: NOTHING, after: vec![(Recno(5), B), (Recno(6), NOTHING)] };
        let target = Story { before: A, after: vec![(Recno(6), B)] };
        assert_eq!(first_of(&[(&temporary, NOTHING), (&target, A)]), Some(Recno(5)));
        // It has the first half.
        assert_eq!(first_of(&[(&temporary, B), (&target, A)]), Some(Recno(6)));
        assert_eq!(first_of(&[(&temporary, NOTHING), (&target, B)]), None);
    }
}

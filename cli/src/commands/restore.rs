//! `intermezzo restore`: what stood at a path is written through the mount again, as any program would.
//!
//! So it is an update like any other: it goes to all nodes, and what it replaces becomes history itself. Each file is made
//! beside its place and renamed over it. Owns the order of the work and the report; `spot.rs` owns the calls.

mod extras;
mod spot;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use intermezzo_proto::v1::{Condition, PastNode, Tag};
use rustix::fs::{FileType, Mode, OFlags};

use super::place::{Place, join, shown_path};
use super::resolve::{DIR, WITHIN};
use crate::Exit;
use crate::admin::Contents;
use crate::args::{RestoreArgs, When};
use crate::output::{bytes, print_text, say};
use extras::remove_extras;
use spot::{Difference, Spot, Target};

pub(super) fn run(args: &RestoreArgs) -> Result<Exit> {
    let from = Place::find(&args.place)?;
    let when = args.when.when().context("say which state is meant: --at or --before")?;
    let (position, nodes) = from.past(when, true)?;
    let shown = from.shown();
    ensure!(
        !nodes.is_empty(),
        "nothing stood at {} at position {position}: see `intermezzo history {}`",
        shown.display(),
        shown.display()
    );
    let to = args.to.as_deref().map(|path| from.other(path)).transpose()?;
    let place = to.clone().unwrap_or_else(|| from.clone());
    if to.is_some() {
        let is_free = std::fs::symlink_metadata(place.shown()).is_err();
        ensure!(is_free, "{} exists: name a path where nothing is yet", place.shown().display());
    }
    let mut work = Work::begin(&from, place, args)?;
    work.directories_above(position)?;
    for node in &nodes {
        work.node(node)?;
    }
    if args.exact {
        work.extras(&nodes)?;
    }
    work.finish_directories()?;
    Ok(work.report(position))
}

/// What has been done, or would be.
#[derive(Debug, Default)]
struct Tally {
    restored: u64,
    attributes: u64,
    removed: u64,
    same: u64,
    bytes: u64,
    missing: u64,
    blocked: u64,
}

/// Whether anything is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Real,
    Dry,
}

/// Whether what has come since may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newer {
    Stays,
    Goes,
}

struct Work {
    from: Place,
    place: Place,
    root: std::os::fd::OwnedFd,
    run: Run,
    newer: Newer,
    contents: Contents,
    tally: Tally,
    /// Where the objects with several names have been brought back.
    first: BTreeMap<(u64, u32, u64), Vec<Vec<u8>>>,
    /// Directories that were made, and what they are to be like in the end.
    made: Vec<(Vec<Vec<u8>>, Condition)>,
}

impl Work {
    fn begin(from: &Place, place: Place, args: &RestoreArgs) -> Result<Work> {
        let root = rustix::fs::open(&place.mountpoint, DIR, Mode::empty())
            .with_context(|| format!("cannot open {}", place.mountpoint.display()))?;
        Ok(Work {
            contents: Contents::connect(&from.socket)?,
            from: from.clone(),
            place,
            root,
            run: if args.dry_run { Run::Dry } else { Run::Real },
            newer: if args.exact { Newer::Goes } else { Newer::Stays },
            tally: Tally::default(),
            first: BTreeMap::new(),
            made: Vec::new(),
        })
    }

    /// Directories on the way that are gone come back as they were then.
    fn directories_above(&mut self, position: u64) -> Result<()> {
        let depth = self.place.path.len().saturating_sub(1);
        for length in 1..=depth {
            let path: Vec<Vec<u8>> = self.place.path.iter().take(length).cloned().collect();
            let spot = self.spot(&path)?;
            match spot.as_ref().map(Spot::kind).transpose()? {
                Some(Some(FileType::Directory)) => continue,
                Some(None) => {}
                _ if self.run == Run::Dry => return Ok(()),
                _ => ensure!(false, "{} is no directory", self.shown(&path).display()),
            }
            let was = Place { path: path.clone(), ..self.from.clone() };
            let (_, nodes) = was.past(When::Position(position), false)?;
            let node = nodes.into_iter().find(|node| node.path.is_empty());
            self.say("+", &path, "directory");
            if self.run == Run::Real
                && let Some(spot) = spot
            {
                spot.make_dir(NEW_DIR).with_context(|| cannot(&self.shown(&path)))?;
                self.made.extend(node.and_then(|node| node.condition).map(|condition| (path, condition)));
            }
            self.tally.restored += 1;
        }
        Ok(())
    }

    fn node(&mut self, node: &PastNode) -> Result<()> {
        let mut path = self.place.path.clone();
        path.extend(node.path.iter().map(|name| name.to_vec()));
        let condition = node.condition.clone().unwrap_or_default();
        let mode = condition.attributes.unwrap_or_default().mode;
        let kind = FileType::from_raw_mode(mode);
        if path.is_empty() {
            // The root is always there.
            return Ok(());
        }
        let Some(spot) = self.spot(&path)? else {
            // Its directory is not there: it is about to be made, or something is in the way of it, which has been said.
            self.would(&path, kind, &condition);
            return Ok(());
        };
        let there = spot.kind()?;
        match there {
            Some(present) if present == kind => {}
            Some(present) if self.newer == Newer::Goes => {
                self.say("-", &path, "in the way");
                if self.run == Run::Real {
                    let removed = remove_extras(&self.root, &path, present)?;
                    self.tally.removed += removed;
                }
            }
            Some(_) => {
                self.tally.blocked += 1;
                self.say(
                    "!",
                    &path,
                    "something of another kind stands there now: it stays (--exact removes it)",
                );
                return Ok(());
            }
            None => {}
        }
        if kind == FileType::Directory {
            return self.directory(&spot, path, condition, there == Some(kind));
        }
        if let (true, Some(tag)) = (kind == FileType::RegularFile, node.object) {
            let first = self.first.get(&key(tag)).cloned();
            if let Some(first) = first {
                return self.link(&spot, &path, &first);
            }
            self.first.insert(key(tag), path.clone());
        }
        let target = Target { condition: &condition, content_is_there: node.is_there && self.is_in_place() };
        let difference = match there {
            Some(present) if present == kind => {
                spot.compare(&target).with_context(|| cannot(&self.shown(&path)))?
            }
            _ => Difference::Content,
        };
        match difference {
            Difference::None => self.tally.same += 1,
            Difference::Attributes => {
                self.say("~", &path, "attributes");
                self.tally.attributes += 1;
                if self.run == Run::Real {
                    spot.set_attributes(&condition).with_context(|| cannot(&self.shown(&path)))?;
                }
            }
            Difference::Content => self.whole(&spot, &path, kind, &condition)?,
        }
        Ok(())
    }

    fn directory(
        &mut self,
        spot: &Spot,
        path: Vec<Vec<u8>>,
        condition: Condition,
        is_there: bool,
    ) -> Result<()> {
        if !is_there {
            self.say("+", &path, "directory");
            self.tally.restored += 1;
            if self.run == Run::Real {
                spot.make_dir(0o700).with_context(|| cannot(&self.shown(&path)))?;
                self.made.push((path, condition));
            }
            return Ok(());
        }
        let target = Target { condition: &condition, content_is_there: true };
        match spot.compare(&target).with_context(|| cannot(&self.shown(&path)))? {
            Difference::None => self.tally.same += 1,
            Difference::Attributes | Difference::Content => {
                self.say("~", &path, "attributes");
                self.tally.attributes += 1;
                if self.run == Run::Real {
                    self.made.push((path, condition));
                }
            }
        }
        Ok(())
    }

    /// The file, symbolic link or node itself, in the place of whatever stands there.
    fn whole(&mut self, spot: &Spot, path: &[Vec<u8>], kind: FileType, condition: &Condition) -> Result<()> {
        let content = condition.content.as_ref();
        if content.is_some_and(|content| !content.kept) {
            self.tally.missing += 1;
            self.say("!", path, "its content is not kept any more");
            return Ok(());
        }
        let size = content.map_or(0, |content| content.size);
        let what = match kind {
            FileType::RegularFile if spot.has_other_names()? => {
                format!("{} (other names of what stands here keep it)", bytes(size))
            }
            FileType::RegularFile => bytes(size),
            _ => super::history::kind(condition.attributes.unwrap_or_default().mode).to_owned(),
        };
        self.say("+", path, &what);
        if self.run == Run::Real {
            let shown = self.shown(path);
            match spot.put(condition, &self.from.volume, &mut self.contents) {
                Ok(()) => {}
                Err(spot::PutError::Agent(error)) if !error.is_unreachable() => {
                    self.tally.missing += 1;
                    say(format_args!("! {}: {error}", shown.display()));
                    return Ok(());
                }
                Err(error) => return Err(error).with_context(|| cannot(&shown)),
            }
        }
        self.tally.restored += 1;
        self.tally.bytes += size;
        Ok(())
    }

    /// Another name of a file that has been brought back.
    fn link(&mut self, spot: &Spot, path: &[Vec<u8>], first: &[Vec<u8>]) -> Result<()> {
        let Some(first) = self.spot(first)? else { return Ok(()) };
        if first.is_same(spot) {
            self.tally.same += 1;
            return Ok(());
        }
        if self.run == Run::Real && first.kind()?.is_none() {
            return Ok(()); // Its content was missing, which has been said.
        }
        self.say("+", path, "another name of it");
        self.tally.restored += 1;
        if self.run == Run::Real {
            spot.link(&first).with_context(|| cannot(&self.shown(path)))?;
        }
        Ok(())
    }

    /// What would be made in a directory that is not there.
    fn would(&mut self, path: &[Vec<u8>], kind: FileType, condition: &Condition) {
        if self.run == Run::Real {
            return;
        }
        if condition.content.as_ref().is_some_and(|content| !content.kept) {
            self.tally.missing += 1;
            return self.say("!", path, "its content is not kept any more");
        }
        let size = condition.content.as_ref().map_or(0, |content| content.size);
        let what = if kind == FileType::Directory { "directory".to_owned() } else { bytes(size) };
        self.say("+", path, &what);
        self.tally.restored += 1;
        self.tally.bytes += size;
    }

    /// What stands in the directories now and did not then.
    fn extras(&mut self, nodes: &[PastNode]) -> Result<()> {
        for (path, kind) in extras::find(&self.root, &self.place.path, nodes)? {
            self.say("-", &path, "came later");
            if self.run == Run::Real {
                self.tally.removed += remove_extras(&self.root, &path, kind)?;
            } else {
                self.tally.removed += 1;
            }
        }
        Ok(())
    }

    /// From the leaves up, since what is made in a directory moves its time.
    fn finish_directories(&mut self) -> Result<()> {
        for (path, condition) in std::mem::take(&mut self.made).into_iter().rev() {
            if let Some(spot) = self.spot(&path)? {
                spot.set_attributes(&condition).with_context(|| cannot(&self.shown(&path)))?;
            }
        }
        Ok(())
    }

    fn report(&self, position: u64) -> Exit {
        let Tally { restored, attributes, removed, same, bytes: size, missing, blocked } = self.tally;
        let would = if self.run == Run::Dry { "would be " } else { "" };
        say(format_args!(
            "{} as at position {position}: {restored} {would}brought back ({}), {attributes} {would}given their attributes, \
             {removed} {would}removed, {same} are as they were",
            self.place.shown().display(),
            bytes(size),
        ));
        if missing > 0 {
            say(format_args!("{missing} contents are not kept any more; they are marked with ! above"));
        }
        if blocked > 0 {
            say(format_args!(
                "{blocked} names are taken by something of another kind; they are marked with ! above"
            ));
        }
        if missing + blocked > 0 { Exit::NotTrue } else { Exit::Done }
    }

    /// It goes to where it was.
    fn is_in_place(&self) -> bool {
        self.place.path == self.from.path
    }

    /// `None`: its directory is not there.
    fn spot(&self, path: &[Vec<u8>]) -> Result<Option<Spot>> {
        let Some((name, above)) = path.split_last() else { return Ok(None) };
        let dir = if above.is_empty() { PathBuf::from(".") } else { join(Path::new(""), above) };
        match rustix::fs::openat2(&self.root, &dir, DIR, Mode::empty(), WITHIN) {
            Ok(dir) => Ok(Some(Spot::new(dir, name))),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("cannot open {}", self.shown(above).display())),
        }
    }

    fn shown(&self, path: &[Vec<u8>]) -> PathBuf {
        join(&self.place.mountpoint, path)
    }

    fn say(&self, sign: &str, path: &[Vec<u8>], what: &str) {
        // What is done is told on standard output, so that it can be kept.
        let _ = print_text(&format!("{sign} {}  {what}\n", shown_path(&self.shown(path))));
    }
}

fn key(tag: Tag) -> (u64, u32, u64) {
    (tag.replica, tag.incarnation, tag.number)
}

fn cannot(path: &Path) -> String {
    format!("cannot bring back {}", path.display())
}

/// Mode of directories of which nothing is known: on the way to another path.
const NEW_DIR: u32 = 0o755;

/// Of a directory that is read.
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

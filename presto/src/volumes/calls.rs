//! Downcalls about one volume, except those that make or end it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_channel::v1::{
    DropStage, FindContents, FoundContents, List, Mark, OpenStage, PermitRevoked, ReleaseLimbo, Resolve,
    Resolved, RevokePermit, Stats, Synced, Truncate,
};
use intermezzo_kml::record::{FileId, Recno};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::served::{Running, Served};
use crate::channel::{Reply, convert, stage_name};
use crate::filter::Usage;
use crate::filter::history::Content;
use crate::lower::Stat;
use crate::replay::stage;

/// Descriptors of one answer.
const MAX_RESOLVE: usize = 64;
/// Longest wait for running updates when a permit is revoked.
const MAX_DRAIN: Duration = Duration::from_secs(60);

impl Served {
    pub(super) fn call(&self, body: Body) -> Reply {
        let running = match self.running() {
            Ok(running) => running,
            Err(fault) => return Reply::failure(Errno::IO, fault),
        };
        match body {
            Body::Replay(batch) => Reply::of(Body::Replayed(running.replayer.run(batch))),
            Body::Resolve(resolve) => running.resolve(&resolve),
            Body::FindContents(find) => running.find_contents(&find),
            Body::OpenStage(open) => running.open_stage(&open),
            Body::DropStage(names) => running.drop_stage(&names),
            Body::Sync(_) => match running.syncer.sync() {
                Ok(recno) => Reply::of(Body::Synced(Synced { recno: recno.0 })),
                Err(error) => Reply::failure(Errno::IO, error),
            },
            Body::Truncate(truncate) => running.truncate(truncate),
            Body::Mark(mark) => {
                running.mark(&mark);
                self.refresh_access();
                Reply::done()
            }
            Body::ReleaseLimbo(release) => running.release_limbo(&release),
            Body::RevokePermit(revoke) => running.revoke_permit(&revoke),
            Body::AdmitWriters(admit) => {
                running.volume.permit.admit(admit.serial, admit.until_ms);
                Reply::done()
            }
            Body::List(list) => running.list(&list),
            Body::Scrub(batch) => Reply::of(Body::Scrubbed(running.scrubber.run(batch))),
            Body::Stat(_) => Reply::of(Body::Stats(running.stats(self.log_max_bytes()))),
            _ => Reply::failure(Errno::OPNOTSUPP, format!("volume {}: not a downcall", self.name())),
        }
    }
}

impl Running {
    fn failure(&self, errno: Errno, what: impl std::fmt::Display) -> Reply {
        Reply::failure(errno, format!("volume {}: {what}: {errno}", self.volume.name))
    }

    fn resolve(&self, resolve: &Resolve) -> Reply {
        if resolve.files.len() > MAX_RESOLVE {
            return self.failure(Errno::INVAL, format_args!("more than {MAX_RESOLVE} files to resolve"));
        }
        let mut fds = Vec::new();
        let found = resolve
            .files
            .iter()
            .map(|file| match self.open(convert::file_id(file)) {
                Ok(fd) => {
                    fds.push(fd);
                    Ok(true)
                }
                // Gone, or its identity is that of something else by now.
                Err(Errno::STALE | Errno::NOENT | Errno::INVAL) => Ok(false),
                Err(errno) => Err((errno, file)),
            })
            .collect::<Result<_, _>>();
        match found {
            Ok(found) => Reply { body: Body::Resolved(Resolved { found }), fds },
            Err((errno, file)) => {
                self.failure(errno, format_args!("file {} cannot be opened", convert::file_id(file)))
            }
        }
    }

    fn find_contents(&self, find: &FindContents) -> Reply {
        if find.contents.len() > MAX_RESOLVE {
            return self.failure(Errno::INVAL, format_args!("more than {MAX_RESOLVE} contents to find"));
        }
        let (mut found, mut fds) = (Vec::new(), Vec::new());
        for of in &find.contents {
            let Some(mtime) = of.mtime.as_ref().and_then(convert::time) else {
                return self.failure(Errno::INVAL, "a content without a time");
            };
            let file = of.file.as_ref().map(convert::file_id).unwrap_or_default();
            let content = Content { file, mtime, size: of.size };
            match self.volume.history.find(&self.volume.lower, content, of.nth as usize) {
                Ok(there) => {
                    found.push(there.is_some());
                    fds.extend(there.filter(|_| find.open));
                }
                Err(errno) => {
                    return self.failure(errno, format_args!("what file {file} held cannot be opened"));
                }
            }
        }
        Reply { body: Body::FoundContents(FoundContents { found }), fds }
    }

    fn list(&self, list: &List) -> Reply {
        let dir = list.dir.as_ref().map(convert::file_id).unwrap_or_default();
        match self.scrubber.list(dir, list.after) {
            Ok(listed) => Reply::of(Body::Listed(listed)),
            Err(errno) => self.failure(errno, format_args!("directory {dir} cannot be listed")),
        }
    }

    /// For reading, without a trace in the access time; also what has its only name in limbo.
    fn open(&self, id: FileId) -> Result<OwnedFd, Errno> {
        let lower = &self.volume.lower;
        // Opening a fifo or a device by identity must not wait or act. What users have opened is neither.
        let is_open = self.volume.files.find(id).is_some();
        if !is_open || self.volume.marks.on_demand.is_on() {
            let fd = lower.path_fd(id)?;
            let stat = Stat::of(&fd)?;
            if !is_open && !stat.is_file() {
                return Err(Errno::INVAL);
            }
            if self.volume.lacking(&fd, &stat)?.is_some() {
                // What is in it is no content.
                return Err(Errno::STALE);
            }
        }
        lower.open_id(id, OFlags::RDONLY | OFlags::NOATIME)
    }

    fn open_stage(&self, open: &OpenStage) -> Reply {
        if !stage_name(&open.name) {
            return self.failure(Errno::INVAL, format_args!("staged file {:?}", open.name));
        }
        match stage::open(&self.volume.lower, &open.name, open.size) {
            Ok(fd) => Reply { fds: vec![fd], ..Reply::done() },
            Err(errno) => self.failure(errno, format_args!("staged file {}", open.name)),
        }
    }

    fn drop_stage(&self, names: &DropStage) -> Reply {
        for name in &names.names {
            if !stage_name(name) {
                return self.failure(Errno::INVAL, format_args!("staged file {name:?}"));
            }
            if let Err(errno) = stage::remove(&self.volume.lower, name) {
                return self.failure(errno, format_args!("staged file {name}"));
            }
        }
        Reply::done()
    }

    fn truncate(&self, truncate: Truncate) -> Reply {
        let upto = Recno(truncate.upto);
        self.replayer.forget_upto(upto);
        match self.volume.journal.truncate(upto) {
            Ok(()) => Reply::done(),
            Err(error) => Reply::failure(Errno::IO, format!("volume {}: {error}", self.volume.name)),
        }
    }

    fn mark(&self, mark: &Mark) {
        let marks = &self.volume.marks;
        if let Some(settled) = mark.settled {
            self.volume.limbo.set_settled(Recno(settled));
        }
        if let Some(floor) = mark.history_floor {
            self.volume.history.set_floor(Recno(floor));
        }
        if let Some(on) = mark.in_sync {
            marks.in_sync.set(on);
        }
        if let Some(on) = mark.no_filter {
            marks.no_filter.set(on);
        }
        if let Some(on) = mark.read_only {
            self.marked_read_only.store(on, Ordering::Relaxed);
        }
    }

    fn release_limbo(&self, release: &ReleaseLimbo) -> Reply {
        let volume = &self.volume;
        let mut files: BTreeSet<FileId> = release.files.iter().map(convert::file_id).collect();
        if release.all_but {
            let bound = |file: &Option<v1::FileId>| file.as_ref().map(convert::file_id);
            let there = volume.limbo.between(bound(&release.after), bound(&release.to));
            files = there.into_iter().filter(|id| !files.contains(id)).collect();
        }
        let mut failed = None;
        for id in files {
            let _held = volume.locks.lock(&[id]);
            let is_written = volume.writers.is_writing(id);
            if let Err(errno) = volume.limbo.release(&volume.lower, id, Recno(release.upto), is_written) {
                failed = Some((id, errno));
            }
        }
        // One that cannot go keeps no other from going.
        failed.map_or_else(Reply::done, |(id, errno)| self.failure(errno, format_args!("limbo: file {id}")))
    }

    /// New updates ask for the permit again; those that run are waited for, so that the journal holds all of them.
    fn revoke_permit(&self, revoke: &RevokePermit) -> Reply {
        let deadline = Duration::from_millis(revoke.deadline_ms).min(MAX_DRAIN);
        match self.volume.revoke_permit(revoke.serial, deadline) {
            Ok(upto) => Reply::of(Body::PermitRevoked(PermitRevoked { upto: upto.0 })),
            Err(errno) => self.failure(errno, "updates still run"),
        }
    }

    fn stats(&self, log_max_bytes: u64) -> Stats {
        let volume = &self.volume;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let (limits, usage) = volume.quota.report();
        let (history_contents, history_bytes) = volume.history.usage();
        Stats {
            first_recno: volume.journal.first().0,
            last_recno: volume.journal.published().0,
            log_bytes: volume.journal.bytes(),
            log_max_bytes,
            open_files: count(volume.writers.len()),
            limbo_files: count(volume.limbo.len()),
            passthrough: self.passthrough(),
            fault: self.fault(),
            max_bytes: limits.bytes.unwrap_or(0),
            max_inodes: limits.inodes.unwrap_or(0),
            usage: usage.map(|Usage { bytes, inodes }| v1::Usage { bytes, inodes }),
            stolen: volume.permit.stolen(),
            syncs_without_server: volume.durable.less(),
            history_contents: count(history_contents),
            history_bytes,
        }
    }
}

//! `intermezzo kml`: a journal as it lies on disk, read the way lento reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use intermezzo_kml::{Attributes, FileId, KmlError, OriginKind, Reader, Recno, Record, State, Time};
use serde::Serialize;

use crate::Exit;
use crate::args::{DumpArgs, Kml};
use crate::output::{Format, print_text, print_value, say};

pub(super) fn run(kml: Kml) -> Result<Exit> {
    match kml {
        Kml::Dump(args) => dump(&args),
        Kml::Verify { path } => verify(&path),
    }
}

/// The journal's own directory, also when the volume's cache is named.
fn directory(path: &Path) -> PathBuf {
    let below = path.join("kml");
    if below.is_dir() { below } else { path.to_owned() }
}

fn open(path: &Path) -> Result<Reader> {
    let dir = directory(path);
    Reader::open(&dir).with_context(|| format!("cannot open the journal in {}", dir.display()))
}

fn dump(args: &DumpArgs) -> Result<Exit> {
    let mut reader = open(&args.path)?;
    let first = reader.first()?;
    reader.seek(args.from.map_or(first, Recno))?;
    let format = args.print.output;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0
        && let Some(record) = reader.next()?
    {
        left -= 1;
        match format {
            Format::Table | Format::Wide => print_text(&line(&record, format == Format::Wide))?,
            Format::Json => print_text(&format!("{}\n", serde_json::to_string(&RecordView::from(&record))?))?,
            Format::Yaml => {
                print_text("---\n")?;
                print_value(format, &RecordView::from(&record))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn verify(path: &Path) -> Result<Exit> {
    let mut reader = open(path)?;
    match count(&mut reader) {
        Ok(counts) => {
            let done: u64 = counts.by_opcode.values().sum();
            let list: Vec<String> = counts.by_opcode.iter().map(|(name, n)| format!("{name} {n}")).collect();
            print_text(&format!(
                "records {}..{}: {done} done, {} failed; every checksum is right, no gaps\n{}\n",
                counts.first,
                counts.last,
                counts.failed,
                list.join(", ")
            ))?;
            Ok(Exit::Done)
        }
        Err((last, error)) => {
            say(format_args!("intermezzo: the journal is damaged after record {last}: {error}"));
            Ok(Exit::NotTrue)
        }
    }
}

#[derive(Default)]
struct Counts {
    first: u64,
    last: u64,
    failed: u64,
    by_opcode: BTreeMap<String, u64>,
}

fn count(reader: &mut Reader) -> Result<Counts, (Recno, KmlError)> {
    let mut last = Recno::NONE;
    let first = reader.first().map_err(|error| (last, error))?;
    reader.seek(first).map_err(|error| (last, error))?;
    let mut counts = Counts { first: first.0, ..Counts::default() };
    while let Some(record) = reader.next().map_err(|error| (last, error))? {
        last = record.recno;
        counts.last = record.recno.0;
        if record.state == State::Failed {
            counts.failed += 1;
        } else {
            *counts.by_opcode.entry(opcode(&record)).or_default() += 1;
        }
    }
    Ok(counts)
}

fn opcode(record: &Record) -> String {
    format!("{:?}", record.opcode).to_lowercase()
}

/// A name is bytes; what is not printable shows as an escape.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => bytes.escape_ascii().to_string(),
    }
}

fn time(time: Time) -> String {
    let nanos = i32::try_from(time.nsec).unwrap_or_default();
    jiff::Timestamp::new(time.sec, nanos)
        .map_or_else(|_| format!("{}.{:09}", time.sec, time.nsec), |t| t.to_string())
}

fn line(record: &Record, wide: bool) -> String {
    let Record { intent, outcome, .. } = record;
    let object = if outcome.object.is_none() { intent.object } else { outcome.object };
    let mut text = format!("{:>8} {:<9}", record.recno.0, opcode(record));
    text.push_str(if record.state == State::Failed { " failed" } else { "" });
    let mut part = |label: &str, value: String| text.push_str(&format!(" {label}={value}"));
    let id = |id: FileId| id.to_string();
    if !object.is_none() {
        part("object", id(object));
    }
    if !intent.parent.is_none() {
        part("parent", id(intent.parent));
    }
    if !intent.name.is_empty() {
        part("name", format!("\"{}\"", name(&intent.name)));
    }
    if !intent.target_parent.is_none() {
        part("to", id(intent.target_parent));
    }
    if !intent.target_name.is_empty() {
        part("as", format!("\"{}\"", name(&intent.target_name)));
    }
    if !intent.replaced.is_none() {
        part("replaced", id(intent.replaced));
    }
    if !intent.mask.is_empty() {
        part("mask", names(intent.mask.iter_names()).join("|"));
    }
    let all = intent.flags | outcome.flags;
    if !all.is_empty() {
        part("flags", names(all.iter_names()).join("|"));
    }
    if intent.origin.kind == OriginKind::Replay {
        let origin = intent.origin.record;
        part("replay", format!("{:016x}.{}.{}", origin.replica, origin.incarnation, origin.number));
    }
    if wide {
        let (caller, after) = (intent.caller, outcome.after);
        part("time", time(intent.time));
        part("caller", format!("{}:{}/{}", caller.uid, caller.gid, caller.pid));
        if after.mode != 0 {
            part("mode", format!("{:o}", after.mode));
            part("owner", format!("{}:{}", after.uid, after.gid));
            part("size", after.size.to_string());
            part("mtime", time(after.mtime));
        }
    }
    text.push('\n');
    text
}

/// Names of the bits that are set.
fn names<'a>(set: impl Iterator<Item = (&'a str, impl Sized)>) -> Vec<String> {
    set.map(|(name, _)| name.to_lowercase()).collect()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordView {
    recno: u64,
    opcode: String,
    state: String,
    time: String,
    uid: u32,
    gid: u32,
    pid: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    object: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    parent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    target_parent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    target_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    replaced: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mask: Vec<String>,
    value_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<AttributesView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<AttributesView>,
    replay: bool,
}

#[derive(Serialize)]
struct AttributesView {
    mode: String,
    uid: u32,
    gid: u32,
    nlink: u32,
    size: u64,
    mtime: String,
    ctime: String,
}

fn attributes(from: &Attributes) -> Option<AttributesView> {
    let Attributes { mode, uid, gid, nlink, size, mtime, ctime, .. } = *from;
    let view = || AttributesView {
        mode: format!("{mode:o}"),
        uid,
        gid,
        nlink,
        size,
        mtime: time(mtime),
        ctime: time(ctime),
    };
    (mode != 0).then(view)
}

impl From<&Record> for RecordView {
    fn from(record: &Record) -> RecordView {
        let Record { intent, outcome, .. } = record;
        let id = |id: FileId| if id.is_none() { String::new() } else { id.to_string() };
        let object = if outcome.object.is_none() { intent.object } else { outcome.object };
        RecordView {
            recno: record.recno.0,
            opcode: opcode(record),
            state: format!("{:?}", record.state).to_lowercase(),
            time: time(intent.time),
            uid: intent.caller.uid,
            gid: intent.caller.gid,
            pid: intent.caller.pid,
            object: id(object),
            parent: id(intent.parent),
            name: name(&intent.name),
            target_parent: id(intent.target_parent),
            target_name: name(&intent.target_name),
            replaced: id(intent.replaced),
            flags: names((intent.flags | outcome.flags).iter_names()),
            mask: names(intent.mask.iter_names()),
            value_bytes: intent.value.len(),
            before: attributes(&intent.before),
            after: attributes(&outcome.after),
            replay: intent.origin.kind == OriginKind::Replay,
        }
    }
}

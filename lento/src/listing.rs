//! Rows of a volume's store for people: the CML and the conflicts. They are read beside the volume's task.

use crate::store::VolumeStore;
use crate::volume::VolumeHandle;
use intermezzo_proto::v1;
use lento_core::Kept;
use lento_core::State;
use lento_core::Volume;
use lento_core::types::OpKind;
use lento_core::types::Operation;
use lento_core::types::Position;
use std::sync::Arc;

/// Most rows that are shown.
const ROWS: usize = 100_000;

/// Own records without a verdict.
///
/// # Errors
/// Text for people.
pub fn cml(volume: &VolumeHandle) -> Result<Vec<v1::CmlRecord>, String> {
    let rows = store(volume)?.read(|tables| Volume::cml(tables, ROWS)).map_err(|error| error.to_string())?;
    let record = |entry: lento_core::volume::CmlEntry| v1::CmlRecord {
        recno: entry.recno.0,
        operation: entry.operation.to_owned(),
        path: entry.path,
        state: "Waiting".to_owned(),
        size: entry.size,
    };
    Ok(rows.into_iter().map(record).collect())
}

/// Conflicts kept.
///
/// # Errors
/// Text for people.
pub fn conflicts(volume: &VolumeHandle) -> Result<Vec<v1::ConflictRecord>, String> {
    let store = store(volume)?;
    let rows = store.read(|tables| Volume::conflicts(tables, ROWS)).map_err(|error| error.to_string())?;
    let mut records = Vec::with_capacity(rows.len());
    let nodes = store.read(|tables| Volume::nodes(tables)).map_err(|error| error.to_string())?;
    for (position, row) in rows {
        let replica = row.record.0.replica;
        let standing =
            store.read(|tables| Volume::standing(tables, position)).map_err(|error| error.to_string())?;
        let content = store.conflicts().join(row.record.to_string());
        let (operation, mode, target) = wanted(row.op.as_ref());
        let kept = std::fs::metadata(&content).ok();
        records.push(v1::ConflictRecord {
            position: position.0,
            kind: format!("{:?}", row.kind),
            path: row.path,
            node: nodes.get(&replica).cloned().unwrap_or_else(|| format!("{replica:016x}")),
            time: Some(v1::Time { sec: row.time.sec, nsec: row.time.nsec }),
            size: kept.as_ref().map_or(0, std::fs::Metadata::len),
            content: kept.map(|_| content.display().to_string()).unwrap_or_default(),
            state: match standing.state {
                State::Open => "Open",
                State::Held(_) => "Held",
                State::Decided => "Decided",
            }
            .to_owned(),
            kept: match standing.kept {
                Kept::Update => "Update",
                Kept::Tree => "Tree",
            }
            .to_owned(),
            group: standing.group.unwrap_or_default().0,
            operation,
            mode,
            target,
        });
    }
    Ok(records)
}

/// What an update wanted to do: its name, and of what it wanted to create the mode and a link's target.
fn wanted(op: Option<&Operation>) -> (String, u32, String) {
    let Some(op) = op else { return Default::default() };
    let (mode, target) = match &op.kind {
        OpKind::Create { attributes, symlink, .. } => {
            (attributes.mode, String::from_utf8_lossy(symlink).into_owned())
        }
        _ => (0, String::new()),
    };
    (op.kind.name().to_owned(), mode, target)
}

/// Whether a conflict is listed at this position.
///
/// # Errors
/// Text for people.
pub fn has_conflict(volume: &VolumeHandle, position: Position) -> Result<bool, String> {
    store(volume)?.read(|tables| Volume::has_conflict(tables, position)).map_err(|error| error.to_string())
}

fn store(volume: &VolumeHandle) -> Result<Arc<VolumeStore>, String> {
    volume.store().ok_or_else(|| format!("volume {} is not ready", volume.name))
}

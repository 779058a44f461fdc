//! How far the volumes are, in a file: one line each, for a program that can read a file and nothing else.
//!
//! `NAMESPACE/NAME whole`, or `NAMESPACE/NAME waiting WHY`; then `NAMESPACE/NAME moved BYTES`, of contents in either direction
//! since the agent began; and, where there is something, `NAMESPACE/NAME waits WHY` for what else it waits for. The file is there
//! as soon as the agent runs.

use crate::volume::Report;
use crate::volume::Volumes;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often the volumes are asked.
const LOOK: Duration = Duration::from_millis(250);

/// Keeps `file` as the volumes are, until told to stop.
///
/// # Errors
/// It cannot be written; for people.
pub fn tell(file: PathBuf, volumes: Volumes, stop: CancellationToken) -> Result<(), String> {
    write(&file, "").map_err(|error| format!("{}: {error}", file.display()))?;
    let follow = async move {
        let mut told = String::new();
        loop {
            let mut text = String::new();
            for volume in volumes.all() {
                text.push_str(&lines(
                    &volume.name,
                    &volume.report().await,
                    volume.meters().moved_bytes.get(),
                ));
            }
            if text != told {
                match write(&file, &text) {
                    Ok(()) => told = text,
                    Err(error) => {
                        warn!(target: "agent", file = %file.display(), %error, "nobody is told how far the volumes are");
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::spawn(stop.run_until_cancelled_owned(follow));
    Ok(())
}

/// Whoever reads it never has half of it.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, file)
}

fn lines(name: &str, report: &Report, moved: u64) -> String {
    let mut reasons: Vec<&str> = report.not_ready().into_iter().collect();
    let whole = reasons.is_empty() && report.status.whole;
    reasons.extend(report.status.waiting.iter().map(String::as_str));
    // One line, whatever a reason says.
    let why = reasons.join("; ").replace(['\n', '\r'], " ");
    let moved = format!("{name} moved {moved}\n");
    match (whole, why.as_str()) {
        (true, "") => format!("{name} whole\n{moved}"),
        (true, why) => format!("{name} whole\n{moved}{name} waits {why}\n"),
        (false, "") => format!("{name} waiting others' changes are on their way\n{moved}"),
        (false, why) => format!("{name} waiting {why}\n{moved}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lento_core::volume::Status;

    #[test]
    fn a_volume_is_whole_or_says_why_not_in_one_line() {
        let well = || Report { alive: true, served: true, ..Report::default() };
        assert_eq!(
            lines("a/b", &Report { status: Status { whole: true, ..Status::default() }, ..well() }, 7),
            "a/b whole\na/b moved 7\n"
        );
        let status =
            Status { waiting: vec!["not connected to s".into(), "s: no\nroute".into()], ..Status::default() };
        assert_eq!(
            lines("a/b", &Report { status: status.clone(), ..well() }, 0),
            "a/b waiting not connected to s; s: no route\na/b moved 0\n"
        );
        assert_eq!(
            lines("a/b", &Report { status: Status { whole: true, ..status }, ..well() }, 0),
            "a/b whole\na/b moved 0\na/b waits not connected to s; s: no route\n"
        );
        assert!(lines("a/b", &well(), 0).starts_with("a/b waiting others' changes are on their way\n"));
        let fault = Report { fault: "the disk is full".into(), ..well() };
        assert!(lines("a/b", &fault, 0).starts_with("a/b waiting the disk is full\n"));
    }

    #[tokio::test]
    async fn the_file_is_there_at_once_and_a_place_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (file, stop) = (dir.path().join("progress"), CancellationToken::new());
        tell(file.clone(), Volumes::default(), stop.clone()).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
        let error = tell(dir.path().join("none/progress"), Volumes::default(), stop).unwrap_err();
        assert!(error.contains("none/progress"), "{error}");
    }
}

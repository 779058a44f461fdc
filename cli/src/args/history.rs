//! The words of `history` and `restore`.

use std::path::PathBuf;

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned, civil};

use super::{AgentArgs, PrintArgs};

/// A path in a volume.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    /// File or directory, where it is mounted, or with --volume from the volume's root on; it may be gone
    pub path: PathBuf,
    /// The volume, where PATH does not begin with its mount point: name, or namespace/name
    #[arg(long, value_name = "VOLUME")]
    pub volume: Option<String>,
    #[command(flatten)]
    pub agents: AgentArgs,
}

/// A moment of the past.
#[derive(Debug, Args)]
pub(crate) struct WhenArgs {
    /// As it was then: after the update at a position, at a time (2027-01-15T08:00, also with an offset), or so long ago (2h, 3days)
    #[arg(long, value_name = "WHEN", value_parser = when)]
    pub at: Option<When>,
    /// As it was before the update at this position
    #[arg(long, value_name = "POSITION", conflicts_with = "at")]
    pub before: Option<u64>,
}

impl WhenArgs {
    pub fn when(&self) -> Option<When> {
        self.at.or_else(|| self.before.map(|position| When::Position(position.saturating_sub(1))))
    }
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub when: WhenArgs,
    /// Only the content of the file, as it was, to standard output (needs --at or --before)
    #[arg(long, conflicts_with = "output")]
    pub content: bool,
    /// Also changes of modes, owners, times and extended attributes
    #[arg(long)]
    pub attributes: bool,
    /// So many lines at most, the newest; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
    #[command(flatten)]
    pub print: PrintArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub when: WhenArgs,
    /// Bring it back under this path, where nothing is yet, and leave what stands there now alone
    #[arg(long, value_name = "PATH")]
    pub to: Option<PathBuf>,
    /// Also remove what has come since then
    #[arg(long)]
    pub exact: bool,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// See [`WhenArgs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// After this position.
    Position(u64),
    /// At this time.
    Time(Timestamp),
}

fn when(text: &str) -> Result<When, String> {
    if let Ok(position) = text.parse() {
        return Ok(When::Position(position));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(When::Time(time));
    }
    if let Ok(local) = text.parse::<civil::DateTime>() {
        let zoned = local.to_zoned(TimeZone::system()).map_err(|error| error.to_string())?;
        return Ok(When::Time(zoned.timestamp()));
    }
    if let Ok(span) = text.parse::<Span>() {
        let now = Zoned::now();
        let then = if span.is_negative() { now.checked_add(span) } else { now.checked_sub(span) };
        return then.map(|then| When::Time(then.timestamp())).map_err(|error| error.to_string());
    }
    Err(format!(
        "\"{text}\" is neither a position, nor a time like 2027-01-15T08:00, nor a while like 2h or 3days"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_positions_times_and_whiles() {
        assert_eq!(when("4711"), Ok(When::Position(4711)));
        let time: Timestamp = "2027-01-15T08:00:00Z".parse().unwrap();
        assert_eq!(when("2027-01-15T08:00:00Z"), Ok(When::Time(time)));
        assert_eq!(when("2027-01-15T09:00:00+01:00"), Ok(When::Time(time)));
        for text in ["2027-01-15T08:00", "2027-01-15 08:00:30", "2027-01-15"] {
            assert!(matches!(when(text), Ok(When::Time(_))), "{text}");
        }
        for text in ["2h", "3days", "1h 30min", "2 hours ago", "1d"] {
            let Ok(When::Time(then)) = when(text) else { panic!("{text}") };
            assert!(then < Timestamp::now(), "{text}");
        }
        assert!(when("yesterday").is_err());
        let before = WhenArgs { at: None, before: Some(5) };
        assert_eq!(before.when(), Some(When::Position(4)));
    }
}

//! The KML: Presto's journal of updates, one per volume, written by presto and read by lento through shared memory maps.
//!
//! `docs/technical/journal-format.md` describes every byte and argues why recovery is exact.

pub mod record;

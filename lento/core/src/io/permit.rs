//! How users' updates are admitted.

/// What the volume's owner wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// Everybody writes at once, and verdicts decide.
    #[default]
    Optimistic,
    /// One node at a time: the holder of the permit.
    Permits(Alone),
}

/// What users of a node may do that cannot reach its server, under permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Alone {
    /// Go on writing; verdicts decide later.
    #[default]
    Steal,
    /// Read.
    ReadOnly,
}

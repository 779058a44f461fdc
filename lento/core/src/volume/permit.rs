//! How a node stands towards the permit, for people and metrics.

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PermitState {
    /// Everybody writes.
    #[default]
    NotNeeded,
    /// Somebody else may have it.
    Without,
    /// Users wait for it.
    Asked,
    /// Users write.
    Held,
    /// It is being given back.
    Leaving,
    /// Users write, and the server is away.
    Stolen,
    /// The server is away, and users may only read.
    ReadOnly,
}

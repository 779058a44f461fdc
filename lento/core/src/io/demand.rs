//! What becomes of those who wait for a content that is not here.

/// Answer to [`Input::Demand`](super::Input::Demand).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demanded {
    /// It is here by now, or the file is another one: whoever waits looks again.
    Look,
    /// It is on its way: he asks again.
    Coming,
    /// The file has no name any more: something else has taken it.
    Gone,
    /// The server is away.
    Unreachable,
    /// It cannot be had.
    Failed {
        /// What the program gets.
        errno: i32,
        /// For people.
        why: String,
    },
}

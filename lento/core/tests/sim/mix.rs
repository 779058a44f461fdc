//! What a random history is made of.

use super::dice::Dice;
use lento_core::io::Alone;
use lento_core::io::ConflictOptions;
use lento_core::io::Policy;
use lento_core::io::Writes;

#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub clients: usize,
    pub steps: u64,
    pub cuts: bool,
    pub kills: bool,
    pub power: bool,
    /// It leaves files torn that were being written.
    pub tears: bool,
    /// Clocks of nodes are years apart, and jump.
    pub clocks: bool,
    /// The server's current fails as well.
    pub server_power: bool,
    /// The server is set back to a backup.
    pub backups: bool,
    /// Positions that clients keep for that.
    pub tail: u64,
    /// Bytes of the log that the server keeps for who is away.
    pub log: u64,
    /// What becomes of updates that exclude each other; `None`: another policy all the time.
    pub policy: Option<Policy>,
    /// How long what a policy has decided is kept.
    pub keep_for: u64,
    /// A person is asked before one node removes so much; `None`: never.
    pub mass: Option<u8>,
    /// How users' updates are admitted.
    pub writes: Writes,
    /// People resolve conflicts.
    pub resolves: bool,
    /// The server keeps what was.
    pub history: bool,
    /// Of so many things that happen 84 are users' or troubles, others are the machines' own steps.
    pub things: u64,
    /// Machines' steps at a time.
    pub pace: u64,
    /// Some nodes keep contents on demand.
    pub on_demand: bool,
}

pub const CALM: Mix = Mix {
    clients: 1,
    steps: 120,
    cuts: false,
    kills: false,
    power: false,
    tears: false,
    clocks: false,
    server_power: false,
    backups: false,
    tail: 1_000_000,
    log: u64::MAX,
    policy: Some(Policy::KeepBoth),
    keep_for: ConflictOptions::KEEP_FOR,
    mass: None,
    writes: Writes::Optimistic,
    resolves: false,
    history: true,
    things: 200,
    pace: 3,
    on_demand: false,
};

/// A mix of its own for each seed.
pub fn any(seed: u64) -> Mix {
    let mut dice = Dice(seed ^ 0x5eed);
    let power = dice.roll(3) > 0;
    let backups = dice.roll(2) == 0;
    Mix {
        clients: 1 + dice.roll(3) as usize,
        steps: 60 + dice.roll(300),
        cuts: dice.roll(4) > 0,
        kills: dice.roll(3) > 0,
        power,
        tears: power && dice.roll(2) == 0,
        clocks: dice.roll(4) == 0,
        server_power: power && dice.roll(2) == 0,
        backups,
        tail: [0, 1, 5, 50, 1_000_000][dice.roll(5) as usize],
        log: [300, 3000, u64::MAX, u64::MAX][dice.roll(4) as usize],
        things: 100 + dice.roll(150),
        pace: 1 + dice.roll(12),
        policy: [
            Some(Policy::KeepBoth),
            Some(Policy::ServerWins),
            Some(Policy::ClientWins),
            Some(Policy::Manual),
            None,
        ][dice.roll(5) as usize],
        keep_for: [50, 1000, ConflictOptions::KEEP_FOR][dice.roll(3) as usize],
        resolves: dice.roll(2) == 0,
        mass: [None, None, Some(1), Some(30)][dice.roll(4) as usize],
        writes: [
            Writes::Optimistic,
            Writes::Optimistic,
            Writes::Permits(Alone::Steal),
            Writes::Permits(Alone::ReadOnly),
        ][dice.roll(4) as usize],
        on_demand: dice.roll(3) == 0,
        history: seed % 2 == 0,
    }
}

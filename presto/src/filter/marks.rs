//! What Lento and the administrator have said about a volume: a handful of switches.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

/// Switches of one volume.
#[derive(Debug)]
pub struct Marks {
    /// Users' updates are refused with EROFS.
    pub read_only: Switch,
    /// Others' updates are refused: Lento may not change the tree.
    pub lento_read_only: Switch,
    /// It is the root file system, and nobody has said yet that it is this volume that shall be written: EROFS.
    pub unnamed: Switch,
    /// The machine is about to go: users' updates are refused with EROFS, whatever Lento says.
    pub resting: Switch,
    /// Serve without asking Lento for anything (root file system before Lento runs). Journaling goes on.
    pub no_filter: Switch,
    /// This replica is known to be equal to the server's.
    pub in_sync: Switch,
    /// Some contents may be missing here: opens look for the mark and ask Lento.
    pub on_demand: Switch,
    /// The log was full under the read-only policy; users' updates are refused until there is space.
    pub full: Switch,
    /// It has been told that the journal takes nothing more.
    pub broken: Switch,
    /// It was taken away: who still has a way in gets ENOTCONN for updates. Nobody would learn of them.
    pub ended: Switch,
}

impl Default for Marks {
    fn default() -> Marks {
        Marks {
            read_only: Switch::new(false),
            lento_read_only: Switch::new(false),
            unnamed: Switch::new(false),
            resting: Switch::new(false),
            no_filter: Switch::new(false),
            in_sync: Switch::new(false),
            on_demand: Switch::new(false),
            full: Switch::new(false),
            broken: Switch::new(false),
            ended: Switch::new(false),
        }
    }
}

/// An atomic yes or no.
#[derive(Debug)]
pub struct Switch(AtomicBool);

impl Switch {
    /// With this value at first.
    #[must_use]
    pub fn new(on: bool) -> Switch {
        Switch(AtomicBool::new(on))
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Turns it on or off; says what it was.
    pub fn set(&self, on: bool) -> bool {
        self.0.swap(on, Ordering::AcqRel)
    }
}

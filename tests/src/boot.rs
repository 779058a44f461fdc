//! `make test-boot`: machines whose root file system is a volume, from the kernel to a clean end, beside a server that runs here.
//!
//! `userland` is what is in the volume, `world` the fleet and the machine's disk, `node` a machine that runs and does what it is
//! told, `scenarios` what is tried. `docs/technical/test-machines.md` tells more.

pub mod debian;
pub mod node;
pub mod scenarios;
pub mod userland;
pub mod world;

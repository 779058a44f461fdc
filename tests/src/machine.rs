//! A virtual machine of this computer's own programs: a Debian kernel, an initramfs made of what is built here, a disk whose
//! power can be cut.
//!
//! Knows nothing of volumes. `docs/technical/test-machines.md` tells how it works and what it does not show.

pub mod disk;
pub mod initramfs;
pub mod kernel;
pub mod qemu;

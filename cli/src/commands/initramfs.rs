//! `intermezzo initramfs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::Exit;
use crate::args::InitramfsArgs;
use crate::initramfs::modules::Modules;
use crate::initramfs::{Access, Archive, write};
use crate::output::{bytes, print_text};

/// What disks of machines and of virtual machines need, as far as the kernel has it.
const USUAL: [&str; 8] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "nvme", "ext4", "fuse"];
/// What serves the root file system, and the place of each.
const PROGRAMS: [(&str, &str); 3] =
    [("intermezzo-boot", "init"), ("presto", "bin/presto"), ("presto-holder", "bin/presto-holder")];
/// The same for network interfaces, where there is no disk.
const CARDS: [&str; 14] = [
    "virtio_net",
    "e1000",
    "e1000e",
    "igb",
    "igc",
    "ixgbe",
    "i40e",
    "ice",
    "r8169",
    "tg3",
    "bnxt_en",
    "ena",
    "vmxnet3",
    "hv_netvsc",
];
/// What brings the volume from its server, where there is no disk.
const LENTO: (&str, &str) = ("lento", "bin/lento");
/// Archives behind one another begin at multiples of this.
const ALIGNED: usize = 4;
/// Best speed of unpacking for little more work here.
const LEVEL: i32 = 12;

pub(super) fn run(args: &InitramfsArgs) -> Result<Exit> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "run", "newroot", "newrun"] {
        archive.directory(dir);
    }
    let dir = programs(args)?;
    for (name, to) in PROGRAMS.into_iter().chain(args.diskless.then_some(LENTO)) {
        let from = dir.join(name);
        ensure!(
            from.is_file(),
            "no program {name} in {}: name the directory with --programs DIR",
            dir.display()
        );
        archive.program(&from, to)?;
    }
    if let Some(shell) = &args.shell {
        // busybox runs its other programs by itself when it is asked for them by name.
        archive.program(shell, "bin/sh")?;
    }
    modules(args, &mut archive)?;
    for file in &args.file {
        let (from, to) = file.split_once(':').unwrap_or((file, file));
        let content = fs::read(from).with_context(|| format!("cannot read {from}"))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        archive.file(to, &content, mode);
    }
    let mut whole = archive.finish();
    let unpacked = whole.len();
    if args.compress {
        whole = zstd::stream::encode_all(whole.as_slice(), LEVEL)?;
        whole.resize(whole.len().next_multiple_of(ALIGNED), 0);
    }
    // Who adds files may have added secrets.
    let access = if args.file.is_empty() { Access::Everybody } else { Access::Owner };
    write(&args.out, &whole, access)?;
    print_text(&format!(
        "{}: {}, {} unpacked\n",
        args.out.display(),
        bytes(whole.len() as u64),
        bytes(unpacked as u64)
    ))?;
    Ok(Exit::Done)
}

/// Beside this program, unless it is said.
fn programs(args: &InitramfsArgs) -> Result<PathBuf> {
    match &args.programs {
        Some(dir) => Ok(dir.clone()),
        None => {
            let own = std::env::current_exe()?;
            Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
        }
    }
}

fn modules(args: &InitramfsArgs, archive: &mut Archive) -> Result<()> {
    let kernel = Modules::open(&args.kernel_modules)?;
    if let Some(unknown) = args.module.iter().find(|name| !kernel.has(name)) {
        bail!("the kernel in {} has no module {unknown}", args.kernel_modules.display());
    }
    let mut names: Vec<&str> = USUAL.to_vec();
    names.extend(args.diskless.then_some(CARDS).into_iter().flatten());
    names.extend(args.module.iter().map(String::as_str));
    archive.modules(&kernel, &names)
}

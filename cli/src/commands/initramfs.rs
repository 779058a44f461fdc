//! `intermezzo initramfs`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::Exit;
use crate::args::InitramfsArgs;
use crate::initramfs::Archive;
use crate::initramfs::modules::Modules;
use crate::output::{bytes, print_text};

/// What disks of machines and of virtual machines need, as far as the kernel has it.
const USUAL: [&str; 8] =
    ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "nvme", "ext4", "fuse"];
/// What serves the root file system, and the place of each.
const PROGRAMS: [(&str, &str); 3] =
    [("intermezzo-boot", "init"), ("presto", "bin/presto"), ("presto-holder", "bin/presto-holder")];
/// Best speed of unpacking for little more work here.
const LEVEL: i32 = 12;

pub(super) fn run(args: &InitramfsArgs) -> Result<Exit> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "run", "newroot", "newrun"] {
        archive.directory(dir);
    }
    let dir = programs(args)?;
    for (name, to) in PROGRAMS {
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
    }
    // Whoever serves it to machines never has half of one.
    let new = args.out.with_extension("new");
    // Who adds files may have added secrets.
    let mode = if args.file.is_empty() { 0o644 } else { 0o600 };
    let write = || {
        let mut file = fs::File::options().write(true).create(true).truncate(true).mode(mode).open(&new)?;
        file.write_all(&whole)?;
        fs::rename(&new, &args.out)
    };
    write().with_context(|| format!("cannot write {}", args.out.display()))?;
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
    names.extend(args.module.iter().map(String::as_str));
    archive.modules(&kernel, &names)
}

//! `make test-boot` and `make boot`: machines whose root file system is a volume.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use intermezzo::output::say;
use intermezzo_tests::boot::debian;
use intermezzo_tests::boot::scenarios::{BUSYBOX, DEBIAN, DISKLESS, DISKLESS_DEBIAN, Scenario};
use intermezzo_tests::boot::userland::Userland;
use intermezzo_tests::boot::world::{Storage, World};
use intermezzo_tests::machine::kernel::Release;
use intermezzo_tests::machine::qemu::accelerator;
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Boots virtual machines from a volume.
#[derive(Parser)]
struct Args {
    /// Show one boot, from the kernel to the end, as somebody sees it who sits before the machine
    #[arg(long)]
    show: bool,
    /// With --show: of a machine without a disk
    #[arg(long, requires = "show")]
    diskless: bool,
    /// Only these scenarios
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The machine's kernel
    #[arg(long, default_value = "trixie")]
    kernel: Release,
    /// Replays the choices of an earlier run (time is not part of it)
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// Leave everything in place after a failure
    #[arg(long, env = "KEEP", num_args = 0..=1, default_missing_value = "1", value_parser = clap::builder::BoolishValueParser::new(), default_value = "0", hide_env_values = true)]
    keep: bool,
    /// Directory below which everything is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match if args.show { show(&args) } else { run(&args) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("boot: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let all = || BUSYBOX.iter().chain(&DISKLESS).chain(&DEBIAN).chain(&DISKLESS_DEBIAN);
    if let Some(unknown) = args.only.iter().find(|name| !all().any(|(known, _)| known == name)) {
        let names: Vec<_> = all().map(|(name, _)| *name).collect();
        ensure!(false, "no scenario {unknown}; there are {}", names.join(", "));
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    say(format_args!("boot: seed {seed}, kernel of {}, {}", args.kernel.name(), accelerator()));
    let mut random = StdRng::seed_from_u64(seed);
    some(args, &BUSYBOX, Storage::Disk, || Ok(Userland::Busybox), &mut random)?;
    some(args, &DISKLESS, Storage::Memory, || Ok(Userland::Busybox), &mut random)?;
    let debian = || Ok(Userland::Debian(debian::tree(args.kernel)?));
    some(args, &DEBIAN, Storage::Disk, debian, &mut random)?;
    some(args, &DISKLESS_DEBIAN, Storage::Memory, debian, &mut random)
}

/// Those that are wanted of these, in a world of their own.
fn some(
    args: &Args,
    scenarios: &[Scenario],
    storage: Storage,
    userland: impl FnOnce() -> Result<Userland>,
    random: &mut StdRng,
) -> Result<()> {
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut wanted = scenarios.iter().filter(|(name, _)| wanted(name)).peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    let begin = Instant::now();
    let mut world = World::up(&args.base, args.kernel, &userland()?, storage).context("no world")?;
    let took = begin.elapsed().as_secs_f64();
    let disk = if storage == Storage::Disk { "a disk" } else { "no disk" };
    say(format_args!("✓ a server, a volume with a system in it, {disk}, an initramfs ({took:.0} s)"));
    for (name, scenario) in wanted {
        let begin = Instant::now();
        match scenario(&world, random).with_context(|| format!("scenario {name}")) {
            Ok(told) => say(format_args!("✓ {name}: {told} ({:.0} s)", begin.elapsed().as_secs_f64())),
            Err(error) => {
                if args.keep {
                    world.fleet.keep();
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

fn show(args: &Args) -> Result<()> {
    let storage = if args.diskless { Storage::Memory } else { Storage::Disk };
    let world = World::up(&args.base, args.kernel, &Userland::Busybox, storage)?;
    let mut machine = world.boot()?;
    for order in [
        "uname -r",
        "grep ' / ' /proc/mounts",
        "df -h /",
        if args.diskless { "stat -c %s /bin/lento; du -k /bin/lento" } else { "/etc/lento" },
        "sleep 2; echo written here >/greeting; cat /greeting",
    ] {
        let (_, said) =
            machine.order(&format!("echo '# {order}' >/dev/console; ({order}) 2>&1 | tee /dev/console"))?;
        drop(said);
    }
    let console = machine.power_off()?;
    say(console.trim_end());
    let greeting = world.mount().join("greeting");
    say(format_args!(
        "On the server, {} holds: {}",
        greeting.display(),
        std::fs::read_to_string(&greeting)?.trim_end()
    ));
    Ok(())
}

//! `make test-power`: the power of a node goes again and again. What fsync promised is there afterwards, on both nodes.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use intermezzo::output::say;
use intermezzo_tests::machine::kernel::{Kernel, Release};
use intermezzo_tests::machine::qemu::accelerator;
use intermezzo_tests::power::guest;
use intermezzo_tests::power::node::{self, Pair, Role};
use intermezzo_tests::power::round::{Broken, Cut, Rounds};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// Cuts the power of a virtual machine that is a node of a fleet.
#[derive(Parser)]
struct Args {
    /// Number of power cuts
    #[arg(long, env = "CUTS", default_value_t = 20)]
    cuts: u32,
    /// Cuts of one fleet, before the next one with the other role
    #[arg(long, default_value_t = 10)]
    fleet: u32,
    /// Replays the choices of an earlier run (time is not part of it)
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
    /// What the machine always is to the volume; else fleets take turns
    #[arg(long)]
    role: Option<Role>,
    /// The machine's kernel; else every third fleet has the older one
    #[arg(long)]
    kernel: Option<Release>,
    /// After a failure go on with the next fleet, to see what else there is
    #[arg(long)]
    go_on: bool,
    /// Leave the fleet in place after a failure
    #[arg(long, env = "KEEP", num_args = 0..=1, default_missing_value = "1", value_parser = clap::builder::BoolishValueParser::new(), default_value = "0", hide_env_values = true)]
    keep: bool,
    /// Directory below which everything is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
    /// Be the program in the machine
    #[arg(long, hide = true)]
    machine: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.machine {
        let Err(error) = guest::run() else { return ExitCode::SUCCESS };
        say(format_args!("power: {error:#}"));
        return ExitCode::FAILURE;
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    say(format_args!("power: seed {seed}, {} cuts, {}", args.cuts, accelerator()));
    match cuts(&args, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("power: FAILED, seed {seed}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Sum {
    cuts: u32,
    promises: usize,
    sectors: usize,
    behind: usize,
    conflicts: usize,
}

fn cuts(args: &Args, seed: u64) -> Result<()> {
    let begin = Instant::now();
    let scratch = tempfile::Builder::new().prefix("intermezzo-power-scratch-").tempdir_in(&args.base)?;
    let (mut sum, mut failed) = (Sum::default(), 0);
    for number in 0.. {
        let left = args.cuts - sum.cuts;
        if left == 0 {
            break;
        }
        // Each fleet has dice of its own, so that one can be replayed without those before it.
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        let role = args.role.unwrap_or(if number % 2 == 0 { Role::Client } else { Role::Server });
        let release =
            args.kernel.unwrap_or(if number % 3 == 2 { Release::Bookworm } else { Release::Trixie });
        // Both roles have their turn, however few cuts there are.
        let cuts = left.min(args.fleet).min(args.cuts.div_ceil(2));
        say(format_args!("fleet {number}: the machine is {role:?}, kernel of {}", release.name()));
        let ended =
            fleet(args, cuts, role, release, scratch.path(), &mut random, &mut sum).with_context(|| {
                format!("fleet {number} (alone: --seed {} --role {role:?})", seed.wrapping_add(number))
            });
        match ended {
            Err(error) if args.go_on => {
                say(format_args!("power: FAILED: {error:#}"));
                sum.cuts += 1;
                failed += 1;
            }
            ended => ended?,
        }
    }
    // A disk that loses nothing proves nothing.
    ensure!(sum.cuts < 4 || sum.sectors > 0, "no cut lost anything: the disk keeps what nobody flushed");
    let took = begin.elapsed().as_secs_f64();
    say(format_args!(
        "power: {} cuts in {took:.0} s: {} promises kept, {} sectors lost, {} workers set back, {} files torn",
        sum.cuts, sum.promises, sum.sectors, sum.behind, sum.conflicts
    ));
    ensure!(failed == 0, "{failed} fleets failed");
    Ok(())
}

fn fleet(
    args: &Args,
    cuts: u32,
    role: Role,
    release: Release,
    scratch: &Path,
    random: &mut StdRng,
    sum: &mut Sum,
) -> Result<()> {
    let kernel = Kernel::get(release)?;
    let programs = scratch.join(format!("programs-{}", release.name()));
    if !programs.exists() {
        node::programs(&kernel, &programs)?;
    }
    let pair = Pair::up(&args.base, role, &kernel, &programs)?;
    let mut rounds = Rounds::begin(pair, role, random)?;
    for number in 1..=cuts {
        match rounds.cut(random) {
            Ok(cut) => {
                tell(number, &cut);
                sum.cuts += 1;
                sum.promises += cut.promises;
                sum.sectors += cut.lost.sectors;
                sum.behind += cut.behind;
                sum.conflicts += cut.conflicts;
            }
            Err(error) => {
                let names =
                    error.downcast_ref::<Broken>().map(|broken| broken.names.clone()).unwrap_or_default();
                rounds.pair.fleet.explain(&names);
                say(rounds.pair.explain(&names));
                if args.keep {
                    rounds.pair.fleet.keep();
                }
                return Err(error.context(format!("cut {number}")));
            }
        }
    }
    Ok(())
}

fn tell(number: u32, cut: &Cut) {
    let lost = cut.lost;
    say(format_args!(
        "cut {number}{}: {} steps, {} promises; of {} writes in the cache {} are lost ({} sectors), after {} flushes; {} of 3 \
         workers set back, {} files torn; up after {:.1} s, equal after {:.1} s",
        if cut.is_alone { " alone" } else { "" },
        cut.steps,
        cut.promises,
        lost.cached,
        lost.writes,
        lost.sectors,
        lost.flushes,
        cut.behind,
        cut.conflicts,
        cut.boot.as_secs_f64(),
        cut.settled.as_secs_f64()
    ));
}

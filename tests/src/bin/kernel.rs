//! `make test-kernel`: presto's own tests in a machine with an older kernel, without FUSE passthrough and without RESEND.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cargo_metadata::Message;
use clap::Parser;
use intermezzo::output::say;
use intermezzo_tests::cluster::command::output;
use intermezzo_tests::machine::disk::Disk;
use intermezzo_tests::machine::initramfs::{Initramfs, MODULES as MODULE_DIR};
use intermezzo_tests::machine::kernel::{Kernel, Release};
use intermezzo_tests::machine::qemu::{MODULES, Machine, PORT, Spec, accelerator};

/// For all tests of one program.
const PATIENCE: Duration = Duration::from_secs(1500);
const BOOT: Duration = Duration::from_secs(180);
const MKFS: Duration = Duration::from_secs(60);
/// In MiB: programs that the tests make lie in memory.
const MEMORY: u32 = 2048;
/// Of the disk for what tests write, in bytes.
const SIZE: u64 = 8 << 30;
/// What the file systems of the tests are, and what lies above and below them.
const FILE_SYSTEMS: [&str; 4] = ["loop", "xfs", "btrfs", "overlay"];

/// What takes too long where the processor is emulated, and what asks nothing of the kernel.
const SLOW: &str = " --skip of_100000_names --skip read_while_it_changes --skip each_sentence_has_its_test";

/// Runs tests of presto on another kernel.
#[derive(Parser)]
struct Args {
    /// The kernel
    #[arg(long, default_value = "bookworm")]
    kernel: Release,
    /// Test programs of presto; may be given several times
    #[arg(long = "test", default_values = ["semantics"])]
    tests: Vec<String>,
    /// The lower file systems of the tests that take all; others take what they name
    #[arg(long, value_delimiter = ',', default_value = "ext4,tmpfs")]
    file_systems: Vec<String>,
    /// Words for each of them, as `cargo test` hands them on
    #[arg(last = true)]
    words: Vec<String>,
    /// Directory below which everything is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    base: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("kernel: FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let begin = Instant::now();
    let kernel = Kernel::get(args.kernel)?;
    let programs = built(&args.tests)?;
    let dir = tempfile::Builder::new().prefix("intermezzo-kernel-").tempdir_in(&args.base)?;
    let initramfs = dir.path().join("initramfs");
    archive(args, &kernel, &programs, &initramfs)?;
    let (image, socket) = (dir.path().join("image"), dir.path().join("disk.sock"));
    File::create(&image)?.set_len(SIZE)?;
    output(Command::new("mkfs.ext4").arg("-q").arg(&image), MKFS)?;
    let _disk = Disk::serve(&image, &socket)?;
    let spec = Spec {
        dir: dir.path(),
        kernel: &kernel,
        initramfs: &initramfs,
        disks: &[socket],
        append: "",
        cpus: 2,
        memory: MEMORY,
        ports: &[],
    };
    let mut machine = Machine::start(&spec)?;
    let release = machine.line("the machine to boot", BOOT).with_context(|| machine.console())?;
    say(format_args!(
        "kernel: Linux {release}, {}, up after {:.0} s",
        accelerator(),
        begin.elapsed().as_secs_f64()
    ));
    let mut failed = Vec::new();
    for test in &args.tests {
        let begin = Instant::now();
        let ended =
            machine.line(&format!("the tests {test} to end"), PATIENCE).with_context(|| machine.console())?;
        let said = machine.whole_console();
        let result = said.lines().rev().find(|line| line.starts_with("test result: ")).unwrap_or("no result");
        say(format_args!("kernel: {test}: {result}, {:.0} s in all", begin.elapsed().as_secs_f64()));
        if ended != "0" {
            failed.push(test.as_str());
            say(&said);
        }
    }
    ensure!(failed.is_empty(), "on Linux {release}: {}", failed.join(", "));
    Ok(())
}

/// The programs of these tests.
fn built(tests: &[String]) -> Result<Vec<PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Of the whole workspace, as everything else is built.
    command.args([
        "test",
        "--locked",
        "--workspace",
        "--no-run",
        "--message-format",
        "json-render-diagnostics",
    ]);
    for test in tests {
        command.args(["--test", test]);
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let said = std::io::BufReader::new(child.stdout.take().context("cargo says nothing")?);
    let mut found = vec![None; tests.len()];
    for message in Message::parse_stream(said) {
        let Message::CompilerArtifact(artifact) = message? else { continue };
        let wanted = tests.iter().position(|test| *test == artifact.target.name);
        if let (Some(place), Some(program)) = (wanted.and_then(|at| found.get_mut(at)), artifact.executable) {
            *place = Some(program.into_std_path_buf());
        }
    }
    ensure!(child.wait()?.success(), "the tests cannot be built");
    found
        .into_iter()
        .zip(tests)
        .map(|(program, test)| program.with_context(|| format!("no test {test}")))
        .collect()
}

fn archive(args: &Args, kernel: &Kernel, programs: &[PathBuf], path: &Path) -> Result<()> {
    let mut initramfs = Initramfs::with_busybox()?;
    initramfs.modules(kernel, &[&MODULES[..], &FILE_SYSTEMS].concat())?;
    for name in ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"] {
        initramfs.system_program(name)?;
    }
    for (test, program) in args.tests.iter().zip(programs) {
        initramfs.program(program, &format!("tests/{test}"))?;
    }
    let words: String = args.words.iter().map(|word| format!(" '{}'", word.replace('\'', ""))).collect();
    let (tests, file_systems) = (args.tests.join(" "), args.file_systems.join(","));
    let init = format!(
        "#!/bin/sh\n\
         /bin/busybox --install -s\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         ln -s /proc/self/fd /dev/fd\n\
         for module in {MODULE_DIR}/*; do insmod $module; done\n\
         mount -t ext4 /dev/vda /tmp\n\
         chmod 1777 /tmp\n\
         exec 3>{PORT}\n\
         uname -r >&3\n\
         {without}\
         export INTERMEZZO_TEST_FILE_SYSTEMS={file_systems}\n\
         cd /tmp\n\
         # One after the other: a program is busy while another test's child has it open for writing.\n\
         for test in {tests}; do /tests/$test --test-threads 1{SLOW}{words} 3>&- </dev/null; echo $? >&3; done\n\
         while :; do sleep 60; done\n",
        without = if args.kernel == Release::Bookworm {
            "export INTERMEZZO_TEST_WITHOUT_PASSTHROUGH=1\n"
        } else {
            ""
        },
    );
    initramfs.file("init", init.as_bytes(), 0o755);
    initramfs.write(path)
}

//! `make images`: static programs, an image of each part of InterMezzo, its bill of materials, and its size.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use intermezzo::output::{Table, bytes, print_text, say};
use intermezzo_tests::cluster::command::{DEADLINE, output};
use intermezzo_tests::image::{Recipe, context};
use intermezzo_tests::sbom::Workspace;

/// What an image should not exceed.
const TARGET: u64 = 15 << 20;

/// An image: its Containerfile is `images/NAME.Containerfile`.
struct Image {
    name: &'static str,
    title: &'static str,
    /// Packages of the workspace; the program of each has the package's name.
    packages: &'static [&'static str],
    /// Other names of its programs: name and program.
    links: &'static [(&'static str, &'static str)],
}

const IMAGES: [Image; 3] = [
    Image {
        name: "presto",
        title: "InterMezzo: the file system of a node",
        packages: &["presto", "presto-holder"],
        links: &[],
    },
    Image {
        name: "lento",
        title: "InterMezzo: the replication agent of a node, and the command line",
        packages: &["agent"],
        links: &[("lento", "agent"), ("intermezzo", "agent")],
    },
    Image {
        name: "operator",
        title: "InterMezzo: the Kubernetes operator",
        packages: &["intermezzo-operator"],
        links: &[],
    },
];

/// Builds the images with buildah, without a container engine, as archives that containerd, docker and podman load.
#[derive(Parser)]
struct Args {
    /// Where the archives go
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
    /// Cargo's profile. Tests take `dev`: it is built sooner, and looks for overflows
    #[arg(long, default_value = "release")]
    profile: String,
    /// Where Cargo builds
    #[arg(long, env = "CARGO_TARGET_DIR", default_value = "target")]
    target_dir: PathBuf,
}

fn main() -> ExitCode {
    match build(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("images: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn build(args: &Args) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let workspace = Workspace::read(&root, &target)?;
    let images = IMAGES.iter().filter(|image| {
        let is_there = image.packages.iter().all(|package| workspace.member(package).is_some());
        if !is_there {
            say(format_args!(
                "No image {}: this tree has no package {}.",
                image.name,
                image.packages.join(", ")
            ));
        }
        is_there
    });
    let images: Vec<&Image> = images.collect();
    compile(&root, args, &target, &images)?;
    let directory = if args.profile == "dev" { "debug" } else { &args.profile };
    let programs = args.target_dir.join(&target).join(directory);
    fs::create_dir_all(&args.out)?;
    let mut table = Table::new(&["IMAGE", "PROGRAMS", "ARCHIVE", "TARGET", "FILE"]);
    for image in images {
        let made = image.make(&root, &programs, &workspace, &args.out)?;
        let size = fs::metadata(&made.archive)?.len();
        let verdict = match size <= TARGET {
            _ if args.profile != "release" => "for release only",
            true => "within 15 MiB",
            false => "OVER 15 MiB",
        };
        table.row([
            made.name,
            bytes(made.programs),
            bytes(size),
            verdict.into(),
            made.archive.display().to_string(),
        ]);
    }
    print_text(&table.render())?;
    Ok(())
}

fn compile(root: &Path, args: &Args, target: &str, images: &[&Image]) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--locked", "--profile", &args.profile, "--bins", "--target", target, "--target-dir"])
        .arg(&args.target_dir);
    // With a target named, the flags are for the programs and not for macros and build scripts, which cannot be static.
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
    cargo.env(flags, "-C target-feature=+crt-static").env_remove("RUSTFLAGS").current_dir(root);
    for package in images.iter().flat_map(|image| image.packages) {
        cargo.args(["-p", package]);
    }
    let status = cargo.stdin(Stdio::null()).status().context("cannot start cargo")?;
    ensure!(status.success(), "the programs cannot be built");
    Ok(())
}

struct Made {
    name: String,
    programs: u64,
    archive: PathBuf,
}

impl Image {
    fn make(&self, root: &Path, programs: &Path, workspace: &Workspace, out: &Path) -> Result<Made> {
        let members: Vec<_> = self.packages.iter().filter_map(|package| workspace.member(package)).collect();
        let version = members.first().context("an image of nothing")?.version.to_string();
        let name = format!("docker.io/intermezzo/{}:{version}", self.name);
        let bill = workspace.bill(&format!("intermezzo/{}", self.name), &version, &members)?;
        let bill_file = out.join(format!("{}.cdx.json", self.name));
        fs::write(&bill_file, serde_json::to_vec_pretty(&bill)?)?;

        let built: Vec<(PathBuf, String)> =
            self.packages.iter().map(|name| (programs.join(name), format!("bin/{name}"))).collect();
        for (program, _) in &built {
            is_static(program)?;
        }
        let mut files: Vec<(&Path, &str)> =
            built.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
        files.push((&bill_file, "sbom.cdx.json"));
        let context = context(&files)?;
        // Names of functions are half of a program, and nobody debugs in an image that has no shell.
        for (_, program) in &built {
            output(Command::new("strip").arg(context.path().join(program)), DEADLINE)?;
        }
        for (name, program) in self.links {
            symlink(program, context.path().join("bin").join(name))?;
        }
        let time = git(root, &["log", "-1", "--format=%ct"])?.parse().context("the time of the commit")?;
        let archive = out.join(format!("{}.tar", self.name));
        let labels = [
            ("org.opencontainers.image.title", format!("intermezzo/{}", self.name)),
            ("org.opencontainers.image.description", self.title.to_owned()),
            ("org.opencontainers.image.version", version),
            ("org.opencontainers.image.revision", git(root, &["rev-parse", "HEAD"])?),
            ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
        ];
        let containerfile = root.join("images").join(format!("{}.Containerfile", self.name));
        let recipe = Recipe {
            name: &name,
            containerfile: &containerfile,
            context: context.path(),
            labels: &labels,
            timestamp: time,
        };
        recipe.archive(&archive)?;
        let size = |program: &String| fs::metadata(context.path().join(program)).map_or(0, |it| it.len());
        let programs = built.iter().map(|(_, program)| size(program)).sum();
        Ok(Made { name, programs, archive })
    }
}

/// A program that asks for a loader cannot start in an image that has none.
fn is_static(program: &Path) -> Result<()> {
    let headers =
        output(Command::new("readelf").args(["--program-headers", "--wide"]).arg(program), DEADLINE)?;
    ensure!(!headers.contains("INTERP"), "{} is not static", program.display());
    Ok(())
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let said = output(Command::new("git").arg("-C").arg(root).args(arguments), Duration::from_secs(10))?;
    Ok(said.trim().to_owned())
}

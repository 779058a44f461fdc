//! The arrows between the crates, and the few other habits that a compiler does not hold.
//! `docs/technical/architecture.md` says why each is there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

fn metadata() -> Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).other_options(vec!["--locked".to_owned()]).exec().unwrap()
}

/// Everything a workspace package links when it runs (no dev- and build-dependencies), by name.
fn linked(metadata: &Metadata, package: &str) -> BTreeSet<String> {
    let names: BTreeMap<&PackageId, &str> =
        metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
    let nodes: BTreeMap<_, _> =
        metadata.resolve.as_ref().unwrap().nodes.iter().map(|node| (&node.id, node)).collect();
    let own = |p: &&cargo_metadata::Package| p.name.as_str() == package && p.source.is_none();
    let start = metadata.packages.iter().find(own);
    let mut waiting = vec![&start.unwrap_or_else(|| panic!("there is no package {package}")).id];
    let mut seen = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        for dependency in &nodes[id].deps {
            if dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
                && seen.insert(names[&dependency.pkg].to_owned())
            {
                waiting.push(&dependency.pkg);
            }
        }
    }
    seen
}

#[test]
fn no_room_links_what_it_must_not() {
    let metadata = metadata();
    for (package, banned) in [
        (
            "presto",
            &[
                "tonic",
                "kube",
                "kube-core",
                "redb",
                "tokio",
                "rustls",
                "intermezzo-proto",
                "intermezzo-api",
                "lento",
            ][..],
        ),
        ("intermezzo-kml", &["tokio", "prost", "tonic", "redb", "fuser"]),
        ("presto-holder", &["tokio", "prost", "tonic", "fuser", "presto", "serde", "clap"]),
        ("intermezzo-boot", &["tokio", "tonic", "fuser", "presto", "serde", "clap", "tracing"]),
        (
            "lento-core",
            &[
                "tokio",
                "prost",
                "tonic",
                "redb",
                "rustix",
                "fuser",
                "intermezzo-kml",
                "intermezzo-channel",
                "rand",
            ],
        ),
        ("lento", &["fuser", "kube-client", "kube-runtime", "presto", "intermezzo-control"]),
        ("agent", &["fuser", "kube-client", "kube-runtime", "presto", "intermezzo-control"]),
        ("intermezzo-channel", &["tonic", "tokio"]),
        ("intermezzo-proto", &["fuser", "redb", "kube-core"]),
        ("intermezzo-identity", &["fuser", "redb", "kube-core", "rcgen", "intermezzo-proto"]),
        (
            "intermezzo-control",
            &["fuser", "redb", "kube-client", "kube-runtime", "lento", "lento-core", "presto"],
        ),
        ("intermezzo-api", &["fuser", "redb", "tonic", "tokio", "kube-client"]),
        ("intermezzo", &["fuser", "redb", "kube-client", "lento", "lento-core", "presto"]),
        ("kubectl-intermezzo", &["fuser", "redb", "kube-runtime", "lento", "lento-core", "presto"]),
        ("intermezzo-operator", &["fuser", "redb", "presto", "lento", "lento-core", "intermezzo-kml"]),
    ] {
        let linked = linked(&metadata, package);
        for bad in banned {
            assert!(
                !linked.contains(*bad),
                "{package} must not link {bad}; `cargo tree -p {package} -i {bad}` says how"
            );
        }
    }
}

#[test]
fn arrows_between_rooms_are_these_and_no_others() {
    let metadata = metadata();
    let rooms: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("intermezzo-kml", &[][..]),
        ("intermezzo-channel", &[]),
        ("intermezzo-proto", &[]),
        ("intermezzo-identity", &[]),
        ("intermezzo-api", &[]),
        ("intermezzo-control", &["intermezzo-api", "intermezzo-identity", "intermezzo-proto"]),
        ("intermezzo-boot", &["intermezzo-channel"]),
        ("lento-core", &[]),
        ("presto", &["intermezzo-kml", "intermezzo-channel", "presto-holder"]),
        ("presto-holder", &[]),
        (
            "lento",
            &[
                "intermezzo-kml",
                "intermezzo-channel",
                "intermezzo-identity",
                "intermezzo-proto",
                "intermezzo-api",
                "lento-core",
            ],
        ),
        ("intermezzo", &["intermezzo-kml", "intermezzo-proto", "intermezzo-api"]),
        ("agent", &["intermezzo", "lento"]),
        ("kubectl-intermezzo", &["intermezzo", "intermezzo-api"]),
        (
            "intermezzo-tests",
            &["intermezzo", "intermezzo-api", "intermezzo-channel", "intermezzo-kml", "presto-holder"],
        ),
        ("intermezzo-operator", &["intermezzo-api", "intermezzo-control", "intermezzo-proto"]),
    ]);
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let allowed = allowed.get(name).unwrap_or_else(|| panic!("{name} is new: draw its arrows here"));
        for dependency in package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal) {
            let to = dependency.name.as_str();
            assert!(
                !rooms.contains(to) || allowed.contains(&to),
                "the arrow {name} -> {to} is not in the architecture"
            );
        }
    }
}

#[test]
fn one_crypto_provider_only() {
    // Two of them make rustls panic when it must choose.
    let metadata = metadata();
    let all: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .flat_map(|package| linked(&metadata, package.name.as_str()))
        .collect();
    for bad in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"] {
        assert!(!all.contains(bad), "{bad} is linked beside ring");
    }
}

/// Rust sources of the workspace, `target` left out.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = ["boot", "cli", "lento", "operator", "presto", "proto", "tests"]
        .iter()
        .map(|dir| root.join(dir))
        .collect();
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    found
}

#[test]
fn unsafe_stays_in_its_rooms() {
    let rooms = ["presto/src/lower", "presto/kml/src", "presto/src/fuse/backing.rs"];
    for (path, text) in sources() {
        let word = ["unsafe", " {"].concat();
        let here = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(&word));
        // Tests may map memory to see what a program sees.
        let test = path.components().any(|part| part.as_os_str() == "tests");
        assert!(
            !here || test || rooms.iter().any(|room| path.starts_with(room)),
            "unsafe in {}",
            path.display()
        );
    }
}

#[test]
fn only_one_room_names_fuser() {
    for (path, text) in sources() {
        let named = text.lines().any(|line| {
            let code = line.trim_start();
            !code.starts_with("//") && (code.contains("fuser::") || code.contains("use fuser"))
        });
        let allowed = path.starts_with("presto/src/fuse")
            || path.starts_with("presto/src/fuse.rs")
            || path.starts_with("tests");
        assert!(!named || allowed, "fuser is named in {}", path.display());
    }
}

#[test]
fn the_core_has_no_clock_no_files_and_no_hash_maps() {
    for (path, text) in sources() {
        if !path.starts_with("lento/core/src") {
            continue;
        }
        for bad in ["Instant::now", "SystemTime", "std::fs", "std::net", "std::thread", "HashMap", "HashSet"]
        {
            let here = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(bad));
            assert!(!here, "{bad} in {}: the core only decides", path.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 1000, "{} has {lines} lines: find the rooms inside", path.display());
    }
}

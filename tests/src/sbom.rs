//! What a program is made of, as CycloneDX 1.5: each crate that it links, with its license and the registry's checksum.
//!
//! Taken from Cargo's own resolution for the target. Crates that only build scripts, procedural macros or tests use are not in the
//! program and not in the list. A feature that another member of the workspace asks for may name a crate too many.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind};
use serde_json::{Value, json};

/// Packages, and what each of them links.
type Graph<'a> = BTreeMap<&'a PackageId, BTreeSet<&'a PackageId>>;

/// What Cargo knows about this workspace for one target.
pub struct Workspace {
    metadata: Metadata,
    checksums: BTreeMap<(String, String), String>,
}

impl Workspace {
    /// Asks Cargo.
    ///
    /// # Errors
    /// Cargo fails, or there is no lock file.
    pub fn read(root: &Path, target: &str) -> Result<Workspace> {
        let options = ["--locked", "--filter-platform", target].map(str::to_owned).to_vec();
        let metadata =
            MetadataCommand::new().manifest_path(root.join("Cargo.toml")).other_options(options).exec()?;
        let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
        Ok(Workspace { metadata, checksums: checksums(&lock) })
    }

    /// The member of this name, if there is one.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Package> {
        self.metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == name)
    }

    /// The list for an image that holds the programs of some members.
    ///
    /// # Errors
    /// Cargo's resolution lacks a package.
    pub fn bill(&self, image: &str, version: &str, members: &[&Package]) -> Result<Value> {
        let graph = self.graph(members)?;
        let packages: BTreeMap<&PackageId, &Package> =
            self.metadata.packages.iter().map(|p| (&p.id, p)).collect();
        let mut components = Vec::new();
        let mut dependencies = Vec::new();
        for (id, needed) in &graph {
            let package = packages.get(id).context("a package that Cargo does not list")?;
            components.push(self.component(package));
            let needed: BTreeSet<String> =
                needed.iter().filter_map(|id| packages.get(id)).map(|package| purl(package)).collect();
            dependencies.push(json!({"ref": purl(package), "dependsOn": needed}));
        }
        let roots: BTreeSet<String> = members.iter().map(|package| purl(package)).collect();
        dependencies.push(json!({"ref": image, "dependsOn": roots}));
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {"component": {"type": "container", "bom-ref": image, "name": image, "version": version}},
            "components": components,
            "dependencies": dependencies,
        }))
    }

    /// Everything that members link, and what each of these links.
    fn graph<'a>(&'a self, members: &[&'a Package]) -> Result<Graph<'a>> {
        let resolve = self.metadata.resolve.as_ref().context("Cargo resolved nothing")?;
        let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
        let macros: BTreeSet<&PackageId> = self
            .metadata
            .packages
            .iter()
            .filter(|package| is_macro(package))
            .map(|package| &package.id)
            .collect();
        let mut graph = BTreeMap::new();
        let mut waiting: Vec<&PackageId> = members.iter().map(|package| &package.id).collect();
        while let Some(id) = waiting.pop() {
            if graph.contains_key(id) {
                continue;
            }
            let node = nodes.get(id).context("a package that Cargo did not resolve")?;
            let linked = node.deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
                    && !macros.contains(&dependency.pkg)
            });
            let linked: BTreeSet<&PackageId> = linked.map(|dependency| &dependency.pkg).collect();
            waiting.extend(&linked);
            graph.insert(id, linked);
        }
        Ok(graph)
    }

    fn component(&self, package: &Package) -> Value {
        let version = package.version.to_string();
        let mut component = json!({
            "type": "library",
            "bom-ref": purl(package),
            "name": package.name.as_str(),
            "version": version,
            "purl": purl(package),
        });
        if let (Some(license), Some(fields)) = (&package.license, component.as_object_mut()) {
            fields.insert("licenses".to_owned(), json!([{"expression": license.replace('/', " OR ")}]));
        }
        let checksum = self.checksums.get(&(package.name.to_string(), version));
        if let (Some(checksum), Some(fields)) = (checksum, component.as_object_mut()) {
            fields.insert("hashes".to_owned(), json!([{"alg": "SHA-256", "content": checksum}]));
        }
        component
    }
}

fn is_macro(package: &Package) -> bool {
    package.targets.iter().any(|target| target.kind.contains(&TargetKind::ProcMacro))
}

/// <https://github.com/package-url/purl-spec>
fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

/// Name and version to checksum. The lock file's lines are written by Cargo in one form only.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let start = format!("{name} = \"");
            package.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix('"')).map(str::to_owned)
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            found.insert((name, version), checksum);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(bill: &Value) -> BTreeSet<String> {
        let components = bill["components"].as_array().unwrap();
        components.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_bill_lists_what_is_linked_and_nothing_that_only_builds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let workspace = Workspace::read(&root, "x86_64-unknown-linux-gnu").unwrap();
        let lento = workspace.member("lento").unwrap();
        let bill = workspace.bill("intermezzo/lento", "0.1.0", &[lento]).unwrap();
        let names = names(&bill);
        for linked in ["lento", "lento-core", "tonic", "rustls", "ring", "redb"] {
            assert!(names.contains(linked), "{linked} is linked and not in the list");
        }
        for other in ["fuser", "serde_derive", "protox", "proptest", "windows-sys"] {
            assert!(!names.contains(other), "{other} is not linked, and in the list");
        }
        let ring = bill["components"].as_array().unwrap().iter().find(|one| one["name"] == "ring").unwrap();
        assert_eq!(ring["hashes"][0]["content"].as_str().unwrap().len(), 64);
        assert!(ring["licenses"][0]["expression"].as_str().unwrap().contains("ISC"));
        let refs: BTreeSet<&str> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["bom-ref"].as_str().unwrap())
            .collect();
        for dependency in bill["dependencies"].as_array().unwrap() {
            for needed in dependency["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(needed.as_str().unwrap()), "{needed} is needed and not in the list");
            }
        }
    }
}

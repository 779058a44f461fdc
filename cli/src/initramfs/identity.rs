//! Which node a machine without a disk is: an archive that its boot loader puts behind the initramfs of all machines.
//!
//! In it, at `/intermezzo`: the node's name, certificate and key, the authorities, and perhaps manifests with what the node has
//! to do (`boot/src/diskless.rs` reads them).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use intermezzo_api::manifest::{Manifests, Role};
use intermezzo_api::names::dns_label;

use super::Archive;
use crate::pki::Files;

const DIR: &str = "intermezzo";

/// The archive of `node`, whose files are in `pki`, with what `manifests` says, if it is given.
///
/// # Errors
/// A file is missing, or the manifests are wrong or not about this node.
pub fn archive(node: &str, pki: &Path, manifests: Option<&Path>) -> Result<Vec<u8>> {
    dns_label(node).map_err(|why| anyhow::anyhow!("node name {why}"))?;
    let mut archive = Archive::default();
    archive.file(format!("{DIR}/node"), format!("{node}\n").as_bytes(), 0o644);
    let own = Files::node(pki, node);
    for (path, name, mode) in [
        (&own.cert, "node.crt", 0o644),
        (&own.key, "node.key", 0o600),
        (&Files::ca(pki).cert, "ca.crt", 0o644),
    ] {
        let text = fs::read(path).with_context(|| {
            format!("cannot read {}; intermezzo pki node makes a node's files", path.display())
        })?;
        archive.file(format!("{DIR}/{name}"), &text, mode);
    }
    if let Some(dir) = manifests {
        let manifests = Manifests::read_dir(dir).map_err(|problems| anyhow::anyhow!("{problems}"))?;
        archive.file(format!("{DIR}/volumes"), part(node, &manifests, dir)?.as_bytes(), 0o644);
        archive.file(format!("{DIR}/manifests/all.yaml"), manifests.to_yaml()?.as_bytes(), 0o644);
    }
    Ok(archive.finish())
}

/// The one volume that the node has, and its server.
fn part(node: &str, manifests: &Manifests, dir: &Path) -> Result<String> {
    let mut parts = Vec::new();
    for (name, volume) in &manifests.volumes {
        match (manifests.role(name, node), volume.server_node()) {
            (Some(Role::Client), Some(server)) => parts.push(format!("{name} {server}\n")),
            (Some(Role::Server), _) => {
                bail!("node {node} serves volume {name} ({}), so it needs a disk", dir.display())
            }
            _ => {}
        }
    }
    let one = parts.pop().with_context(|| {
        format!("the manifests in {} have no Replicator of a volume on node {node}: add one", dir.display())
    })?;
    ensure!(
        parts.is_empty(),
        "node {node} has a part in several volumes ({}): without a disk it has its root file system and no other",
        dir.display()
    );
    Ok(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{make_ca, make_node};
    use std::time::Duration;

    const VOLUME: &str = "apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\nmetadata: {name: root, namespace: site}\nspec:\n  server: {nodeName: a}\n";

    fn replicator(node: &str) -> String {
        format!(
            "---\napiVersion: intermezzo.dev/v1alpha1\nkind: Replicator\nmetadata: {{name: root-{node}, namespace: site}}\nspec: {{volume: root, nodeName: {node}, mode: OnDemand}}\n"
        )
    }

    #[test]
    fn it_holds_what_the_node_is_and_has_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let valid = Duration::from_secs(3600);
        make_ca(&pki, "test", valid).unwrap();
        make_node(&pki, &pki, "b", valid).unwrap();
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        fs::write(manifests.join("all.yaml"), format!("{VOLUME}{}", replicator("b"))).unwrap();
        let packed = archive("b", &pki, Some(&manifests)).unwrap();
        assert_eq!(packed.len() % 4, 0, "another archive may follow");
        for part in ["intermezzo/node\0", "intermezzo/node.key\0", "site/root a\n", "mode: OnDemand"] {
            assert!(packed.windows(part.len()).any(|window| window == part.as_bytes()), "{part}");
        }
        let why = |node: &str, manifests| archive(node, &pki, manifests).unwrap_err().to_string();
        assert!(why("c", None).contains("c.crt; intermezzo pki node makes"), "{}", why("c", None));
        make_node(&pki, &pki, "a", valid).unwrap();
        make_node(&pki, &pki, "c", valid).unwrap();
        assert!(why("a", Some(&manifests)).contains("needs a disk"));
        assert!(why("c", Some(&manifests)).contains("no Replicator of a volume on node c"));
    }
}

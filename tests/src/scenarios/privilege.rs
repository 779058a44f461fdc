//! What lento's container may not do. There is no shell in its image: busybox is laid where lento keeps its state, which is
//! the one place it may write to, and runs by `kubectl exec` with the container's own limits.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{SYSTEM, Suite};
use crate::cluster::parts;
use crate::cluster::pod::Pod;

/// Below lento's state, which is there under the same path in the container.
const PROBE: &str = "/var/lib/intermezzo/state/probe";
const CACHE: &str = "/var/lib/intermezzo/cache/default/shared";
/// CAP_DAC_READ_SEARCH and no other.
const READ_SEARCH: &str = "0000000000000004";

pub(super) fn privilege(suite: &mut Suite<'_>) -> Result<String> {
    let tree = suite.user("node1")?.root()?.join("shared");
    fs::write(tree.join("private"), "of user 4711")?;
    fs::set_permissions(tree.join("private"), fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(tree.join("private"), Some(4711), Some(4711))?;
    fs::write(tree.join("of-root"), "as lento is")?;

    let place = suite.path_of("node1", PROBE)?;
    fs::create_dir(&place)?;
    let busybox = parts::find("busybox").context("no busybox")?;
    fs::copy(&busybox, place.join("busybox"))?;
    let probe = Probe { lento: suite.part("lento", "node1")? };
    let found = probe.limits().and_then(|()| probe.files(suite)).and_then(|()| probe.network(suite));
    let told = found.and_then(|()| probe.another_nodes_name());
    clear(&place)?;
    told?;
    Ok("lento: one capability, seccomp, root file system read-only; reads every user's file, changes none, not even root's; \
        its token is no other node's"
        .into())
}

struct Probe {
    lento: Pod,
}

impl Probe {
    fn run(&self, script: &str) -> Result<String> {
        let shell = format!("{PROBE}/busybox");
        let script = script.replace("BB", &shell);
        self.lento.exec(&[&shell, "sh", "-c", &script])
    }

    /// Runs what must not work; what it said.
    fn refused(&self, script: &str, because: &str) -> Result<()> {
        let said = self.run(&format!("{script} 2>&1 && echo DONE || true"))?;
        ensure!(!said.contains("DONE"), "lento may do this: {script}");
        ensure!(said.contains(because), "{script}: refused, but not for {because:?}: {said}");
        Ok(())
    }

    fn limits(&self) -> Result<()> {
        // Of lento itself, and of what is run in its container.
        for process in ["1", "self"] {
            let status = self.run(&format!("BB cat /proc/{process}/status"))?;
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default()
            };
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                ensure!(field(set) == READ_SEARCH, "{set} of process {process} is {}", field(set));
            }
            ensure!(field("NoNewPrivs:") == "1", "process {process} may gain privileges");
            ensure!(field("Seccomp:") == "2", "process {process} has no seccomp filter");
        }
        self.refused("BB touch /anything", "Read-only file system")?;
        self.refused("BB mount -t tmpfs none /proc", "permission denied")?;
        self.refused(&format!("BB chown 1:1 {PROBE}/busybox"), "Operation not permitted")
    }

    fn files(&self, suite: &Suite<'_>) -> Result<()> {
        let find = format!("BB find {CACHE} -name private -o -name of-root");
        let found = self.run(&find)?;
        ensure!(found.lines().count() == 2, "the cache files are not where they are looked for: {found:?}");
        for path in found.lines() {
            let content = self.run(&format!("BB cat {path}"))?;
            ensure!(content.starts_with("of user") || content.starts_with("as lento"), "{path}: {content:?}");
            for change in [
                "BB sh -c 'echo changed >> PATH'",
                "BB chmod 777 PATH",
                "BB rm -f PATH",
                "BB mv PATH PATH.moved",
            ] {
                // Of another user's file the kernel looks at the mode first.
                let is_others = path.ends_with("/private") && change.contains(">>");
                let because = if is_others { "Permission denied" } else { "Read-only file system" };
                self.refused(&change.replace("PATH", path), because)?;
            }
        }
        let seen = self.run("BB ls /var/lib/intermezzo; BB cat /proc/mounts")?;
        ensure!(
            !seen.contains("fuse.intermezzo"),
            "lento has the mounts, through which it could write: {seen}"
        );
        let tree = suite.user("node1")?.root()?.join("shared");
        let content = fs::read_to_string(tree.join("of-root"))?;
        ensure!(content == "as lento is", "changed: {content:?}");
        Ok(())
    }

    /// Names of Services resolve on the node's network: that is how lento found its operator.
    fn network(&self, suite: &Suite<'_>) -> Result<()> {
        let name = format!("intermezzo-operator.{SYSTEM}.svc");
        let environment = self.run("BB cat /proc/1/environ | BB tr '\\0' '\\n'")?;
        ensure!(environment.contains(&format!("LENTO_OPERATOR={name}:")), "lento has no name: {environment}");
        let address = suite.kubectl.run(&[
            "get",
            "service",
            "intermezzo-operator",
            "--namespace",
            SYSTEM,
            "-o",
            "jsonpath={.spec.clusterIP}",
        ])?;
        let found = self.run(&format!("BB nslookup {name}.cluster.local"))?;
        ensure!(found.contains(&address) || address == "None", "{name} is not {address}: {found}");
        ensure!(suite.condition("volume/shared", "Serving")?.0 == "True", "node1 has not found its operator");
        Ok(())
    }

    /// Another lento in this container, with its token, that says it is node2.
    fn another_nodes_name(&self) -> Result<()> {
        let said = self.run(&format!(
            "LENTO_NODE=node2 LENTO_STATE={PROBE}/state LENTO_ADMIN_SOCKET={PROBE}/admin.sock \
             LENTO_PRESTO_SOCKET={PROBE}/none.sock LENTO_LISTEN=127.0.0.1:0 LENTO_METRICS=127.0.0.1:0 \
             BB timeout 8 /bin/lento 2>&1 || true"
        ))?;
        ensure!(
            said.contains("the token is of node node1, the agent says that it is node2"),
            "it says: {said}"
        );
        ensure!(!said.contains("enrolled"), "node1's token makes a node2: {said}");
        let kept = self.run(&format!("BB ls {PROBE}/state"))?;
        ensure!(!kept.contains("identity"), "it has an identity: {kept}");
        Ok(())
    }
}

fn clear(place: &Path) -> Result<()> {
    #[allow(clippy::disallowed_methods, reason = "a directory of this test, with nothing mounted below")]
    fs::remove_dir_all(place).with_context(|| format!("{} cannot be removed", place.display()))
}

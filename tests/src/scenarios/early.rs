//! A pod never starts on an empty directory in place of the volume: not before the Volume exists, not after it.

use anyhow::{Result, ensure};

use super::{PATIENCE, Suite, user_of, volume, wait};
use crate::cluster::command::until;
use crate::cluster::pod::Pod;

pub(super) fn pod_before_volume(suite: &mut Suite<'_>) -> Result<String> {
    let late = volume("late", "server: {nodeName: node1}\nreplication: {nodeSelector: {}}");
    suite.kubectl.apply(&user_of("late", "early"))?;
    suite.refused_by_kubelet("early")?;
    suite.kubectl.apply(&late)?;
    suite.wait_running("early")?;
    let mounts = Pod::named(&suite.kubectl, "default", "early").exec(&["cat", "/proc/mounts"])?;
    let is_there = mounts.lines().any(|line| line.contains(" /late fuse.intermezzo "));
    ensure!(is_there, "the pod started without the volume: {mounts}");
    suite.kubectl.delete(&user_of("late", "early"))?;

    suite.kubectl.delete(&late)?;
    suite.kubectl.apply(&user_of("late", "too-late"))?;
    suite.refused_by_kubelet("too-late")?;
    let place = suite.on_node("node2", "default/late")?;
    wait::seen("the place of the mount to go", || !place.exists())?;
    suite.kubectl.delete(&user_of("late", "too-late"))?;
    Ok("a pod waits while there is no Volume, starts when it is mounted, and does not start when it is gone"
        .into())
}

impl Suite<'_> {
    fn refused_by_kubelet(&self, name: &str) -> Result<()> {
        let about = format!("involvedObject.name={name}");
        until(&format!("the kubelet to refuse pod {name}"), PATIENCE, || {
            let phase = self.kubectl.run(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
            // Else it would never be refused: said at once.
            if phase == "Running" {
                return Ok(());
            }
            let events = self.kubectl.run(&["get", "events", "--field-selector", &about, "-o", "wide"])?;
            ensure!(
                events.contains("hostPath type check failed"),
                "pod {name} is {phase}; its events: {events}"
            );
            Ok(())
        })?;
        let phase = self.kubectl.run(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
        ensure!(phase == "Pending", "pod {name} is {phase} without its volume");
        Ok(())
    }
}

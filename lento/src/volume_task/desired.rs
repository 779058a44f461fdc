//! The desired state of a volume has changed: what of that concerns the core, what the streams, and what presto.

use super::VolumeTask;
use crate::desired::DesiredVolume;
use lento_core::io::Input;
use tracing::info;

impl VolumeTask {
    /// Takes it over.
    pub(super) fn desired_changed(&mut self, desired: DesiredVolume, inputs: &mut Vec<Input>) {
        let was_paused = self.is_paused();
        let paused_changed = desired.paused != self.desired.paused;
        let list_changed = desired.replication_list != self.desired.replication_list;
        let limits_changed = (desired.log_max_bytes, desired.when_full)
            != (self.desired.log_max_bytes, self.desired.when_full);
        let writes_changed = desired.writes != self.desired.writes;
        let held_changed = desired.lento_access != self.desired.lento_access;
        let options_changed = limits_changed
            || writes_changed
            || held_changed
            || (desired.access, desired.limits, desired.durability)
                != (self.desired.access, self.desired.limits, self.desired.durability)
            || desired.exclude != self.desired.exclude
            || desired.history != self.desired.history;
        let history_changed = desired.history != self.desired.history;
        let conflicts_changed =
            (desired.conflicts, desired.mass) != (self.desired.conflicts, self.desired.mass);
        let keeping_changed = desired.keeping != self.desired.keeping;
        self.desired = desired;
        self.admit();
        if self.life.is_some() && writes_changed {
            inputs.push(Input::Writes(self.desired.writes));
        }
        if self.life.is_some() && held_changed {
            inputs.push(self.hold_back());
        }
        if self.life.is_some() && keeping_changed {
            inputs.push(Input::Keep(self.desired.keeping.clone()));
        }
        if self.desired.is_server(&self.around.node) {
            if self.life.is_some() && (list_changed || paused_changed) {
                self.part_with_refused(inputs);
            }
            if self.life.is_some() && list_changed {
                inputs.push(self.replication_list());
            }
            if self.life.is_some() && limits_changed {
                inputs.push(self.log_limit());
            }
            if self.life.is_some() && conflicts_changed {
                inputs.push(Input::Conflicts(self.desired.conflicts));
                inputs.push(Input::MassRemoval(self.desired.mass));
            }
            if self.life.is_some() && history_changed {
                inputs.push(Input::History(self.desired.history_options()));
            }
        } else if self.is_paused() && !was_paused {
            info!(target: "volume", volume = &*self.handle.name, "paused: this node's updates wait in its journal");
            for (server, link) in &self.links {
                link.goodbye(&self.handle.name);
                inputs.push(Input::Disconnected(server.clone()));
            }
        } else if was_paused && !self.is_paused() {
            info!(target: "volume", volume = &*self.handle.name, "no longer paused");
            self.greet(inputs);
        }
        if options_changed {
            self.ask_presto();
        }
    }
}

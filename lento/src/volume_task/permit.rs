//! Users of this node that wait for the permit: the core is told that there are some, and its word is for all of them.

use super::VolumeTask;
use crate::volume::Permit;
use lento_core::io::Input;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A volume that has not begun, or has stopped, is waited for so long; then nobody can say who may write.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Waiting {
    users: Vec<oneshot::Sender<Permit>>,
    /// Since when there is no life.
    lifeless: Instant,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { users: Vec::new(), lifeless: Instant::now() }
    }
}

impl Waiting {
    /// All of them get the same answer; who still waits asks again.
    pub(super) fn tell(&mut self, permit: Permit) {
        for user in self.users.drain(..) {
            let _ = user.send(permit);
        }
    }

    pub(super) fn life_ended(&mut self) {
        self.lifeless = Instant::now();
    }

    /// Whoever waits for a volume that does not begin is let go.
    pub(super) fn look(&mut self, is_alive: bool) {
        self.users.retain(|user| !user.is_closed());
        if !is_alive && self.lifeless.elapsed() >= PATIENCE {
            self.users.clear();
        }
    }
}

impl VolumeTask {
    pub(super) fn permit_wanted(&mut self, user: oneshot::Sender<Permit>, inputs: &mut Vec<Input>) {
        self.writers.users.push(user);
        if self.life.is_some() {
            inputs.push(Input::PermitWanted);
        }
        self.writers.look(self.life.is_some());
    }

    /// A life has begun: those who waited for it.
    pub(super) fn writers_wait(&self, inputs: &mut Vec<Input>) {
        if !self.writers.users.is_empty() {
            inputs.push(Input::PermitWanted);
        }
    }
}

//! The first program in the machine: starts the agents, works, and tells of each promise when it has it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use intermezzo::admin::Scope;
use intermezzo::fleet::{Fleet, Layout, Node, mounts};
use intermezzo::pki::Files;
use parking_lot::Mutex;

use super::act::act;
use super::observe::observe;
use super::plan::Plan;
use super::talk::{Order, PART, Part, Task, Word};
use crate::history;
use crate::machine::qemu::{HOST, PORT};
use crate::walk::walk;

/// The disk's file system.
pub const DISK: &str = "/node";
/// What does not survive a boot.
const RUN: &str = "/run";
/// Where certificates and manifests are.
pub const SETUP: &str = "/etc/intermezzo";
/// For agents to come up and for records to arrive, in a machine that is emulated.
const PATIENCE: Duration = Duration::from_secs(180);

#[derive(Clone)]
struct Talk(Arc<Mutex<File>>);

impl Talk {
    /// The line is out of the machine when this returns: the device has taken it.
    fn say(&self, word: &Word) -> Result<()> {
        let line = serde_json::to_string(word)? + "\n";
        self.0.lock().write_all(line.as_bytes()).context("the port is closed")
    }
}

struct Guest {
    fleet: Fleet,
    node: Node,
    talk: Talk,
    agents: Vec<(&'static str, Child)>,
}

/// Follows orders until the power goes.
///
/// # Errors
/// Nobody is there to give orders.
pub fn run() -> Result<()> {
    let port = File::options().read(true).write(true).open(PORT).context(PORT)?;
    let orders = BufReader::new(port.try_clone()?);
    let part: Part = serde_json::from_slice(&std::fs::read(PART)?)?;
    let fleet = Fleet { layout: Layout { dir: RUN.into() }, config: part.config };
    let node = fleet.node(&part.node)?.clone();
    let mut guest = Guest { fleet, node, talk: Talk(Arc::new(Mutex::new(port))), agents: Vec::new() };
    guest.talk.say(&Word::Ready)?;
    for order in orders.lines() {
        let answer = guest.follow(serde_json::from_str(&order?)?);
        guest.talk.say(&answer.unwrap_or_else(|error| Word::Failed(format!("{error:#}"))))?;
    }
    bail!("nobody gives orders any more")
}

impl Guest {
    fn follow(&mut self, order: Order) -> Result<Word> {
        match order {
            Order::Look(workers) => {
                let tree = Path::new(DISK).join("cache").join(&self.fleet.config.volume).join("tree");
                let seen =
                    workers.into_iter().map(|worker| Ok((worker.clone(), observe(&tree.join(worker))?)));
                return Ok(Word::Seen(seen.collect::<Result<_>>()?));
            }
            Order::Start => self.start()?,
            Order::Prepare(workers) => {
                for worker in workers {
                    std::fs::create_dir(self.mount().join(worker))?;
                }
                File::open(self.mount())?.sync_all()?;
            }
            Order::Work(tasks) => self.work(tasks)?,
            Order::Settle => {
                self.all_run()?;
                self.fleet.wait(&self.node, Scope::Everywhere, PATIENCE)?;
                self.no_fault()?;
            }
            Order::Walk => {
                return Ok(Word::Tree(Box::new(walk(&self.mount())?)));
            }
            Order::Conflicts => {
                let conflicts = self.fleet.conflicts()?.into_iter();
                return Ok(Word::Conflicts(
                    conflicts.map(|one| (one.path.clone(), format!("{one:?}"))).collect(),
                ));
            }
            Order::Sync => rustix::fs::sync(),
            Order::Explain(names) => return Ok(Word::Explained(self.explain(&names))),
        }
        Ok(Word::Done)
    }

    fn mount(&self) -> PathBuf {
        Path::new(DISK).join("mounts").join(&self.fleet.config.volume)
    }

    fn start(&mut self) -> Result<()> {
        let run = Path::new(RUN);
        let (holder, presto) = (run.join("holder.sock"), run.join("presto.sock"));
        let admin = self.fleet.layout.admin_socket(&self.node);
        admin.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        let disk = |name: &str| Path::new(DISK).join(name);
        let mut start = |name: &'static str, options: &[(&str, PathBuf)]| -> Result<()> {
            let words = options.iter().flat_map(|(name, value)| [Path::new(name), value]);
            let child = Command::new(name).args(words).stdin(Stdio::null()).spawn();
            self.agents.push((name, child.with_context(|| format!("cannot start {name}"))?));
            Ok(())
        };
        start("presto-holder", &[("--socket", holder.clone())])?;
        start("presto", &[("--state", disk("presto")), ("--socket", presto.clone()), ("--holder", holder)])?;
        let pki = Path::new(SETUP).join("pki");
        let files = Files::node(&pki, &self.node.name);
        let mut options = vec![
            ("--node", PathBuf::from(&self.node.name)),
            ("--manifests", Path::new(SETUP).join("manifests")),
            ("--listen", format!("0.0.0.0:{}", self.node.port).into()),
            ("--presto-socket", presto),
            ("--state", disk("lento")),
            ("--cache", disk("cache")),
            ("--mounts", disk("mounts")),
            ("--tls-cert", files.cert),
            ("--tls-key", files.key),
            ("--tls-ca", Files::ca(&pki).cert),
            ("--admin-socket", admin),
        ];
        let peers = self.fleet.config.nodes.iter().filter(|peer| peer.name != self.node.name);
        options.extend(peers.map(|peer| ("--peer", format!("{}={HOST}:{}", peer.name, peer.port).into())));
        start("lento", &options)?;
        let begin = Instant::now();
        loop {
            self.all_run()?;
            // An agent that has just started has a fault until it has seen presto.
            let Err(waiting) = self.is_up() else { return Ok(()) };
            ensure!(begin.elapsed() < PATIENCE, "not up after {} s: {waiting:#}", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_up(&self) -> Result<()> {
        let status = self.fleet.status(&self.node)?;
        ensure!(status.presto_connected, "lento has no channel to presto");
        let is_there = status.volumes.iter().any(|one| one.name == self.fleet.config.volume);
        ensure!(is_there && mounts::is_mounted(&self.mount()), "the volume is not mounted");
        self.no_fault()
    }

    fn all_run(&mut self) -> Result<()> {
        for (name, child) in &mut self.agents {
            if let Some(status) = child.try_wait()? {
                bail!("{name} has ended: {status}");
            }
        }
        Ok(())
    }

    fn no_fault(&self) -> Result<()> {
        let status = self.fleet.status(&self.node)?;
        let fault = status.volumes.iter().map(|volume| &volume.fault).find(|fault| !fault.is_empty());
        fault.map_or(Ok(()), |fault| bail!("the volume has a fault: {fault}"))
    }

    /// Comes back only if a call failed: the power goes while they work.
    fn work(&self, tasks: Vec<Task>) -> Result<()> {
        std::thread::scope(|scope| {
            let works: Vec<_> = tasks
                .into_iter()
                .map(|task| scope.spawn(|| works(task, &self.mount(), &self.talk)))
                .collect();
            works.into_iter().try_for_each(|work| work.join().unwrap_or_else(|_| bail!("a worker panicked")))
        })
    }

    fn explain(&self, names: &[String]) -> String {
        let mut text = match self.fleet.status(&self.node) {
            Ok(status) => format!("node {}: {status:?}", self.node.name),
            Err(error) => format!("node {}: {error}", self.node.name),
        };
        let cache = Path::new(DISK).join("cache").join(&self.fleet.config.volume);
        for name in names {
            let told = history::of(&cache, name).unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("\nwhat the journal of {} tells of {name}:\n{told}", self.node.name);
        }
        text
    }
}

fn works(task: Task, mount: &Path, talk: &Talk) -> Result<()> {
    let dir = mount.join(&task.worker);
    let mut plan = Plan::new(task.seed, task.model);
    for number in 1.. {
        let step = plan.step();
        plan.model.apply(&step);
        talk.say(&Word::Begun(task.worker.clone(), number))?;
        if let Err(error) = act(&dir, &step, &plan.model) {
            talk.say(&Word::Failed(format!("{} step {number}: {error:#}", task.worker)))?;
            return Err(error);
        }
        if step.is_sync() {
            talk.say(&Word::Synced(task.worker.clone(), number))?;
        }
    }
    Ok(())
}

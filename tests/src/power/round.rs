//! One power cut: work, cut, boot, and what must be there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use intermezzo::admin::Scope;
use intermezzo::fleet::Daemon;
use rand::Rng;
use rand::rngs::StdRng;

use super::act::act;
use super::check::Promises;
use super::model::Model;
use super::node::{PATIENCE, Pair, Role};
use super::observe::observe;
use super::plan::Plan;
use super::talk::{Order, Task, Word};
use crate::fleet;
use crate::machine::disk::Lost;
use crate::walk::{Tree, walk};

/// Of the machine.
const WORKERS: [&str; 3] = ["w0", "w1", "w2"];
/// The one here, whose power stays.
const HERE: &str = "here";

/// For trees to become equal when all agents say that nothing is pending.
const EQUAL: Duration = Duration::from_secs(90);

/// What a cut was like.
#[derive(Debug)]
pub struct Cut {
    /// Whether the other node's agent was away while the machine worked.
    pub is_alone: bool,
    /// Steps begun in the machine.
    pub steps: usize,
    /// Promises that it had.
    pub promises: usize,
    /// What the disk lost.
    pub lost: Lost,
    /// Workers whose last work was not on the disk.
    pub behind: usize,
    /// New conflicts, each of a file that may be torn.
    pub conflicts: usize,
    /// From power to a program that runs.
    pub boot: Duration,
    /// From there to equal trees.
    pub settled: Duration,
}

/// A fleet and what its workers have.
#[derive(Debug)]
pub struct Rounds {
    /// The fleet.
    pub pair: Pair,
    role: Role,
    models: BTreeMap<String, Model>,
    conflicts: usize,
}

/// A promise that is broken; the names that it is about, for who explains.
#[derive(Debug)]
pub struct Broken {
    /// What is wrong.
    pub why: String,
    /// Names.
    pub names: Vec<String>,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Broken {}

impl Rounds {
    /// Before the first cut.
    ///
    /// # Errors
    /// The fleet does not come up.
    pub fn begin(pair: Pair, role: Role, random: &mut StdRng) -> Result<Rounds> {
        let new = |name: &str| (name.to_owned(), Model { seed: random.random(), ..Model::default() });
        let models = WORKERS.into_iter().chain([HERE]).map(new).collect();
        let mut this = Rounds { pair, role, models, conflicts: 0 };
        this.pair.done(&Order::Start, "the agents to start")?;
        this.pair.fleet.fleet.wait_ready_of(&[&this.pair.host], PATIENCE, &mut |_| ())?;
        this.pair.done(&Order::Prepare(WORKERS.map(str::to_owned).to_vec()), "directories")?;
        std::fs::create_dir(this.pair.mount().join(HERE))?;
        this.settle()?;
        Ok(this)
    }

    /// One cut.
    ///
    /// # Errors
    /// A promise is broken, or something does not come up.
    pub fn cut(&mut self, random: &mut StdRng) -> Result<Cut> {
        let is_alone = random.random_bool(0.35);
        if is_alone {
            fleet::kill(&self.pair.fleet.fleet, &self.pair.host, Daemon::Lento)?;
        }
        let mut promises = BTreeMap::new();
        let mut tasks = Vec::new();
        for (worker, model) in self.models.iter().filter(|(worker, _)| *worker != HERE) {
            let seed = random.random();
            promises.insert(worker.clone(), Promises::new(seed, model.clone()));
            tasks.push(Task { worker: worker.clone(), seed, model: model.clone() });
        }
        let (lost, here) = self.work(tasks, &mut promises, random)?;
        self.pair.fsck()?;

        let begin = Instant::now();
        self.pair.boot()?;
        let boot = begin.elapsed();
        let seen = self.pair.look(&WORKERS.map(str::to_owned))?;
        let mut behind = 0;
        for (worker, observed) in &seen {
            let promises = promises.get(worker).context("an unknown worker")?;
            let left =
                promises.check(observed).map_err(|broken| told("on the disk", worker, promises, &broken))?;
            behind += usize::from(!promises.is_all(&left));
        }

        let begin = Instant::now();
        if is_alone {
            self.pair.start_here(Daemon::Lento)?;
        }
        self.pair.done(&Order::Start, "the agents to start after the cut")?;
        self.settle()?;
        let settled = begin.elapsed();
        promises.insert(HERE.to_owned(), here);
        for (worker, promises) in &promises {
            let observed = observe(&self.pair.mount().join(worker))?;
            let left = promises
                .check(&observed)
                .map_err(|broken| told("on both nodes", worker, promises, &broken))?;
            self.models.insert(worker.clone(), left);
        }
        let conflicts = self.new_conflicts(&promises)?;
        self.pair.done(&Order::Sync, "sync(2)")?;
        promises.remove(HERE);
        Ok(Cut {
            is_alone,
            steps: promises.values().map(Promises::steps).sum(),
            promises: promises.values().map(|one| one.count).sum(),
            lost,
            behind,
            conflicts,
            boot,
            settled,
        })
    }

    /// Everybody works until the machine has no power. Gives what its disk lost and what the worker here has done.
    fn work(
        &mut self,
        tasks: Vec<Task>,
        promises: &mut BTreeMap<String, Promises>,
        random: &mut StdRng,
    ) -> Result<(Lost, Promises)> {
        let stop = AtomicBool::new(false);
        let (seed, model) = (random.random(), self.models.get(HERE).cloned().unwrap_or_default());
        let dir = self.pair.mount().join(HERE);
        std::thread::scope(|scope| {
            let here = scope.spawn(|| works_here(&dir, seed, model, &stop));
            let lost = self.until_cut(tasks, promises, random);
            stop.store(true, Ordering::SeqCst);
            let here = here.join().map_err(|_| anyhow!("the worker here panicked"))??;
            Ok((lost?, here))
        })
    }

    fn until_cut(
        &mut self,
        tasks: Vec<Task>,
        promises: &mut BTreeMap<String, Promises>,
        random: &mut StdRng,
    ) -> Result<Lost> {
        let mut work = Duration::from_millis(random.random_range(200..4000));
        self.pair.order(&Order::Work(tasks))?;
        let mut hear = |word| {
            match word {
                Word::Begun(worker, number) => Ok(promises.entry(worker).and_modify(|one| one.begun(number))),
                Word::Synced(worker, number) => {
                    Ok(promises.entry(worker).and_modify(|one| one.synced(number)))
                }
                Word::Failed(why) => bail!("a call failed while there was power: {why}"),
                word => bail!("the machine says {word:?} while it works"),
            }
            .map(drop)
        };
        // The first step may take a while to come; the time counts from there.
        hear(self.pair.answer("the first step", PATIENCE)?)?;
        let begin = Instant::now();
        while let Some(left) = work.checked_sub(begin.elapsed()) {
            match self.pair.answer("a step", left.max(Duration::from_millis(1))) {
                Ok(word) => hear(word)?,
                Err(error) if begin.elapsed() < work => return Err(error),
                Err(_) => work = Duration::ZERO,
            }
        }
        let (lost, words) = self.pair.cut(random)?;
        words.into_iter().try_for_each(hear)?;
        Ok(lost)
    }

    /// All that was written is everywhere, and both nodes show the same.
    fn settle(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let (fleet, host) = (&self.pair.fleet.fleet, &self.pair.host);
            fleet.wait(host, Scope::Everywhere, PATIENCE)?;
            self.pair.done(&Order::Settle, "what was written to be everywhere")?;
            let here = walk(&self.pair.mount())?;
            let there = self.tree()?;
            let differences = here.differences(&there);
            if differences.is_empty() {
                break;
            }
            if begin.elapsed() > EQUAL {
                let lines: Vec<String> =
                    differences.iter().take(20).map(|one| format!("\n  {one}")).collect();
                let names =
                    differences.iter().filter_map(|one| Some(one.path.file_name()?.to_str()?.to_owned()));
                let why = format!("the trees differ (here / in the machine):{}", lines.concat());
                return Err(Broken { why, names: names.collect() }.into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let status = self.pair.fleet.fleet.status(&self.pair.host)?;
        let fault = status.volumes.iter().map(|volume| &volume.fault).find(|fault| !fault.is_empty());
        ensure!(fault.is_none(), "the volume here has a fault: {fault:?}");
        Ok(())
    }

    fn tree(&mut self) -> Result<Tree> {
        self.pair.order(&Order::Walk)?;
        match self.pair.answer("a walk", PATIENCE)? {
            Word::Tree(tree) => Ok(*tree),
            word => bail!("the machine, asked for a walk, says {word:?}"),
        }
    }

    fn new_conflicts(&mut self, promises: &BTreeMap<String, Promises>) -> Result<usize> {
        let all = if self.role == Role::Server {
            self.pair.order(&Order::Conflicts)?;
            match self.pair.answer("the conflicts", PATIENCE)? {
                Word::Conflicts(all) => all,
                word => bail!("the machine, asked for conflicts, says {word:?}"),
            }
        } else {
            let all = self.pair.fleet.fleet.conflicts()?.into_iter();
            all.map(|one| (one.path.clone(), format!("{one:?}"))).collect()
        };
        let new = all.get(self.conflicts..).unwrap_or_default();
        for (path, conflict) in new {
            let (worker, name) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
            // What a power cut has left of a file that was removed elsewhere has no path any more.
            let is_nameless = path.starts_with("/<");
            // What this worker promises is promised here; in the machine the same file may have been half written by a replay.
            let is_brought = worker == HERE;
            let may_be_torn = || promises.get(worker).is_some_and(|one| one.may_be_torn(name));
            let explained = is_nameless || is_brought || may_be_torn();
            let why = || {
                let story = promises.get(worker).map(|one| one.story(name)).unwrap_or_default();
                let why = format!("a conflict that no torn file explains: {conflict}; steps:{story}");
                Broken { why, names: vec![name.rsplit('/').next().unwrap_or(name).to_owned()] }
            };
            if !explained {
                return Err(why().into());
            }
        }
        self.conflicts = all.len();
        Ok(new.len())
    }
}

fn told(place: &str, worker: &str, promises: &Promises, broken: &[String]) -> Broken {
    let names = broken.iter().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    let lines: Vec<String> = broken
        .iter()
        .map(|line| {
            let name = line.split_once(':').map_or("", |(name, _)| name);
            format!("\n  {worker}/{line}; steps:{}", promises.story(name))
        })
        .collect();
    Broken {
        why: format!("{} promises broken {place}:{}", broken.len(), lines.concat()),
        names: names.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect(),
    }
}

fn works_here(dir: &std::path::Path, seed: u64, model: Model, stop: &AtomicBool) -> Result<Promises> {
    let mut plan = Plan::new(seed, model.clone());
    let mut promises = Promises::new(seed, model);
    for number in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let step = plan.step();
        plan.model.apply(&step);
        act(dir, &step, &plan.model)?;
        promises.begun(number);
        // The machine is the one that is tested, and is slower.
        std::thread::sleep(Duration::from_millis(20));
    }
    promises.all_synced();
    Ok(promises)
}

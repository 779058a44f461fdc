//! Does the check see what a disk may not leave? A worker's directory is made by its own steps, then changed behind its back.

use std::fs;
use std::path::Path;

use super::*;
use crate::power::act::act;
use crate::power::observe::observe;

/// Does the plan's steps for real, and gives what was promised.
fn worked(dir: &Path, seed: u64, steps: usize) -> Promises {
    let model = Model { seed, ..Model::default() };
    let mut promises = Promises::new(seed, model.clone());
    let mut plan = Plan::new(seed, model);
    for number in 1..=steps {
        let step = plan.step();
        plan.model.apply(&step);
        promises.begun(number);
        act(dir, &step, &plan.model).unwrap();
        if step.is_sync() {
            promises.synced(number);
        }
    }
    promises
}

#[test]
fn what_a_worker_did_is_what_it_was_promised_and_a_beginning_for_more() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().unwrap();
        let mut promises = worked(dir.path(), seed, 150);
        let seen = observe(dir.path()).unwrap();
        assert!(promises.count > 20);
        let left = promises.check(&seen).unwrap();
        assert!(promises.is_all(&left), "seed {seed}");
        promises.all_synced();
        assert_eq!(promises.check(&seen).unwrap(), left);
        let again = Promises::new(seed + 1, left.clone());
        assert_eq!(again.check(&seen).unwrap(), left);
    }
}

/// Changes something in what was wholly promised; says what the check says.
fn changed(change: impl Fn(&Path, &str)) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut promises = worked(dir.path(), 5, 150);
    promises.all_synced();
    let sized = |name: &&String| promises.last().bytes(name).len() > 3000;
    let name = promises.last().names.keys().find(sized).unwrap();
    change(dir.path(), name);
    let broken = promises.check(&observe(dir.path()).unwrap()).unwrap_err();
    assert!(broken.iter().any(|line| line.contains(name.as_str())), "{broken:?}");
    broken
}

#[test]
fn what_was_promised_and_is_gone_is_seen() {
    let gone = changed(|dir, name| fs::remove_file(dir.join(name)).unwrap());
    assert!(gone[0].contains("found nothing"), "{gone:?}");
}

#[test]
fn a_promised_content_that_is_cut_short_or_zeroed_is_seen() {
    let short = changed(|dir, name| {
        fs::File::options().write(true).open(dir.join(name)).unwrap().set_len(100).unwrap()
    });
    assert!(short[0].contains("promised") && short[0].contains("bytes"), "{short:?}");
    let zeros = changed(|dir, name| {
        let length = fs::metadata(dir.join(name)).unwrap().len();
        fs::write(dir.join(name), vec![0; usize::try_from(length).unwrap()]).unwrap();
    });
    assert!(zeros[0].contains("is zeros"), "{zeros:?}");
}

#[test]
fn a_name_from_nowhere_is_seen() {
    let extra = changed(|dir, name| {
        fs::copy(dir.join(name), dir.join(format!("{name}.other"))).unwrap();
    });
    assert!(extra[0].contains("found a file"), "{extra:?}");
}

#[test]
fn an_older_version_than_the_promised_one_is_seen_and_an_unpromised_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model { seed: 3, ..Model::default() };
    let name = "f".to_owned();
    let steps = [
        Step::Make(name.clone(), 4096),
        Step::Sync(name.clone()),
        Step::SyncDirectory(String::new()),
        Step::Overwrite(name.clone(), 2..4),
        Step::Sync(name.clone()),
    ];
    let mut promises = Promises::new(0, model.clone());
    let mut after = model;
    let mut old = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        after.apply(&step);
        act(dir.path(), &step, &after).unwrap();
        if number == 2 {
            old = fs::read(dir.path().join("f")).unwrap();
        }
        promises.plan.model = after.clone();
        promises.models.push(after.clone());
        promises.steps.push(step);
        if number < 4 {
            promises.synced(number + 1);
        }
    }
    fs::write(dir.path().join("f"), &old).unwrap();
    let seen = observe(dir.path()).unwrap();
    assert!(promises.check(&seen).is_ok(), "the overwriting was not promised");
    promises.synced(5);
    let broken = promises.check(&seen).unwrap_err();
    assert!(broken[0].contains("sector 2 is version 0, promised 1"), "{broken:?}");
}

#[test]
fn zeros_are_where_something_was_added_without_a_promise_and_nowhere_else() {
    let name = "f".to_owned();
    let steps = [
        Step::Make(name.clone(), 700),
        Step::Sync(name.clone()),
        Step::SyncDirectory(String::new()),
        Step::Append(name.clone(), 1000),
    ];
    let mut promises = Promises::new(0, Model::default());
    for (number, step) in steps.into_iter().enumerate() {
        promises.plan.model.apply(&step);
        promises.models.push(promises.plan.model.clone());
        promises.steps.push(step);
        promises.synced(number + 1);
    }
    let dir = tempfile::tempdir().unwrap();
    let check = |from: usize| {
        let mut bytes = promises.last().bytes("f");
        bytes[from..].fill(0);
        fs::write(dir.path().join("f"), bytes).unwrap();
        promises.check(&observe(dir.path()).unwrap())
    };
    assert!(check(700).unwrap().files[&0].torn);
    assert!(!check(1700).unwrap().files[&0].torn);
    assert!(check(699).unwrap_err()[0].contains("sector 1"));
}

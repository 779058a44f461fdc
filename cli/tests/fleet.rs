//! Fleets on disk: made, resumed, not contradicted. Nothing is started here; `tests/` does that with real daemons.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

use std::path::PathBuf;

use intermezzo::fleet::{Daemon, Fleet, FleetError, Mounts, Request};
use intermezzo_api::manifest::{Manifests, Role};

fn request(nodes: usize) -> Request {
    Request {
        nodes: Some(nodes),
        volume: Some("team/home".into()),
        lower: Vec::new(),
        adopt: None,
        mounts: Mounts::EndWithPresto,
    }
}

const AS_IS: Request =
    Request { nodes: None, volume: None, lower: Vec::new(), adopt: None, mounts: Mounts::EndWithPresto };

#[test]
fn a_new_fleet_has_certificates_and_manifests_that_agents_accept() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::make(dir.path(), &request(3)).unwrap();
    let manifests = Manifests::read_dir(&fleet.layout.manifests()).unwrap();
    assert_eq!(manifests.role("team/home", "a"), Some(Role::Server));
    assert_eq!(manifests.role("team/home", "c"), Some(Role::Client));
    for file in ["ca.crt", "a.crt", "b.key", "c.crt"] {
        assert!(fleet.layout.pki().join(file).exists(), "{file}");
    }
    assert!(fleet.each().all(|(node, daemon)| !fleet.is_running(node, daemon)));
    assert_eq!(fleet.each().count(), 6);
}

#[test]
fn it_is_resumed_and_not_contradicted() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::make(dir.path(), &request(2)).unwrap();
    let key = std::fs::read(fleet.layout.pki().join("a.key")).unwrap();
    let again = Fleet::make(dir.path(), &AS_IS).unwrap();
    assert_eq!(again.config, fleet.config);
    assert_eq!(std::fs::read(fleet.layout.pki().join("a.key")).unwrap(), key);
    assert_eq!(Fleet::open(dir.path()).unwrap().config, fleet.config);
    let other = Request { volume: Some("other".into()), ..AS_IS };
    assert!(matches!(Fleet::make(dir.path(), &other), Err(FleetError::Request(_))));
    assert!(matches!(Fleet::make(dir.path(), &request(3)), Err(FleetError::Request(_))));
}

#[test]
fn a_replicator_is_paused_and_goes_on_by_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::make(dir.path(), &request(3)).unwrap();
    let paused = || {
        let manifests = Manifests::read_dir(&fleet.layout.manifests()).unwrap();
        let paused = manifests.replicators_of("team/home").filter(|one| one.spec.paused);
        paused.map(|one| one.spec.node_name.clone()).collect::<Vec<_>>()
    };
    fleet.set_paused(fleet.node("c").unwrap(), true).unwrap();
    assert_eq!(paused(), ["c"]);
    assert_eq!(Fleet::make(dir.path(), &AS_IS).unwrap().config, fleet.config);
    assert_eq!(paused(), ["c"], "resuming a fleet pauses and unpauses nobody");
    fleet.set_paused(fleet.node("c").unwrap(), false).unwrap();
    assert!(paused().is_empty());
    let error = fleet.set_paused(fleet.node("a").unwrap(), true).unwrap_err().to_string();
    assert!(error.contains("node a is the server"), "{error}");
}

#[test]
fn caches_can_lie_elsewhere_in_turns() {
    let dir = tempfile::tempdir().unwrap();
    let lower: Vec<PathBuf> = ["x", "y"].iter().map(|name| dir.path().join(name)).collect();
    let fleet =
        Fleet::make(&dir.path().join("fleet"), &Request { lower: lower.clone(), ..request(3) }).unwrap();
    let caches: Vec<_> = fleet.config.nodes.iter().map(|node| fleet.layout.cache(node)).collect();
    assert!(
        caches[0].starts_with(&lower[0])
            && caches[1].starts_with(&lower[1])
            && caches[2].starts_with(&lower[0])
    );
    assert!(caches.iter().all(|cache| cache.is_dir()));
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for bad in [request(0), request(27), Request { volume: Some("A b".into()), ..AS_IS }] {
        assert!(matches!(Fleet::make(dir.path(), &bad), Err(FleetError::Request(_))));
    }
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(Fleet::make(&long, &AS_IS), Err(FleetError::Request(_))));
}

#[test]
fn down_on_a_fleet_that_never_ran_is_fine() {
    let dir = tempfile::tempdir().unwrap();
    let fleet = Fleet::make(dir.path(), &request(2)).unwrap();
    fleet.down(&mut |_| ()).unwrap();
    assert!(fleet.running(&fleet.config.nodes[0], Daemon::Presto).is_none());
}

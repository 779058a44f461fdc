//! Recovery where the disk or the system does not answer: never taken for "gone".

use intermezzo_channel::v1;
use intermezzo_channel::v1::packet::Body;
use intermezzo_kml::record::{FileId, Intent, Opcode, OriginKind};
use intermezzo_kml::{Class, Config, Journal};
use presto::channel::{Link, Service};
use presto::volumes::{NoMount, Volumes};
use rustix::process::Resource;

use crate::limits::*;
use crate::world::*;

/// Starts with ever more descriptors until the volume is served; what was wrong before.
fn starts(dir: &std::path::Path, limit: &Limit, before: impl Fn()) -> Vec<String> {
    let mut faults = Vec::new();
    for more in 0..200 {
        limit.lift();
        before();
        limit.set(std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 + more);
        let volumes = Volumes::open(
            &dir.join("state"),
            Link::new(),
            std::sync::Arc::new(NoMount),
            vec![dir.to_owned()],
        );
        let Ok(volumes) = volumes else { continue };
        if volumes.volume(NAME).is_some() {
            limit.lift();
            return faults;
        }
        let Body::Attached(attached) = volumes.call("", Body::Attach(v1::Attach::default())).body else {
            panic!("not attached")
        };
        faults.extend(attached.volumes.into_iter().map(|info| info.fault));
    }
    panic!("never served: {faults:?}");
}

/// Removals that were begun: looking whether they happened takes a descriptor for each directory, which is kept.
fn begun(cache: &std::path::Path, removals: &[(FileId, FileId)]) {
    let config = Config { volume: 7, ..Config::default() };
    let kml = cache.join("kml");
    let mut opened = Err(String::new());
    // The last holder of the volume may still be closing it.
    until("the journal is in use", || {
        opened = Journal::open(std::sync::Arc::new(intermezzo_kml::fs::Os), &kml, config.clone())
            .map_err(|error| error.to_string());
        opened.is_ok()
    });
    for (parent, object) in removals {
        let intent = Intent {
            opcode: Some(Opcode::Unlink),
            object: *object,
            parent: *parent,
            name: b"x".to_vec(),
            ..Intent::default()
        };
        std::mem::forget(opened.as_ref().unwrap().0.begin(Class::User, &intent).unwrap());
    }
}

#[test]
fn a_file_that_cannot_be_looked_at_ends_the_start_and_keeps_its_close() {
    let limit = Limit::of(Resource::Nofile);
    let w = world();
    let file = w.save("f", "closed");
    let removals: Vec<(FileId, FileId)> = (0..16)
        .map(|n| {
            let parent = w.user_mkdir(&format!("d{n}"));
            std::fs::write(w.path(&format!("d{n}/x")), "").unwrap();
            let object = w.volume.lower.child(&*w.volume.lower.dir(parent).unwrap(), b"x").unwrap();
            (parent, object)
        })
        .collect();
    let before = closes(&w, file, OriginKind::User).len();
    let w = w.restart(|cache| {
        std::fs::write(cache.join("tree/f"), "went on writing").unwrap();
        let faults = starts(cache.parent().unwrap(), &limit, || begun(cache, &removals));
        let named = format!("volume {NAME}: recovery cannot look at file {file}");
        assert!(faults.iter().any(|fault| fault.starts_with(&named)), "{faults:#?}");
        let record = |fault: &&String| fault.contains("look whether it happened (record ");
        assert!(faults.iter().filter(record).count() > 1, "{faults:#?}");
    });
    let closes = closes(&w, file, OriginKind::User);
    assert_eq!((closes.len(), closes[before].outcome.after.size), (before + 1, 15));
}

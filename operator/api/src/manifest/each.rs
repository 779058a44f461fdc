//! Objects taken one by one, as an operator hands them out: what is wrong with one leaves the others alone.

use std::collections::BTreeSet;
use std::path::Path;

use super::check::{check_replicator, check_volume};
use super::error::Problems;
use super::supported::volume_settings;
use super::{Manifests, Object, parse};

/// An object that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectProblem {
    /// `namespace/name` of the Volume that it is about; empty where not even that can be read.
    pub volume: String,
    /// `Volume` or `Replicator`; empty where it cannot be read.
    pub kind: String,
    /// `namespace/name` of the object.
    pub object: String,
    /// Path of the field; empty when it is about the object.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl Manifests {
    /// The objects in `texts` that can be carried out, and what is wrong with the others. Of those the version in `before`
    /// stays, where there is one: a new setting that does not work yet must not end what works.
    #[must_use]
    pub fn read_each<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        before: &Manifests,
    ) -> (Manifests, Vec<ObjectProblem>) {
        let mut all = Manifests::default();
        let mut problems = Vec::new();
        for text in texts {
            let mut wrong = Problems::default();
            for object in parse(Path::new(""), text, &mut wrong) {
                let refused = refused(&object);
                if refused.is_empty() {
                    all.insert(object);
                }
                problems.extend(refused);
            }
            problems.extend(wrong.iter().map(|problem| unreadable(text, problem)));
        }
        for problem in &problems {
            all.insert_from(before, &problem.kind, &problem.object);
        }
        let volumes: BTreeSet<String> = all.volumes.keys().cloned().collect();
        all.replicators.retain(|_, replicator| volumes.contains(&replicator.volume_id()));
        (all, problems)
    }

    /// Takes over one object of another set, if it has it.
    fn insert_from(&mut self, other: &Manifests, kind: &str, id: &str) {
        match kind {
            "Volume" => {
                self.volumes.extend(other.volumes.get(id).map(|volume| (id.to_owned(), volume.clone())))
            }
            "Replicator" => {
                let found = other.replicators.get(id);
                self.replicators.extend(found.map(|replicator| (id.to_owned(), replicator.clone())));
            }
            _ => {}
        }
    }
}

fn refused(object: &Object) -> Vec<ObjectProblem> {
    let volume = match object {
        Object::Volume(volume) => volume.id(),
        Object::Replicator(replicator) => replicator.volume_id(),
    };
    let mut found: Vec<(String, String)> = Vec::new();
    let mut wrong = |field: &str, why: String| found.push((field.to_owned(), why));
    let settings = match object {
        Object::Volume(volume) => {
            check_volume(volume, &mut wrong);
            volume_settings(volume)
        }
        Object::Replicator(replicator) => {
            check_replicator(replicator, &mut wrong);
            Vec::new()
        }
    };
    found.extend(settings.into_iter().map(|(field, why)| (field.to_owned(), why)));
    let problem = |(field, reason)| ObjectProblem {
        volume: volume.clone(),
        kind: object.kind().to_owned(),
        object: object.id(),
        field,
        reason,
    };
    found.into_iter().map(problem).collect()
}

/// What could not be read as an object: whose it is, as far as it says.
fn unreadable(text: &str, problem: &super::Problem) -> ObjectProblem {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let part = |pointer: &str| value.pointer(pointer).and_then(serde_json::Value::as_str);
    let name = |name: Option<&str>| {
        let namespace = part("/metadata/namespace").unwrap_or(super::DEFAULT_NAMESPACE);
        name.map(|name| format!("{namespace}/{name}")).unwrap_or_default()
    };
    let kind = part("/kind").unwrap_or_default();
    ObjectProblem {
        volume: name(if kind == "Replicator" { part("/spec/volume") } else { part("/metadata/name") }),
        kind: kind.to_owned(),
        object: name(part("/metadata/name")),
        field: problem.field.clone(),
        reason: problem.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, spec: &str) -> String {
        format!(
            r#"{{"apiVersion":"intermezzo.dev/v1alpha1","kind":"{kind}","metadata":{{"name":"{name}","namespace":"t"}},"spec":{spec}}}"#
        )
    }

    #[test]
    fn one_broken_object_leaves_the_others_alone() {
        let texts = [
            object("Volume", "good", r#"{"server":{"nodeName":"a"}}"#),
            object("Volume", "later", r#"{"server":{"nodeName":"a"},"exclude":["[z-a]"]}"#),
            object("Volume", "newer", r#"{"server":{"nodeName":"a"},"colour":"blue"}"#),
            object("Volume", "other", r#"{"server":{"nodeName":"a"}}"#),
            object("Replicator", "good-b", r#"{"volume":"good","nodeName":"b"}"#),
            object("Replicator", "later-b", r#"{"volume":"later","nodeName":"b"}"#),
            object("Replicator", "other-b", r#"{"volume":"other","nodeName":"b","colour":"red"}"#),
            "nonsense: [".to_owned(),
        ];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (all, problems) = Manifests::read_each(texts.iter().copied(), &Manifests::default());
        assert_eq!(all.volumes.keys().collect::<Vec<_>>(), ["t/good", "t/other"]);
        assert_eq!(all.replicators.keys().collect::<Vec<_>>(), ["t/good-b"]);
        let told: Vec<(&str, &str, &str)> = problems
            .iter()
            .map(|problem| (problem.volume.as_str(), problem.object.as_str(), problem.field.as_str()))
            .collect();
        let expected = [
            ("t/later", "t/later", "spec.exclude[0]"),
            ("t/newer", "t/newer", "spec.colour"),
            ("t/other", "t/other-b", "spec.colour"),
            ("", "", ""),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_worked_before_goes_on_until_its_object_is_gone() {
        let worked = [
            object("Volume", "v", r#"{"server":{"nodeName":"a"}}"#),
            object("Replicator", "v-b", r#"{"volume":"v","nodeName":"b"}"#),
        ];
        let before = Manifests::read_each(worked.iter().map(String::as_str), &Manifests::default()).0;
        let now = [
            object("Volume", "v", r#"{"server":{"nodeName":"a"},"exclude":["[z-a]"]}"#),
            object("Replicator", "v-b", r#"{"volume":"v","nodeName":"b","paused":true}"#),
        ];
        let (all, problems) = Manifests::read_each(now.iter().map(String::as_str), &before);
        assert_eq!(all.volumes, before.volumes);
        assert!(all.replicators["t/v-b"].spec.paused, "what can be carried out is");
        assert_eq!(problems.len(), 1);
        assert!(Manifests::read_each([], &before).0.volumes.is_empty());
    }
}

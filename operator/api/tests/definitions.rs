//! The definitions: current in the chart, described in full, and their rules say no as they should.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

use std::path::PathBuf;

use intermezzo_api::{Conflict, Replicator, Volume, definitions};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use kube_cel::Validator;
use serde_json::{Value, json};

fn chart(definition: &CustomResourceDefinition) -> PathBuf {
    let name = &definition.spec.names.plural;
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../charts/intermezzo/files/crds")
        .join(format!("{name}.yaml"))
}

#[test]
fn the_chart_has_them_as_they_are() {
    for definition in definitions::all() {
        let (file, yaml) = (chart(&definition), definitions::yaml(&definition).unwrap());
        if std::env::var_os("UPDATE_DEFINITIONS").is_some() {
            std::fs::write(&file, &yaml).unwrap();
        }
        let there = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            there == yaml,
            "{} is not current: run `UPDATE_DEFINITIONS=1 cargo test -p intermezzo-api --test definitions`",
            file.display()
        );
    }
}

fn schema(definition: &CustomResourceDefinition) -> Value {
    let schema = definition.spec.versions[0].schema.as_ref().unwrap();
    serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap()
}

fn undescribed(at: &str, schema: &Value, found: &mut Vec<String>) {
    for (field, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = format!("{at}.{field}");
        if below.get("description").and_then(Value::as_str).is_none_or(str::is_empty) {
            found.push(at.clone());
        }
        undescribed(&at, below, found);
    }
    if let Some(items) = schema.get("items") {
        undescribed(&format!("{at}[]"), items, found);
    }
}

#[test]
fn every_field_is_described() {
    for definition in definitions::all() {
        let mut found = Vec::new();
        for part in ["spec", "status"] {
            if let Some(below) = schema(&definition).pointer(&format!("/properties/{part}")) {
                undescribed(part, below, &mut found);
            }
        }
        assert!(found.is_empty(), "{}: no description: {found:?}", definition.spec.names.kind);
    }
}

/// Why the API server would refuse it, as it says it; empty: it would take it.
fn refusals(definition: &CustomResourceDefinition, new: &Value, old: Option<&Value>) -> String {
    match Validator::new().validate(&schema(definition), new, old) {
        Ok(()) => String::new(),
        Err(errors) => errors.to_string(),
    }
}

fn volume(spec: &Value) -> Value {
    json!({"apiVersion": "intermezzo.dev/v1alpha1", "kind": "Volume", "metadata": {"name": "home"}, "spec": spec})
}

fn replicator(spec: &Value) -> Value {
    json!({"apiVersion": "intermezzo.dev/v1alpha1", "kind": "Replicator", "metadata": {"name": "r"}, "spec": spec})
}

#[test]
fn good_objects_are_taken() {
    for spec in [
        json!({"server": {"nodeName": "a"}}),
        json!({"server": {"nodeSelector": {}}, "replication": {"nodeSelector": {"matchLabels": {"x": "y"}}}}),
        json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": "/srv/a..b"}}, "deletionPolicy": "Delete"}),
    ] {
        let volume = volume(&spec);
        assert_eq!(refusals(&Volume::crd(), &volume, None), "");
        assert_eq!(refusals(&Volume::crd(), &volume, Some(&volume)), "");
    }
    let replicator = replicator(&json!({"volume": "home", "nodeName": "b"}));
    assert_eq!(refusals(&Replicator::crd(), &replicator, None), "");
}

#[test]
fn wrong_volumes_are_refused_with_what_to_write_instead() {
    let long = "x".repeat(64);
    for (spec, sentence) in [
        (json!({"server": {}}), "exactly one of the two"),
        (json!({"server": {"nodeName": "a", "nodeSelector": {}}}), "exactly one of the two"),
        (json!({"server": {"nodeName": "A_b"}}), "nodeName must be a DNS label: write"),
        (json!({"server": {"nodeName": "a-"}}), "nodeName must be a DNS label: write"),
        (
            json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": "srv"}}}),
            "write an absolute path",
        ),
        (
            json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": "/"}}}),
            "write an absolute path",
        ),
        (
            json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": "/srv/../etc"}}}),
            "without `..`",
        ),
    ] {
        let said = refusals(&Volume::crd(), &volume(&spec), None);
        assert!(said.contains(sentence), "{spec}: {said:?}");
    }
    for name in ["a.b", "A", "-a", &long] {
        let mut object = volume(&json!({"server": {"nodeName": "a"}}));
        object["metadata"]["name"] = json!(name);
        assert!(
            refusals(&Volume::crd(), &object, None).contains("metadata.name must be a DNS label"),
            "{name}"
        );
    }
}

#[test]
fn what_a_volume_is_cannot_be_changed() {
    let source = |path: &str| json!({"server": {"nodeName": "a"}, "source": {"hostPath": {"path": path}}});
    let bare = json!({"server": {"nodeName": "a"}});
    for (old, new, sentence) in [
        (source("/a"), source("/b"), "source cannot be changed"),
        (source("/a"), bare.clone(), "source cannot be changed"),
        (bare.clone(), source("/a"), "source cannot be changed"),
        (bare.clone(), json!({"server": {"nodeName": "b"}}), "keep spec.server.nodeName"),
        (bare, json!({"server": {"nodeSelector": {}}}), "keep spec.server.nodeName"),
    ] {
        let said = refusals(&Volume::crd(), &volume(&new), Some(&volume(&old)));
        assert!(said.contains(sentence), "{old} -> {new}: {said:?}");
    }
    // A chosen server may be written down later.
    let chosen = refusals(
        &Volume::crd(),
        &volume(&json!({"server": {"nodeName": "a"}})),
        Some(&volume(&json!({"server": {"nodeSelector": {}}}))),
    );
    assert_eq!(chosen, "");
}

#[test]
fn what_a_replicator_is_cannot_be_changed() {
    let old = replicator(&json!({"volume": "home", "nodeName": "b"}));
    for (spec, sentence) in [
        (json!({"volume": "away", "nodeName": "b"}), "volume cannot be changed: make another Replicator"),
        (json!({"volume": "home", "nodeName": "c"}), "nodeName cannot be changed: make another Replicator"),
    ] {
        let said = refusals(&Replicator::crd(), &replicator(&spec), Some(&old));
        assert!(said.contains(sentence), "{said:?}");
    }
    let paused = replicator(&json!({"volume": "home", "nodeName": "b", "paused": true}));
    assert_eq!(refusals(&Replicator::crd(), &paused, Some(&old)), "");
}

#[test]
fn a_conflict_says_what_happened() {
    let conflict = |path: &str| {
        json!({"metadata": {"name": "home-7"}, "spec": {
            "volume": "home", "position": 7, "kind": "UpdateUpdate", "path": path, "nodeName": "b", "size": 5}})
    };
    assert_eq!(refusals(&Conflict::crd(), &conflict("a"), None), "");
    let said = refusals(&Conflict::crd(), &conflict("b"), Some(&conflict("a")));
    assert!(said.contains("cannot be edited"), "{said:?}");
}

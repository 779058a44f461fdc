//! The chart as helm renders it: the operator reads its settings, agents find what they look for, rights are named.
//! helm is taken from `HELM`, else from PATH, else from what `make cluster-tools` has built; without any of them the tests pass
//! by. `make chart` insists on it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)] // A test from end to end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use intermezzo_operator::names;
use intermezzo_operator::settings::Settings;
use serde::Deserialize;
use serde_json::Value;

/// helm, where it is; `HELM` must be right.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("HELM") {
        return Some(named.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(cache.map(|cache| cache.join("intermezzo/tools/bin")));
    dirs.map(|dir| dir.join("helm")).find(|helm| helm.is_file())
}

/// Ends the test where there is no helm.
macro_rules! needs_helm {
    () => {
        if program().is_none() {
            println!("passed by: there is no helm");
            return;
        }
    };
}

fn helm(arguments: &[&str]) -> (bool, String) {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/intermezzo");
    let output = Command::new(program().unwrap()).args(arguments).arg(chart).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn rendered(values: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["template", "intermezzo", "--namespace", "intermezzo-system"];
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let (fine, text) = helm(&arguments);
    assert!(fine, "{text}");
    let documents = serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).unwrap());
    documents.filter(|one| !one.is_null()).collect()
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| text(o, "/kind") == kind && text(o, "/metadata/name") == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn settings(objects: &[Value]) -> Settings {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("operator.yaml");
    std::fs::write(&file, text(find(objects, "ConfigMap", names::OPERATOR), "/data/operator.yaml")).unwrap();
    Settings::read(&file).unwrap()
}

#[test]
fn the_operator_reads_what_the_chart_writes() {
    needs_helm!();
    let plain = settings(&rendered(&[]));
    assert_eq!(plain.images.lento, "intermezzo/lento:0.1.0");
    assert_eq!(plain.priority_class_name.as_deref(), Some("system-node-critical"));
    let set = settings(&rendered(&[
        "images.registry=registry.example/im",
        "images.tag=v2",
        "images.pullSecrets={one,two}",
        "allowedSources={/srv,/data}",
        "nodes.nodeSelector.disk=fast",
        "nodes.tolerations=null",
        "nodes.priorityClassName=",
        "presto.updateStrategy=RollingUpdate",
        "ports.replication=17430",
    ]));
    assert_eq!(set.images.presto, "registry.example/im/intermezzo/presto:v2");
    assert_eq!(set.images.pull_secrets[1].name, "two");
    assert_eq!(set.allowed_sources.len(), 2);
    assert_eq!(set.node_selector["disk"], "fast");
    assert_eq!((set.tolerations.len(), set.priority_class_name), (0, None));
    assert_eq!((set.ports.replication, set.ports.metrics), (17430, 7431));
}

#[test]
fn rights_are_named_and_wrong_values_refused() {
    needs_helm!();
    let objects = rendered(&[]);
    for role in objects.iter().filter(|object| ["Role", "ClusterRole"].contains(&text(object, "/kind"))) {
        let rules = role["rules"].to_string();
        assert!(!rules.contains('*'), "{}: {rules}", text(role, "/metadata/name"));
        for rule in role["rules"].as_array().unwrap() {
            let about: BTreeSet<&str> =
                rule["resources"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let only_create = rule["verbs"] == serde_json::json!(["create"]);
            if about.contains("secrets") {
                assert!(
                    only_create || rule["resourceNames"] == serde_json::json!([names::AUTHORITY]),
                    "{rule}"
                );
            }
        }
    }
    let bound: Vec<&Value> = objects.iter().filter(|o| text(o, "/kind").ends_with("RoleBinding")).collect();
    assert!(
        !Value::from(bound.into_iter().cloned().collect::<Vec<_>>())
            .to_string()
            .contains(names::NODE_ACCOUNT)
    );
    for wrong in [
        "hostDirectory=var",
        "operator.replicas=0",
        "operator.resources.limits.memory=lots",
        "operator.log=",
        "nodes.tolerations[0].effect=Sometimes",
        "networkPolicy.nodeCIDRs={10.0.0.0}",
        "colour=blue",
        "operator.colour=blue",
        "presto.updateStrategy=Never",
    ] {
        let (fine, said) = helm(&["template", "x", "--set", wrong]);
        assert!(!fine, "{wrong} is taken");
        assert!(said.contains("schema"), "{said}");
    }
    let (fine, said) = helm(&["lint", "--strict"]);
    assert!(fine, "{said}");
}

#[test]
fn names_are_those_that_the_operator_and_the_agents_look_for() {
    needs_helm!();
    let objects = rendered(&[]);
    let service = find(&objects, "Service", names::OPERATOR);
    assert_eq!(text(service, "/spec/clusterIP"), "None");
    assert_eq!(service.pointer("/spec/ports/0/port"), Some(&names::CONTROL_PORT.into()));
    find(&objects, "ServiceAccount", names::NODE_ACCOUNT);
    let deployment = find(&objects, "Deployment", names::OPERATOR);
    assert_eq!(deployment.pointer("/spec/selector/matchLabels"), service.pointer("/spec/selector"));
    let kept = objects.iter().filter(|object| text(object, "/kind") == "CustomResourceDefinition");
    let kept: Vec<&str> = kept.map(|o| text(o, "/metadata/annotations/helm.sh~1resource-policy")).collect();
    assert_eq!(kept, ["keep"; 3]);
    let without = rendered(&["crds.install=false"]);
    assert!(!without.iter().any(|object| text(object, "/kind") == "CustomResourceDefinition"));
}

#[test]
fn everything_is_labelled() {
    needs_helm!();
    let all = [
        "podMonitor.enabled=true",
        "prometheusRule.enabled=true",
        "dashboard.enabled=true",
        "operator.podDisruptionBudget.enabled=true",
    ];
    for object in rendered(&all) {
        let labels = &object["metadata"]["labels"];
        for label in ["name", "part-of"] {
            let there = &labels[format!("app.kubernetes.io/{label}")];
            assert_eq!(there, "intermezzo", "{} {label}", text(&object, "/metadata/name"));
        }
        // The definitions are rendered as they lie there.
        if text(&object, "/kind") != "CustomResourceDefinition" {
            assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{}", text(&object, "/metadata/name"));
        }
    }
}

/// Words that begin with `intermezzo_`.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter_map(|word| word.strip_prefix("intermezzo_")).collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are_and_lead_to_what_to_do() {
    needs_helm!();
    let objects = rendered(&["prometheusRule.enabled=true", "dashboard.enabled=true"]);
    let page = include_str!("../../docs/operating.md");
    let names: BTreeSet<&str> = page.split('`').skip(1).step_by(2).collect();
    let rules = find(&objects, "PrometheusRule", "intermezzo").pointer("/spec/groups/0/rules").unwrap();
    let dashboard = text(find(&objects, "ConfigMap", "intermezzo-dashboard"), "/data/intermezzo.json");
    let panels: Value = serde_json::from_str(dashboard).unwrap();
    assert!(panels["panels"].as_array().unwrap().len() > 10);
    let both = format!("{rules}{dashboard}");
    let asked = metrics_in(&both);
    assert!(asked.len() > 15, "{asked:?}");
    for metric in asked {
        let there = names.contains(metric) || names.contains(metric.trim_end_matches("_bucket"));
        assert!(there, "docs/operating.md has no metric {metric}");
    }
    let headings: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .collect();
    for rule in rules.as_array().unwrap() {
        let runbook = text(rule, "/annotations/runbook_url");
        let heading = runbook.strip_prefix("docs/operating.md#").unwrap();
        assert!(headings.contains(heading), "{runbook}");
        assert!(
            rule["labels"]["severity"].is_string() && rule["annotations"]["summary"].is_string(),
            "{rule}"
        );
    }
}

#[test]
fn rendered_as_it_was() {
    needs_helm!();
    let objects = rendered(&["podMonitor.enabled=true", "operator.podDisruptionBudget.enabled=true"]);
    let own = objects.into_iter().filter(|object| text(object, "/kind") != "CustomResourceDefinition");
    let all: Vec<String> = own.map(|object| intermezzo_api::manifest::to_yaml(&object).unwrap()).collect();
    insta::assert_snapshot!(all.join("---\n"));
}

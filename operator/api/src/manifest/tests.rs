//! Reading manifests: what is right is read whole, what is wrong is named by file, object and field.

use super::*;
use crate::{Access, Mode};

const GOOD: &str = "
apiVersion: intermezzo.dev/v1alpha1
kind: Volume
metadata: {name: home, namespace: team}
spec:
  server: {nodeName: a}
  log: {maxBytes: 134217728, whenFull: ReadOnly}
---
# nothing here
---
apiVersion: intermezzo.dev/v1alpha1
kind: Replicator
metadata: {name: home-b, namespace: team}
spec: {volume: home, nodeName: b, access: ReadOnly}
";

fn read(text: &str) -> Result<Manifests, String> {
    Manifests::read_text(Path::new("x.yaml"), text).map_err(|problems| problems.to_string())
}

fn volume(spec: &str) -> Result<Manifests, String> {
    read(&format!("apiVersion: intermezzo.dev/v1alpha1\nkind: Volume\nmetadata: {{name: v}}\nspec: {spec}\n"))
}

fn error(result: Result<Manifests, String>) -> String {
    result.expect_err("this must be refused")
}

#[test]
fn several_documents_are_read_and_answer_who_is_what() {
    let all = read(GOOD).unwrap();
    assert_eq!(all.role("team/home", "a"), Some(Role::Server));
    assert_eq!(all.role("team/home", "b"), Some(Role::Client));
    assert_eq!(all.role("team/home", "c"), None);
    assert_eq!(all.nodes().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    let (volume, replicator) = (&all.volumes["team/home"], &all.replicators["team/home-b"]);
    assert_eq!(replicator.volume_id(), volume.id());
    assert_eq!(replicator.access(volume), Access::ReadOnly);
    assert_eq!(replicator.mode(volume), Mode::Full);
}

#[test]
fn printed_back_it_reads_the_same() {
    let all = read(GOOD).unwrap();
    let again = read(&all.to_yaml().unwrap()).unwrap();
    assert_eq!(all.volumes, again.volumes);
    assert_eq!(all.replicators, again.replicators);
}

#[test]
fn enums_with_data_are_read_and_printed_as_kubernetes_has_them() {
    let text = "apiVersion: intermezzo.dev/v1alpha1
kind: Volume
metadata: {name: v}
spec: {server: {nodeName: a}, source: {hostPath: {path: /x}}}";
    let mut problems = Problems::default();
    let objects = parse(Path::new("x"), text, &mut problems);
    assert!(problems.is_empty(), "{problems}");
    let [Object::Volume(volume)] = objects.as_slice() else { panic!("{objects:?}") };
    let yaml = to_yaml(volume).unwrap();
    assert!(yaml.contains("hostPath:\n      path: /x"), "{yaml}");
}

#[test]
fn errors_name_file_object_and_field() {
    assert_eq!(
        error(volume("{server: {nodeName: 7}}")),
        "x.yaml: Volume default/v: spec.server.nodeName: invalid type: integer `7`, expected a string"
    );
    assert_eq!(
        error(volume("{server: {nodeName: a, port: 1}, colour: red}")),
        "x.yaml: Volume default/v: spec.colour: this field is not known\n\
         x.yaml: Volume default/v: spec.server.port: this field is not known"
    );
    assert!(error(volume("{}")).starts_with("x.yaml: Volume default/v: spec: missing field `server`"));
    assert!(error(volume("{server: {nodeName: a}, writes: Never}")).contains("spec.writes: unknown variant"));
    assert!(error(read("a: [")).starts_with("x.yaml: document 1: not YAML:"));
    assert!(error(read("a: 1")).contains("document 1: apiVersion: missing"));
    let other = "apiVersion: intermezzo.dev/v1alpha1\nkind: Pod\n";
    assert!(error(read(other)).contains("kind: \"Pod\" is not known"));
}

#[test]
fn rules_between_objects() {
    let replicator = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: intermezzo.dev/v1alpha1\nkind: Replicator\nmetadata: {{name: {name}, namespace: team}}\nspec: {spec}\n"
        )
    };
    let with = |more: &str| error(read(&format!("{GOOD}{more}")));
    assert!(with(&replicator("x", "{volume: away, nodeName: c}")).contains("there is no Volume team/away"));
    assert!(with(&replicator("x", "{volume: home, nodeName: b}")).contains("node b already has Replicator"));
    assert!(with(&replicator("x", "{volume: home, nodeName: a}")).contains("is the server of team/home"));
    assert!(with(&replicator("home-b", "{volume: home, nodeName: c}")).contains("defined twice"));
    assert!(with(&replicator("X_y", "{volume: home, nodeName: c}")).contains("metadata.name"));
    assert!(error(volume("{server: {}}")).contains("spec.server: name one node"));
    assert!(error(volume("{server: {nodeName: a}, log: {maxBytes: 5}}")).contains("spec.log.maxBytes"));
    let wrong = error(volume("{server: {nodeName: a}, exclude: ['*.o', '[z-a]']}"));
    assert!(wrong.contains("spec.exclude[1]") && wrong.contains("[z-a]"), "{wrong}");
}

#[test]
fn what_needs_kubernetes_is_refused_without_it() {
    for (spec, field) in [
        ("deletionPolicy: Delete", "spec.deletionPolicy"),
        ("replication: {nodeSelector: {matchLabels: {a: b}}}", "spec.replication.nodeSelector"),
    ] {
        let message = error(volume(&format!("{{server: {{nodeName: a}}, {spec}}}")));
        assert!(message.contains(&format!("{field}: ")), "{message}");
    }
    assert!(error(volume("{server: {nodeSelector: {}}}")).contains("needs Kubernetes"));
    for path in ["data", "/srv/../etc", ""] {
        let message =
            error(volume(&format!("{{server: {{nodeName: a}}, source: {{hostPath: {{path: '{path}'}}}}}}")));
        assert!(message.contains("spec.source.hostPath.path: "), "{message}");
    }
}

#[test]
fn a_directory_is_read_in_order_and_every_problem_is_told() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.yaml"), GOOD).unwrap();
    std::fs::write(dir.path().join(".hidden.yaml"), "nonsense: [").unwrap();
    std::fs::write(dir.path().join("notes.txt"), "nonsense: [").unwrap();
    assert_eq!(Manifests::read_dir(dir.path()).unwrap().volumes.len(), 1);
    std::fs::write(dir.path().join("b.yaml"), "kind: 1").unwrap();
    std::fs::write(dir.path().join("c.yaml"), GOOD).unwrap();
    let problems = Manifests::read_dir(dir.path()).unwrap_err();
    assert_eq!(problems.iter().count(), 3, "{problems}");
    assert!(Manifests::read_dir(&dir.path().join("away")).is_err());
}

#[test]
fn definitions_have_what_kubectl_shows() {
    use kube::CustomResourceExt;
    for (crd, short) in [(Volume::crd(), "imv"), (Replicator::crd(), "imr")] {
        let names = &crd.spec.names;
        assert_eq!(names.short_names.as_deref(), Some([short.to_owned()].as_slice()));
        assert_eq!(names.categories.as_deref(), Some(["intermezzo".to_owned()].as_slice()));
        let version = &crd.spec.versions[0];
        assert!(version.additional_printer_columns.as_ref().unwrap().len() >= 6);
        assert!(version.subresources.as_ref().unwrap().status.is_some());
        let schema = serde_json::to_value(&version.schema).unwrap();
        let spec =
            schema.pointer("/openAPIV3Schema/properties/spec/properties").unwrap().as_object().unwrap();
        for (field, schema) in spec {
            assert!(schema.get("description").is_some(), "{field} has no description");
        }
    }
}

//! What an administrator relies on when these pods run on every node.

use super::*;

fn built(more: &str) -> (PodSpec, PodSpec) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("operator.yaml");
    std::fs::write(&file, format!("images: {{presto: p:1, lento: l:1}}\n{more}")).unwrap();
    let settings = Settings::read(&file).unwrap();
    let owner = OwnerReference { name: "intermezzo-operator".into(), ..OwnerReference::default() };
    let mut pods = build(&settings, "system", &owner).into_iter().skip(1).map(|set| {
        assert_eq!(set.metadata.owner_references.as_deref(), Some([owner.clone()].as_slice()));
        set.spec.unwrap().template.spec.unwrap()
    });
    (pods.next().unwrap(), pods.next().unwrap())
}

fn mount_of<'a>(pod: &'a PodSpec, path: &str) -> Option<&'a VolumeMount> {
    pod.containers[0].volume_mounts.as_ref().unwrap().iter().find(|mount| mount.mount_path == path)
}

#[test]
fn lento_may_read_everything_and_change_nothing() {
    let (_, lento) = built("");
    let security = lento.containers[0].security_context.as_ref().unwrap();
    let capabilities = security.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(["ALL".to_owned()].as_slice()));
    assert_eq!(capabilities.add.as_deref(), Some(["DAC_READ_SEARCH".to_owned()].as_slice()));
    assert_eq!(security.privileged, Some(false));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    assert_eq!(mount_of(&lento, "/var/lib/intermezzo/cache").unwrap().read_only, Some(true));
    assert!(mount_of(&lento, "/var/lib/intermezzo").is_none(), "the trees are below it");
    assert_eq!(lento.host_pid, None);
}

#[test]
fn nobody_on_a_node_holds_a_kubernetes_token() {
    let (presto, lento) = built("");
    for pod in [&presto, &lento] {
        assert_eq!(pod.automount_service_account_token, Some(false));
    }
    assert!(presto.volumes.unwrap().iter().all(|volume| volume.projected.is_none()));
    let volumes = lento.volumes.unwrap();
    let projected = volumes.iter().find_map(|volume| volume.projected.as_ref()).unwrap();
    let tokens = projected.sources.as_ref().unwrap().iter().filter_map(|s| s.service_account_token.as_ref());
    let audiences: Vec<_> = tokens.map(|token| token.audience.as_deref()).collect();
    assert_eq!(audiences, [Some("intermezzo.dev/operator")], "it is good for nothing but the operator");
}

#[test]
fn mounts_that_presto_makes_appear_on_the_node() {
    let (presto, lento) = built("hostDirectory: /data/im\nallowedSources: [/srv]");
    for path in [MOUNTS, "/srv"] {
        assert_eq!(mount_of(&presto, path).unwrap().mount_propagation.as_deref(), Some("Bidirectional"));
        assert!(mount_of(&lento, path).is_none());
    }
    assert!(!Path::new(MOUNTS).starts_with(RUN), "lento has that directory");
    assert_eq!(presto.host_pid, Some(true));
    let variables = presto.containers[0].env.as_ref().unwrap();
    let allowed = variables.iter().find(|v| v.name == "PRESTO_ALLOW_SOURCE").unwrap();
    assert_eq!(allowed.value.as_deref(), Some("/srv"));
    let (presto, _) = built("");
    assert!(!presto.containers[0].env.as_ref().unwrap().iter().any(|v| v.name == "PRESTO_ALLOW_SOURCE"));
}

#[test]
fn the_holder_has_no_rights_and_is_replaced_by_nobody() {
    let settings: Settings =
        serde_json::from_value(serde_json::json!({"images": {"presto": "p:1", "lento": "l:1"}})).unwrap();
    let set = build(&settings, "system", &OwnerReference::default()).remove(0);
    assert_eq!(set.metadata.name.as_deref(), Some("intermezzo-holder"));
    let spec = set.spec.unwrap();
    assert_eq!(spec.update_strategy.unwrap().type_.as_deref(), Some("OnDelete"));
    let pod = spec.template.spec.unwrap();
    assert_eq!((pod.host_pid, pod.host_network), (None, None));
    assert_eq!(mount_of(&pod, "/run/intermezzo").unwrap().mount_propagation, None);
    assert_eq!(pod.containers[0].volume_mounts.as_ref().unwrap().len(), 1, "it never sees a mount");
    let security = pod.containers[0].security_context.as_ref().unwrap();
    assert_eq!(security.privileged, Some(false));
    let capabilities = security.capabilities.as_ref().unwrap();
    assert_eq!(
        (capabilities.drop.as_deref(), &capabilities.add),
        (Some(["ALL".to_owned()].as_slice()), &None)
    );
}

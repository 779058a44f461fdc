//! A cluster for tests: an API server that has some objects and remembers what it was asked.

use std::sync::Arc;

use http::{Request, Response, Uri};
use kube_client::Client;
use kube_client::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Space};

/// What the API server has; tests change it while a command runs.
#[derive(Clone, Default)]
pub(crate) struct Objects {
    pub volumes: Vec<Value>,
    pub replicators: Vec<Value>,
    pub conflicts: Vec<Value>,
    pub pods: Vec<Value>,
    pub events: Vec<Value>,
    /// Nobody may read logs.
    pub no_logs: bool,
    /// Answer everything with this.
    pub refuse: Option<(u16, &'static str)>,
    /// Agents answer a question as soon as it is asked, on these nodes.
    pub answer: Vec<&'static str>,
    /// What was asked for by PATCH.
    pub patches: Vec<Value>,
}

pub(crate) type Shared = Arc<Mutex<Objects>>;

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
}

/// Two volumes: one with a Replicator behind, one away and one paused; one that is not accepted.
pub(crate) fn some() -> Objects {
    let well = json!([
        condition("Ready", "True", "Ready", ""),
        condition("InSync", "False", "ReplicatorsBehind", ""),
        condition(
            "Degraded",
            "True",
            "Conflicts",
            "1 conflicts are kept; `kubectl get conflicts` lists them"
        )
    ]);
    let wrong = json!([
        condition("Accepted", "False", "NodeNotFound", "spec.server.nodeName: there is no node x"),
        condition("Ready", "False", "NotAccepted", "see Accepted")
    ]);
    let volume = |name: &str, status: Value| {
        json!({"apiVersion": "intermezzo.dev/v1alpha1", "kind": "Volume",
            "metadata": {"name": name, "namespace": "team", "uid": name}, "spec": {"server": {"nodeName": "a"}}, "status": status})
    };
    let replicator = |node: &str, paused: bool, status: Value| {
        json!({"apiVersion": "intermezzo.dev/v1alpha1", "kind": "Replicator",
            "metadata": {"name": format!("shared-{node}"), "namespace": "team"},
            "spec": {"volume": "shared", "nodeName": node, "paused": paused}, "status": status})
    };
    let at = |number: u64| json!({"epoch": 0, "number": number});
    let up = |connected: &str, in_sync: &str| {
        json!([
            condition(
                "Connected",
                connected,
                "Connected",
                "not connected to the server; updates wait on the node"
            ),
            condition("InSync", in_sync, "InSync", "")
        ])
    };
    Objects {
        volumes: vec![
            volume(
                "shared",
                json!({"server": "a", "position": at(120), "replicationList": ["b", "c", "d"],
                "replicators": 3, "conflicts": 1, "conditions": well}),
            ),
            volume("wrong", json!({"conditions": wrong})),
        ],
        replicators: vec![
            replicator(
                "b",
                false,
                json!({"position": at(120), "pending": 3, "lagSeconds": 0.0, "conditions": up("True", "True")}),
            ),
            replicator(
                "c",
                false,
                json!({"position": at(100), "pending": 0, "lagSeconds": 31.0, "conditions": up("False", "False")}),
            ),
            replicator("d", true, json!({"pending": 0, "conditions": up("Unknown", "Unknown")})),
        ],
        conflicts: vec![json!({"apiVersion": "intermezzo.dev/v1alpha1", "kind": "Conflict",
            "metadata": {"name": "shared-7", "namespace": "team"},
            "spec": {"volume": "shared", "position": 7, "kind": "StoreStore", "path": "a/f", "nodeName": "b",
                "time": "2026-01-01T00:00:00Z", "size": 1536}})],
        ..Objects::default()
    }
}

/// A cluster that has these objects.
pub(crate) fn cluster(objects: Objects) -> (Cluster, Shared) {
    let shared: Shared = Arc::new(Mutex::new(objects));
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let there = Arc::clone(&shared);
    tokio::spawn(async move {
        while let Some((request, send)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let body: Value =
                serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap_or_default();
            let (code, answer) = answer(&mut there.lock(), &parts.uri, &body);
            let bytes = Body::from(match answer {
                Value::String(text) => text.into_bytes(),
                answer => answer.to_string().into_bytes(),
            });
            send.send_response(Response::builder().status(code).body(bytes).unwrap());
        }
    });
    (Cluster::with(Client::new(service, "team"), Space::One("team".to_owned())), shared)
}

fn answer(objects: &mut Objects, uri: &Uri, body: &Value) -> (u16, Value) {
    let path = uri.path();
    let failure = |code: u16, message: &str| {
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "x", "message": message}),
        )
    };
    if let Some((code, message)) = objects.refuse {
        return failure(code, message);
    }
    let list =
        |items: &[Value]| (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}));
    let parts: Vec<&str> = path.split('/').collect();
    match &parts[..] {
        ["", "api", "v1", "pods"] => return list(&objects.pods),
        ["", "api", "v1", "namespaces", _, "pods", _, "log"] if objects.no_logs => {
            return failure(403, "you may not");
        }
        ["", "api", "v1", "namespaces", _, "pods", pod, "log"] => {
            let asked: Vec<&str> = uri.query().unwrap_or_default().split('&').collect();
            let container = asked.iter().find_map(|word| word.strip_prefix("container=")).unwrap_or_default();
            let life = if asked.contains(&"previous=true") { "life before" } else { "present life" };
            return (200, Value::String(format!("{life} of {pod}/{container}")));
        }
        ["", "api", "v1", "namespaces", "team", "events"] => return list(&objects.events),
        ["", "api", "v1", "namespaces", _, "events"] | ["", "apis", "apps", "v1", _] => return list(&[]),
        _ => {}
    }
    match (parts.get(6), parts.get(7)) {
        (Some(&"volumes"), None) => list(&objects.volumes),
        (Some(&"replicators"), None) => list(&objects.replicators),
        (Some(&"conflicts"), None) => list(&objects.conflicts),
        (Some(&"replicators"), Some(name)) => {
            let named = |replicator: &&mut Value| replicator["metadata"]["name"] == **name;
            let Some(replicator) = objects.replicators.iter_mut().find(named) else {
                return failure(404, &format!("replicators \"{name}\" not found"));
            };
            for (field, value) in body["spec"].as_object().into_iter().flatten() {
                replicator["spec"][field] = value.clone();
            }
            objects.patches.push(body.clone());
            (200, replicator.clone())
        }
        (Some(&"volumes"), Some(name)) => {
            let found = objects.volumes.iter_mut().find(|volume| volume["metadata"]["name"] == **name);
            let Some(volume) = found else { return failure(404, &format!("volumes \"{name}\" not found")) };
            if let Some(ask) = body.pointer("/metadata/annotations/intermezzo.dev~1wait") {
                volume["metadata"]["annotations"] = json!({"intermezzo.dev/wait": ask});
                objects.patches.push(body.clone());
                if objects.answer.contains(&"a") {
                    volume["status"]["reached"] = ask.clone();
                }
                for replicator in &mut objects.replicators {
                    if objects.answer.iter().any(|node| replicator["spec"]["nodeName"] == *node) {
                        replicator["status"]["reached"] = ask.clone();
                    }
                }
            }
            (200, volume.clone())
        }
        _ => failure(500, path),
    }
}

//! A YAML text of several documents becomes typed objects, or problems that name the field.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::DEFAULT_NAMESPACE;
use super::error::{Problem, Problems};
use crate::{API_VERSION, Replicator, Volume};

/// One object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Volume.
    Volume(Box<Volume>),
    /// A Replicator.
    Replicator(Box<Replicator>),
}

impl Object {
    /// Its `kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Object::Volume(_) => "Volume",
            Object::Replicator(_) => "Replicator",
        }
    }

    /// Its `namespace/name`.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Object::Volume(volume) => volume.id(),
            Object::Replicator(replicator) => replicator.id(),
        }
    }
}

/// Reads the documents of `text`; what is wrong goes to `problems`, what is right is returned. Empty documents are skipped.
/// JSON is YAML.
pub fn parse(file: &Path, text: &str, problems: &mut Problems) -> Vec<Object> {
    let mut objects = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        match Value::deserialize(document) {
            Ok(Value::Null) => {}
            Ok(value) => objects.extend(object(file, number, value, problems)),
            Err(error) => {
                problems.push(Problem::document(file, number, "", format_args!("not YAML: {error}")));
                break; // The parser has lost its place.
            }
        }
    }
    objects
}

fn object(file: &Path, number: usize, value: Value, problems: &mut Problems) -> Option<Object> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let mut wrong = |field: &str, reason: String| {
        problems.push(Problem::document(file, number, field, reason));
        None
    };
    let Some(version) = text("/apiVersion") else {
        return wrong("apiVersion", format!("missing; it is {API_VERSION}"));
    };
    if version != API_VERSION {
        return wrong("apiVersion", format!("\"{version}\" is not known; it must be {API_VERSION}"));
    }
    match text("/kind") {
        Some("Volume") => typed(file, "Volume", value, problems).map(|v| Object::Volume(Box::new(v))),
        Some("Replicator") => {
            typed(file, "Replicator", value, problems).map(|r| Object::Replicator(Box::new(r)))
        }
        Some(kind) => wrong("kind", format!("\"{kind}\" is not known; it must be Volume or Replicator")),
        None => wrong("kind", "missing; it is Volume or Replicator".into()),
    }
}

fn typed<T: DeserializeOwned + kube::Resource>(
    file: &Path,
    kind: &'static str,
    mut value: Value,
    problems: &mut Problems,
) -> Option<T> {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("(no name)");
    let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or(DEFAULT_NAMESPACE);
    let label = format!("{namespace}/{name}");

    if let Some(fields) = value.as_object_mut() {
        fields.retain(|field, _| field != "apiVersion" && field != "kind"); // Read above; the type implies them.
    }
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(path.to_string().replace(".?", ""));
    match serde_path_to_error::deserialize(serde_ignored::Deserializer::new(value, &mut note)) {
        Err(error) => {
            let field = error.path().to_string().replace(".?", "");
            let field = if field == "." { String::new() } else { field };
            problems.push(Problem::object(file, kind, &label, &field, error.inner()));
            None
        }
        Ok(_) if !unknown.is_empty() => {
            for field in unknown {
                problems.push(Problem::object(file, kind, &label, &field, "this field is not known"));
            }
            None
        }
        Ok(object) => {
            let mut object: T = object;
            object.meta_mut().namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.into());
            Some(object)
        }
    }
}

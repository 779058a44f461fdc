//! The CustomResourceDefinitions as YAML: what the chart ships and `intermezzo-operator crds` prints.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt;

use crate::manifest::to_yaml;
use crate::{Conflict, Replicator, Volume};

/// Every definition, in the order of their names. `helm uninstall` leaves them: with a definition all its objects would go,
/// and with the Volumes whatever their deletion policy says.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Conflict::crd(), Replicator::crd(), Volume::crd()];
    for definition in &mut all {
        for version in &mut definition.spec.versions {
            let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
            schema.into_iter().for_each(known_formats);
        }
        let labels = definition.metadata.labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/name".into(), "intermezzo".into());
        labels.insert("app.kubernetes.io/part-of".into(), "intermezzo".into());
        let annotations = definition.metadata.annotations.get_or_insert_default();
        annotations.insert("helm.sh/resource-policy".into(), "keep".into());
    }
    all
}

/// One definition as YAML.
///
/// # Errors
/// A definition that does not become YAML (none known).
pub fn yaml(definition: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    to_yaml(definition)
}

/// Kubernetes knows no unsigned integers and warns of each; `minimum: 0` says the same.
fn known_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref() == Some("uint64") {
        schema.format = Some("int64".into());
    }
    schema.properties.iter_mut().flat_map(|fields| fields.values_mut()).for_each(known_formats);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        known_formats(items);
    }
}

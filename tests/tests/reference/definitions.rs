//! The fields of the objects, from the schemas that the API server uses.

use intermezzo_api::definitions;
use serde_json::Value;

use super::{cell, head};

pub(crate) fn page() -> String {
    let mut page = head("Objects", "the definitions (`charts/intermezzo/files/crds`)");
    page.push_str(
        "API `intermezzo.dev/v1alpha1`; `kubectl explain volume.spec` says the same. A field without a default may be left out \
         unless it is *required*.\n",
    );
    for definition in definitions::all() {
        let names = &definition.spec.names;
        let version = serde_json::to_value(&definition.spec.versions[0]).unwrap();
        let schema = &version["schema"]["openAPIV3Schema"];
        page.push_str(&format!("\n## {}\n\n{}\n\n", names.kind, text(schema, "description")));
        let short: Vec<String> = names.short_names.iter().flatten().map(|name| format!("`{name}`")).collect();
        let plural = &names.plural;
        page.push_str(&format!(
            "`kubectl get {plural}`, short {}; in the category `intermezzo`.\n",
            short.join(", ")
        ));
        for part in ["spec", "status"] {
            let below = &schema["properties"][part];
            if below.is_null() {
                continue;
            }
            page.push_str(&format!("\n| {part} | type | default | |\n|---|---|---|---|\n"));
            fields(below, part, &mut page);
        }
        let mut refusals = Vec::new();
        rules(schema, &mut refusals);
        if !refusals.is_empty() {
            page.push_str("\nThe API server refuses an object with one of these sentences:\n\n");
            refusals.iter().for_each(|sentence| page.push_str(&format!("- {sentence}\n")));
        }
    }
    page
}

fn text<'a>(schema: &'a Value, field: &str) -> &'a str {
    schema[field].as_str().unwrap_or_default()
}

fn fields(schema: &Value, at: &str, page: &mut String) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        let default = match &field["default"] {
            Value::Null if required.contains(&name.as_str()) => "*required*".to_owned(),
            // Nothing but the defaults below it.
            Value::Null | Value::Object(_) => String::new(),
            value => format!("`{}`", value.to_string().trim_matches('"')),
        };
        let said = cell(text(field, "description"));
        page.push_str(&format!("| `{at}` | {} | {default} | {said} |\n", type_of(field)));
        // What Kubernetes itself defines is described there.
        if !["nodeSelector", "conditions"].contains(&name.as_str()) {
            fields(field, &at, page);
        }
    }
}

fn type_of(field: &Value) -> String {
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<String> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return values.join(", ");
    }
    let mut name = match text(field, "type") {
        "array" => format!("list of {}", text(&field["items"], "type")),
        plain => plain.to_owned(),
    };
    for (limit, words, unit) in
        [("minimum", "at least", ""), ("maxLength", "up to", " characters"), ("maxItems", "up to", "")]
    {
        if let Some(number) = field[limit].as_f64().filter(|number| *number > 0.0) {
            name.push_str(&format!(", {words} {number}{unit}"));
        }
    }
    name
}

/// The sentences of all rules, each once.
fn rules(schema: &Value, found: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let message = text(rule, "message").to_owned();
        if !found.contains(&message) {
            found.push(message);
        }
    }
    for field in schema["properties"].as_object().into_iter().flatten().map(|(_, field)| field) {
        rules(field, found);
    }
}

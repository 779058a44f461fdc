//! The chart's values: names, defaults and comments from values.yaml, types from the schema.

use std::path::Path;

use serde_json::Value;

use super::{cell, head};

struct Line {
    path: String,
    default: String,
    said: String,
}

pub(crate) fn page(chart: &Path) -> String {
    let read = |name: &str| std::fs::read_to_string(chart.join(name)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let mut page = head("Values of the chart", "`charts/intermezzo/values.yaml` and `values.schema.json`");
    page.push_str("A value that nobody knows, or of another type, is refused by helm.\n\n");
    page.push_str("| value | type | default | |\n|---|---|---|---|\n");
    for line in lines(&read("values.yaml")) {
        let type_ = type_of(&schema, &line.path);
        page.push_str(&format!("| `{}` | {type_} | {} | {} |\n", line.path, line.default, cell(&line.said)));
    }
    page
}

/// Every value with a comment above it. A key without one must be a group of such.
fn lines(text: &str) -> Vec<Line> {
    let mut found: Vec<Line> = Vec::new();
    let (mut above, mut said): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        if let Some(comment) = line.trim_start().strip_prefix('#') {
            said.push(comment);
            continue;
        }
        let Some((key, value)) = line.trim().split_once(':').filter(|(key, _)| !key.contains(' ')) else {
            // Below a value: part of its default.
            if let (Some(last), false) = (found.last_mut(), line.trim().is_empty()) {
                last.default.push_str(line.trim());
            }
            continue;
        };
        above.truncate(depth);
        // Below a value that is described as a whole.
        let whole = above.join(".");
        if let Some(last) = found.iter_mut().find(|line| line.path == whole) {
            let comma = if last.default.is_empty() { "" } else { ", " };
            last.default.push_str(&format!("{comma}{}", line.trim()));
            continue;
        }
        above.push(key);
        if said.is_empty() {
            assert!(value.trim().is_empty(), "values.yaml: {} has no comment", above.join("."));
            continue;
        }
        let said = std::mem::take(&mut said).join(" ");
        found.push(Line { path: above.join("."), default: value.trim().to_owned(), said });
    }
    for line in &mut found {
        line.default = match line.default.as_str() {
            "\"\"" | "" => String::new(),
            value => format!("`{value}`"),
        };
    }
    found
}

fn type_of(schema: &Value, path: &str) -> String {
    let mut at = schema;
    for part in path.split('.') {
        at = resolved(schema, &at["properties"][part]);
        assert!(!at.is_null(), "values.schema.json does not know {path}");
    }
    if let Some(values) = at["enum"].as_array() {
        let values: Vec<String> =
            values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        return values.join(", ");
    }
    match at["type"].as_str().unwrap_or_default() {
        "array" => {
            let items = resolved(schema, &at["items"]);
            format!("list of {}", items["type"].as_str().unwrap_or("values"))
        }
        "integer" => match (at["minimum"].as_i64(), at["maximum"].as_i64()) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            (Some(least), None) => format!("integer, at least {least}"),
            _ => "integer".to_owned(),
        },
        other => other.to_owned(),
    }
}

fn resolved<'a>(schema: &'a Value, at: &'a Value) -> &'a Value {
    match at["$ref"].as_str().and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => schema.pointer(pointer).unwrap(),
        None => at,
    }
}

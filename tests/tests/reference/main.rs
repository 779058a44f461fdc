//! `docs/reference`: made from the definitions, the chart's values and the command lines, and held current by this test.
//! `UPDATE_REFERENCE=1 cargo test -p intermezzo-tests --test reference` writes it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // A test from end to end.

mod commands;
mod definitions;
mod values;

use std::path::PathBuf;

use clap::CommandFactory;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares, or writes.
fn is_current(name: &str, text: &str) {
    let file = root().join("docs/reference").join(name);
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == text,
        "docs/reference/{name} is not current: run `UPDATE_REFERENCE=1 cargo test -p intermezzo-tests --test reference`"
    );
}

/// What stands first on every page.
fn head(title: &str, from: &str) -> String {
    format!("# {title}\n\nMade from {from} by `tests/tests/reference`; not edited by hand.\n\n")
}

/// In a cell of a table: no line ends, no bars.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

#[test]
fn objects() {
    is_current("objects.md", &definitions::page());
}

#[test]
fn chart_values() {
    is_current("chart.md", &values::page(&root().join("charts/intermezzo")));
}

#[test]
fn command_lines() {
    let page = |name: &str, title: &str, command: clap::Command| {
        is_current(name, &commands::page(title, command));
    };
    page("intermezzo.md", "intermezzo", intermezzo::Cli::command());
    page("kubectl-intermezzo.md", "kubectl intermezzo", kubectl_intermezzo::Cli::command());
    page("lento.md", "lento", lento::options::Options::command());
    page("intermezzo-operator.md", "intermezzo-operator", intermezzo_operator::options::Options::command());
}

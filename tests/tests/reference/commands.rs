//! A command line as its own help says it.

use clap::{Arg, Command};

use super::{cell, head};

pub(crate) fn page(title: &str, mut command: Command) -> String {
    command.build();
    let mut page = head(title, &format!("`{title} --help`"));
    section(&command, 2, &mut page);
    // Fences and spaces at line ends would differ from terminal to terminal.
    page.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n"
}

fn section(command: &Command, level: usize, page: &mut String) {
    if level > 2 {
        let name = command.get_bin_name().unwrap_or(command.get_name());
        page.push_str(&format!("\n{} {name}\n\n", "#".repeat(level.min(4))));
    }
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        page.push_str(&format!("{about}\n"));
    }
    let visible = |command: &&Command| command.get_name() != "help" && !command.is_hide_set();
    let below: Vec<&Command> = command.get_subcommands().filter(visible).collect();
    let usage = command.clone().render_usage().to_string();
    page.push_str(&format!("\n```\n{}\n```\n", usage.trim_start_matches("Usage: ").trim()));
    let global = |arg: &&Arg| level > 2 && arg.is_global_set();
    let shown: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
        .filter(|arg| !global(arg))
        .collect();
    if !shown.is_empty() {
        page.push_str("\n| | | |\n|---|---|---|\n");
        shown.iter().for_each(|arg| page.push_str(&row(arg)));
    }
    if let Some(after) = command.get_after_help() {
        page.push_str(&format!("\n```text\n{after}\n```\n"));
    }
    below.iter().for_each(|command| section(command, level + 1, page));
}

fn row(arg: &Arg) -> String {
    let names = arg.get_value_names().into_iter().flatten().map(|name| name.as_str());
    let takes = arg.get_action().takes_values();
    let value = names.collect::<Vec<_>>().join(" ");
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let flags = [short, long].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let shown = match (flags.is_empty(), takes) {
        (true, _) => value,
        (false, true) => format!("{flags} {value}"),
        (false, false) => flags,
    };
    let mut notes: Vec<String> = Vec::new();
    let values: Vec<String> =
        arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if takes && !values.is_empty() {
        notes.push(values.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    if takes && !defaults.is_empty() {
        notes.push(format!("default {}", defaults.join(", ")));
    }
    if let Some(variable) = arg.get_env() {
        notes.push(format!("`${}`", variable.to_string_lossy()));
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    format!("| `{shown}` | {} | {} |\n", cell(&help), notes.join("; "))
}

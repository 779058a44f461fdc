//! `walk A B`: are two trees equal? Exit code 0: yes; 1: no, and what differs; 2: could not tell.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use intermezzo::output::{print_text, say};
use intermezzo_tests::walk::walk_both;

/// Compares two trees by everything a program can see of them.
#[derive(Parser)]
struct Args {
    /// First tree
    first: PathBuf,
    /// Second tree
    second: PathBuf,
    /// Show at most this many differences
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let (first, second) = match walk_both(&args.first, &args.second) {
        Ok(both) => both,
        Err(error) => {
            say(format_args!("walk: {error:#}"));
            return ExitCode::from(2);
        }
    };
    let found = first.differences(&second);
    let mut text: String =
        found.iter().take(args.limit).map(|difference| format!("{difference}\n")).collect();
    if found.is_empty() {
        text =
            format!("equal: {} names, {} files, {} bytes\n", first.entries.len(), first.files(), first.bytes);
    }
    let _ = print_text(&text);
    if found.is_empty() {
        return ExitCode::SUCCESS;
    }
    say(format_args!("{} differences", found.len()));
    ExitCode::FAILURE
}

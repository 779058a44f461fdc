//! `intermezzo completions`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::output::print_text;
use crate::{Cli, Exit};

pub(super) fn run(shell: Shell) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "intermezzo", &mut script);
    print_text(&String::from_utf8(script)?)?;
    Ok(Exit::Done)
}

//! `podnet lab`.

use std::process::ExitCode;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs one of the lab's subcommands.
pub fn run(_args: Args) -> ExitCode {
    ExitCode::FAILURE
}

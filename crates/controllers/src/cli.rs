//! Command line of the controllers.

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs until told to stop.
pub fn run(_args: Args) -> miette::Result<()> {
    Err(miette::miette!("not there yet"))
}

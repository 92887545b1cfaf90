//! The recipes of the project. The README's two commands are `demo` and `test`; CI calls `test`.

mod demo;
mod recipe;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Recipes of the project
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build podnet and raise a lab with the demo
    Demo,
    /// Install what the tests need and run them all, as CI does (as root)
    Test,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Test => test::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            eprintln!("{report:?}");
            ExitCode::FAILURE
        }
    }
}

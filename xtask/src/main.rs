//! The recipes of the project: `cargo xtask RECIPE`. The README's two commands are `demo` and `test`; CI calls `test`.

mod bench;
mod demo;
mod ebpf;
mod edges;
mod fuzz;
mod netperf;
mod recipe;
mod test;
mod vm;

use clap::{Parser, Subcommand};

/// The recipes of the project.
#[derive(Parser)]
#[command(name = "xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    recipe: Recipe,
}

#[derive(Subcommand)]
enum Recipe {
    /// Builds podnet and raises a lab with the demo
    Demo,
    /// Installs what the tests need and runs them all, as CI does (as root)
    Test,
    /// Checks the workspace's dependencies against the table in ARCHITECTURE.md
    CheckEdges,
    /// Builds the programs for the kernel, which are part of the tree
    Ebpf(ebpf::Args),
    /// Feeds every reader of foreign documents with broken ones for a while
    Fuzz(fuzz::Args),
    /// Measures podnet against what the kernel can do without it
    Bench(bench::Args),
    /// Boots another kernel in a virtual machine and runs there the tests that are for it, or a command
    Vm(vm::Args),
    /// Times CNI plugins on the node where it runs (used by `bench`)
    #[command(hide = true)]
    VerbTimes(bench::verbs::Args),
    /// The load generator and its server (used by `bench`)
    #[command(subcommand, hide = true)]
    Netperf(netperf::Command),
}

fn main() -> miette::Result<()> {
    match Cli::parse().recipe {
        Recipe::Demo => demo::run(),
        Recipe::Test => test::run(),
        Recipe::CheckEdges => edges::run(),
        Recipe::Ebpf(args) => ebpf::run(&args),
        Recipe::Fuzz(args) => fuzz::run(&args),
        Recipe::Bench(args) => bench::run(args),
        Recipe::Vm(args) => vm::run(&args),
        Recipe::VerbTimes(args) => bench::verbs::run(&args),
        Recipe::Netperf(command) => netperf::run(command),
    }
}

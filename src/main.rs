//! podnet: the whole Kubernetes network in one binary. Subcommands only; each lives in its crate.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod log;
mod memory;

/// The whole Kubernetes network in one binary.
#[derive(Parser)]
#[command(name = "podnet", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The node agent: watches the API and keeps this node's network as it should be
    Agent(podnet_agent::cli::Args),
    /// What this node's agent says of itself and of the paths to other nodes
    Status(podnet_agent::status::Args),
    /// Takes everything of podnet off this node
    Cleanup(podnet_agent::cleanup::Args),
    /// Carries this node's services in user space (started by the agent with --dataplane userspace)
    Proxy(podnet_agent::proxy::Args),
    /// What services lead to, and why
    Service(podnet_agent::service::Args),
    /// What this node's eBPF programs have in their maps
    Bpf(podnet_agent::bpf::Args),
    /// What network policies allow, worked out from files
    Policy(podnet_agent::policy::Args),
    /// The embedded Kubernetes API server
    Apiserver(podnet_apiserver::cli::Args),
    /// What must be done once per cluster
    Controller(podnet_controllers::cli::Args),
    /// A whole cluster on this machine
    Lab(podnet_lab::cli::Args),
    /// The first process of a lab (started by `podnet lab up`)
    #[command(hide = true)]
    LabInit(podnet_lab::cluster::init::Args),
    /// The pods of one lab node (started by `podnet lab up`)
    #[command(hide = true)]
    Runtime(podnet_lab::runtime::cli::Args),
    /// The way from a lab to the outside (started by `podnet lab up --uplink`)
    #[command(hide = true)]
    Uplink(podnet_lab::uplink::Args),
    /// Holds a pod's namespaces and its containers (started by the runtime)
    #[command(hide = true)]
    Pause(podnet_lab::sandbox::pause::Args),
    /// The server behind the image podnet/echo
    Echo(podnet_lab::echo::Args),
}

impl Command {
    /// Whether every node has one, beside all that a node is for.
    fn is_on_every_node(&self) -> bool {
        matches!(self, Command::Agent(_) | Command::Proxy(_))
    }

    /// Whether it tells what it does; the others answer, or are silent.
    fn logs(&self) -> bool {
        matches!(
            self,
            Command::Agent(_)
                | Command::Proxy(_)
                | Command::Cleanup(_)
                | Command::Apiserver(_)
                | Command::Controller(_)
                | Command::Runtime(_)
                | Command::Uplink(_)
        )
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.command.logs() {
        log::start();
    }
    if cli.command.is_on_every_node() {
        memory::keep_small();
    }
    let outcome = match cli.command {
        Command::Agent(args) => podnet_agent::cli::run(args),
        Command::Proxy(args) => podnet_agent::proxy::run(args),
        Command::Status(args) => podnet_agent::status::run(args),
        Command::Cleanup(args) => podnet_agent::cleanup::run(args),
        Command::Service(args) => return podnet_agent::service::run(args),
        Command::Bpf(args) => return podnet_agent::bpf::run(args),
        Command::Policy(args) => return podnet_agent::policy::run(args),
        Command::Apiserver(args) => podnet_apiserver::cli::run(args),
        Command::Controller(args) => podnet_controllers::cli::run(args),
        Command::Lab(args) => return podnet_lab::cli::run(args),
        Command::LabInit(args) => podnet_lab::cluster::init::run(args),
        Command::Runtime(args) => podnet_lab::runtime::cli::run(args),
        Command::Uplink(args) => podnet_lab::uplink::run(args),
        Command::Pause(args) => podnet_lab::sandbox::pause::run(args),
        Command::Echo(args) => podnet_lab::echo::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            eprintln!("{report:?}");
            ExitCode::FAILURE
        }
    }
}

//! `podnet bpf`: what the programs of this node have in their maps.

use std::path::PathBuf;
use std::process::ExitCode;

use miette::{Context, IntoDiagnostic};
use podnet_dataplane::ebpf::{self, Led, Past, Pinned};
use serde_json::{Value, json};

use crate::output::{self, Format};

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every map, in words: whose sockets are led, where to, and which were; whose packets go past the stack, and which
    /// do not (exit code 1 where nothing is pinned)
    Dump(Dump),
}

#[derive(Debug, clap::Args)]
struct Dump {
    /// Where the file system is mounted in which eBPF programs and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    bpffs: PathBuf,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Prints it.
pub fn run(args: Args) -> ExitCode {
    let Command::Dump(dump) = args.command;
    output::answer(self::dump(&dump))
}

fn dump(args: &Dump) -> miette::Result<(String, bool)> {
    let site = ebpf::Site {
        cgroup: None,
        bpffs: args.bpffs.clone(),
        sizes: ebpf::Sizes::default(),
    };
    let pinned = ebpf::pinned(&site)
        .into_diagnostic()
        .wrap_err("the maps cannot be read: this needs root, and maps of this version")?;
    Ok(match (pinned, args.output) {
        (None, Format::Text) => (
            format!("nothing of podnet is pinned below {}\n", args.bpffs.display()),
            false,
        ),
        (None, Format::Json) => ("null\n".to_owned(), false),
        (Some(pinned), Format::Text) => (pinned.to_string(), true),
        (Some(pinned), Format::Json) => (format!("{:#}\n", as_json(&pinned)), true),
    })
}

fn as_json(pinned: &Pinned) -> Value {
    let led = |led: &Vec<Led>| -> Vec<Value> {
        let led = led.iter();
        led.map(|led| json!({ "socket": led.socket, "asked": led.asked, "endpoint": led.endpoint }))
            .collect()
    };
    let services = pinned.services.iter().map(|(service, endpoints)| {
        json!({ "service": service, "endpoints": endpoints.balanced, "draining": endpoints.draining })
    });
    let past = pinned.path.as_ref().map(|past| {
        let Past {
            rows,
            translated,
            connections,
        } = past;
        json!({ "rows": rows, "translated": translated, "connections": connections })
    });
    json!({
        "hooks": pinned.hooks,
        "clients": pinned.clients,
        "services": services.collect::<Vec<_>>(),
        "datagrams": led(&pinned.datagrams),
        "connections": led(&pinned.connections),
        "path": past,
    })
}

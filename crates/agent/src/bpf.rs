//! `podnet bpf`: what the programs of this node have in their maps, and what they cost.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

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
    Dump(Asked),
    /// How often each program runs and how long that takes, measured for a while (exit code 1 where nothing is pinned)
    Costs(Costs),
}

/// What both are asked with.
#[derive(Debug, clap::Args)]
struct Asked {
    /// Where the file system is mounted in which eBPF programs and maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf", value_name = "DIR")]
    bpffs: PathBuf,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Costs {
    /// How long to measure
    #[arg(long, default_value_t = 5.0, value_parser = seconds)]
    seconds: f64,
    #[command(flatten)]
    asked: Asked,
}

fn seconds(text: &str) -> Result<f64, String> {
    /// An hour: longer means something else.
    const MOST: f64 = 3600.0;
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MOST => Ok(seconds),
        _ => Err(format!("a number of seconds above 0, and {MOST} at most")),
    }
}

impl Asked {
    fn site(&self) -> ebpf::Site {
        ebpf::Site {
            cgroup: None,
            bpffs: self.bpffs.clone(),
            sizes: ebpf::Sizes::default(),
        }
    }

    /// What was found in the form that was asked for.
    fn answer<T: ToString>(&self, found: Option<T>, as_json: impl FnOnce(&T) -> Value) -> (String, bool) {
        match (found, self.output) {
            (None, Format::Text) => (
                format!("nothing of podnet is pinned below {}\n", self.bpffs.display()),
                false,
            ),
            (None, Format::Json) => ("null\n".to_owned(), false),
            (Some(found), Format::Text) => (found.to_string(), true),
            (Some(found), Format::Json) => (format!("{:#}\n", as_json(&found)), true),
        }
    }
}

/// Prints it.
pub fn run(args: Args) -> ExitCode {
    output::answer(match &args.command {
        Command::Dump(asked) => self::dump(asked),
        Command::Costs(costs) => self::costs(costs),
    })
}

fn dump(asked: &Asked) -> miette::Result<(String, bool)> {
    let pinned = ebpf::pinned(&asked.site())
        .into_diagnostic()
        .wrap_err("the maps cannot be read: this needs root, and maps of this version")?;
    Ok(asked.answer(pinned, as_json))
}

fn costs(args: &Costs) -> miette::Result<(String, bool)> {
    let during = Duration::from_secs_f64(args.seconds);
    let costs = ebpf::costs(&args.asked.site(), during)
        .into_diagnostic()
        .wrap_err("what the programs cost cannot be measured: this needs root, and Linux 5.8")?;
    Ok(args.asked.answer(costs, costs_as_json))
}

fn costs_as_json(costs: &ebpf::Costs) -> Value {
    let programs = costs.programs.iter().map(|(name, cost)| {
        json!({
            "program": name,
            "runs": cost.runs,
            "nanoseconds": cost.time.as_nanos(),
            "nanosecondsEach": cost.each().map(|each| each.as_nanos()),
            "codeBytes": cost.code,
        })
    });
    json!({ "seconds": costs.during.as_secs_f64(), "programs": programs.collect::<Vec<_>>() })
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

//! `cargo xtask fuzz`: every test called `fuzz_*`, for a time of one's choice.

use crate::recipe;

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long each of them runs
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Only those whose name has this in it
    name: Option<String>,
    /// See a run again: the seed that it printed
    #[arg(long)]
    seed: Option<u64>,
}

impl Args {
    /// All of them, for so long each.
    pub(crate) fn for_seconds(seconds: u64) -> Self {
        Args {
            seconds,
            name: None,
            seed: None,
        }
    }
}

/// Runs them. What one of them finds is kept below target/fuzz.
pub(crate) fn run(args: &Args) -> miette::Result<()> {
    let filter = match &args.name {
        Some(name) => format!("test(/(^|::)fuzz_/) and test(~{name})"),
        None => "test(/(^|::)fuzz_/)".into(),
    };
    let found = recipe::root().join("target/fuzz").display().to_string();
    let seconds = format!("PODNET_FUZZ_SECONDS={}", args.seconds);
    let directory = format!("PODNET_FUZZ_DIRECTORY={found}");
    let mut words = vec!["env", &seconds, &directory];
    let seed = args.seed.map(|seed| format!("PODNET_FUZZ_SEED={seed}"));
    words.extend(seed.as_deref());
    words.extend(["cargo", "nextest", "run", "--release", "--workspace"]);
    words.extend(["--profile", "fuzz", "--filterset", &filter]);
    recipe::run(&words)
}

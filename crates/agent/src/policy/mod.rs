//! `podnet policy`: what network policies allow, worked out from files alone.

mod load;
mod party;
mod show;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use ipnet::IpNet;
use miette::{IntoDiagnostic, miette};
use podnet_core::flow::Traffic;
use podnet_core::policy::explain::{explain, parties};
use podnet_core::policy::judge::Judge;
use podnet_core::policy::lint::lint;
use podnet_core::policy::matrix::{Target, matrix};

use crate::output::{self, Format};

pub use load::{Loaded, load};

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say whether one may reach the other, and which rule decides (exit code 0 when it may, 1 when not)
    Explain(Explain),
    /// Show who reaches whom
    Matrix(Matrix),
    /// Look for what is probably not meant (exit code 1 when there is something)
    Lint(Lint),
}

#[derive(Debug, clap::Args)]
struct Source {
    /// Manifests, or directories of them: pods or what makes pods, namespaces, nodes, policies (may be repeated)
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of names without one, and of objects that name none
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Ranges that pods without an address are given one from
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "CIDR,CIDR6",
        default_value = "10.244.0.0/16,fd00:10:244::/56"
    )]
    cluster_cidr: Vec<IpNet>,
}

#[derive(Debug, clap::Args)]
struct Explain {
    /// Who sends: [NAMESPACE/]POD or an address
    source: String,
    /// Who receives: [NAMESPACE/]POD[:PORT[/PROTOCOL]], ADDRESS[:PORT[/PROTOCOL]] or DOMAIN=ADDRESS[:PORT[/PROTOCOL]];
    /// without a port, every port the pod declares, and ping
    destination: String,
    #[command(flatten)]
    from: Source,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Matrix {
    /// Ports to try at every destination [default: those each pod declares; 80/tcp where it declares none]
    #[arg(long = "port", value_name = "PORT[/PROTOCOL]", value_parser = party::traffic)]
    ports: Vec<Traffic>,
    #[command(flatten)]
    from: Source,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Drawing::Table)]
    output: Drawing,
}

#[derive(Debug, clap::Args)]
struct Lint {
    #[command(flatten)]
    from: Source,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Drawing {
    Table,
    Json,
    Svg,
}

/// What was asked, answered: what to print, and whether all is well.
struct Answer {
    text: String,
    fine: bool,
}

/// Runs a subcommand. The exit code is 0 when all is well, 1 when something is denied or found, 2 when it cannot be told.
pub fn run(args: Args) -> ExitCode {
    let answer = match args.command {
        Command::Explain(args) => run_explain(&args),
        Command::Matrix(args) => run_matrix(&args),
        Command::Lint(args) => run_lint(&args),
    };
    output::answer(answer.map(|Answer { text, fine }| (text, fine)))
}

impl Source {
    fn load(&self) -> miette::Result<Loaded> {
        let loaded = load(&self.files, &self.namespace, &self.cluster_cidr)?;
        for note in &loaded.notes {
            eprintln!("note: {note}");
        }
        Ok(loaded)
    }
}

fn run_explain(args: &Explain) -> miette::Result<Answer> {
    let loaded = args.from.load()?;
    let namespace = &args.from.namespace;
    let from = party::party(&loaded, namespace, &args.source)?;
    let (to, traffic) = party::destination(&loaded, namespace, &args.destination)?;
    let judge = Judge::new(&loaded.cluster);
    let mut answers = Vec::new();
    for traffic in traffic {
        let families = explain(&judge, &from, &to, traffic);
        if families.is_empty() {
            return Err(miette!(
                help = "give the pods' manifests with a status, or choose a --cluster-cidr of both families",
                "{} and {} have no address of one family",
                from.name,
                to.name
            ));
        }
        answers.push((traffic, families));
    }
    let fine = answers
        .iter()
        .flat_map(|(_, families)| families)
        .all(|explanation| explanation.verdict.allowed());
    let text = match args.output {
        Format::Text => show::explanation(&from, &to, &answers),
        Format::Json => json(&show::explanation_json(&from, &to, &answers))?,
    };
    Ok(Answer { text, fine })
}

fn run_matrix(args: &Matrix) -> miette::Result<Answer> {
    let loaded = args.from.load()?;
    let judge = Judge::new(&loaded.cluster);
    let (mut sources, mut targets) = (Vec::new(), Vec::new());
    for (pod, party) in parties(&loaded.cluster) {
        let declared = loaded.ports.get(&pod.name).cloned().unwrap_or_default();
        let traffic = match (args.ports.is_empty(), declared.is_empty()) {
            (false, _) => args.ports.clone(),
            (true, false) => declared,
            (true, true) => vec![party::traffic("80").map_err(|why| miette!("{why}"))?],
        };
        targets.extend(traffic.into_iter().map(|traffic| Target {
            to: party.clone(),
            traffic,
        }));
        sources.push(party);
    }
    if sources.is_empty() {
        return Err(miette!(
            help = "give Pods, or Deployments and the like, with -f",
            "the manifests hold no pod, and nothing that makes one"
        ));
    }
    sources.extend(show::outside());
    let matrix = matrix(&judge, &sources, targets);
    let text = match args.output {
        Drawing::Table => show::table(&matrix),
        Drawing::Json => json(&show::matrix_json(&matrix))?,
        Drawing::Svg => matrix.svg(),
    };
    Ok(Answer { text, fine: true })
}

fn run_lint(args: &Lint) -> miette::Result<Answer> {
    let loaded = args.from.load()?;
    let findings = lint(&loaded.cluster);
    let text = match args.output {
        Format::Text => show::findings(&findings),
        Format::Json => json(&show::findings_json(&findings))?,
    };
    Ok(Answer {
        text,
        fine: findings.is_empty(),
    })
}

fn json(value: &serde_json::Value) -> miette::Result<String> {
    let text = serde_json::to_string_pretty(value).into_diagnostic()?;
    Ok(text + "\n")
}

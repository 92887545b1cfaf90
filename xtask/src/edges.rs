//! `check-edges`: the dependencies between our crates are those of the table in ARCHITECTURE.md, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::process::Command;

use miette::{Context, IntoDiagnostic, miette};
use serde::Deserialize;

/// Crate by crate, what it depends on.
type Edges = BTreeMap<String, BTreeSet<String>>;

/// A difference between the table and the workspace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Edge { from: String, to: String },
    NotInTable(String),
    NotInWorkspace(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Edge { from, to } => write!(f, "{from} depends on {to}, which the table does not allow"),
            Fault::NotInTable(name) => write!(f, "{name} has no row in the table"),
            Fault::NotInWorkspace(name) => write!(f, "the table names {name}, and there is no such crate"),
        }
    }
}

/// Compares and complains.
pub(crate) fn run() -> miette::Result<()> {
    let text = std::fs::read_to_string("ARCHITECTURE.md")
        .into_diagnostic()
        .wrap_err("cannot read ARCHITECTURE.md; run this in the root of the workspace")?;
    let allowed = table(&text).ok_or_else(|| {
        miette!(
            help = "it begins with `| crate | is | may depend on |`",
            "no table of crates in ARCHITECTURE.md"
        )
    })?;
    let found = faults(&allowed, &workspace()?);
    if found.is_empty() {
        println!("{} crates, every edge is in the table", allowed.len());
        return Ok(());
    }
    let list: Vec<String> = found.iter().map(ToString::to_string).collect();
    Err(miette!(
        help = "remove the dependency, or change the table and say why in the commit",
        "{}",
        list.join("\n")
    ))
}

fn faults(allowed: &Edges, actual: &Edges) -> BTreeSet<Fault> {
    let mut faults = BTreeSet::new();
    for (from, targets) in actual {
        let Some(row) = allowed.get(from) else {
            faults.insert(Fault::NotInTable(from.clone()));
            continue;
        };
        for to in targets.difference(row) {
            faults.insert(Fault::Edge {
                from: from.clone(),
                to: to.clone(),
            });
        }
    }
    let named = allowed
        .iter()
        .flat_map(|(name, targets)| std::iter::once(name).chain(targets));
    faults.extend(
        named
            .filter(|name| !actual.contains_key(*name))
            .cloned()
            .map(Fault::NotInWorkspace),
    );
    faults
}

/// The rows of the table whose last column says what a crate may depend on.
fn table(text: &str) -> Option<Edges> {
    let cells = |line: &str| -> Option<Vec<String>> {
        let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        Some(inner.split('|').map(|cell| cell.trim().to_owned()).collect())
    };
    let mut lines = text
        .lines()
        .skip_while(|line| cells(line).is_none_or(|row| row.first().map(String::as_str) != Some("crate")));
    lines.next()?;
    let rows = lines.skip(1).map_while(cells);
    let edges = rows.filter_map(|row| {
        let (name, targets) = (row.first()?.clone(), row.last()?);
        let targets = targets
            .split(',')
            .map(str::trim)
            .filter(|target| !target.is_empty());
        Some((name, targets.map(str::to_owned).collect()))
    });
    Some(edges.collect())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Only dependencies by path have one: they are ours.
    path: Option<String>,
}

fn workspace() -> miette::Result<Edges> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .into_diagnostic()
        .wrap_err("cannot run cargo metadata")?;
    if !output.status.success() {
        return Err(miette!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    edges_of(&output.stdout)
}

/// Dependencies for tests and builds count like all others.
fn edges_of(metadata: &[u8]) -> miette::Result<Edges> {
    let metadata: Metadata = serde_json::from_slice(metadata)
        .into_diagnostic()
        .wrap_err("cargo metadata says something new")?;
    let edges = metadata.packages.into_iter().map(|package| {
        let ours = package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some());
        (
            short(&package.name),
            ours.map(|dependency| short(&dependency.name)).collect(),
        )
    });
    Ok(edges.collect())
}

/// The table calls `podnet-core` core.
fn short(name: &str) -> String {
    name.strip_prefix("podnet-").unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\n| other | table |\n|---|---|\n| a | b |\n\n| crate | is | may depend on |\n|---|---|---|\n\
        | core | the wall | |\n| agent | the loop | core, linux |\n| linux | the kernel | |\n\nmore\n| x | y | z |\n";

    fn edges(rows: &[(&str, &[&str])]) -> Edges {
        let row = |(name, targets): &(&str, &[&str])| {
            (
                (*name).to_owned(),
                targets.iter().map(|target| (*target).to_owned()).collect(),
            )
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn the_table_is_found_among_others() {
        let expected = edges(&[("core", &[]), ("agent", &["core", "linux"]), ("linux", &[])]);
        assert_eq!(table(TEXT), Some(expected));
        assert_eq!(table("no table"), None);
    }

    #[test]
    fn an_edge_outside_the_table_is_a_fault() {
        let allowed = table(TEXT).unwrap();
        assert_eq!(faults(&allowed, &allowed), BTreeSet::new());
        let actual = edges(&[
            ("core", &["linux"]),
            ("agent", &["core"]),
            ("linux", &[]),
            ("new", &[]),
        ]);
        let expected = [
            Fault::Edge {
                from: "core".into(),
                to: "linux".into(),
            },
            Fault::NotInTable("new".into()),
        ];
        assert_eq!(faults(&allowed, &actual), expected.into());
    }

    #[test]
    fn a_row_without_a_crate_is_a_fault() {
        let actual = edges(&[("core", &[]), ("agent", &[])]);
        assert_eq!(
            faults(&table(TEXT).unwrap(), &actual),
            [Fault::NotInWorkspace("linux".into())].into()
        );
    }

    #[test]
    fn only_our_own_crates_are_edges() {
        let metadata = r#"{"packages": [{"name": "podnet-agent", "dependencies": [
            {"name": "serde", "path": null}, {"name": "podnet-core", "path": "/x/core", "kind": "dev"}]}]}"#;
        assert_eq!(
            edges_of(metadata.as_bytes()).unwrap(),
            edges(&[("agent", &["core"])])
        );
    }
}

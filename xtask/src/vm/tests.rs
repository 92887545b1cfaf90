//! The workspace's tests that are for one kernel: those in modules named after it, which are ignored elsewhere.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use miette::{Context, IntoDiagnostic, miette};
use serde::Deserialize;

use super::{Args, quoted};
use crate::recipe;

/// Builds the tests; what a shell has to run, which fails when one of them does.
pub(super) fn script(args: &Args) -> miette::Result<String> {
    let packages: Vec<&str> = match args.package.as_slice() {
        [] => vec!["--workspace"],
        some => some.iter().flat_map(|name| ["--package", name]).collect(),
    };
    let mut build = vec!["cargo", "build", "--release", "--all-targets"];
    build.extend(&packages);
    if !args.package.is_empty() {
        build.extend(["--package", "podnet-cni"]);
    }
    recipe::run(&build)?;
    let module = format!("linux_{}", args.kernel.replace('.', "_"));
    let mut chosen = choose(
        &list(&packages)?,
        &module,
        args.test.as_deref().unwrap_or_default(),
    );
    // First, while the kernel is as it was booted.
    chosen.sort_by_key(|run| !run.alone);
    if chosen.is_empty() {
        return Err(miette!("there is no such test in a module called {module}"));
    }
    let plugin = recipe::release().join("podnet-cni").display().to_string();
    let mut script = format!("export PODNET_CNI={}\nfailed=0\n", quoted(&plugin));
    for Run {
        executable,
        directory,
        names,
        alone,
    } in chosen
    {
        let threads = if alone { 1 } else { 2 };
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        script.push_str(&format!(
            "cd {} && {} --ignored --exact --test-threads={threads} {} || failed=1\n",
            quoted(&directory),
            quoted(&executable),
            names.join(" ")
        ));
    }
    Ok(script + "exit $failed\n")
}

/// One executable with the tests to run of it.
#[derive(Debug, PartialEq)]
struct Run {
    executable: String,
    directory: String,
    names: Vec<String>,
    /// Whether nothing else may run beside them: those in a module `alone`, which change the kernel itself.
    alone: bool,
}

/// The ignored tests of `module` that have `part` in their names.
fn choose(list: &List, module: &str, part: &str) -> Vec<Run> {
    let within = format!("{module}::");
    let wanted = |name: &&String| {
        let inside = name.starts_with(&within) || name.contains(&format!("::{within}"));
        inside && name.contains(part)
    };
    let runs = list.rust_suites.values().flat_map(|suite| {
        [false, true].map(|alone| Run {
            executable: suite.binary_path.clone(),
            directory: suite.cwd.clone(),
            names: (suite.testcases.keys().filter(wanted))
                .filter(|name| name.contains("::alone::") == alone)
                .cloned()
                .collect(),
            alone,
        })
    });
    runs.filter(|run| !run.names.is_empty()).collect()
}

/// `cargo nextest list --message-format json`, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct List {
    rust_suites: BTreeMap<String, Suite>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Suite {
    binary_path: String,
    cwd: String,
    testcases: BTreeMap<String, serde_json::Value>,
}

fn list(packages: &[&str]) -> miette::Result<List> {
    let output = Command::new("cargo")
        .args(["nextest", "list", "--release", "--message-format", "json"])
        .args(["--run-ignored", "only"])
        .args(packages)
        .current_dir(recipe::root())
        .env("PATH", recipe::path())
        .stderr(Stdio::inherit())
        .output()
        .into_diagnostic()?;
    serde_json::from_slice(&output.stdout)
        .into_diagnostic()
        .wrap_err("cargo nextest does not list the tests")
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_kernels_tests_are_those_of_its_modules() {
        let list: List = serde_json::from_str(
            r#"{"rust-suites": {
                "agent::cni": {"binary-path": "/t/cni", "cwd": "/s/agent", "testcases":
                    {"linux_6_12::netkit": {}, "deep::linux_6_12::ports": {}, "linux_6_12::alone::without": {}, "linux_6_1::old": {}, "verbs::add": {}}},
                "core": {"binary-path": "/t/core", "cwd": "/s/core", "testcases": {"not_linux_6_12::x": {}}}}}"#,
        )
        .unwrap();
        let run = |names: &[&str], alone| Run {
            executable: "/t/cni".into(),
            directory: "/s/agent".into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            alone,
        };
        let beside = ["deep::linux_6_12::ports", "linux_6_12::netkit"];
        let alone = run(&["linux_6_12::alone::without"], true);
        assert_eq!(choose(&list, "linux_6_12", ""), [run(&beside, false), alone]);
        assert_eq!(choose(&list, "linux_6_12", "ports"), [run(&beside[..1], false)]);
        assert_eq!(choose(&list, "linux_6_1", ""), [run(&["linux_6_1::old"], false)]);
        assert_eq!(choose(&list, "linux_5_10", ""), []);
    }
}

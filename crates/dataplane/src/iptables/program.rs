//! iptables' programs, of which there are two kinds: *legacy* has its own tables in the kernel, *nft* keeps the same in
//! nftables. A machine may have both, but rules are to be where kubelet's and others' are.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use podnet_core::cluster::Family;
use podnet_linux::netfilter::xtables;

use super::model::program;
use super::turn::Turn;
use super::{PREFIX, families};
use crate::services::ServiceError;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The kernel's own tables.
    Legacy,
    /// nftables' tables.
    Nft,
}

/// Chains by which kubelet says which variant it uses (KEP 3178), and an older one of its own.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY "];
/// iptables' own programs wait so long for each other, in seconds.
const WAIT: &str = "20";

impl Variant {
    /// Both.
    pub const ALL: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    /// As programs are called after it.
    pub fn as_str(self) -> &'static str {
        match self {
            Variant::Legacy => "legacy",
            Variant::Nft => "nft",
        }
    }

    /// The one that this machine uses: the one with kubelet's chains, else the one with more rules of others, else the
    /// one that `iptables` is.
    pub fn detect() -> Result<Self, ServiceError> {
        let there: Vec<Variant> = Variant::ALL
            .into_iter()
            .filter(|variant| variant.is_installed())
            .collect();
        match there[..] {
            [] => return Err(ServiceError::NoProgram),
            [only] => return Ok(only),
            _ => {}
        }
        let mut rules = Vec::new();
        for variant in there {
            let saved = families().iter().map(|family| variant.save(*family));
            let saved: String = saved.collect::<Result<_, _>>()?;
            if HINTS.iter().any(|hint| saved.contains(hint)) {
                return Ok(variant);
            }
            let theirs = |line: &&str| line.starts_with("-A ") && !line.contains(PREFIX);
            rules.push((saved.lines().filter(theirs).count(), variant));
        }
        match rules[..] {
            [(more, first), (less, _)] if more > less => Ok(first),
            [(less, _), (more, second)] if more > less => Ok(second),
            _ => Ok(Variant::of_plain_program()),
        }
    }

    fn of_plain_program() -> Self {
        let version = Command::new("iptables").arg("--version").output();
        let is_legacy =
            version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("(legacy)"));
        if is_legacy { Variant::Legacy } else { Variant::Nft }
    }

    fn is_installed(self) -> bool {
        let program = self.program(Family::V4, "-restore");
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(&program).is_file())
    }

    fn program(self, family: Family, what: &str) -> String {
        format!("{}-{}{what}", program(family), self.as_str())
    }

    /// What `iptables-save` prints of all tables. Nothing where there is no table, which reading must not make, or no such
    /// program.
    pub fn save(self, family: Family) -> Result<String, ServiceError> {
        let is_any = self == Variant::Nft
            || !xtables::tables(family == Family::V6)
                .unwrap_or_default()
                .is_empty();
        if !is_any {
            return Ok(String::new());
        }
        let program = self.program(family, "-save");
        let output = match Command::new(&program).stdin(Stdio::null()).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            other => other,
        };
        let output = output.map_err(|source| ServiceError::Program {
            program: program.clone(),
            why: source.to_string(),
        })?;
        check(&program, &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Does what a script says, in as many steps as it has tables. What it does not name stays. The turn goes on until the
    /// program ends, even if that is later than the end of this one.
    pub(super) fn restore(self, family: Family, script: &str, turn: &Turn) -> Result<(), ServiceError> {
        if script.is_empty() {
            return Ok(());
        }
        let program = self.program(family, "-restore");
        let failed = |source: std::io::Error| ServiceError::Program {
            program: program.clone(),
            why: source.to_string(),
        };
        let mut child = Command::new(&program)
            .args(["--noflush", "-w", WAIT])
            .stdin(Stdio::piped())
            .stdout(turn.stdout().map_err(failed)?)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        // One that ended early says why by itself.
        let written = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(script.as_bytes()));
        let output = child.wait_with_output().map_err(failed)?;
        check(&program, &output)?;
        written.transpose().map_err(failed).map(drop)
    }
}

fn check(program: &str, output: &Output) -> Result<(), ServiceError> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    Err(ServiceError::Program {
        program: program.to_owned(),
        why: format!("{}: {}", output.status, said.join("; ")),
    })
}

//! What is printed.

use std::fmt::Write;

use comfy_table::{Table, presets};
use podnet_core::cluster::Family;
use podnet_core::flow::Traffic;
use podnet_core::policy::explain::{Explanation, Party};
use podnet_core::policy::judge::{Decision, Outcome};
use podnet_core::policy::lint::Finding;
use podnet_core::policy::matrix::{Fate, Matrix};
use serde_json::{Value, json};

/// What was asked, and the answer in each family.
pub(super) type Answers = [(Traffic, Vec<Explanation>)];

/// Somebody outside of the cluster: addresses of RFC 5737 and RFC 3849.
pub(super) fn outside() -> Option<Party> {
    Some(Party {
        name: "(outside)".to_owned(),
        addresses: vec!["192.0.2.1".parse().ok()?, "2001:db8::1".parse().ok()?],
        domain: None,
    })
}

fn fate(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// In words. Families that are judged alike are told once.
pub(super) fn explanation(from: &Party, to: &Party, answers: &Answers) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for (traffic, families) in answers {
        let alike = families.windows(2).all(|two| two[0].verdict == two[1].verdict);
        for explanation in families.iter().take(if alike { 1 } else { families.len() }) {
            let in_family = if alike {
                String::new()
            } else {
                format!(" over {}", family(explanation.family))
            };
            let verdict = &explanation.verdict;
            let word = fate(verdict.allowed());
            _ = writeln!(text, "{} to {} {traffic}{in_family}: {word}", from.name, to.name);
            end(
                &mut text,
                &format!("sent by {}", from.name),
                verdict.egress.as_ref(),
            );
            end(
                &mut text,
                &format!("received by {}", to.name),
                verdict.ingress.as_ref(),
            );
            for change in &explanation.change {
                _ = writeln!(text, "  {change}");
            }
        }
    }
    text
}

fn end(text: &mut String, who: &str, decision: Option<&Decision>) {
    let Some(decision) = decision else {
        _ = writeln!(text, "  {who}: no policies at this end");
        return;
    };
    let word = fate(decision.allowed);
    _ = writeln!(text, "  {who}: {word}: {}", decision.reason);
    for step in &decision.steps {
        let outcome = match step.outcome {
            Outcome::OtherPeer => "other peer",
            Outcome::OtherPort => "other port",
            Outcome::Passed => "passes on",
            Outcome::Decided => "decides",
        };
        _ = writeln!(text, "    {outcome:<10} {}", step.rule);
    }
}

pub(super) fn explanation_json(from: &Party, to: &Party, answers: &Answers) -> Value {
    let one = |decision: &Option<Decision>| {
        let decision = decision.as_ref()?;
        let steps = decision
            .steps
            .iter()
            .map(|step| json!({"rule": step.rule.to_string(), "outcome": step.outcome.to_string()}));
        Some(json!({
            "allowed": decision.allowed,
            "reason": decision.reason.to_string(),
            "rules": steps.collect::<Vec<_>>(),
        }))
    };
    let flat = answers.iter().flat_map(|(traffic, families)| {
        families.iter().map(move |explanation| {
            json!({
                "from": from.name, "to": to.name, "traffic": traffic.to_string(),
                "family": family(explanation.family),
                "source": explanation.flow.from, "destination": explanation.flow.to,
                "allowed": explanation.verdict.allowed(),
                "egress": one(&explanation.verdict.egress),
                "ingress": one(&explanation.verdict.ingress),
                "change": explanation.change,
            })
        })
    });
    Value::Array(flat.collect())
}

/// A line per source, a column per target.
pub(super) fn table(matrix: &Matrix) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let heads = matrix.targets.iter().map(ToString::to_string);
    table.set_header(std::iter::once("FROM \\ TO".to_owned()).chain(heads));
    for (name, cells) in &matrix.rows {
        let words = cells.iter().map(|cell| match cell.fate {
            Fate::Allowed => "yes",
            Fate::Denied => "no",
            Fate::Mixed => "in part",
            Fate::None => "-",
        });
        table.add_row(std::iter::once(name.as_str()).chain(words));
    }
    format!("{table}\n")
}

pub(super) fn matrix_json(matrix: &Matrix) -> Value {
    let cells = matrix.rows.iter().flat_map(|(from, cells)| {
        cells
            .iter()
            .zip(&matrix.targets)
            .filter(|(cell, _)| cell.fate != Fate::None)
            .map(move |(cell, target)| {
                json!({
                    "from": from, "to": target.to.name, "traffic": target.traffic.to_string(),
                    "verdict": cell.fate.word(), "why": cell.why,
                })
            })
    });
    Value::Array(cells.collect())
}

pub(super) fn findings(findings: &[Finding]) -> String {
    let lines = findings
        .iter()
        .map(|finding| format!("{}: {}: {}\n", finding.object, finding.kind.word(), finding.text));
    lines.collect()
}

pub(super) fn findings_json(findings: &[Finding]) -> Value {
    let of = |finding: &Finding| {
        json!({
            "object": finding.object.to_string(), "finding": finding.kind.word(), "text": finding.text,
        })
    };
    Value::Array(findings.iter().map(of).collect())
}

//! Who reaches whom: every source against every destination, as data and as a drawing.

use std::fmt::Write;

use super::explain::{Explanation, Party, explain};
use super::judge::{Judge, Reason};
use crate::flow::Traffic;

/// A table of verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Its columns: a destination and what is sent to it.
    pub targets: Vec<Target>,
    /// Its rows: a source, and a cell for each column.
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The destination.
    pub to: Party,
    /// What is sent.
    pub traffic: Traffic,
}

/// What becomes of what a source sends to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The verdict.
    pub fate: Fate,
    /// What decided, where it is denied; empty otherwise.
    pub why: String,
}

/// A verdict over the families that both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Allowed in each.
    Allowed,
    /// Denied in each.
    Denied,
    /// Allowed in one and denied in the other.
    Mixed,
    /// They have no family in common, or they are one and the same pod.
    None,
}

impl Fate {
    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Fate::Allowed => "allowed",
            Fate::Denied => "denied",
            Fate::Mixed => "mixed",
            Fate::None => "none",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Fate::Allowed => "#2e9e5b",
            Fate::Denied => "#c8452f",
            Fate::Mixed => "#d9a520",
            Fate::None => "#d0d0d0",
        }
    }
}

/// Judges every source against every target.
pub fn matrix(judge: &Judge, sources: &[Party], targets: Vec<Target>) -> Matrix {
    let row = |from: &Party| {
        let cells = targets.iter().map(|target| cell(judge, from, target)).collect();
        (from.name.clone(), cells)
    };
    Matrix {
        rows: sources.iter().map(row).collect(),
        targets,
    }
}

fn cell(judge: &Judge, from: &Party, target: &Target) -> Cell {
    let none = Cell {
        fate: Fate::None,
        why: String::new(),
    };
    if from.name == target.to.name {
        return none;
    }
    let families = explain(judge, from, &target.to, target.traffic);
    let allowed = |explanation: &&Explanation| explanation.verdict.allowed();
    let fate = match (families.iter().filter(allowed).count(), families.len()) {
        (_, 0) => return none,
        (0, _) => Fate::Denied,
        (some, all) if some == all => Fate::Allowed,
        _ => Fate::Mixed,
    };
    let denied = families.iter().find(|explanation| !allowed(explanation));
    let why = denied.and_then(reason).map(|reason| reason.to_string());
    Cell {
        fate,
        why: why.unwrap_or_default(),
    }
}

/// What denied a flow.
fn reason(explanation: &Explanation) -> Option<&Reason> {
    let ends = [&explanation.verdict.egress, &explanation.verdict.ingress];
    let denied = ends.into_iter().flatten().find(|decision| !decision.allowed);
    denied.map(|decision| &decision.reason)
}

impl Matrix {
    /// As a drawing. What denied is the title of its cell, which browsers show under the pointer.
    pub fn svg(&self) -> String {
        const CELL: usize = 22;
        const LETTER: usize = 7;
        let longest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0) * LETTER + 12;
        let heads: Vec<String> = self.targets.iter().map(Target::to_string).collect();
        let left = longest(&mut self.rows.iter().map(|(name, _)| name.len()));
        let top = longest(&mut heads.iter().map(String::len));
        let (width, height) = (left + heads.len() * CELL + 10, top + self.rows.len() * CELL + 10);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"monospace\" \
             font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        // Writing to a string cannot fail.
        for (i, head) in heads.iter().enumerate() {
            let (x, y) = (left + i * CELL + 15, top - 6);
            let head = escaped(head);
            _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{y}\" transform=\"rotate(-90 {x} {y})\">{head}</text>"
            );
        }
        for (j, (name, cells)) in self.rows.iter().enumerate() {
            let y = top + j * CELL;
            let (x, base) = (left - 6, y + 15);
            let name = escaped(name);
            _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{name}</text>"
            );
            for (i, (cell, head)) in cells.iter().zip(&heads).enumerate() {
                let (x, side, colour) = (left + i * CELL, CELL - 2, cell.fate.colour());
                let mut title = format!("{name} to {}: {}", escaped(head), cell.fate.word());
                if !cell.why.is_empty() {
                    _ = write!(title, ": {}", escaped(&cell.why));
                }
                _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" fill=\"{colour}\"><title>{title}</title></rect>"
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.to.name, self.traffic)
    }
}

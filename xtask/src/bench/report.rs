//! From samples to a table and JSON.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use miette::{Context, IntoDiagnostic};
use serde::Serialize;

use super::dns::Figures;
use super::plugin::PluginStart;
use super::verbs::VerbTimes;
use super::{api_services, peers, services};
use crate::netperf::{Sample, Test};

/// All that was measured in one run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) cpu: usize,
    pub(super) runs: u16,
    pub(super) seconds: f64,
    pub(super) up: Option<UpTimes>,
    pub(super) verbs: Option<VerbTimes>,
    pub(super) dns: Option<Figures>,
    pub(super) peers: Option<peers::Times>,
    pub(super) services: Option<Vec<services::Times>>,
    pub(super) api_services: Option<Vec<api_services::Times>>,
    pub(super) plugin: Option<PluginStart>,
    pub(super) paths: Vec<Series>,
}

/// How long `podnet lab up` took, in seconds.
#[derive(Debug, Serialize)]
pub(super) struct UpTimes {
    pub(super) seconds: Vec<f64>,
    pub(super) median: f64,
}

impl UpTimes {
    pub(super) fn new(seconds: Vec<f64>) -> Self {
        UpTimes {
            median: median(seconds.clone()),
            seconds,
        }
    }
}

/// What one path gave.
#[derive(Debug, Serialize)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) against: Option<&'static str>,
    throughput: Vec<Sample>,
    requests: Vec<Sample>,
    connects: Vec<Sample>,
}

/// The medians of one path.
#[derive(Debug, Clone, Copy, Serialize)]
struct Medians {
    gigabits_per_second: f64,
    cpu_seconds_per_gigabit: f64,
    requests_per_cpu_second: f64,
    connects_per_cpu_second: f64,
}

impl Series {
    pub(super) fn new(name: &'static str, against: Option<&'static str>) -> Self {
        Series {
            name,
            against,
            throughput: Vec::new(),
            requests: Vec::new(),
            connects: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, test: Test, sample: Sample) {
        match test {
            Test::Throughput => self.throughput.push(sample),
            Test::Requests => self.requests.push(sample),
            Test::Connects => self.connects.push(sample),
        }
    }

    fn medians(&self) -> Medians {
        let of =
            |samples: &[Sample], figure: fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
        Medians {
            gigabits_per_second: of(&self.throughput, |s| s.count / s.seconds / 1e9),
            cpu_seconds_per_gigabit: of(&self.throughput, |s| s.cpu_seconds / (s.count / 1e9)),
            requests_per_cpu_second: of(&self.requests, |s| s.count / s.cpu_seconds),
            connects_per_cpu_second: of(&self.connects, |s| s.count / s.cpu_seconds),
        }
    }
}

impl Medians {
    /// Above 1 is better than `limit`, in every figure.
    fn against(&self, limit: &Medians) -> [f64; 4] {
        [
            self.gigabits_per_second / limit.gigabits_per_second,
            limit.cpu_seconds_per_gigabit / self.cpu_seconds_per_gigabit,
            self.requests_per_cpu_second / limit.requests_per_cpu_second,
            self.connects_per_cpu_second / limit.connects_per_cpu_second,
        ]
    }

    fn figures(&self) -> [String; 4] {
        [
            format!("{:.2}", self.gigabits_per_second),
            format!("{:.4}", self.cpu_seconds_per_gigabit),
            format!("{:.0}", self.requests_per_cpu_second),
            format!("{:.0}", self.connects_per_cpu_second),
        ]
    }
}

/// The middle, or the mean of the two in the middle; NaN of nothing.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let (left, right) = (figures.len().saturating_sub(1) / 2, figures.len() / 2);
    match (figures.get(left), figures.get(right)) {
        (Some(left), Some(right)) => (left + right) / 2.0,
        _ => f64::NAN,
    }
}

impl Report {
    fn limit_of(&self, series: &Series) -> Option<&Series> {
        let name = series.against?;
        self.paths.iter().find(|other| other.name == name)
    }

    /// Writes the samples, the medians and the ratios; returns the file's path.
    pub(super) fn write(&self, directory: &Path) -> miette::Result<PathBuf> {
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let file = directory.join(format!("bench-{time}.json"));
        let rows: Vec<serde_json::Value> = self.paths.iter().map(|series| self.row(series)).collect();
        let document = serde_json::json!({"time": time, "medians": rows, "samples": self});
        let text = serde_json::to_vec_pretty(&document).into_diagnostic()?;
        std::fs::create_dir_all(directory)
            .and_then(|()| std::fs::write(&file, text))
            .into_diagnostic()
            .wrap_err_with(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    fn row(&self, series: &Series) -> serde_json::Value {
        let medians = series.medians();
        let ratios = self
            .limit_of(series)
            .map(|limit| medians.against(&limit.medians()));
        let ratios = ratios.map(|[throughput, cpu, requests, connects]| {
            serde_json::json!({"throughput": throughput, "cpu": cpu, "requests": requests, "connects": connects})
        });
        serde_json::json!({"path": series.name, "against": series.against, "medians": medians, "ratios": ratios})
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["path", "Gbit/s", "CPU s/Gbit", "requests/CPU s", "connects/CPU s"]);
        for series in &self.paths {
            let medians = series.medians();
            let mut row = vec![series.name.to_owned()];
            let ratios = self
                .limit_of(series)
                .map(|limit| medians.against(&limit.medians()));
            for (index, figure) in medians.figures().into_iter().enumerate() {
                row.push(match ratios {
                    Some(ratios) => format!("{figure} ({:.2})", ratios[index]),
                    None => figure,
                });
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        writeln!(
            f,
            "medians of {} runs of {} s on CPU {}",
            self.runs, self.seconds, self.cpu
        )?;
        writeln!(
            f,
            "in brackets: against the kernel's own path above; more than 1 is better"
        )?;
        if let Some(up) = &self.up {
            writeln!(
                f,
                "podnet lab up, 3 nodes and the demo: {:.2} s (median of {})",
                up.median,
                up.seconds.len()
            )?;
        }
        if let Some(verbs) = &self.verbs {
            write!(f, "{verbs}")?;
        }
        if let Some(plugin) = &self.plugin {
            writeln!(
                f,
                "podnet-cni, from exec to exit: {:.2} ms (p99 {:.2})",
                plugin.p50, plugin.p99
            )?;
        }
        if let Some(peers) = &self.peers {
            write!(f, "{peers}")?;
        }
        for services in self.services.iter().flatten() {
            write!(f, "{services}")?;
        }
        for services in self.api_services.iter().flatten() {
            write!(f, "{services}")?;
        }
        if let Some(dns) = &self.dns {
            writeln!(
                f,
                "names of 10,000 services and 50,000 endpoints: {:.1} MiB, made in {:.1} ms; questions per CPU second:",
                dns.table_mebibytes, dns.table_made_in_milliseconds
            )?;
            for rate in &dns.questions {
                writeln!(f, "  {:>9.0}  {}", rate.per_second, rate.kind)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn ratios_are_above_one_when_podnet_is_better() {
        let series = |name, against, factor: f64| {
            let mut series = Series::new(name, against);
            for test in Test::ALL {
                series.add(
                    test,
                    Sample {
                        seconds: 1.0,
                        cpu_seconds: 1.0,
                        count: 1e9 * factor,
                    },
                );
            }
            series
        };
        let report = Report {
            cpu: 1,
            runs: 1,
            seconds: 1.0,
            up: None,
            verbs: None,
            plugin: None,
            peers: None,
            services: None,
            api_services: None,
            dns: None,
            paths: vec![series("limit", None, 1.0), series("ours", Some("limit"), 2.0)],
        };
        let row = report.row(&report.paths[1]);
        for figure in ["throughput", "cpu", "requests", "connects"] {
            assert_eq!(row["ratios"][figure], 2.0, "{figure}");
        }
        assert!(report.to_string().contains("(2.00)"));
    }
}

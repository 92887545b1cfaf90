//! From single attempts to a verdict: thresholds and timing, without a clock.

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Holds the other two back until it passes once; its failure ends the run.
    Startup,
    /// Its failure takes the pod out of its services.
    Readiness,
    /// Its failure ends the run.
    Liveness,
}

impl Kind {
    /// As events write it.
    pub fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// A probe's numbers with Kubernetes' defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// From the container's start to the first attempt.
    pub initial_delay: Duration,
    /// Between attempts.
    pub period: Duration,
    /// For one attempt.
    pub timeout: Duration,
    /// Successes in a row that make it pass.
    pub successes: u32,
    /// Failures in a row that make it fail.
    pub failures: u32,
}

impl Settings {
    /// The numbers of a probe.
    pub fn of(probe: &Probe) -> Settings {
        let number = |value: Option<i32>, default: u32| {
            value
                .and_then(|it| u32::try_from(it).ok())
                .filter(|it| *it > 0)
                .unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(number(value, default).into());
        Settings {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: number(probe.success_threshold, 1),
            failures: number(probe.failure_threshold, 3),
        }
    }
}

/// The verdict of a probe so far, and the row of equal attempts that may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    passes: Option<bool>,
    last: Option<bool>,
    row: u32,
}

impl Verdict {
    /// Before the first attempt: a container is alive, and neither ready nor started.
    pub fn new(kind: Kind) -> Verdict {
        let passes = match kind {
            Kind::Startup => None,
            Kind::Readiness => Some(false),
            Kind::Liveness => Some(true),
        };
        Verdict {
            passes,
            last: None,
            row: 0,
        }
    }

    /// What holds now; `None` before a startup probe's first verdict.
    pub fn passes(&self) -> Option<bool> {
        self.passes
    }

    /// Takes an attempt's outcome in; returns the verdict if it is another one now.
    pub fn attempt(&mut self, success: bool, settings: &Settings) -> Option<bool> {
        self.row = if self.last == Some(success) {
            self.row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let needed = if success {
            settings.successes
        } else {
            settings.failures
        };
        if self.row < needed || self.passes == Some(success) {
            return None;
        }
        self.passes = Some(success);
        Some(success)
    }
}

/// The pauses between the first attempts of a readiness or startup probe over the network: a server that
/// needs 50 ms to listen need not wait for a whole period to count as ready. These early attempts are not
/// counted as failures and not reported; after the first period kubelet's timing applies.
pub fn early_attempts(period: Duration) -> impl Iterator<Item = Duration> {
    let mut spent = Duration::ZERO;
    std::iter::successors(Some(Duration::from_millis(50)), |it| {
        Some((*it * 2).min(Duration::from_secs(1)))
    })
    .take_while(move |pause| {
        spent += *pause;
        spent < period
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        Settings::of(&serde_json::from_str(text).unwrap())
    }

    fn run(kind: Kind, settings: &Settings, attempts: &str) -> String {
        let mut verdict = Verdict::new(kind);
        attempts
            .chars()
            .map(|it| match verdict.attempt(it == '+', settings) {
                Some(true) => 'P',
                Some(false) => 'F',
                None => '.',
            })
            .collect()
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let it = settings("{}");
        assert_eq!(
            (
                it.initial_delay.as_secs(),
                it.period.as_secs(),
                it.timeout.as_secs()
            ),
            (0, 10, 1)
        );
        assert_eq!((it.successes, it.failures), (1, 3));
    }

    #[test]
    fn verdicts_need_their_row() {
        let plain = settings("{}");
        assert_eq!(run(Kind::Readiness, &plain, "--+--+---+"), "..P.....FP");
        assert_eq!(run(Kind::Liveness, &plain, "+-+---"), ".....F");
        assert_eq!(run(Kind::Startup, &plain, "--+"), "..P");
        assert_eq!(run(Kind::Startup, &plain, "---"), "..F");
        let slow = settings(r#"{"successThreshold":2,"failureThreshold":1}"#);
        assert_eq!(run(Kind::Readiness, &slow, "+-++-"), "...PF");
    }

    #[test]
    fn early_attempts_end_within_the_first_period() {
        let total: Duration = early_attempts(Duration::from_secs(10)).sum();
        assert!(total < Duration::from_secs(10) && total > Duration::from_secs(8));
        assert!(early_attempts(Duration::from_secs(1)).count() < 6);
    }
}

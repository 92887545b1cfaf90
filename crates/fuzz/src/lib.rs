//! A fuzzer that runs as an ordinary test.
//!
//! It mutates documents, as JSON and as bytes, and gives them to a target. The target panics when something is wrong;
//! otherwise it says in a word or two how it answered, and documents that are answered in a way not seen before are
//! mutated further. So it needs neither instrumented builds nor another toolchain: the executables under test are the
//! ones that ship.
//!
//! A test called `fuzz_*` runs a fixed number of documents made from a fixed seed; `cargo xtask fuzz` sets a time
//! instead, and another seed every time.

mod mutate;
mod random;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use mutate::Mutator;
pub use random::Random;

/// How long to run, in seconds, in place of [`ORDINARY_RUN`] documents.
pub const SECONDS: &str = "PODNET_FUZZ_SECONDS";
/// The seed to run with, in place of one that the clock gives, to see a run again.
pub const SEED: &str = "PODNET_FUZZ_SEED";
/// Where to keep a document that something was wrong with.
pub const DIRECTORY: &str = "PODNET_FUZZ_DIRECTORY";
/// Documents in an ordinary test run.
const ORDINARY_RUN: u64 = 20_000;
/// Documents that are kept to be mutated further. When there are more, one of them makes room.
const LARGEST_CORPUS: usize = 4096;
/// Longest document that mutation makes.
const LONGEST: usize = 64 * 1024;

/// How long to run.
#[derive(Debug, Clone, Copy)]
enum Budget {
    Documents(u64),
    Time(Duration),
}

/// Runs a target on the seeds and what becomes of them. Returns the number of documents and of different answers.
///
/// `words` are the target's vocabulary: keys, and values on the edge of what is valid.
pub fn run(
    name: &str,
    seeds: &[&[u8]],
    words: &[&str],
    mut target: impl FnMut(&[u8]) -> String,
) -> (u64, usize) {
    let (budget, seed) = plan();
    println!("fuzz {name}: {SEED}={seed}");
    let mut random = Random::new(seed);
    let mutator = Mutator { words };
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let mut answers = BTreeSet::new();
    let begin = Instant::now();
    let mut count = 0;
    while match budget {
        _ if (count as usize) < seeds.len() => true,
        Budget::Documents(documents) => count < documents,
        Budget::Time(time) => begin.elapsed() < time,
    } {
        let document = match seeds.get(count as usize) {
            Some(seed) => seed.to_vec(),
            None => mutator.mutate(&corpus, &mut random, LONGEST),
        };
        let answer = {
            let _guard = Guard {
                name,
                document: &document,
            };
            target(&document)
        };
        if answers.insert(answer) {
            if corpus.len() < LARGEST_CORPUS {
                corpus.push(document);
            } else {
                corpus[random.below(LARGEST_CORPUS)] = document;
            }
        }
        count += 1;
    }
    println!(
        "fuzz {name}: {count} documents, {} different answers, nothing found in {:.1} s",
        answers.len(),
        begin.elapsed().as_secs_f64()
    );
    (count, answers.len())
}

fn plan() -> (Budget, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(1, |since| since.as_nanos() as u64)
    };
    match number(SECONDS) {
        Some(seconds) => (
            Budget::Time(Duration::from_secs(seconds)),
            number(SEED).unwrap_or_else(clock),
        ),
        None => (Budget::Documents(ORDINARY_RUN), number(SEED).unwrap_or(1)),
    }
}

/// Shows the document when its target panics.
struct Guard<'a> {
    name: &'a str,
    document: &'a [u8],
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("fuzz {}: found with {}", self.name, self.document.escape_ascii());
        let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
            return;
        };
        let file = directory.join(format!("{}-{}", self.name, std::process::id()));
        match std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&file, self.document)) {
            Ok(()) => eprintln!("fuzz {}: kept as {}", self.name, file.display()),
            Err(error) => eprintln!("fuzz {}: cannot keep it: {error}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const SEED_DOCUMENT: &[u8] = br#"{"port":80,"hosts":["a","b"]}"#;

    /// What a reader with a fault answers, and where it breaks.
    fn faulty(document: &[u8]) -> String {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(document) else {
            return "not JSON".into();
        };
        match (value["port"].as_i64(), value["hosts"].as_array()) {
            (None, _) => "no port".into(),
            (Some(_), None) => "no hosts".into(),
            (Some(port), Some(hosts)) if !(1..=65535).contains(&port) => {
                assert!(!hosts.is_empty(), "the fault: a bad port and no hosts");
                "bad port".into()
            }
            (Some(_), Some(hosts)) => format!("fine with {}", hosts.len().min(3)),
        }
    }

    #[test]
    fn a_fault_that_takes_two_steps_is_found() {
        let found = catch_unwind(AssertUnwindSafe(|| {
            run("faulty", &[SEED_DOCUMENT], &["port"], faulty)
        }));
        assert!(found.is_err(), "the fault was not found");
    }

    #[test]
    fn without_a_fault_it_ends_and_has_seen_many_answers() {
        let (count, answers) = run(
            "sound",
            &[SEED_DOCUMENT],
            &["port"],
            |document| match catch_unwind(|| faulty(document)) {
                Ok(answer) => answer,
                Err(_) => "the fault".into(),
            },
        );
        assert!(count >= 1 && answers >= 5, "{count} documents, {answers} answers");
    }
}

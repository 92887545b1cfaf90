//! SIGKILL in the middle of writes: whatever was acknowledged is there afterwards, and the revision never goes back.
//!
//! The test runs itself again as the process that is killed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use podnet_apiserver::store::{self, Change, Expect, Store, Write};
use serde_json::json;

const DIR: &str = "PODNET_CRASH_DIR";
const ROUNDS: usize = 25;
const WRITERS: u64 = 8;

/// The victim: eight writers change their own objects as fast as they can and say what was acknowledged.
#[test]
fn victim() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = store::disk(Path::new(&dir)).unwrap();
        println!("\nopen");
        let writers = (0..WRITERS).map(|writer| tokio::spawn(write_forever(store.clone(), writer)));
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
}

async fn write_forever(store: Arc<dyn Store>, writer: u64) {
    for n in 0u64.. {
        let key = format!("core/configmaps/default/w{writer}-{}", n % 5);
        let (expect, change) = match store.get(&key).await {
            None => (Expect::Absent, Change::Put(json!({"n": n}))),
            Some(stored) if n % 7 == 3 => (Expect::At(stored.revision), Change::Delete(None)),
            Some(stored) => (Expect::At(stored.revision), Change::Put(json!({"n": n}))),
        };
        let deleted = matches!(change, Change::Delete(_));
        let stored = store
            .write(Write {
                key: key.clone(),
                expect,
                change,
            })
            .await
            .unwrap();
        // One write call per line: lines of several writers must not mix.
        println!(
            "\nack {key} {} {}",
            stored.revision,
            if deleted { "gone".to_owned() } else { n.to_string() }
        );
    }
}

/// What was acknowledged last of each key: its revision, and its content unless it was deleted.
type Acknowledged = BTreeMap<String, (u64, Option<u64>)>;

fn kill_after(dir: &Path, delay: Duration, acknowledged: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    assert!(
        lines.any(|line| line == "open"),
        "the store opens after the crash before"
    );
    let killer = std::thread::spawn(move || {
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        // The last line may be cut off; then it was not yet said.
        if let ["ack", key, revision, content] = words.as_slice()
            && let Ok(revision) = revision.parse()
        {
            acknowledged.insert((*key).to_owned(), (revision, content.parse().ok()));
        }
    }
    killer.join().unwrap();
}

#[test]
fn nothing_acknowledged_is_lost() {
    if std::env::var(DIR).is_ok() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Acknowledged::new();
    let mut revision_before = 0;
    for round in 0..ROUNDS {
        let delay = Duration::from_micros(500 + (round as u64 * 7919) % 60_000);
        kill_after(dir.path(), delay, &mut acknowledged);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = store::disk(dir.path()).unwrap();
            let listing = store.list("core/", None).await.unwrap();
            assert!(
                listing.revision >= revision_before,
                "the revision never goes back"
            );
            revision_before = listing.revision;
            let mut unsaid: BTreeMap<String, usize> = BTreeMap::new();
            for (key, (revision, content)) in &mut acknowledged {
                let stored = store.get(key).await;
                let found = stored.as_ref().and_then(|stored| stored.object["n"].as_u64());
                if stored.as_ref().is_some_and(|stored| stored.revision == *revision) || found == *content {
                    assert_eq!(found, *content, "{key} at {revision}");
                    continue;
                }
                // A later change that was not said: each writer had one on its way, and no more.
                let later = stored.as_ref().map_or(listing.revision, |stored| stored.revision);
                assert!(
                    later > *revision,
                    "{key}: acknowledged {content:?} at {revision}, found {stored:?}"
                );
                let writer = key.split('-').next().unwrap_or_default();
                *unsaid.entry(writer.to_owned()).or_default() += 1;
                (*revision, *content) = (later, found);
            }
            assert!(
                unsaid.values().all(|changes| *changes <= 1),
                "acknowledged writes are lost: {unsaid:?}"
            );
        });
    }
    assert!(acknowledged.len() > 20, "the victims did write: {acknowledged:?}");
}

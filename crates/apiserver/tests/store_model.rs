//! The store against a naive model that keeps every state it ever was in.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use podnet_apiserver::store::{self, Change, Expect, Store, Write, WriteError};
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Put(usize, bool),
    Delete(usize, bool),
}

/// Two resources, one of them in two namespaces.
const KEYS: [&str; 6] = [
    "core/pods/a/x",
    "core/pods/a/y",
    "core/pods/a-b/x",
    "core/nodes/x",
    "core/nodes/y",
    "core/pods/a/z",
];
const PREFIXES: [&str; 3] = ["core/pods/", "core/pods/a/", "core/nodes/"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..3u8, 0..KEYS.len(), any::<bool>()).prop_map(|(kind, key, stale)| match kind {
        0 => Step::Create(key),
        1 => Step::Put(key, stale),
        _ => Step::Delete(key, stale),
    });
    prop::collection::vec(step, 0..80)
}

type State = BTreeMap<String, (u64, Value)>;

/// `(revision, key, deleted, n)` of every change.
type Change4 = (u64, String, bool, Value);

#[derive(Default)]
struct Model {
    states: BTreeMap<u64, State>,
    changes: Vec<Change4>,
}

async fn run(store: &Arc<dyn Store>, steps: &[Step]) -> Model {
    let start = store.list("core/", None).await.unwrap().revision;
    let mut model = Model::default();
    let mut state = State::new();
    model.states.insert(start, state.clone());
    let mut revision = start;
    for (n, step) in steps.iter().enumerate() {
        let object = json!({"n": n});
        let (key, expect, change) = match *step {
            Step::Create(key) => (KEYS[key], Expect::Absent, Change::Put(object.clone())),
            Step::Put(key, stale) => {
                let at = state.get(KEYS[key]).map_or(1, |(revision, _)| *revision);
                (
                    KEYS[key],
                    Expect::At(if stale { at + 1 } else { at }),
                    Change::Put(object.clone()),
                )
            }
            Step::Delete(key, stale) => {
                let at = state.get(KEYS[key]).map_or(1, |(revision, _)| *revision);
                (
                    KEYS[key],
                    Expect::At(if stale { at + 1 } else { at }),
                    Change::Delete(None),
                )
            }
        };
        let deleted = matches!(change, Change::Delete(_));
        let current = state.get(key).cloned();
        let outcome = store
            .write(Write {
                key: key.to_owned(),
                expect,
                change,
            })
            .await;
        match (expect, &current) {
            (Expect::Absent, Some(_)) => assert!(matches!(outcome, Err(WriteError::Exists))),
            (Expect::At(_), None) => assert!(matches!(outcome, Err(WriteError::Missing))),
            (Expect::At(at), Some((is, _))) if at != *is => {
                assert!(matches!(outcome, Err(WriteError::Changed(_))))
            }
            _ => {
                let stored = outcome.unwrap();
                revision += 1;
                assert_eq!(
                    stored.revision, revision,
                    "the revision rises by one with every change"
                );
                let n = if deleted { current.unwrap().1 } else { json!(n) };
                match deleted {
                    true => drop(state.remove(key)),
                    false => drop(state.insert(key.to_owned(), (revision, n.clone()))),
                }
                model.changes.push((revision, key.to_owned(), deleted, n));
                model.states.insert(revision, state.clone());
            }
        }
    }
    model
}

async fn check(store: &Arc<dyn Store>, model: &Model) {
    for (revision, state) in &model.states {
        for prefix in PREFIXES {
            let listing = store.list(prefix, Some(*revision)).await.unwrap();
            let got: Vec<_> = listing
                .items
                .iter()
                .map(|s| (s.key.clone(), (s.revision, s.object["n"].clone())))
                .collect();
            let want: Vec<_> = state
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            assert_eq!(got, want, "list of {prefix} at {revision}");
            let mut subscription = store.watch(prefix, *revision).await.unwrap();
            for (at, key, deleted, n) in &model.changes {
                if at > revision && key.starts_with(prefix) {
                    let event = subscription.next().await.unwrap();
                    assert_eq!(
                        (event.revision, &event.object.key, event.deleted),
                        (*at, key, *deleted)
                    );
                    assert_eq!(event.object.object["n"], *n);
                    assert_eq!(event.object.object["metadata"]["resourceVersion"], at.to_string());
                }
            }
            assert!(subscription.progress().is_some(), "nothing is left over");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn memory_is_the_model(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let store = store::memory();
            let model = run(&store, &steps).await;
            check(&store, &model).await;
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn disk_is_the_model_and_comes_back(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = store::disk(dir.path()).unwrap();
            let model = run(&store, &steps).await;
            check(&store, &model).await;
            drop(store);
            let (revision, state) = model.states.last_key_value().unwrap();
            let again = store::disk(dir.path()).unwrap();
            let listing = again.list("core/", None).await.unwrap();
            assert_eq!(listing.revision, *revision);
            let got: State = listing.items.iter().map(|s| (s.key.clone(), (s.revision, s.object["n"].clone()))).collect();
            assert_eq!(&got, state);
        });
    }
}

#[tokio::test]
async fn old_revisions_are_gone_and_slow_watchers_are_cut_off() {
    let store = store::memory();
    let mut slow = store.watch("core/pods/", 1).await.unwrap();
    let put = |expect, n: u64| Write {
        key: "core/pods/a/x".into(),
        expect,
        change: Change::Put(json!({"n": n})),
    };
    let mut at = store.write(put(Expect::Absent, 0)).await.unwrap().revision;
    for n in 0..20_000 {
        at = store.write(put(Expect::At(at), n)).await.unwrap().revision;
    }
    assert!(store.watch("core/pods/", 1).await.is_err());
    assert!(store.list("core/pods/", Some(1)).await.is_err());
    assert!(store.watch("core/pods/", at + 1).await.is_err());
    assert!(store.watch("core/pods/", at).await.is_ok());
    let mut seen = 0;
    let mut last = 1;
    while let Some(event) = slow.next().await {
        assert_eq!(
            event.revision,
            last + 1,
            "what a slow watcher is given has no holes"
        );
        last = event.revision;
        seen += 1;
    }
    assert!(seen < 20_000);
}

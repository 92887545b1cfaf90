//! The store on disk: the memory core behind one redb file. One thread writes: it takes all waiting writes,
//! decides them, commits them as one durable transaction, and only then makes them visible and answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use futures::future::{BoxFuture, FutureExt, ready};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::memory::{self, Core, Overlay, Subscription};
use super::{Event, Listing, RevisionError, Store, Stored, Write, WriteError};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// One durable commit covers at most so many writes.
const BATCH: usize = 256;
/// So many writes may wait for the writer; whoever comes later waits to be let in.
const WAITING: usize = 4 * BATCH;

/// Why the store on disk could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The directory cannot be made.
    #[error("cannot make the datastore directory {0}: {1}")]
    Directory(PathBuf, std::io::Error),
    /// The file cannot be opened.
    #[error("cannot open the datastore {0}: {1}; is another apiserver using it?")]
    Open(PathBuf, Box<redb::Error>),
    /// The file is not what this program wrote.
    #[error("the datastore {0} has an object at {1:?} that is no JSON: {2}; restore the file from a backup")]
    Corrupt(PathBuf, String, serde_json::Error),
    /// No thread for the writer.
    #[error("cannot start the datastore's writer thread: {0}")]
    Thread(std::io::Error),
}

type Reply = oneshot::Sender<Result<Arc<Stored>, WriteError>>;

/// See the module.
pub(super) struct Disk {
    core: Arc<Core>,
    /// There until the store is dropped.
    writes: Option<mpsc::Sender<(Write, Reply)>>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Drop for Disk {
    /// Waits for the writer, so that the file is closed and free.
    fn drop(&mut self) {
        self.writes = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the datastore's writer had panicked");
        }
    }
}

impl Disk {
    pub(super) fn open(dir: &Path) -> Result<Disk, DiskError> {
        std::fs::create_dir_all(dir).map_err(|error| DiskError::Directory(dir.to_owned(), error))?;
        let file = dir.join("objects.redb");
        let failed = |error: redb::Error| DiskError::Open(file.clone(), Box::new(error));
        let database = Database::create(&file).map_err(|error| failed(error.into()))?;
        let (revision, raw) = load(&database).map_err(failed)?;
        let mut objects = Vec::with_capacity(raw.len());
        for (key, json) in raw {
            let object: Value = serde_json::from_slice(&json)
                .map_err(|error| DiskError::Corrupt(file.clone(), key.clone(), error))?;
            objects.push(Arc::new(Stored::new(key, revision_of(&object), object)));
        }
        let core = memory::core(revision, objects);
        let (writes, queue) = mpsc::channel(WAITING);
        let writer = Writer {
            core: core.clone(),
            database,
        };
        let thread = thread::Builder::new().name("datastore".into());
        let writer = thread
            .spawn(move || writer.run(queue))
            .map_err(DiskError::Thread)?;
        Ok(Disk {
            core,
            writes: Some(writes),
            writer: Some(writer),
        })
    }
}

type RawObjects = Vec<(String, Vec<u8>)>;

fn load(database: &Database) -> Result<(u64, RawObjects), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(META)?;
    transaction.commit()?;
    let transaction = database.begin_read()?;
    let revision = transaction
        .open_table(META)?
        .get("revision")?
        .map_or(1, |revision| revision.value());
    let mut objects = Vec::new();
    for entry in transaction.open_table(OBJECTS)?.iter()? {
        let (key, json) = entry?;
        objects.push((key.value().to_owned(), json.value().to_vec()));
    }
    Ok((revision, objects))
}

fn revision_of(object: &Value) -> u64 {
    let version = object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str);
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}

struct Writer {
    core: Arc<Core>,
    database: Database,
}

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<(Write, Reply)>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            self.commit(batch);
        }
    }

    fn commit(&self, batch: Vec<(Write, Reply)>) {
        let mut overlay = Overlay::default();
        let mut decided = Vec::with_capacity(batch.len());
        for (write, reply) in batch {
            match self.core.decide(write, &mut overlay) {
                Ok(event) => decided.push((Arc::new(event), reply)),
                Err(refusal) => drop(reply.send(Err(refusal))),
            }
        }
        if decided.is_empty() {
            return;
        }
        match self.persist(decided.iter().map(|(event, _)| event.as_ref())) {
            Ok(()) => {
                self.core.apply(decided.iter().map(|(event, _)| event.clone()));
                for (event, reply) in decided {
                    drop(reply.send(Ok(event.object.clone())));
                }
            }
            Err(error) => {
                tracing::error!(%error, "the datastore could not commit");
                for (_, reply) in decided {
                    drop(reply.send(Err(WriteError::Storage(error.to_string()))));
                }
            }
        }
    }

    fn persist<'a>(&self, events: impl Iterator<Item = &'a Event>) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        // A file that was not closed opens at once, without a walk through all of it.
        transaction.set_quick_repair(true);
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut meta = transaction.open_table(META)?;
            for event in events {
                let key = event.object.key.as_str();
                match event.deleted {
                    true => drop(objects.remove(key)?),
                    false => drop(objects.insert(key, event.object.json().as_ref())?),
                }
                meta.insert("revision", event.revision)?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Store for Disk {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Arc<Stored>>> {
        Box::pin(ready(self.core.get(key)))
    }

    fn list<'a>(&'a self, prefix: &'a str, at: Option<u64>) -> BoxFuture<'a, Result<Listing, RevisionError>> {
        Box::pin(ready(self.core.list(prefix, at)))
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Stored>, WriteError>> {
        let (reply, answer) = oneshot::channel();
        async move {
            let gone = || WriteError::Storage("the writer has ended".to_owned());
            let writes = self.writes.as_ref().ok_or_else(gone)?;
            writes.send((write, reply)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        }
        .boxed()
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: u64,
    ) -> BoxFuture<'a, Result<Subscription, RevisionError>> {
        Box::pin(ready(self.core.watch(prefix, after)))
    }
}

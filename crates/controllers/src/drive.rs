//! The only part that talks: feeds watches into the engine and carries out its jobs.

use std::collections::HashMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Discovery, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use crate::engine::{Answer, Engine, Job, Refusal};
use crate::execute::execute;
use crate::resource::Resource;
use crate::world::{Kind, Observation};

/// Requests under way at once. Each has a connection of its own, so more only makes the server's queue longer.
const CONCURRENT: usize = 16;

enum News {
    Watch(Box<Observation>),
    Outcome(u64, Result<Answer, Refusal>),
}

/// A watch has ended, and the engine would go on with old objects: start anew.
#[derive(Debug, thiserror::Error)]
#[error("a watch of the controllers {0}")]
pub struct WatchEnded(String);

/// Runs the controllers of `engine` until `stop` resolves.
pub async fn drive(
    client: Client,
    mut engine: Engine,
    stop: impl Future<Output = ()>,
) -> Result<(), WatchEnded> {
    let (sender, mut news) = unbounded_channel();
    let mut watches = JoinSet::new();
    watch_all(&client, &engine, &sender, &mut watches);
    let mut jobs = JoinSet::new();
    let permits = Arc::new(Semaphore::new(CONCURRENT));
    let mut stop = std::pin::pin!(stop);
    loop {
        let alarm = engine.next_alarm();
        tokio::select! {
            () = &mut stop => return Ok(()),
            ended = ended(&mut watches) => return Err(ended),
            Some(first) = news.recv() => take_in(&mut engine, first, &mut news),
            () = sleep_until(alarm) => {}
        }
        for job in engine.work(Timestamp::now()) {
            jobs.spawn(carry_out(client.clone(), permits.clone(), job, sender.clone()));
        }
        // Finished jobs have nothing left to say; their outcome came through the channel.
        while jobs.try_join_next().is_some() {}
    }
}

/// Waits until a watch ends, which none should. One that was aborted because its kind is gone does not count.
async fn ended(watches: &mut JoinSet<()>) -> WatchEnded {
    while let Some(ended) = watches.join_next().await {
        match ended {
            Err(error) if error.is_cancelled() => {}
            Err(error) => return WatchEnded(format!("failed: {error}")),
            Ok(()) => return WatchEnded("ended by itself".to_owned()),
        }
    }
    std::future::pending().await
}

/// Takes in all that is there before anything is planned: a burst is planned once.
fn take_in(engine: &mut Engine, first: News, news: &mut UnboundedReceiver<News>) {
    let mut next = Some(first);
    while let Some(one) = next {
        match one {
            News::Watch(observation) => engine.observe(*observation),
            News::Outcome(ticket, outcome) => engine.finished(ticket, outcome, Timestamp::now()),
        }
        next = news.try_recv().ok();
    }
}

async fn sleep_until(alarm: Option<Timestamp>) {
    match alarm {
        Some(alarm) => {
            let wait = alarm.duration_since(Timestamp::now());
            // A wait in the past is over; a clock that jumped back is asked again within the minute.
            let wait = Duration::try_from(wait)
                .unwrap_or_default()
                .min(Duration::from_secs(60));
            tokio::time::sleep(wait).await;
        }
        None => std::future::pending().await,
    }
}

async fn carry_out(client: Client, permits: Arc<Semaphore>, job: Job, sender: UnboundedSender<News>) {
    // The semaphore is never closed.
    let _permit = permits.acquire().await;
    let Job {
        ticket,
        component,
        action,
    } = job;
    let target = action.target.to_string();
    tracing::debug!(component, %target, op = ?action.op, "does");
    let outcome = survive(execute(&client, component, action)).await;
    if let Err(refusal) = &outcome {
        match refusal.stale {
            true => tracing::debug!(component, %target, %refusal, "looks again"),
            false => tracing::warn!(component, %target, %refusal, "refused; tries again later"),
        }
    }
    let _ = sender.send(News::Outcome(ticket, outcome));
}

/// The outcome of a job whatever becomes of it: one that was never told would keep its key "under way" for ever.
async fn survive(job: impl Future<Output = Result<Answer, Refusal>>) -> Result<Answer, Refusal> {
    let outcome = std::panic::AssertUnwindSafe(job).catch_unwind().await;
    outcome.unwrap_or_else(|_| {
        Err(Refusal {
            stale: false,
            message: "the job panicked; the log has the cause".to_owned(),
        })
    })
}

fn watch_all(client: &Client, engine: &Engine, sender: &UnboundedSender<News>, tasks: &mut JoinSet<()>) {
    let watched = engine.world().watched();
    macro_rules! watch {
        ($($kind:ident),*) => {
            $(if watched.contains(&Kind::$kind) {
                let api = Api::all(client.clone());
                tasks.spawn(watch(stringify!($kind), api, sender.clone(), Observation::$kind));
            })*
        };
    }
    watch!(
        Pod,
        Node,
        Namespace,
        Service,
        Endpoints,
        EndpointSlice,
        ReplicaSet,
        Deployment,
        Lease,
        IPPool,
        ServiceCIDR,
        LoadBalancerPool
    );
    if watched.contains(&Kind::Everything) {
        let full: Vec<Resource> = watched.iter().filter_map(|kind| kind.resource()).collect();
        tasks.spawn(watch_everything(client.clone(), full, sender.clone()));
    }
}

async fn watch<K>(
    what: &'static str,
    api: Api<K>,
    sender: UnboundedSender<News>,
    observation: fn(Event<K>) -> Observation,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    follow(what, api, &sender, |event| {
        // Managed fields are half of an object's size and nobody here reads them.
        observation(event.modify(|object| object.managed_fields_mut().clear()))
    })
    .await;
}

/// Sends what `observation` makes of a watch's events; a watch that fails is tried again for ever.
async fn follow<K>(
    what: &str,
    api: Api<K>,
    sender: &UnboundedSender<News>,
    observation: impl Fn(Event<K>) -> Observation,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
    let mut pause = Pause::default();
    let mut absent = Absent::default();
    while let Some(event) = events.next().await {
        match event {
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status)))
                if is_absent(what, status.code) =>
            {
                // The kind is not installed: there are no objects of it.
                let events = [Event::Init, Event::InitDone];
                let is_believed = absent.is_believed_now();
                for event in events.into_iter().filter(|_| is_believed) {
                    if sender.send(News::Watch(Box::new(observation(event)))).is_err() {
                        return;
                    }
                }
                tokio::time::sleep(absent.pause()).await;
            }
            Ok(event) => {
                pause = Pause::default();
                // The first event comes before the question.
                if !matches!(event, Event::Init) {
                    absent = Absent {
                        was_there: true,
                        answers: 0,
                    };
                }
                if sender.send(News::Watch(Box::new(observation(event)))).is_err() {
                    return;
                }
            }
            Err(error) => pause.after(what, &error).await,
        }
    }
}

/// Whether a list that was answered so says that there are none. Of what ServiceCIDRs say the flags know the most: who may
/// not read them goes without, as on clusters that have none.
fn is_absent(what: &str, code: u16) -> bool {
    code == 404 || (code == 403 && what == stringify!(ServiceCIDR))
}

/// Answers in a row that a kind is not there.
#[derive(Default)]
struct Absent {
    was_there: bool,
    answers: u32,
}

impl Absent {
    /// One more; whether the objects are to be taken for gone. An API server that has just started may not know of all its
    /// kinds yet: where there were some, it has to go on saying so for half a minute.
    fn is_believed_now(&mut self) -> bool {
        self.answers += 1;
        !self.was_there || self.answers > 5
    }

    /// How long to wait before the next question: most clusters never have the kind.
    fn pause(&self) -> Duration {
        Duration::from_secs(1 << self.answers.saturating_sub(1).min(5))
    }
}

/// How long to wait before a failed watch is tried again.
#[derive(Default)]
struct Pause(u32);

impl Pause {
    async fn after(&mut self, what: &str, error: &watcher::Error) {
        match self.0 {
            4.. => tracing::warn!(what, %error, "watch failed; tries again"),
            _ => tracing::debug!(what, %error, "watch failed; tries again"),
        }
        let millis = 25u64 << self.0.min(7);
        self.0 += 1;
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

/// Watches the metadata of every resource in discovery, and asks discovery again when a CustomResourceDefinition
/// changed.
async fn watch_everything(client: Client, full: Vec<Resource>, sender: UnboundedSender<News>) {
    let definitions_changed = Arc::new(Notify::new());
    let mut watches: HashMap<Arc<Resource>, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut pause = Duration::from_millis(25);
    loop {
        let resources = match discover(&client).await {
            Ok(resources) => resources,
            Err(error) => {
                tracing::warn!(%error, "discovery failed; tries again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(5));
                continue;
            }
        };
        pause = Duration::from_millis(25);
        if sender
            .send(News::Watch(Box::new(Observation::Resources(resources.clone()))))
            .is_err()
        {
            return;
        }
        watches.retain(|resource, watch| {
            let stays = resources.contains(resource);
            if !stays {
                watch.abort();
            }
            stays
        });
        for resource in resources {
            if full.iter().any(|f| f.same_objects(&resource)) || watches.contains_key(&resource) {
                continue;
            }
            let watch = watch_other(
                client.clone(),
                resource.clone(),
                sender.clone(),
                definitions_changed.clone(),
            );
            watches.insert(resource, tasks.spawn(watch));
        }
        tokio::select! {
            () = definitions_changed.notified() => {}
            ended = ended(&mut tasks) => {
                tracing::error!("{ended}");
                return;
            }
        }
    }
}

async fn watch_other(
    client: Client,
    resource: Arc<Resource>,
    sender: UnboundedSender<News>,
    definitions_changed: Arc<Notify>,
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource.erased());
    let definitions = resource.kind == "CustomResourceDefinition";
    follow(&resource.plural, api, &sender, |event| {
        if definitions && matches!(event, Event::Apply(_) | Event::Delete(_)) {
            definitions_changed.notify_one();
        }
        Observation::Other(resource.clone(), event)
    })
    .await;
}

/// The resources that can be listed, watched and deleted; of each group, the version it prefers.
async fn discover(client: &Client) -> kube::Result<Vec<Arc<Resource>>> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        // Before Kubernetes 1.26 discovery is asked group by group.
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let needed = ["list", "watch", "delete"];
    let mut found = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, capabilities) in group.recommended_resources() {
            // Events own nothing, are owned by nothing, and are the most numerous of all.
            let skip = resource.plural == "events";
            if !skip && needed.iter().all(|verb| capabilities.supports_operation(verb)) {
                found.push(Arc::new(Resource {
                    group: resource.group,
                    version: resource.version,
                    kind: resource.kind,
                    plural: resource.plural,
                    namespaced: capabilities.scope == kube::discovery::Scope::Namespaced,
                }));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_is_refused_and_told() {
        let outcome = survive(async { panic!("a bug") }).await;
        let refusal = outcome.unwrap_err();
        assert!(
            !refusal.stale && refusal.message.contains("panicked"),
            "{refusal}"
        );
        assert!(matches!(
            survive(async { Ok(Answer::Gone) }).await,
            Ok(Answer::Gone)
        ));
    }

    #[tokio::test]
    async fn a_watch_that_ends_is_noticed_and_one_that_is_aborted_is_not() {
        let mut watches = JoinSet::new();
        watches.spawn(std::future::pending()).abort();
        watches.spawn(async {});
        assert!(ended(&mut watches).await.to_string().contains("ended by itself"));
        watches.spawn(async { panic!("a bug") });
        assert!(ended(&mut watches).await.to_string().contains("a bug"));
    }

    #[test]
    fn a_kind_that_was_there_is_gone_only_when_that_is_the_answer_for_half_a_minute() {
        assert!(Absent::default().is_believed_now());
        let mut absent = Absent {
            was_there: true,
            answers: 0,
        };
        let mut waited = Duration::ZERO;
        while !absent.is_believed_now() {
            waited += absent.pause();
        }
        assert_eq!(waited, Duration::from_secs(31));
    }
}

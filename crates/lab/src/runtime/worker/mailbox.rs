//! What a pod's task has yet to hear. A newer message takes the place of the older ones that it makes moot, so that a
//! mailbox holds a few messages per container at most, however long its task is busy and however often objects change.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Message;

/// A mailbox of its own.
pub(super) fn mailbox() -> (Sender, Receiver) {
    let shared = Arc::new(Shared {
        waiting: Mutex::new(Some(VecDeque::new())),
        came: Notify::new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

#[derive(Debug)]
struct Shared {
    /// None when nobody will hear it.
    waiting: Mutex<Option<VecDeque<Message>>>,
    came: Notify,
}

/// Puts messages in.
#[derive(Debug, Clone)]
pub struct Sender(Arc<Shared>);

/// The task that would hear it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended;

impl Sender {
    /// Puts a message at the end.
    pub fn send(&self, message: Message) -> Result<(), Ended> {
        let mut waiting = self.0.waiting.lock();
        let waiting = waiting.as_mut().ok_or(Ended)?;
        waiting.retain(|older| !makes_moot(&message, older));
        waiting.push_back(message);
        self.0.came.notify_one();
        Ok(())
    }
}

/// Takes messages out.
#[derive(Debug)]
pub(super) struct Receiver(Arc<Shared>);

impl Receiver {
    /// The next message, when there is one. May be dropped while it waits.
    pub(super) async fn recv(&mut self) -> Message {
        loop {
            if let Some(message) = self.try_recv() {
                return message;
            }
            self.0.came.notified().await;
        }
    }

    /// The next message, if there is one.
    pub(super) fn try_recv(&mut self) -> Option<Message> {
        self.0.waiting.lock().as_mut()?.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.waiting.lock().as_ref().is_none_or(VecDeque::is_empty)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        *self.0.waiting.lock() = None;
    }
}

/// Whether nobody needs to hear `older` any more once `newer` is there.
fn makes_moot(newer: &Message, older: &Message) -> bool {
    match (newer, older) {
        (Message::Pod(_), Message::Pod(_))
        | (Message::Vanished(Some(_)), Message::Pod(_))
        | (Message::Objects, Message::Objects) => true,
        (Message::Sandbox(newer, _), Message::Sandbox(older, true)) => newer == older,
        (
            Message::Probed {
                container, run, kind, ..
            },
            Message::Probed {
                container: of,
                run: older,
                kind: probe,
                ..
            },
        ) => (container, run, kind) == (of, older, probe),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::probe::Kind;

    fn pod(name: &str) -> Message {
        let mut pod = k8s_openapi::api::core::v1::Pod::default();
        pod.metadata.name = Some(name.to_owned());
        Message::Pod(Box::new(pod))
    }

    fn probed(container: &str, kind: Kind, passes: bool) -> Message {
        Message::Probed {
            container: container.to_owned(),
            run: "r".to_owned(),
            kind,
            passes,
        }
    }

    fn all(receiver: &mut Receiver) -> Vec<String> {
        let heard = std::iter::from_fn(|| receiver.try_recv());
        heard
            .map(|message| match message {
                Message::Pod(pod) => pod.metadata.name.unwrap_or_default(),
                Message::Probed {
                    container, passes, ..
                } => format!("{container}:{passes}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn only_the_latest_of_what_is_moot_is_heard_and_the_rest_in_order() {
        let (sender, mut receiver) = mailbox();
        for round in 0..1000 {
            sender.send(pod(&round.to_string())).unwrap();
            sender.send(Message::Objects).unwrap();
            sender.send(Message::Sandbox(1, true)).unwrap();
            sender.send(probed("a", Kind::Readiness, round % 2 == 0)).unwrap();
        }
        sender.send(probed("b", Kind::Readiness, true)).unwrap();
        sender.send(Message::Sandbox(0, false)).unwrap();
        sender.send(Message::Sandbox(1, false)).unwrap();
        assert_eq!(
            all(&mut receiver),
            [
                "999",
                "Objects",
                "a:false",
                "b:true",
                "Sandbox(0, false)",
                "Sandbox(1, false)"
            ]
        );
        assert!(receiver.is_empty());
        sender.send(pod("x")).unwrap();
        sender.send(Message::Vanished(None)).unwrap();
        assert_eq!(all(&mut receiver), ["x", "Vanished(None)"]);
    }

    #[tokio::test]
    async fn a_task_that_waits_is_woken_and_one_that_ended_is_not_written_to() {
        let (sender, mut receiver) = mailbox();
        let other = sender.clone();
        let waiting = tokio::spawn(async move {
            let first = receiver.recv().await;
            (format!("{first:?}"), format!("{:?}", receiver.recv().await))
        });
        sender.send(Message::Objects).unwrap();
        tokio::task::yield_now().await;
        other.send(Message::Sandbox(3, true)).unwrap();
        let heard = waiting.await.unwrap();
        assert_eq!(heard, ("Objects".to_owned(), "Sandbox(3, true)".to_owned()));
        assert_eq!(sender.send(Message::Objects), Err(Ended));
    }
}

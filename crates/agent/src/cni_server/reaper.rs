//! Takes the links of ended leases away, and looks for leases that ended without a DEL.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use podnet_cni::Attachment;

use crate::ipam::{Lease, Leases};
use crate::wiring;

/// How often to look for what has ended without us.
const ROUND: Duration = Duration::from_secs(5);

/// What is to be taken away.
pub(super) enum Doomed {
    /// The link of an ended lease; then its addresses are free.
    Leased(Lease),
    /// A link that has no lease.
    Stray(Attachment),
}

impl Doomed {
    fn link(&self) -> String {
        match self {
            Doomed::Leased(lease) => lease.attachment.host_link(),
            Doomed::Stray(attachment) => attachment.host_link(),
        }
    }
}

/// The way to the reaper's thread, which ends with the last of them.
pub(super) struct Reaper {
    sender: Sender<Doomed>,
}

impl Reaper {
    pub(super) fn start(leases: Arc<Leases>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        for lease in leases.ended() {
            // What the agent before us did not come to.
            drop(sender.send(Doomed::Leased(lease)));
        }
        std::thread::Builder::new()
            .name("cni-reaper".into())
            .spawn(move || run(&leases, &receiver))?;
        Ok(Reaper { sender })
    }

    pub(super) fn take(&self, doomed: Doomed) {
        // The thread lives as long as this end of the channel; after a panic of its, the next start finishes.
        if self.sender.send(doomed).is_err() {
            tracing::error!("the thread that takes links away has ended; restart the agent");
        }
    }
}

fn run(leases: &Leases, receiver: &Receiver<Doomed>) {
    let mut next_round = Instant::now() + ROUND;
    loop {
        match receiver.recv_timeout(next_round.saturating_duration_since(Instant::now())) {
            Ok(first) => reap(
                leases,
                std::iter::once(first).chain(receiver.try_iter()).collect(),
            ),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= next_round {
            look_around(leases);
            next_round = Instant::now() + ROUND;
        }
    }
}

fn reap(leases: &Leases, doomed: Vec<Doomed>) {
    let links: Vec<String> = doomed.iter().map(Doomed::link).collect();
    if let Err(error) = wiring::remove(&links) {
        // They stay among the ended leases; the next round tries again.
        tracing::error!(%error, "cannot take pods' links away; trying again in {} s", ROUND.as_secs());
        return;
    }
    for ended in doomed {
        if let Doomed::Leased(lease) = ended {
            leases.forget(&lease);
        }
    }
}

fn look_around(leases: &Leases) {
    match leases.collect(wiring::in_kernel) {
        Ok(ended) if ended.is_empty() => {}
        Ok(ended) => {
            for lease in &ended {
                tracing::info!(attachment = %lease.attachment, addresses = ?lease.addresses, "a pod has ended without the agent");
            }
            reap(leases, ended.into_iter().map(Doomed::Leased).collect());
        }
        Err(error) => tracing::warn!(%error, "cannot look for pods that have ended"),
    }
}

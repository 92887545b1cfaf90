//! Takes the links of ended leases away, and looks for leases that ended without a DEL.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::host_ports::HostPorts;
use crate::ipam::{Lease, Leases};
use crate::pod_policies::PodPolicies;
use crate::wiring;

/// How often to look for what has ended without us.
const ROUND: Duration = Duration::from_secs(5);
/// How long to wait until nothing leads to an address any more that is about to be free.
const HOST_PORTS: Duration = Duration::from_secs(5);

/// The way to the reaper's thread, which ends with the last of them.
pub(super) struct Reaper {
    sender: Sender<Lease>,
}

impl Reaper {
    pub(super) fn start(
        leases: Arc<Leases>,
        host_ports: Arc<HostPorts>,
        pod_policies: Arc<PodPolicies>,
    ) -> io::Result<Self> {
        let (sender, receiver) = channel();
        for lease in leases.ended() {
            // What the agent before us did not come to.
            drop(sender.send(lease));
        }
        std::thread::Builder::new()
            .name("cni-reaper".into())
            .spawn(move || {
                let ending = Ending {
                    leases: &leases,
                    host_ports: &host_ports,
                    pod_policies: &pod_policies,
                };
                ending.run(&receiver);
            })?;
        Ok(Reaper { sender })
    }

    /// Takes the link of an ended lease away, soon; then its addresses are free.
    pub(super) fn take(&self, ended: Lease) {
        // The thread lives as long as this end of the channel; after a panic of its, the next start finishes.
        if self.sender.send(ended).is_err() {
            tracing::error!("the thread that takes links away has ended; restart the agent");
        }
    }
}

/// What ends with a lease.
struct Ending<'a> {
    leases: &'a Leases,
    host_ports: &'a HostPorts,
    pod_policies: &'a PodPolicies,
}

impl Ending<'_> {
    fn run(&self, receiver: &Receiver<Lease>) {
        let mut next_round = Instant::now() + ROUND;
        loop {
            match receiver.recv_timeout(next_round.saturating_duration_since(Instant::now())) {
                Ok(first) => self.reap(std::iter::once(first).chain(receiver.try_iter()).collect()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_round {
                self.look_around();
                next_round = Instant::now() + ROUND;
            }
        }
    }

    fn reap(&self, ended: Vec<Lease>) {
        let closed = ended
            .iter()
            .filter_map(|lease| self.host_ports.release(&lease.attachment))
            .max();
        if let Some(version) = closed.or_else(|| has_ports(&ended).then(|| self.host_ports.wanted().0))
            && !self.host_ports.wait(version, HOST_PORTS)
        {
            tracing::error!(
                "host ports of ended pods are still open; trying again in {} s",
                ROUND.as_secs()
            );
            return;
        }
        let links: Vec<String> = ended.iter().map(|lease| lease.attachment.host_link()).collect();
        if let Err(error) = wiring::remove(&links) {
            // They stay among the ended leases; the next round tries again.
            tracing::error!(%error, "cannot take pods' links away; trying again in {} s", ROUND.as_secs());
            return;
        }
        for lease in ended {
            // Not before: what is in the pod may send as long as there is a link.
            self.pod_policies.release(&lease.attachment);
            self.leases.forget(&lease);
        }
    }

    fn look_around(&self) {
        match self.leases.collect(wiring::in_kernel) {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => {
                for lease in &ended {
                    tracing::info!(attachment = %lease.attachment, addresses = ?lease.addresses, "a pod has ended without the agent");
                }
                self.reap(ended);
            }
            Err(error) => tracing::warn!(%error, "cannot look for pods that have ended"),
        }
    }
}

/// Whether host ports led to one of these; a DEL may have given them back already.
fn has_ports(ended: &[Lease]) -> bool {
    ended.iter().any(|lease| !lease.port_mappings.is_empty())
}

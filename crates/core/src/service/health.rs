//! What load balancers are told that ask a node whether it has endpoints (`healthCheckNodePort`).

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

use crate::cluster::ObjectName;

/// What is answered, by the port that is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthChecks(BTreeMap<NonZeroU16, HealthCheck>);

/// What is answered on one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The service.
    pub service: ObjectName,
    /// How many endpoints of it on this node take new connections.
    pub local_endpoints: usize,
}

impl HealthChecks {
    /// Answers so on a port.
    pub(super) fn insert(&mut self, port: NonZeroU16, check: HealthCheck) {
        self.0.insert(port, check);
    }

    /// Answers no more on a port.
    pub(super) fn remove(&mut self, port: NonZeroU16) {
        self.0.remove(&port);
    }

    /// What is answered on a port.
    pub fn get(&self, port: NonZeroU16) -> Option<&HealthCheck> {
        self.0.get(&port)
    }

    /// The ports that are asked.
    pub fn ports(&self) -> impl Iterator<Item = NonZeroU16> {
        self.0.keys().copied()
    }
}

impl fmt::Display for HealthChecks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(port, check)| {
            let (service, count) = (&check.service, check.local_endpoints);
            writeln!(f, "health check {port} of {service}: {count} endpoints here")
        })
    }
}

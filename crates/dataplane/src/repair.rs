//! What others had changed of what was in force, or what ended with a proxy, and was put back.
//!
//! A back end knows what it put there. Where it reads the kernel again, the difference between the two is what others
//! changed, whatever is wanted by then: our own changes are never in it, and nothing is before the first application.

use std::fmt;

use podnet_core::route::RoutingState;

use crate::route::RoutesApplied;

/// How much was put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Repair {
    /// Entries of the tunnel and of routing.
    pub routes: usize,
    /// Entries of services' tables.
    pub services: usize,
    /// Entries of a service proxy that ended, which another one was given.
    pub proxied: usize,
}

impl Repair {
    /// Nothing was.
    pub fn is_nothing(self) -> bool {
        self == Repair::default()
    }

    /// All of it.
    pub fn count(self) -> usize {
        self.routes + self.services + self.proxied
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repair {
            routes,
            services,
            proxied,
        } = self;
        if routes + services > 0 {
            write!(
                f,
                "somebody else changed podnet's tables on this node: {routes} entries of routing and {services} of \
                 services were put back"
            )?;
        }
        if *proxied > 0 {
            let and = if routes + services > 0 { "; " } else { "" };
            write!(
                f,
                "{and}the service proxy of this node ended by itself or by somebody else: another one was given its \
                 {proxied} entries"
            )?;
        }
        Ok(())
    }
}

/// Routing that was applied.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) want: RoutingState,
    applied: RoutesApplied,
    /// Nothing is to be looked for: others would have been heard, and nothing was refused.
    pub(crate) is_sure: bool,
}

impl Routed {
    pub(crate) fn new(want: &RoutingState, applied: &RoutesApplied) -> Self {
        Routed {
            want: want.clone(),
            applied: applied.clone(),
            is_sure: applied.refused.is_empty(),
        }
    }

    /// What comes of an application that has nothing to look for.
    pub(crate) fn again(&self) -> RoutesApplied {
        RoutesApplied {
            changes: 0,
            ..self.applied.clone()
        }
    }

    /// How much of what another application of the same did was putting back: not what the kernel refused before, and
    /// nothing where the link between nodes takes packets of another size now, which ours follow.
    pub(crate) fn repaired(&self, now: &RoutesApplied) -> usize {
        if now.pod_mtu != self.applied.pod_mtu {
            return 0;
        }
        let refused = self.applied.refused.iter();
        let taken = refused.filter(|refusal| !now.refused.contains(refusal)).count();
        now.changes.saturating_sub(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: usize, pod_mtu: u32, refused: &[&str]) -> RoutesApplied {
        RoutesApplied {
            changes,
            pod_mtu: Some(pod_mtu),
            refused: refused.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    #[test]
    fn what_was_refused_and_what_follows_the_link_is_not_put_back() {
        let routed = Routed::new(&RoutingState::default(), &applied(7, 1450, &["a", "b"]));
        assert!(!routed.is_sure);
        assert_eq!(routed.repaired(&applied(0, 1450, &["a", "b"])), 0);
        assert_eq!(routed.repaired(&applied(1, 1450, &["a"])), 0);
        assert_eq!(routed.repaired(&applied(3, 1450, &["a"])), 2);
        assert_eq!(routed.repaired(&applied(3, 1350, &["a", "b"])), 0);
    }
}

//! Which addresses have connections, so that one that is asked no more leads to the proxy until its last one ends.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// Connections by the address that their client asked.
#[derive(Debug, Default)]
pub(super) struct Uses {
    connections: HashMap<IpAddr, usize>,
    /// Addresses that wait for the end of their last connection.
    waiting: HashSet<IpAddr>,
    /// Those of them whose last one has ended.
    released: Vec<IpAddr>,
}

impl Uses {
    /// One more.
    pub(super) fn begin(&mut self, address: IpAddr) {
        *self.connections.entry(address).or_default() += 1;
    }

    /// One less. Says whether an address was released.
    pub(super) fn end(&mut self, address: IpAddr) -> bool {
        match self.connections.get_mut(&address) {
            Some(count) if *count > 1 => {
                *count -= 1;
                return false;
            }
            _ => self.connections.remove(&address),
        };
        let released = self.waiting.remove(&address);
        if released {
            self.released.push(address);
        }
        released
    }

    /// Whether an address may go now. One that may not is released with its last connection.
    pub(super) fn may_go(&mut self, address: IpAddr) -> bool {
        let used = self.connections.contains_key(&address);
        if used {
            self.waiting.insert(address);
        }
        !used
    }

    /// The addresses that were released since this was asked last.
    pub(super) fn released(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.released)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_released_once_with_its_last_connection_if_it_waited() {
        let [a, b] = [1, 2].map(|last| IpAddr::from([10, 96, 0, last]));
        let mut uses = Uses::default();
        for address in [a, a, b] {
            uses.begin(address);
        }
        assert!(!uses.end(b), "it did not wait");
        assert!(uses.may_go(b));
        assert!(!uses.may_go(a));
        assert!(!uses.end(a));
        assert!(uses.released().is_empty());
        assert!(uses.end(a));
        assert_eq!(uses.released(), [a]);
        assert!(uses.released().is_empty());
        assert!(uses.may_go(a));
    }
}

//! Which connections there are, and how far each has come. One that ends takes away its own entry only: meanwhile the
//! client may have begun another from the same port.

use std::collections::HashMap;

use super::packet::Flow;

/// The connections that are not at an end; `T` is the outer end.
#[derive(Debug)]
pub(super) struct Flows<T> {
    entries: HashMap<Flow, Entry<T>>,
    next: u64,
    /// Most of them at once.
    most: usize,
}

/// Tells a connection from a later one of the same client to the same server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u64);

#[derive(Debug)]
struct Entry<T> {
    id: Id,
    state: State<T>,
}

#[derive(Debug)]
enum State<T> {
    /// The other end is asked.
    Connecting,
    /// The other end is there, and the first packet was put back.
    Connected(T),
    /// Both ends are there.
    Relaying,
}

/// What a packet that opens a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// The first of a new connection, which is in the table from now on.
    New(Id),
    /// Sent again, while the other end is asked.
    Again,
    /// Sent again or anew, when the other end was there already.
    Known,
    /// There are as many connections as there may be.
    TooMany,
}

impl<T> Flows<T> {
    /// None yet, and never more than that.
    pub(super) fn new(most: usize) -> Self {
        Flows {
            entries: HashMap::new(),
            next: 0,
            most,
        }
    }

    /// Takes note of a packet that opens a connection.
    pub(super) fn open(&mut self, flow: Flow) -> Opening {
        match self.entries.get(&flow).map(|entry| &entry.state) {
            Some(State::Connecting) => Opening::Again,
            Some(State::Connected(_) | State::Relaying) => Opening::Known,
            None if self.entries.len() >= self.most => Opening::TooMany,
            None => {
                let id = Id(self.next);
                self.next += 1;
                let state = State::Connecting;
                self.entries.insert(flow, Entry { id, state });
                Opening::New(id)
            }
        }
    }

    /// The other end of the connection is there.
    pub(super) fn connected(&mut self, flow: Flow, id: Id, outside: T) {
        if let Some(entry) = self.entries.get_mut(&flow).filter(|entry| entry.id == id) {
            entry.state = State::Connected(outside);
        }
    }

    /// The other end for the end inside that is there now, if it waits for one.
    pub(super) fn relay(&mut self, flow: &Flow) -> Option<(Id, T)> {
        let entry = self.entries.get_mut(flow)?;
        match std::mem::replace(&mut entry.state, State::Relaying) {
            State::Connected(outside) => Some((entry.id, outside)),
            other => {
                entry.state = other;
                None
            }
        }
    }

    /// The connection is at its end.
    pub(super) fn end(&mut self, flow: &Flow, id: Id) {
        if self.entries.get(flow).is_some_and(|entry| entry.id == id) {
            self.entries.remove(flow);
        }
    }

    /// Ends the connection unless the client has gone on.
    pub(super) fn expire(&mut self, flow: &Flow, id: Id) {
        let waits = |entry: &Entry<T>| entry.id == id && matches!(entry.state, State::Connected(_));
        if self.entries.get(flow).is_some_and(waits) {
            self.entries.remove(flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        Flow {
            client: ([10, 244, 0, 2], port).into(),
            server: ([192, 0, 2, 1], 443).into(),
        }
    }

    fn new(flows: &mut Flows<&'static str>, port: u16) -> Id {
        match flows.open(flow(port)) {
            Opening::New(id) => id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_connection_goes_from_asking_to_relaying() {
        let mut flows = Flows::new(3);
        let id = new(&mut flows, 1);
        assert_eq!(flows.open(flow(1)), Opening::Again);
        assert_eq!(flows.relay(&flow(1)), None, "nobody is there yet");
        flows.connected(flow(1), id, "outside");
        assert_eq!(flows.open(flow(1)), Opening::Known);
        assert_eq!(flows.relay(&flow(1)), Some((id, "outside")));
        assert_eq!(flows.relay(&flow(1)), None, "another one has it");
        assert_eq!(flows.open(flow(1)), Opening::Known, "it is still there");
        flows.expire(&flow(1), id);
        assert_eq!(flows.open(flow(1)), Opening::Known, "the client has gone on");
        flows.end(&flow(1), id);
        assert_ne!(new(&mut flows, 1), id);
    }

    #[test]
    fn the_end_of_a_connection_leaves_a_later_one_of_the_same_port() {
        let mut flows = Flows::new(3);
        let earlier = new(&mut flows, 1);
        flows.end(&flow(1), earlier);
        let later = new(&mut flows, 1);
        flows.connected(flow(1), earlier, "of the earlier one");
        flows.end(&flow(1), earlier);
        assert_eq!(flows.open(flow(1)), Opening::Again);
        flows.connected(flow(1), later, "outside");
        flows.expire(&flow(1), earlier);
        assert_eq!(flows.relay(&flow(1)), Some((later, "outside")));
    }

    #[test]
    fn there_is_a_limit_and_room_again_when_one_ends() {
        let mut flows = Flows::new(3);
        let first = new(&mut flows, 1);
        new(&mut flows, 2);
        new(&mut flows, 3);
        assert_eq!(flows.open(flow(4)), Opening::TooMany);
        assert_eq!(flows.open(flow(1)), Opening::Again, "who is in stays");
        flows.end(&flow(1), first);
        assert!(matches!(flows.open(flow(4)), Opening::New(_)));
    }
}

//! UDP sessions: which endpoint the datagrams of a client go to. Nothing here has a socket or a clock.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::recent::Recent;

/// A question that was asked once, as names are: the kernel's own tracking has the same limits.
const IDLE_QUESTION: Duration = Duration::from_secs(30);
/// A session in which both speak (RFC 4787, REQ-5: no less than two minutes).
const IDLE_CONVERSATION: Duration = Duration::from_secs(120);

/// A client at one address of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The client.
    pub client: SocketAddr,
    /// What it sends to.
    pub server: SocketAddr,
}

/// What is known of a session; `S` is what carries it.
#[derive(Debug)]
pub struct Session<S> {
    /// Where its datagrams go.
    pub endpoint: SocketAddr,
    /// What carries it.
    pub carrier: S,
    asked: u64,
    answered: u64,
}

impl<S> Session<S> {
    /// How long a silence ends it.
    fn patience(&self) -> Duration {
        if self.asked > 1 && self.answered > 0 {
            IDLE_CONVERSATION
        } else {
            IDLE_QUESTION
        }
    }
}

/// The sessions that are not at an end.
#[derive(Debug)]
pub struct Sessions<S>(Recent<Flow, Session<S>>);

impl<S> Sessions<S> {
    /// None yet, and never more than `most`.
    pub fn new(most: usize) -> Self {
        Sessions(Recent::new(most))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What carries a client's datagrams: it sends one now.
    pub fn asks(&mut self, flow: &Flow, now: Instant) -> Option<&S> {
        let session = self.0.touch(flow, now)?;
        session.asked += 1;
        Some(&session.carrier)
    }

    /// The endpoint answers now. Not so when the session has ended or goes elsewhere.
    pub fn answers(&mut self, flow: &Flow, endpoint: SocketAddr, now: Instant) -> bool {
        let is_its = self
            .0
            .peek(flow)
            .is_some_and(|(session, _)| session.endpoint == endpoint);
        if let Some(session) = is_its.then(|| self.0.touch(flow, now)).flatten() {
            session.answered += 1;
        }
        is_its
    }

    /// Begins one; what has been idle for longest makes room, and is returned.
    pub fn begin(&mut self, flow: Flow, endpoint: SocketAddr, carrier: S, now: Instant) -> Option<S> {
        let session = Session {
            endpoint,
            carrier,
            asked: 1,
            answered: 0,
        };
        self.0.insert(flow, session, now).map(|gone| gone.carrier)
    }

    /// Ends one, if it is at that endpoint still.
    pub fn end(&mut self, flow: &Flow, endpoint: SocketAddr) -> Option<S> {
        let (session, _) = self.0.peek(flow)?;
        let is_its = session.endpoint == endpoint;
        let gone = is_its.then(|| self.0.remove(flow)).flatten();
        gone.map(|session| session.carrier)
    }

    /// Ends those that `keeps` does not say may go on to their endpoint.
    pub fn retain(&mut self, keeps: impl Fn(&Flow, SocketAddr, &S) -> bool) -> Vec<S> {
        let gone = self
            .0
            .retain(|flow, session| keeps(flow, session.endpoint, &session.carrier));
        gone.into_iter().map(|session| session.carrier).collect()
    }

    /// Ends those that have been silent for long enough.
    pub fn expire(&mut self, now: Instant) -> Vec<S> {
        let gone = self.0.expire(now, Session::patience);
        gone.into_iter().map(|session| session.carrier).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flow(client: &str) -> Flow {
        Flow {
            client: socket(client),
            server: socket("10.96.0.1:53"),
        }
    }

    const A: &str = "10.0.0.1:53";
    const B: &str = "10.0.0.2:53";

    #[test]
    fn a_conversation_may_be_silent_for_longer_than_a_question() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sessions = Sessions::new(9);
        sessions.begin(flow("1.1.1.1:1"), socket(A), "question", start);
        sessions.begin(flow("1.1.1.1:2"), socket(A), "conversation", start);
        assert!(sessions.answers(&flow("1.1.1.1:1"), socket(A), start));
        assert!(sessions.answers(&flow("1.1.1.1:2"), socket(A), start));
        assert_eq!(sessions.asks(&flow("1.1.1.1:2"), at(1)), Some(&"conversation"));
        assert_eq!(sessions.expire(at(29)), Vec::<&str>::new());
        assert_eq!(sessions.expire(at(30)), ["question"]);
        assert_eq!(sessions.expire(at(120)), Vec::<&str>::new());
        assert_eq!(sessions.expire(at(121)), ["conversation"]);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_flow_to_an_endpoint_that_is_gone_begins_anew_and_its_late_answers_are_nobodys() {
        let now = Instant::now();
        let mut sessions = Sessions::new(9);
        sessions.begin(flow("1.1.1.1:1"), socket(A), 'a', now);
        sessions.begin(flow("1.1.1.1:2"), socket(B), 'b', now);
        assert_eq!(sessions.retain(|_, endpoint, _| endpoint == socket(B)), ['a']);
        assert_eq!(sessions.asks(&flow("1.1.1.1:1"), now), None);
        sessions.begin(flow("1.1.1.1:1"), socket(B), 'c', now);
        assert!(!sessions.answers(&flow("1.1.1.1:1"), socket(A), now));
        assert_eq!(sessions.end(&flow("1.1.1.1:1"), socket(A)), None);
        assert_eq!(sessions.end(&flow("1.1.1.1:1"), socket(B)), Some('c'));
    }

    #[test]
    fn there_are_never_too_many() {
        let now = Instant::now();
        let mut sessions = Sessions::new(2);
        assert_eq!(sessions.begin(flow("1.1.1.1:1"), socket(A), 1, now), None);
        assert_eq!(sessions.begin(flow("1.1.1.1:2"), socket(A), 2, now), None);
        assert!(sessions.asks(&flow("1.1.1.1:1"), now).is_some());
        assert_eq!(sessions.begin(flow("1.1.1.1:3"), socket(A), 3, now), Some(2));
        assert_eq!(sessions.len(), 2);
    }
}

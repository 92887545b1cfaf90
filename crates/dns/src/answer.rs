//! From a question to the records that answer it.

use podnet_core::cluster::DomainName;
use podnet_core::names::Names;

use crate::name::Name;
use crate::query::{Query, Unusable};
use crate::reply::{Full, Place, Reason, Reply, Section};
use crate::zone::{Found, Node, find};
use crate::{CLASS_IN, Context, Outcome, Rcode, Transport, autopath, rtype};

/// So many aliases of aliases are followed.
const MOST_ALIASES: usize = 8;

const NOT_OURS: Reason = Reason {
    code: 20,
    text: "podnet answers the cluster's own names only",
};
const NOT_READY: Reason = Reason {
    code: 14,
    text: "podnet has not seen the cluster's services yet",
};

/// Answers a message. The answer is in `out` unless the outcome is [`Outcome::Silence`].
pub fn respond(message: &[u8], transport: Transport, context: &Context<'_>, out: &mut Vec<u8>) -> Outcome {
    let query = match read(message, transport, out) {
        Ok(query) => query,
        Err(outcome) => return outcome,
    };
    let reply = Reply::new(query.head, query.question, query.edns, transport, out);
    if matches!(query.rtype, rtype::IXFR | rtype::AXFR) {
        reply.finish(Rcode::Refused);
        return Outcome::Answered;
    }
    let answer = Answer {
        names: context.names,
        serial: context.serial,
        turn: context.turn as usize,
        rtype: query.rtype,
        reply,
    };
    match autopath::search(context.names, context.searches, &query) {
        Some(found) => answer.walk_from_alias(&found, query.question),
        None => answer.walk(query.name, Place::QUESTION, query.question),
    }
}

/// Answers a message while nothing is known of the cluster: that may change, so no name is denied.
pub fn servfail(message: &[u8], transport: Transport, out: &mut Vec<u8>) -> Outcome {
    match read(message, transport, out) {
        Ok(query) => {
            let mut reply = Reply::new(query.head, query.question, query.edns, transport, out);
            reply.because(NOT_READY);
            reply.finish(Rcode::ServFail);
            Outcome::Answered
        }
        Err(outcome) => outcome,
    }
}

/// Reads a question that can be answered; others are answered here with what is wrong.
fn read<'a>(message: &'a [u8], transport: Transport, out: &mut Vec<u8>) -> Result<Query<'a>, Outcome> {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(Unusable::Silence) => {
            out.clear();
            return Err(Outcome::Silence);
        }
        Err(Unusable::Wrong(head, rcode)) => {
            Reply::new(head, &[], None, transport, out).finish(rcode);
            return Err(Outcome::Answered);
        }
    };
    let rcode = match query.edns {
        Some(edns) if edns.version != 0 => Rcode::BadVers,
        _ if query.class != CLASS_IN => Rcode::Refused,
        _ => return Ok(query),
    };
    Reply::new(query.head, query.question, query.edns, transport, out).finish(rcode);
    Err(Outcome::Answered)
}

/// An answer on its way.
pub(crate) struct Answer<'a> {
    pub(crate) names: &'a Names,
    pub(crate) serial: u32,
    pub(crate) turn: usize,
    pub(crate) rtype: u16,
    pub(crate) reply: Reply<'a>,
}

/// How an answer ended that went from alias to alias.
enum End {
    /// Whole.
    At(Rcode),
    /// With an alias that is no name of ours.
    Outside,
    /// Nowhere.
    Loop,
}

impl Answer<'_> {
    /// Answers for a name, and for what it is an alias of.
    fn walk(mut self, name: Name, place: Place, question: &[u8]) -> Outcome {
        match self.follow(name, place) {
            End::At(rcode) => {
                self.reply.authoritative();
                self.reply.finish(rcode);
                Outcome::Answered
            }
            End::Outside if self.reply.has_answers() => {
                self.reply.authoritative();
                self.reply.finish(Rcode::NoError);
                Outcome::LeadsOutside
            }
            End::Outside => {
                self.reply.because(NOT_OURS);
                self.reply.finish(Rcode::Refused);
                Outcome::Outside
            }
            End::Loop => {
                self.reply.restart(question);
                self.reply.finish(Rcode::ServFail);
                Outcome::Answered
            }
        }
    }

    /// Answers for what the search list led to. It is said as an alias: the question was for another name.
    fn walk_from_alias(mut self, found: &DomainName, question: &[u8]) -> Outcome {
        match (self.alias(Place::QUESTION, found), Name::parse(found.wire())) {
            (Ok(place), Some(name)) => self.walk(name, place, question),
            _ => {
                self.reply.truncated();
                self.reply.finish(Rcode::NoError);
                Outcome::Answered
            }
        }
    }

    fn follow(&mut self, mut name: Name, mut place: Place) -> End {
        for _ in 0..=MOST_ALIASES {
            let Found::In { apex, node } = find(self.names, &name) else {
                return End::Outside;
            };
            let target = match node {
                Node::Service(service) => service.alias(),
                _ => None,
            };
            let Some(target) = target else {
                let zone = place.after(name.start(apex));
                return End::At(self.node(&name, place, node, zone));
            };
            let Ok(data) = self.alias(place, target) else {
                self.reply.truncated();
                return End::At(Rcode::NoError);
            };
            let next =
                Name::parse(target.wire()).filter(|_| !matches!(self.rtype, rtype::CNAME | rtype::ANY));
            match next {
                Some(next) => (name, place) = (next, data),
                None => return End::At(Rcode::NoError),
            }
        }
        End::Loop
    }

    fn alias(&mut self, owner: Place, target: &DomainName) -> Result<Place, Full> {
        let data = self.reply.next_data(owner);
        let ttl = self.names.config().ttl;
        let written = self
            .reply
            .record(Section::Answer, owner, rtype::CNAME, ttl, |out| {
                out.extend(target.wire())
            });
        written.map(|()| data)
    }
}

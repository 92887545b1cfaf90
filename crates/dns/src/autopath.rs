//! The search list, answered in one round trip.
//!
//! A resolver with `ndots:5` asks for `web.default` as `web.default.NAMESPACE.svc.ZONE` first, and goes on to the other
//! suffixes of its list when that does not exist. Who knows the list can answer the first question with what one of the
//! later ones would have found.

use podnet_core::cluster::DomainName;
use podnet_core::names::Names;

use crate::name::Name;
use crate::query::Query;
use crate::rtype;
use crate::zone::{Found, Node, find};

/// What the search list leads to, when that is another name than the one in question. `None` too where we cannot know
/// it: the client goes on by itself then.
pub(crate) fn search(names: &Names, searches: &[DomainName], query: &Query<'_>) -> Option<DomainName> {
    let (first, others) = searches.split_first()?;
    if !matches!(query.rtype, rtype::A | rtype::AAAA) {
        return None;
    }
    let own = query.name.before(first.wire()).filter(|&own| own > 0)?;
    let stem = query.name.labels(0, own);
    if !matches!(step(names, &query.name), Step::On) {
        return None;
    }
    let root = DomainName::root();
    for suffix in others.iter().chain([&root]) {
        let candidate = [stem, suffix.wire()].concat();
        let Some(name) = Name::parse(&candidate) else {
            continue;
        };
        match step(names, &name) {
            Step::On => {}
            Step::Here => return DomainName::from_wire(&candidate),
            Step::Unknown => return None,
        }
    }
    None
}

enum Step {
    /// A resolver stops here, having found something.
    Here,
    /// The name does not exist: a resolver goes on.
    On,
    /// Somebody else knows the name; or it exists and has nothing, which resolvers take differently.
    Unknown,
}

fn step(names: &Names, name: &Name) -> Step {
    match find(names, name) {
        Found::Outside => Step::Unknown,
        Found::In { node, .. } => match node {
            Node::Nothing => Step::On,
            // For the other family, too: a name must not stand for one thing in A and for another in AAAA.
            Node::Service(_) | Node::Endpoint(_) | Node::Address(_) | Node::NameServer => Step::Here,
            Node::Empty | Node::Apex | Node::Version | Node::Port(_) | Node::Pointer(_) => Step::Unknown,
        },
    }
}

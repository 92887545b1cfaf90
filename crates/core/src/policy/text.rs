//! Rules from their text.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::str::FromStr;

use super::rule::{Origin, Peer, Peers, PolicyRef, PortMatch, Ports, Rule};
use crate::cluster::{Action, Direction, IpBlock, ObjectName, PodSelection, PortRange, Protocol, Selector};

/// Text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a rule, at {rest:?}: {expected}")]
pub struct RuleError {
    rest: String,
    expected: String,
}

/// What is left of a text to be read.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn error<T>(&self, expected: impl ToString) -> Result<T, RuleError> {
        Err(RuleError {
            rest: self.0.to_owned(),
            expected: expected.to_string(),
        })
    }

    fn takes(&mut self, word: &str) -> bool {
        let Some(rest) = self.0.strip_prefix(word) else {
            return false;
        };
        self.0 = rest.trim_start_matches(' ');
        true
    }

    fn expect(&mut self, word: &str) -> Result<(), RuleError> {
        if self.takes(word) {
            Ok(())
        } else {
            self.error(format!("{word:?} must follow"))
        }
    }

    /// Up to the next space.
    fn word(&mut self) -> &'a str {
        let (word, rest) = self.0.split_once(' ').unwrap_or((self.0, ""));
        self.0 = rest.trim_start_matches(' ');
        word
    }

    fn until(&mut self, end: char) -> Result<&'a str, RuleError> {
        match self.0.split_once(end) {
            Some((inner, rest)) => {
                self.0 = rest.trim_start_matches(' ');
                Ok(inner)
            }
            None => self.error(format!("{end:?} must follow")),
        }
    }

    fn parsed<T: FromStr<Err: ToString>>(&self, text: &str) -> Result<T, RuleError> {
        text.parse()
            .or_else(|error: T::Err| self.error(error.to_string()))
    }

    fn action(&mut self) -> Result<Action, RuleError> {
        match self.word() {
            "accept" => Ok(Action::Accept),
            "deny" => Ok(Action::Deny),
            "pass" => Ok(Action::Pass),
            other => self.error(format!("{other:?} is none of accept, deny and pass")),
        }
    }

    fn peers(&mut self) -> Result<Peers, RuleError> {
        if self.takes("anybody") {
            return Ok(Peers::Anybody);
        }
        let mut peers = BTreeSet::new();
        if self.takes("none") {
            return Ok(Peers::OneOf(peers));
        }
        while let Some(peer) = self.peer()? {
            peers.insert(peer);
        }
        if peers.is_empty() {
            return self.error("whom the rule is about must follow");
        }
        Ok(Peers::OneOf(peers))
    }

    fn peer(&mut self) -> Result<Option<Peer>, RuleError> {
        if self.takes("pods{") {
            let namespaces = self.until(';')?;
            let pods = self.until('}')?;
            return Ok(Some(Peer::Pods(PodSelection {
                namespaces: self.parsed(namespaces)?,
                pods: self.parsed(pods)?,
            })));
        }
        if self.takes("nodes{") {
            let selector: &str = self.until('}')?;
            return Ok(Some(Peer::Nodes(self.parsed::<Selector>(selector)?)));
        }
        if self.takes("cidr ") {
            let mut ranges = self.word().split('!');
            let cidr = self.parsed(ranges.next().unwrap_or_default())?;
            let holes = ranges
                .map(|hole| self.parsed(hole))
                .collect::<Result<Vec<_>, _>>()?;
            let block = IpBlock::new(cidr, holes).or_else(|error| self.error(error))?;
            return Ok(Some(Peer::Block(block)));
        }
        if self.takes("name ") {
            let name = self.word();
            return Ok(Some(Peer::Domain(self.parsed(name)?)));
        }
        Ok(None)
    }

    fn ports(&mut self) -> Result<Ports, RuleError> {
        let mut ports = BTreeSet::new();
        loop {
            match self.word() {
                "of" => return Ok(Ports::OneOf(ports)),
                "any" => {
                    self.expect("of ")?;
                    return Ok(Ports::Any);
                }
                "none" => {
                    self.expect("of ")?;
                    return Ok(Ports::OneOf(ports));
                }
                word => ports.insert(self.port(word)?),
            };
        }
    }

    fn port(&self, word: &str) -> Result<PortMatch, RuleError> {
        if let Some(name) = word.strip_prefix('@') {
            return Ok(PortMatch::Named(None, name.to_owned()));
        }
        let Some((protocol, port)) = word.split_once('/') else {
            return self.error(format!("{word:?} is no port such as tcp/80"));
        };
        let protocol: Protocol = self.parsed(&protocol.to_ascii_uppercase())?;
        if let Some(name) = port.strip_prefix('@') {
            return Ok(PortMatch::Named(Some(protocol), name.to_owned()));
        }
        if port == "*" {
            return Ok(PortMatch::Every(protocol));
        }
        let (first, last) = port.split_once('-').unwrap_or((port, port));
        let (first, last): (NonZeroU16, NonZeroU16) = (self.parsed(first)?, self.parsed(last)?);
        match PortRange::new(first, last) {
            Some(range) => Ok(PortMatch::Numbers(protocol, range)),
            None => self.error(format!("{word:?} is an empty range")),
        }
    }

    fn origin(&mut self) -> Result<Origin, RuleError> {
        let policy = match self.word() {
            "ClusterNetworkPolicy" => PolicyRef::Cluster(self.word().to_owned()),
            "NetworkPolicy" => match self.word().split_once('/') {
                Some((namespace, name)) => PolicyRef::Namespaced(ObjectName::new(namespace, name)),
                None => return self.error("a NetworkPolicy is named NAMESPACE/NAME"),
            },
            other => return self.error(format!("{other:?} is no kind of policy")),
        };
        let direction = match self.word() {
            "ingress" => Direction::Ingress,
            "egress" => Direction::Egress,
            other => return self.error(format!("{other:?} is neither ingress nor egress")),
        };
        let index = self.word();
        Ok(Origin {
            policy,
            direction,
            index: self.parsed(index)?,
            name: self.quoted()?,
        })
    }

    /// What is left, between quotes; or nothing.
    fn quoted(&mut self) -> Result<String, RuleError> {
        if self.0.is_empty() {
            return Ok(String::new());
        }
        let inner = self.0.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let Some(inner) = inner else {
            return self.error("a name between quotes, or nothing, must follow");
        };
        let (mut name, mut chars) = (String::new(), inner.chars());
        while let Some(c) = chars.next() {
            name.push(match c {
                '\\' => match chars.next() {
                    Some('n') => '\n',
                    Some(escaped) => escaped,
                    None => return self.error("a name between quotes must follow"),
                },
                c => c,
            });
        }
        Ok(name)
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut text = Text(text.trim());
        let action = text.action()?;
        let peers = text.peers()?;
        text.expect("ports ")?;
        let ports = text.ports()?;
        let origin = text.origin()?;
        Ok(Rule {
            action,
            peers,
            ports,
            origin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for text in [
            "accept anybody ports any of NetworkPolicy shop/db ingress 0",
            "accept none ports none of NetworkPolicy shop/db egress 1",
            // Peers and ports are sets: they are printed in their own order.
            "accept pods{*; *} pods{kubernetes.io/metadata.name=shop; app in (db,web),!old} nodes{zone=a} \
             cidr 10.0.0.0/8!10.1.0.0/16!10.2.0.0/16 cidr fd00::/8 name *.example.com ports tcp/* tcp/80 \
             udp/1000-2000 @dns tcp/@http of NetworkPolicy shop/db egress 12",
            "deny anybody ports sctp/9 of ClusterNetworkPolicy fence egress 3 \"no \\\"way\\\" \\\\ of\\nout\"",
            "pass pods{*; a!=b} ports any of ClusterNetworkPolicy fence ingress 0 \"x\"",
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_rule_says_where() {
        for (text, why) in [
            (
                "allow anybody ports any of NetworkPolicy a/b ingress 0",
                "none of accept, deny and pass",
            ),
            (
                "accept ports any of NetworkPolicy a/b ingress 0",
                "whom the rule is about must follow",
            ),
            (
                "accept anybody of NetworkPolicy a/b ingress 0",
                "\"ports \" must follow",
            ),
            (
                "accept anybody ports tcp/9-8 of NetworkPolicy a/b ingress 0",
                "empty range",
            ),
            (
                "accept anybody ports icmp/8 of NetworkPolicy a/b ingress 0",
                "supported are TCP, UDP and SCTP",
            ),
            (
                "accept cidr 10.0.0.1/8 ports any of NetworkPolicy a/b ingress 0",
                "bits set beyond",
            ),
            (
                "accept anybody ports any of NetworkPolicy b ingress 0",
                "NAMESPACE/NAME",
            ),
            (
                "accept anybody ports any of NetworkPolicy a/b ingress x",
                "invalid digit",
            ),
            (
                "accept anybody ports any of NetworkPolicy a/b ingress 0 x",
                "between quotes",
            ),
            ("accept pods{*; * ports any", "'}' must follow"),
            ("", "none of accept, deny and pass"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

//! `podnet status services`: what is in force for every address of every service.

use std::fmt;

use podnet_core::cluster::{Affinity, Algorithm};
use podnet_core::service::{Backend, Entry, ServiceState};
use serde::{Deserialize, Serialize};

use super::{NodeStatus, columns};

/// The services of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServicesStatus {
    /// The node.
    #[serde(flatten)]
    pub node: NodeStatus,
    /// Addresses of services by service, and then the node's own ports.
    pub frontends: Vec<FrontendStatus>,
}

/// What clients of one address get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrontendStatus {
    /// NAMESPACE/NAME.
    pub service: String,
    /// PROTOCOL ADDRESS:PORT; the unspecified address stands for all of the node's that have node ports.
    pub address: String,
    /// What this node's pods and the node itself get.
    pub inside: Fate,
    /// What all others get.
    pub outside: Fate,
    /// Who may come at all, as ranges; everybody, where there is nothing.
    pub sources: Option<Vec<String>>,
    /// How an endpoint is chosen: `random` or `maglev`.
    pub algorithm: String,
    /// How long a client stays with its endpoint; it does not, where there is nothing.
    pub affinity_seconds: Option<u32>,
}

/// What becomes of new connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// They go to one of these, ADDRESS:PORT each.
    Balance {
        /// For new connections.
        endpoints: Vec<String>,
        /// For what flows to them already.
        draining: Vec<String>,
    },
    /// Refused: nobody serves it anywhere.
    Refuse,
    /// Dropped: nobody serves it on this node, and its policy allows no other.
    Drop,
}

impl From<&Backend> for Fate {
    fn from(backend: &Backend) -> Self {
        let texts = |endpoints: &[std::net::SocketAddr]| endpoints.iter().map(ToString::to_string).collect();
        match backend {
            Backend::Balance { endpoints, draining } => Fate::Balance {
                endpoints: texts(endpoints),
                draining: texts(draining),
            },
            Backend::Refuse => Fate::Refuse,
            Backend::Drop => Fate::Drop,
        }
    }
}

impl ServicesStatus {
    /// Of what is in force.
    pub(super) fn of(node: NodeStatus, state: &ServiceState) -> Self {
        let frontends = state.frontends.iter();
        let mut frontends: Vec<_> = frontends
            .map(|(frontend, entry)| FrontendStatus::of(frontend.to_string(), entry))
            .collect();
        frontends.sort_by(|a, b| a.service.cmp(&b.service));
        let node_ports = state.node_ports.iter();
        frontends
            .extend(node_ports.map(|(node_port, entry)| FrontendStatus::of(node_port.to_string(), entry)));
        ServicesStatus { node, frontends }
    }
}

impl FrontendStatus {
    fn of(address: String, entry: &Entry) -> Self {
        let sources = entry.sources.as_ref();
        FrontendStatus {
            service: entry.port.service.to_string(),
            address,
            inside: Fate::from(&*entry.inside),
            outside: Fate::from(&**entry.outside()),
            sources: sources.map(|ranges| ranges.iter().map(ToString::to_string).collect()),
            algorithm: entry.algorithm.to_string(),
            affinity_seconds: match entry.affinity {
                Affinity::None => None,
                Affinity::ClientIp { seconds } => Some(seconds),
            },
        }
    }

    fn row(&self) -> [String; 5] {
        let outside = if self.outside == self.inside {
            "the same".into()
        } else {
            self.outside.to_string()
        };
        let mut notes = Vec::new();
        match self.sources.as_deref() {
            None => {}
            Some([]) => notes.push("nobody may come".to_owned()),
            Some(ranges) => notes.push(format!("only from {}", ranges.join(" "))),
        }
        if self.algorithm != Algorithm::Random.to_string() {
            notes.push(format!("by {}", self.algorithm));
        }
        if let Some(seconds) = self.affinity_seconds {
            notes.push(format!("clients stay for {seconds} s"));
        }
        [
            self.service.clone(),
            self.address.clone(),
            self.inside.to_string(),
            outside,
            notes.join("; "),
        ]
    }
}

/// So many endpoints are shown in a table; JSON has all.
const SHOWN: usize = 3;

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Balance { endpoints, draining } => {
                let shown = endpoints.iter().take(SHOWN).map(String::as_str);
                f.write_str(&shown.collect::<Vec<_>>().join(" "))?;
                if endpoints.len() > SHOWN {
                    write!(f, " and {} more", endpoints.len() - SHOWN)?;
                }
                if !draining.is_empty() {
                    write!(f, " (+{} for existing flows)", draining.len())?;
                }
                Ok(())
            }
            Fate::Refuse => f.write_str("refused"),
            Fate::Drop => f.write_str("dropped"),
        }
    }
}

impl fmt::Display for ServicesStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.node)?;
        if self.frontends.is_empty() {
            return writeln!(f, "there is no service");
        }
        writeln!(f)?;
        let header = ["SERVICE", "ADDRESS", "FROM HERE", "FROM OUTSIDE", "NOTES"].map(str::to_owned);
        let rows = std::iter::once(header).chain(self.frontends.iter().map(FrontendStatus::row));
        columns(f, &rows.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use podnet_core::cluster::{Family, ObjectName, Protocol};
    use podnet_core::service::{Frontend, NodePort, PortName};

    use super::*;

    #[test]
    fn every_address_has_a_line_and_json_has_every_endpoint() {
        let port = |number: u16| number.try_into().unwrap();
        let name = PortName {
            service: ObjectName::new("shop", "web"),
            protocol: Protocol::Tcp,
            port: port(80),
        };
        let endpoint = |host: u8| std::net::SocketAddr::from(([10, 244, 0, host], 8080));
        let inside = Backend::Balance {
            endpoints: (2..7).map(endpoint).collect(),
            draining: [endpoint(9)].into(),
        };
        let entry = Arc::new(Entry {
            affinity: Affinity::ClientIp { seconds: 60 },
            sources: Some(Arc::new(["192.0.2.0/24".parse().unwrap()].into())),
            ..Entry::new(name.clone(), inside)
        });
        let local = Arc::new(Entry {
            outside: Some(Arc::new(Backend::Drop)),
            ..Entry::new(name, Backend::Refuse)
        });
        let mut state = ServiceState::default();
        let frontend = Frontend {
            address: [10, 96, 0, 1].into(),
            protocol: Protocol::Tcp,
            port: port(80),
        };
        let node_port = NodePort {
            family: Family::V4,
            protocol: Protocol::Tcp,
            port: port(30080),
        };
        state.frontends.insert(frontend, entry);
        state.node_ports.insert(node_port, local);
        let status = ServicesStatus::of(NodeStatus::default(), &state);
        let text = status.to_string();
        let lines: Vec<&str> = text
            .lines()
            .skip_while(|line| !line.starts_with("SERVICE"))
            .collect();
        let first = "10.244.0.2:8080 10.244.0.3:8080 10.244.0.4:8080 and 2 more (+1 for existing flows)";
        assert_eq!(
            lines,
            [
                format!(
                    "SERVICE    ADDRESS             {:82}   FROM OUTSIDE   NOTES",
                    "FROM HERE"
                ),
                format!(
                    "shop/web   tcp 10.96.0.1:80    {first}   the same       only from 192.0.2.0/24; clients stay for 60 s"
                ),
                format!("shop/web   tcp 0.0.0.0:30080   {:82}   dropped", "refused"),
            ]
        );
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<ServicesStatus>(&json).unwrap(), status);
        assert!(json.contains("10.244.0.6:8080"), "{json}");
    }
}

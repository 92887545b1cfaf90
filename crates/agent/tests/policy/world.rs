//! Three namespaces with three pods each, on two nodes, and whatever policies a test adds. Every question is put to the
//! compiled rules and to the oracle, which must say the same.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use podnet_agent::policy::load;
use podnet_core::cluster::{Cluster, Family, ObjectName, Protocol};
use podnet_core::flow::{Flow, Traffic};
use podnet_core::oracle::policy as oracle;
use podnet_core::policy::judge::{Judge, Verdict};
use podnet_core::state::Problem;
use podnet_core::{NodeName, NodeState, compute};

/// A cluster and its compiled rules.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    judge: Judge,
}

const NODE_OF: [(&str, u8); 3] = [("x", 1), ("y", 2), ("z", 1)];

/// Pods a/x to c/z: labels `pod` and, of the namespace, `ns`. In each, `serve` is tcp 80, but in z it is tcp 81; `dns`
/// is udp 53.
fn base() -> String {
    let mut text = String::new();
    for node in 1..=2 {
        _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node{node}, labels: {{zone: zone{node}}}}}\n\
             status: {{addresses: [{{type: InternalIP, address: 172.30.0.1{node}}}, \
             {{type: ExternalIP, address: 198.51.100.{node}}}, {{type: InternalIP, address: 'fd30::1{node}'}}]}}\n"
        );
    }
    for (i, namespace) in ["a", "b", "c"].into_iter().enumerate() {
        _ = write!(
            text,
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{ns: {namespace}}}}}\n"
        );
        for (j, (pod, node)) in NODE_OF.into_iter().enumerate() {
            let (host, serve) = (10 * i + j + 2, if pod == "z" { 81 } else { 80 });
            _ = write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}, labels: {{pod: {pod}}}}}\n\
                 spec: {{nodeName: node{node}, containers: [{{name: c, image: host, ports: [\
                 {{name: serve, containerPort: {serve}}}, {{name: dns, containerPort: 53, protocol: UDP}}]}}]}}\n\
                 status: {{phase: Running, podIPs: [{{ip: 10.244.{node}.{host}}}, {{ip: 'fd00:10:244:{node}::{host}'}}]}}\n"
            );
        }
    }
    text
}

impl World {
    /// The pods, and what `policies` says in YAML.
    pub(crate) fn new(policies: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.yaml"), base()).unwrap();
        if !policies.trim().is_empty() {
            std::fs::write(dir.path().join("2.yaml"), policies).unwrap();
        }
        let loaded = load(&[dir.path().to_owned()], "default", &[]).unwrap();
        World::of(loaded.cluster)
    }

    pub(crate) fn of(cluster: Cluster) -> Self {
        World {
            judge: Judge::new(&cluster),
            cluster,
        }
    }

    /// NetworkPolicies of namespace a: their specs.
    pub(crate) fn with(specs: &[&str]) -> Self {
        let policies = specs.iter().enumerate().map(|(i, spec)| {
            format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: p{i}, namespace: a}}\nspec: {spec}\n"
            )
        });
        World::new(&policies.collect::<String>())
    }

    /// ClusterNetworkPolicies: their specs.
    pub(crate) fn with_cluster(specs: &[&str]) -> Self {
        let policies = specs.iter().enumerate().map(|(i, spec)| {
            format!(
                "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
                 metadata: {{name: c{i}}}\nspec: {spec}\n"
            )
        });
        World::new(&policies.collect::<String>())
    }

    /// This world with the policies of another one.
    pub(crate) fn and(mut self, other: World) -> Self {
        self.cluster
            .network_policies
            .extend(other.cluster.network_policies);
        self.cluster
            .cluster_network_policies
            .extend(other.cluster.cluster_network_policies);
        World::of(self.cluster)
    }

    /// Changes the objects.
    pub(crate) fn edit(mut self, edit: impl FnOnce(&mut Cluster)) -> Self {
        edit(&mut self.cluster);
        World::of(self.cluster)
    }

    pub(crate) fn pod(cluster: &mut Cluster, name: &str) -> podnet_core::cluster::Pod {
        let (namespace, name) = name.split_once('/').unwrap();
        let pod = cluster.pods.remove(&ObjectName::new(namespace, name));
        pod.unwrap().unwrap()
    }

    /// The address of `a/x`, of `node1`, or as written.
    fn address(&self, text: &str, family: Family) -> IpAddr {
        let addresses = if let Some((namespace, name)) = text.split_once('/') {
            let pod = &self.cluster.pods[&ObjectName::new(namespace, name)];
            pod.as_ref().unwrap().addresses.clone()
        } else if let Ok(address) = text.parse() {
            return address;
        } else {
            let node = self.cluster.node(&NodeName::new(text).unwrap()).unwrap();
            vec![node.address(family).unwrap()]
        };
        addresses
            .into_iter()
            .find(|address| Family::of(*address) == family)
            .unwrap()
    }

    /// `a/x -> b/y tcp 80`; several ports are separate questions; `b/y svc tcp 80` goes through a service.
    pub(crate) fn verdicts(&self, question: &str) -> Vec<Verdict> {
        let (from, rest) = question.split_once(" -> ").unwrap();
        let mut words = rest.split(' ');
        let to = words.next().unwrap();
        let mut words: Vec<&str> = words.collect();
        let through_service = words[0] == "svc";
        if through_service {
            words.remove(0);
        }
        let traffic: Vec<Traffic> = match words[..] {
            ["icmp"] => vec![Traffic::Icmp],
            [protocol, ref ports @ ..] => {
                let protocol: Protocol = protocol.to_uppercase().parse().unwrap();
                let port = |port: &&str| Traffic::Port(protocol, port.parse().unwrap());
                ports.iter().map(port).collect()
            }
            [] => panic!("{question}: no protocol"),
        };
        let written = [from, to]
            .into_iter()
            .find_map(|text| text.parse::<IpAddr>().ok());
        let families = match written {
            Some(address) => vec![Family::of(address)],
            None => vec![Family::V4, Family::V6],
        };
        let mut verdicts = Vec::new();
        for family in families {
            for traffic in &traffic {
                let mut flow = Flow::new(self.address(from, family), self.address(to, family), *traffic);
                flow.through_service = through_service;
                verdicts.push(self.ask(&flow));
            }
        }
        verdicts
    }

    /// Asks the compiled rules, and holds them against the oracle.
    pub(crate) fn ask(&self, flow: &Flow) -> Verdict {
        let verdict = self.judge.judge(flow);
        let (egress, ingress) = oracle::verdict(&self.cluster, flow);
        let says = |decision: &Option<_>| {
            decision
                .as_ref()
                .is_none_or(|decision: &podnet_core::policy::judge::Decision| decision.allowed)
        };
        assert_eq!(
            (says(&verdict.egress), says(&verdict.ingress)),
            (egress.allowed, ingress.allowed),
            "{flow:?}: the oracle says {egress:?} {ingress:?}, the rules {verdict:?}"
        );
        verdict
    }

    #[track_caller]
    pub(crate) fn allows(&self, questions: &[&str]) {
        for question in questions {
            for verdict in self.verdicts(question) {
                assert!(verdict.allowed(), "{question}: {verdict:?}");
            }
        }
    }

    #[track_caller]
    pub(crate) fn denies(&self, questions: &[&str]) {
        for question in questions {
            for verdict in self.verdicts(question) {
                assert!(!verdict.allowed(), "{question}: {verdict:?}");
            }
        }
    }

    /// What a node's state says.
    pub(crate) fn state(&self, node: &str) -> NodeState {
        compute(&self.cluster, &NodeName::new(node).unwrap())
    }

    /// What is wrong with the policies.
    pub(crate) fn problems(&self) -> Vec<String> {
        let problems: BTreeSet<Problem> = self.state("node1").problems.into_iter().collect();
        let of_policies = problems
            .iter()
            .filter(|problem| problem.object.kind.ends_with("NetworkPolicy"));
        of_policies.map(ToString::to_string).collect()
    }
}

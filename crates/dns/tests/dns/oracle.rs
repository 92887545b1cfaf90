//! What the names of a cluster are, worked out the slow way from the specification's text: every record of the zone as
//! text, and answers by going through all of them. It shares no code with what answers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_core::cluster::{Cluster, PodRecords, Resolution};

/// A record: owner, type, data; names with the dot at their end.
pub(crate) type Record = (String, &'static str, String);

/// What should come back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) outside: bool,
    pub(crate) exists: bool,
    pub(crate) answers: BTreeSet<Record>,
    pub(crate) additionals: BTreeSet<Record>,
}

/// Every record there is, but for those of pods without verification.
pub(crate) fn records(cluster: &Cluster) -> BTreeSet<Record> {
    let config = cluster.config.dns.as_ref().unwrap();
    let zone = config.zone.to_string();
    let mut all = BTreeSet::new();
    let soa = format!(
        "ns.dns.{zone} hostmaster.{zone} 7 7200 1800 86400 {}",
        config.negative_ttl
    );
    all.insert((zone.clone(), "SOA", soa));
    all.insert((zone.clone(), "NS", format!("ns.dns.{zone}")));
    all.insert((format!("dns-version.{zone}"), "TXT", "1.1.0".to_owned()));
    for server in &config.servers {
        all.insert(address(&format!("ns.dns.{zone}"), *server));
    }
    let mut owners: Vec<IpAddr> = Vec::new();
    for (object, service) in cluster.services.iter() {
        let service = service.as_ref().unwrap();
        let name = format!("{}.{}.svc.{zone}", object.name, object.namespace);
        if let Resolution::Alias(target) = &service.resolution {
            all.insert((name, "CNAME", target.to_string()));
            continue;
        }
        let is_headless = service.resolution == Resolution::Endpoints;
        for ip in service.cluster_ips() {
            all.insert(address(&name, *ip));
            // Of two services with one address the first by name has it.
            if !owners.contains(ip) {
                owners.push(*ip);
                all.insert((reverse(*ip), "PTR", name.clone()));
            }
        }
        if !is_headless {
            for port in service.ports() {
                let data = format!("0 100 {} {name}", port.port);
                if !port.name.is_empty() {
                    let owner = format!("_{}._{}.{name}", port.name, port.protocol);
                    all.insert((owner, "SRV", data.clone()));
                }
                all.insert((name.clone(), "SRV", data));
            }
        }
        for slice in cluster.slices.values() {
            let slice = slice.as_ref().unwrap();
            if slice.service.as_ref() != Some(object) {
                continue;
            }
            for endpoint in slice.endpoints() {
                if !endpoint.ready && !service.publish_not_ready {
                    continue;
                }
                let made = endpoint.address.to_string().replace(['.', ':'], "-");
                let label = endpoint.hostname.as_deref().unwrap_or(&made);
                let own = format!("{label}.{name}");
                all.insert(address(&own, endpoint.address));
                if !is_headless {
                    continue;
                }
                all.insert(address(&name, endpoint.address));
                all.insert((reverse(endpoint.address), "PTR", own.clone()));
                for port in &slice.ports {
                    let Some(number) = port.port else { continue };
                    let data = format!("0 100 {number} {own}");
                    if !port.name.is_empty() {
                        let owner = format!("_{}._{}.{name}", port.name, port.protocol);
                        all.insert((owner, "SRV", data.clone()));
                    }
                    all.insert((name.clone(), "SRV", data));
                }
            }
        }
    }
    if config.pods == PodRecords::Verified {
        for (object, pod) in &cluster.pods {
            let pod = pod.as_ref().unwrap();
            for ip in pod.addresses.iter().filter(|_| !pod.host_network) {
                let made = ip.to_string().replace(['.', ':'], "-");
                all.insert(address(&format!("{made}.{}.pod.{zone}", object.namespace), *ip));
            }
        }
    }
    all
}

fn address(owner: &str, ip: IpAddr) -> Record {
    (
        owner.to_owned(),
        if ip.is_ipv4() { "A" } else { "AAAA" },
        ip.to_string(),
    )
}

fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(ip) => {
            let digits: String = ip.octets().iter().map(|octet| format!("{octet:02x}")).collect();
            let digits: Vec<String> = digits.chars().rev().map(|digit| digit.to_string()).collect();
            format!("{}.ip6.arpa.", digits.join("."))
        }
    }
}

/// The answer to a question in lower case.
pub(crate) fn expected(cluster: &Cluster, all: &BTreeSet<Record>, name: &str, rtype: &str) -> Expected {
    let config = cluster.config.dns.as_ref().unwrap();
    let zone = config.zone.to_string();
    let mut answers = BTreeSet::new();
    let mut name = name.to_owned();
    loop {
        let ours = name == zone || name.ends_with(&format!(".{zone}"));
        let at_name: Vec<&Record> = all.iter().filter(|record| record.0 == name).collect();
        // Reverse names without records are somebody else's here: the tests give no ranges of our own.
        if !ours && at_name.is_empty() {
            return Expected {
                outside: true,
                exists: true,
                answers,
                additionals: BTreeSet::new(),
            };
        }
        if let Some(alias) = at_name.iter().find(|record| record.1 == "CNAME") {
            let again = !answers.insert((**alias).clone());
            assert!(!again, "the tests make no loops");
            if rtype == "CNAME" {
                return done(true, answers, all);
            }
            name = alias.2.to_ascii_lowercase();
            continue;
        }
        let found = at_name.iter().filter(|record| record.1 == rtype);
        answers.extend(found.map(|record| (*record).clone()));
        let below = format!(".{name}");
        let mut exists = !at_name.is_empty() || all.iter().any(|record| record.0.ends_with(&below));
        let (svc, pods) = (format!("svc.{zone}"), format!("pod.{zone}"));
        exists |= name == svc || (name == pods && config.pods != PodRecords::Off);
        // A namespace with a service has a name, even where the service has none.
        exists |= cluster
            .services
            .keys()
            .any(|object| name == format!("{}.svc.{zone}", object.namespace));
        if config.pods == PodRecords::Verified {
            let spaces = cluster.services.keys().chain(cluster.pods.keys());
            exists |= spaces.into_iter().any(|object| {
                name == format!("{}.pod.{zone}", object.namespace)
                    || name == format!("{}.svc.{zone}", object.namespace)
            });
        }
        if config.pods == PodRecords::Insecure
            && let Some(own) = name.strip_suffix(&format!(".{pods}"))
        {
            let labels: Vec<&str> = own.split('.').collect();
            exists |= labels.len() == 1;
            if let [label, _] = labels[..]
                && let Some(ip) = undashed(label)
            {
                exists = true;
                let record = address(&name, ip);
                if record.1 == rtype {
                    answers.insert(record);
                }
            }
        }
        return done(exists, answers, all);
    }
}

fn undashed(label: &str) -> Option<IpAddr> {
    let four: Result<std::net::Ipv4Addr, _> = label.replace('-', ".").parse();
    let six: Result<std::net::Ipv6Addr, _> = label.replace('-', ":").parse();
    four.map(IpAddr::V4).or(six.map(IpAddr::V6)).ok()
}

fn done(exists: bool, answers: BTreeSet<Record>, all: &BTreeSet<Record>) -> Expected {
    let mut additionals = BTreeSet::new();
    for (_, rtype, data) in &answers {
        let target = match *rtype {
            "SRV" => data.rsplit(' ').next().unwrap(),
            "NS" => data,
            _ => continue,
        };
        let addresses = |record: &&Record| record.0 == *target && matches!(record.1, "A" | "AAAA");
        additionals.extend(all.iter().filter(addresses).cloned());
    }
    Expected {
        outside: false,
        exists,
        answers,
        additionals,
    }
}

//! The records at a name: the Kubernetes DNS specification 1.1.0, section 2, and what a zone has besides.

use std::net::IpAddr;

use podnet_core::names::{NamedEndpoint, NamedService, PortOf};

use crate::answer::Answer;
use crate::name::Name;
use crate::reply::{Full, Place, Section};
use crate::zone::Node;
use crate::{Rcode, rtype};

/// The version of the specification that the names follow.
const SCHEMA: &[u8] = b"\x051.1.0";
/// It changes with podnet only; the specification's example keeps it for eight hours.
const SCHEMA_TTL: u32 = 28_800;
/// Priority and weight (RFC 2782): all are alike.
const ALIKE: [u8; 4] = [0, 0, 0, 100];

/// Whether there was a record of the type in question.
type Written = Result<bool, Full>;

impl Answer<'_> {
    /// Answers for a name that is no alias and stands at `place`, its zone's name at `zone`.
    pub(crate) fn node(&mut self, name: &Name, place: Place, node: Node<'_>, zone: Place) -> Rcode {
        let written = match node {
            Node::Nothing | Node::Empty => Ok(false),
            Node::Apex => self.apex(zone),
            Node::Version => self.version(place),
            Node::NameServer => self.addresses(place, &self.names.config().servers),
            Node::Address(address) => self.addresses(place, &[address]),
            Node::Pointer(address) => self.pointers(place, address),
            Node::Service(service) => self.service(place, service),
            Node::Port(service) => self.named_port(place, service, name),
            Node::Endpoint(service) => self.addresses(place, &self.unique(service, name.label(0))),
        };
        let written = match written {
            // RFC 2308, section 3: how long that may be believed.
            Ok(false) => self.start_of_authority(Section::Authority, zone),
            Ok(true) => Ok(()),
            Err(Full) => Err(Full),
        };
        if let Err(Full) = written {
            self.reply.truncated();
        }
        match node {
            Node::Nothing => Rcode::NxDomain,
            _ => Rcode::NoError,
        }
    }

    fn asks(&self, rtype: u16) -> bool {
        self.rtype == rtype || self.rtype == rtype::ANY
    }

    fn apex(&mut self, zone: Place) -> Written {
        let (soa, ns) = (self.asks(rtype::SOA), self.asks(rtype::NS));
        if soa {
            self.start_of_authority(Section::Answer, zone)?;
        }
        if ns {
            self.name_server(zone)?;
        }
        Ok(soa || ns)
    }

    /// RFC 1035, section 3.3.13. The zones of addresses have the cluster's server and person.
    fn start_of_authority(&mut self, section: Section, zone: Place) -> Result<(), Full> {
        let (config, serial) = (self.names.config(), self.serial);
        let minimum = config.negative_ttl;
        self.reply.record(section, zone, rtype::SOA, minimum, |out| {
            for who in [&b"\x02ns\x03dns"[..], b"\x0ahostmaster"] {
                out.extend(who);
                out.extend(config.zone.wire());
            }
            for number in [serial, 7200, 1800, 86_400, minimum] {
                out.extend(number.to_be_bytes());
            }
        })
    }

    fn name_server(&mut self, zone: Place) -> Result<(), Full> {
        let config = self.names.config();
        let data = self.reply.next_data(zone);
        self.reply
            .record(Section::Answer, zone, rtype::NS, config.ttl, |out| {
                out.extend(b"\x02ns\x03dns");
                out.extend(config.zone.wire());
            })?;
        self.additional(data, &config.servers);
        Ok(())
    }

    fn version(&mut self, place: Place) -> Written {
        if self.asks(rtype::TXT) {
            let write = |out: &mut Vec<u8>| out.extend(SCHEMA);
            self.reply
                .record(Section::Answer, place, rtype::TXT, SCHEMA_TTL, write)?;
        }
        Ok(self.asks(rtype::TXT))
    }

    /// Those of the family in question.
    fn addresses(&mut self, place: Place, addresses: &[IpAddr]) -> Written {
        let ttl = self.names.config().ttl;
        let mut written = false;
        for &address in addresses {
            written |= self.address(place, ttl, address)?;
        }
        Ok(written)
    }

    /// The addresses of a label's endpoints, each once, beginning with a different one each turn.
    fn unique(&self, service: &NamedService, label: &[u8]) -> Vec<IpAddr> {
        let endpoints = service.endpoints_labelled(label);
        let mut addresses: Vec<IpAddr> = endpoints.map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let first = self.turn.checked_rem(addresses.len()).unwrap_or(0);
        addresses.rotate_left(first);
        addresses
    }

    fn address(&mut self, place: Place, ttl: u32, address: IpAddr) -> Written {
        let wanted = self.asks(if address.is_ipv4() { rtype::A } else { rtype::AAAA });
        if wanted {
            self.reply.address(Section::Answer, place, ttl, address)?;
        }
        Ok(wanted)
    }

    /// Additional records may be missing, and nothing is said of that.
    fn additional(&mut self, place: Place, addresses: &[IpAddr]) {
        let ttl = self.names.config().ttl;
        for &address in addresses {
            if let Err(Full) = self.reply.address(Section::Additional, place, ttl, address) {
                return;
            }
        }
    }

    /// Sections 2.3.3 and 2.4.3.
    fn pointers(&mut self, place: Place, address: IpAddr) -> Written {
        if !self.asks(rtype::PTR) {
            return Ok(false);
        }
        let names = self.names;
        let ttl = names.config().ttl;
        for holder in names.at(address) {
            self.reply
                .record(Section::Answer, place, rtype::PTR, ttl, |out| {
                    write_name(out, holder.service, holder.endpoint, names.config().zone.wire());
                })?;
        }
        Ok(true)
    }

    /// Sections 2.3.1 and 2.4.1; and, as CoreDNS has it, SRV records of all ports.
    fn service(&mut self, place: Place, service: &NamedService) -> Written {
        if self.rtype == rtype::SRV {
            return self.ports(place, service, |_| true);
        }
        if service.is_headless() {
            self.headless(place, service)
        } else {
            self.addresses(place, service.cluster_ips())
        }
    }

    /// The addresses of a headless service, beginning with a different one each turn.
    fn headless(&mut self, place: Place, service: &NamedService) -> Written {
        let ttl = self.names.config().ttl;
        let endpoints = service.endpoints();
        let mut written = false;
        for index in turned(endpoints.len(), self.turn) {
            let address = endpoints[index].address;
            // Sorted by address: what is there several times stands together.
            if index == 0 || endpoints[index - 1].address != address {
                written |= self.address(place, ttl, address)?;
            }
        }
        Ok(written)
    }

    fn named_port(&mut self, place: Place, service: &NamedService, name: &Name) -> Written {
        let (port, protocol) = (&name.label(0)[1..], &name.label(1)[1..]);
        if self.asks(rtype::SRV) {
            self.ports(place, service, |it| it.is(port, protocol))
        } else {
            Ok(false)
        }
    }

    /// Sections 2.3.2 and 2.4.2.
    fn ports(&mut self, place: Place, service: &NamedService, wanted: impl Fn(&PortOf) -> bool) -> Written {
        if service.is_headless() {
            return self.endpoint_ports(place, service, wanted);
        }
        let mut first = None;
        for number in distinct(service.ports(), &wanted) {
            let target = self.port(place, number, service, None)?;
            first.get_or_insert(target);
        }
        if let Some(target) = first {
            self.additional(target, service.cluster_ips());
        }
        Ok(first.is_some())
    }

    fn endpoint_ports(
        &mut self,
        place: Place,
        service: &NamedService,
        wanted: impl Fn(&PortOf) -> bool,
    ) -> Written {
        let endpoints = service.endpoints();
        let mut targets = Vec::new();
        for index in turned(endpoints.len(), self.turn) {
            let endpoint = &endpoints[index];
            let label = endpoint.label();
            let others = service.endpoints_labelled(label.as_bytes());
            let before = others.take_while(|other| !std::ptr::eq(*other, endpoint));
            let told = |number: u16| {
                let mut ports = before.clone().flat_map(|other| service.ports_of(other));
                ports.any(|port| wanted(port) && port.number.get() == number)
            };
            let named = before
                .clone()
                .any(|other| service.ports_of(other).iter().any(&wanted));
            let mut target = None;
            for number in distinct(service.ports_of(endpoint), &wanted).filter(|number| !told(*number)) {
                target = Some(self.port(place, number, service, Some(endpoint))?);
            }
            targets.extend(target.filter(|_| !named).map(|target| (target, endpoint)));
        }
        for (target, endpoint) in &targets {
            let label = endpoint.label();
            self.additional(*target, &self.unique(service, label.as_bytes()));
        }
        Ok(!targets.is_empty())
    }

    /// One SRV record (RFC 2782), and where its target stands.
    fn port(
        &mut self,
        place: Place,
        number: u16,
        service: &NamedService,
        endpoint: Option<&NamedEndpoint>,
    ) -> Result<Place, Full> {
        let config = self.names.config();
        let target = self.reply.next_data(place).after(ALIKE.len() + 2);
        self.reply
            .record(Section::Answer, place, rtype::SRV, config.ttl, |out| {
                out.extend(ALIKE);
                out.extend(number.to_be_bytes());
                write_name(out, service, endpoint, config.zone.wire());
            })?;
        Ok(target)
    }
}

fn write_name(out: &mut Vec<u8>, service: &NamedService, endpoint: Option<&NamedEndpoint>, zone: &[u8]) {
    if let Some(endpoint) = endpoint {
        let label = endpoint.label();
        // No label is longer than 63.
        out.push(u8::try_from(label.as_bytes().len()).unwrap_or(0));
        out.extend(label.as_bytes());
    }
    out.extend(&**service.key());
    out.extend(b"\x03svc");
    out.extend(zone);
}

/// Numbers of the wanted ports, each once.
fn distinct<'p>(ports: &'p [PortOf], wanted: &'p impl Fn(&PortOf) -> bool) -> impl Iterator<Item = u16> + 'p {
    ports.iter().enumerate().filter_map(move |(index, port)| {
        let told = || {
            ports[..index]
                .iter()
                .any(|it| wanted(it) && it.number == port.number)
        };
        (wanted(port) && !told()).then(|| port.number.get())
    })
}

/// The indexes below `count`, beginning with a different one each turn.
fn turned(count: usize, turn: usize) -> impl Iterator<Item = usize> {
    let first = turn.checked_rem(count).unwrap_or(0);
    (first..count).chain(0..first)
}

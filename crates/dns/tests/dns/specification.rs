//! The Kubernetes DNS specification 1.1.0, record by record, with its examples; and what CoreDNS answers where it is
//! silent.

use hickory_proto::op::ResponseCode::{NXDomain, NoError, Refused};
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
use podnet_core::cluster::{Cluster, DnsConfig, Pod, PodRecords};
use podnet_core::names::Names;
use podnet_dns::Outcome;

use crate::ask::{Answer, ask};
use crate::cluster::{alias, empty, headless, names, object, service, slice};

/// The objects that the specification's examples are about, and a few more.
fn example() -> Cluster {
    let mut cluster = empty(DnsConfig {
        ttl: 4,
        negative_ttl: 3,
        reverse_zones: vec!["10.3.0.0/16".parse().unwrap(), "fd00:3::/112".parse().unwrap()],
        servers: vec!["10.3.0.10".parse().unwrap(), "fd00:3::a".parse().unwrap()],
        ..DnsConfig::default()
    });
    service(
        &mut cluster,
        "default/kubernetes",
        &["10.3.0.1"],
        &["https/tcp/443"],
    );
    service(
        &mut cluster,
        "kube-system/kube-dns",
        &["10.3.0.10", "fd00:3::a"],
        &["dns/udp/53", "dns-tcp/tcp/53", "/tcp/9153"],
    );
    headless(&mut cluster, "default/headless", &["https/tcp/443"]);
    slice(
        &mut cluster,
        "default/headless-1",
        "default/headless",
        &["https/tcp/443"],
        &[
            "10.3.0.100=my-pet",
            "10.3.0.101=my-pet-2",
            "10.3.0.102",
            "!10.3.0.103=my-pet-3",
        ],
    );
    slice(
        &mut cluster,
        "default/headless-2",
        "default/headless",
        &["https/tcp/443"],
        &["fd00:3::100=my-pet", "fd00:3::102"],
    );
    headless(&mut cluster, "default/nobody", &["https/tcp/443"]);
    slice(
        &mut cluster,
        "default/nobody-1",
        "default/nobody",
        &["https/tcp/443"],
        &["!10.3.0.110=sleeper"],
    );
    alias(&mut cluster, "default/foo", "www.example.com");
    cluster
}

fn table() -> Names {
    names(&example())
}

fn look(name: &str, rtype: RecordType) -> Answer {
    ask(&table(), name, rtype)
}

#[track_caller]
fn holds(name: &str, rtype: RecordType, records: &[&str]) {
    let answer = look(name, rtype);
    assert_eq!(
        (answer.rcode(), answer.answers()),
        (NoError, records.iter().map(ToString::to_string).collect())
    );
    assert!(answer.message.metadata.authoritative);
    assert_eq!(answer.authorities(), [""; 0]);
    assert_eq!(answer.outcome, Outcome::Answered);
}

const AUTHORITY: &str =
    "cluster.local. 3 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 3";

#[track_caller]
fn lacks(name: &str, rtype: RecordType, rcode: hickory_proto::op::ResponseCode) {
    let answer = look(name, rtype);
    assert_eq!(
        (answer.rcode(), answer.answers()),
        (rcode, vec![]),
        "{name} {rtype}"
    );
    assert_eq!(answer.authorities(), [AUTHORITY], "{name} {rtype}");
    assert!(answer.message.metadata.authoritative);
}

#[track_caller]
fn no_name(name: &str, rtype: RecordType) {
    lacks(name, rtype, NXDomain);
}

#[track_caller]
fn no_data(name: &str, rtype: RecordType) {
    lacks(name, rtype, NoError);
}

#[test]
fn section_2_2_the_schema_has_a_version() {
    holds(
        "dns-version.cluster.local.",
        TXT,
        &["dns-version.cluster.local. 28800 IN TXT 1.1.0"],
    );
    no_data("dns-version.cluster.local.", A);
    no_name("x.dns-version.cluster.local.", TXT);
}

#[test]
fn section_2_3_1_a_service_has_its_cluster_ips() {
    holds(
        "kubernetes.default.svc.cluster.local.",
        A,
        &["kubernetes.default.svc.cluster.local. 4 IN A 10.3.0.1"],
    );
    holds(
        "kube-dns.kube-system.svc.cluster.local.",
        AAAA,
        &["kube-dns.kube-system.svc.cluster.local. 4 IN AAAA fd00:3::a"],
    );
    no_data("kubernetes.default.svc.cluster.local.", AAAA);
    no_data("kubernetes.default.svc.cluster.local.", MX);
    no_data("kubernetes.default.svc.cluster.local.", SOA);
    no_data("kubernetes.default.svc.cluster.local.", NS);
}

#[test]
fn section_2_3_2_a_named_port_has_an_srv_record() {
    let answer = look("_https._tcp.kubernetes.default.svc.cluster.local.", SRV);
    let record = "_https._tcp.kubernetes.default.svc.cluster.local. 4 IN SRV 0 100 443 kubernetes.default.svc.cluster.local.";
    assert_eq!(answer.answers(), [record]);
    assert_eq!(
        answer.additionals(),
        ["kubernetes.default.svc.cluster.local. 4 IN A 10.3.0.1"]
    );
    let answer = look("_dns._udp.kube-dns.kube-system.svc.cluster.local.", SRV);
    assert_eq!(
        answer.additionals(),
        [
            "kube-dns.kube-system.svc.cluster.local. 4 IN A 10.3.0.10",
            "kube-dns.kube-system.svc.cluster.local. 4 IN AAAA fd00:3::a",
        ]
    );
    no_data("_https._tcp.kubernetes.default.svc.cluster.local.", A);
    no_data("_tcp.kubernetes.default.svc.cluster.local.", SRV);
    no_name("_https._udp.kubernetes.default.svc.cluster.local.", SRV);
    no_name("_udp.kubernetes.default.svc.cluster.local.", SRV);
    no_name("_dns-tcp._udp.kube-dns.kube-system.svc.cluster.local.", SRV);
    no_name("https._tcp.kubernetes.default.svc.cluster.local.", SRV);
    no_name("_x._https._tcp.kubernetes.default.svc.cluster.local.", SRV);
}

#[test]
fn unnamed_ports_have_no_srv_record_of_their_own() {
    no_name("_._tcp.kube-dns.kube-system.svc.cluster.local.", SRV);
    // The name itself has all ports, as with CoreDNS; two of one number are one record.
    let answer = look("kube-dns.kube-system.svc.cluster.local.", SRV);
    let record = |port| {
        format!(
            "kube-dns.kube-system.svc.cluster.local. 4 IN SRV 0 100 {port} kube-dns.kube-system.svc.cluster.local."
        )
    };
    assert_eq!(answer.answers(), [record(53), record(9153)]);
    assert_eq!(answer.additionals().len(), 2);
}

#[test]
fn section_2_3_3_a_cluster_ip_has_a_ptr_record() {
    holds(
        "1.0.3.10.in-addr.arpa.",
        PTR,
        &["1.0.3.10.in-addr.arpa. 4 IN PTR kubernetes.default.svc.cluster.local."],
    );
    let six = format!("a.{}3.0.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(23));
    holds(
        &six,
        PTR,
        &[&format!("{six} 4 IN PTR kube-dns.kube-system.svc.cluster.local.")],
    );
}

#[test]
fn section_2_4_1_a_headless_service_has_its_ready_endpoints() {
    holds(
        "headless.default.svc.cluster.local.",
        A,
        &[
            "headless.default.svc.cluster.local. 4 IN A 10.3.0.100",
            "headless.default.svc.cluster.local. 4 IN A 10.3.0.101",
            "headless.default.svc.cluster.local. 4 IN A 10.3.0.102",
        ],
    );
    holds(
        "headless.default.svc.cluster.local.",
        AAAA,
        &[
            "headless.default.svc.cluster.local. 4 IN AAAA fd00:3::100",
            "headless.default.svc.cluster.local. 4 IN AAAA fd00:3::102",
        ],
    );
}

#[test]
fn a_headless_service_without_ready_endpoints_does_not_exist() {
    no_name("nobody.default.svc.cluster.local.", A);
    no_name("sleeper.nobody.default.svc.cluster.local.", A);
    no_name("_https._tcp.nobody.default.svc.cluster.local.", SRV);
}

#[test]
fn endpoints_that_are_not_ready_are_published_when_the_service_says_so() {
    let mut cluster = example();
    let nobody = cluster.services.get_mut(&object("default/nobody")).unwrap();
    nobody.as_mut().unwrap().publish_not_ready = true;
    let answer = ask(&names(&cluster), "nobody.default.svc.cluster.local.", A);
    assert_eq!(
        answer.answers(),
        ["nobody.default.svc.cluster.local. 4 IN A 10.3.0.110"]
    );
}

#[test]
fn endpoints_have_names_by_hostname_or_made_of_their_address() {
    holds(
        "my-pet.headless.default.svc.cluster.local.",
        A,
        &["my-pet.headless.default.svc.cluster.local. 4 IN A 10.3.0.100"],
    );
    holds(
        "my-pet.headless.default.svc.cluster.local.",
        AAAA,
        &["my-pet.headless.default.svc.cluster.local. 4 IN AAAA fd00:3::100"],
    );
    holds(
        "10-3-0-102.headless.default.svc.cluster.local.",
        A,
        &["10-3-0-102.headless.default.svc.cluster.local. 4 IN A 10.3.0.102"],
    );
    holds(
        "fd00-3--102.headless.default.svc.cluster.local.",
        AAAA,
        &["fd00-3--102.headless.default.svc.cluster.local. 4 IN AAAA fd00:3::102"],
    );
    no_data("fd00-3--102.headless.default.svc.cluster.local.", A);
    // One name each; not ready; not there; another spelling.
    no_name("10-3-0-100.headless.default.svc.cluster.local.", A);
    no_name("my-pet-3.headless.default.svc.cluster.local.", A);
    no_name("10-3-0-99.headless.default.svc.cluster.local.", A);
    no_name("fd00-3-0--102.headless.default.svc.cluster.local.", AAAA);
    no_name("x.my-pet.headless.default.svc.cluster.local.", A);
}

#[test]
fn a_hostname_of_several_endpoints_has_all_their_addresses() {
    let mut cluster = example();
    slice(
        &mut cluster,
        "default/headless-3",
        "default/headless",
        &[],
        &["10.3.0.120=my-pet"],
    );
    let table = names(&cluster);
    let answer = ask(&table, "my-pet.headless.default.svc.cluster.local.", A);
    let pet = |host| format!("my-pet.headless.default.svc.cluster.local. 4 IN A 10.3.0.{host}");
    assert_eq!(answer.answers(), [pet(100), pet(120)]);
    assert_eq!(
        ask(&table, "headless.default.svc.cluster.local.", A)
            .answers()
            .len(),
        4
    );
}

#[test]
fn section_2_4_2_each_endpoint_of_a_headless_service_has_an_srv_record() {
    let answer = look("_https._tcp.headless.default.svc.cluster.local.", SRV);
    let record = |label| {
        format!(
            "_https._tcp.headless.default.svc.cluster.local. 4 IN SRV 0 100 443 {label}.headless.default.svc.cluster.local."
        )
    };
    let labels = ["my-pet", "my-pet-2", "10-3-0-102", "fd00-3--102"];
    assert_eq!(answer.answers(), labels.map(record));
    let address = |label, rest| format!("{label}.headless.default.svc.cluster.local. 4 IN {rest}");
    assert_eq!(
        answer.additionals(),
        [
            address("my-pet", "A 10.3.0.100"),
            address("my-pet", "AAAA fd00:3::100"),
            address("my-pet-2", "A 10.3.0.101"),
            address("10-3-0-102", "A 10.3.0.102"),
            address("fd00-3--102", "AAAA fd00:3::102"),
        ]
    );
}

#[test]
fn an_endpoints_srv_record_has_the_port_of_its_own_slice() {
    let mut cluster = example();
    slice(
        &mut cluster,
        "default/headless-3",
        "default/headless",
        &["https/tcp/8443"],
        &["10.3.0.130=other"],
    );
    let answer = ask(
        &names(&cluster),
        "_https._tcp.headless.default.svc.cluster.local.",
        SRV,
    );
    let mut ports: Vec<String> = answer.answers();
    ports.retain(|record| record.contains(" 8443 "));
    assert_eq!(
        ports,
        [
            "_https._tcp.headless.default.svc.cluster.local. 4 IN SRV 0 100 8443 other.headless.default.svc.cluster.local."
        ]
    );
}

#[test]
fn section_2_4_3_an_endpoint_of_a_headless_service_has_a_ptr_record() {
    for (address, label) in [("100", "my-pet"), ("102", "10-3-0-102")] {
        holds(
            &format!("{address}.0.3.10.in-addr.arpa."),
            PTR,
            &[&format!(
                "{address}.0.3.10.in-addr.arpa. 4 IN PTR {label}.headless.default.svc.cluster.local."
            )],
        );
    }
    let six = format!("2.0.1.{}3.0.0.0.0.0.d.f.ip6.arpa.", "0.".repeat(21));
    holds(
        &six,
        PTR,
        &[&format!(
            "{six} 4 IN PTR fd00-3--102.headless.default.svc.cluster.local."
        )],
    );
}

#[test]
fn section_2_5_an_external_name_is_an_alias() {
    for rtype in [A, AAAA, CNAME, ANY] {
        let answer = look("foo.default.svc.cluster.local.", rtype);
        assert_eq!(
            answer.answers(),
            ["foo.default.svc.cluster.local. 4 IN CNAME www.example.com."]
        );
        assert_eq!(answer.rcode(), NoError);
        let leads = matches!(rtype, A | AAAA);
        assert_eq!(answer.outcome == Outcome::LeadsOutside, leads, "{rtype}");
    }
    no_name("endpoint.foo.default.svc.cluster.local.", CNAME);
}

#[test]
fn an_alias_of_a_name_of_ours_is_followed() {
    let mut cluster = example();
    alias(
        &mut cluster,
        "default/inner",
        "Kubernetes.default.svc.cluster.local",
    );
    alias(&mut cluster, "default/outer", "inner.default.svc.cluster.local");
    alias(&mut cluster, "default/dead", "nowhere.default.svc.cluster.local");
    alias(&mut cluster, "default/a", "b.default.svc.cluster.local");
    alias(&mut cluster, "default/b", "a.default.svc.cluster.local");
    let table = names(&cluster);
    let answer = ask(&table, "outer.default.svc.cluster.local.", A);
    assert_eq!(
        answer.answers(),
        [
            "outer.default.svc.cluster.local. 4 IN CNAME inner.default.svc.cluster.local.",
            "inner.default.svc.cluster.local. 4 IN CNAME Kubernetes.default.svc.cluster.local.",
            "Kubernetes.default.svc.cluster.local. 4 IN A 10.3.0.1",
        ]
    );
    let answer = ask(&table, "outer.default.svc.cluster.local.", AAAA);
    assert_eq!((answer.rcode(), answer.answers().len()), (NoError, 2));
    assert_eq!(answer.authorities(), [AUTHORITY]);
    let answer = ask(&table, "dead.default.svc.cluster.local.", A);
    assert_eq!((answer.rcode(), answer.answers().len()), (NXDomain, 1));
    assert_eq!(answer.authorities(), [AUTHORITY]);
    let answer = ask(&table, "a.default.svc.cluster.local.", A);
    assert_eq!(answer.rcode(), hickory_proto::op::ResponseCode::ServFail);
    assert_eq!(answer.answers(), [""; 0]);
}

#[test]
fn section_2_6_pods_have_names_made_of_their_addresses() {
    holds(
        "1-2-3-4.default.pod.cluster.local.",
        A,
        &["1-2-3-4.default.pod.cluster.local. 4 IN A 1.2.3.4"],
    );
    holds(
        "fd00--5.default.pod.cluster.local.",
        AAAA,
        &["fd00--5.default.pod.cluster.local. 4 IN AAAA fd00::5"],
    );
    no_data("1-2-3-4.default.pod.cluster.local.", AAAA);
    no_data("default.pod.cluster.local.", A);
    no_data("pod.cluster.local.", A);
    no_name("1-2-3-256.default.pod.cluster.local.", A);
    no_name("web.default.pod.cluster.local.", A);
    no_name("x.1-2-3-4.default.pod.cluster.local.", A);
}

#[test]
fn pods_names_can_be_verified_or_off() {
    let mut cluster = example();
    let mut pod = Pod::new(object("other/web"));
    pod.addresses = vec!["10.244.0.5".parse().unwrap(), "fd00:244::5".parse().unwrap()];
    cluster.pods.insert(pod.name.clone(), Ok(pod));
    let mut guest = Pod::new(object("other/node-pod"));
    guest.addresses = vec!["172.30.0.11".parse().unwrap()];
    guest.host_network = true;
    cluster.pods.insert(guest.name.clone(), Ok(guest));
    cluster.config.dns.as_mut().unwrap().pods = PodRecords::Verified;
    let table = names(&cluster);
    let rcode = |name: &str, rtype| ask(&table, name, rtype).rcode();
    assert_eq!(
        ask(&table, "10-244-0-5.other.pod.cluster.local.", A).answers(),
        ["10-244-0-5.other.pod.cluster.local. 4 IN A 10.244.0.5"]
    );
    assert_eq!(
        ask(&table, "fd00-244--5.other.pod.cluster.local.", AAAA)
            .answers()
            .len(),
        1
    );
    assert_eq!(rcode("10-244-0-5.default.pod.cluster.local.", A), NXDomain);
    assert_eq!(rcode("10-244-0-6.other.pod.cluster.local.", A), NXDomain);
    assert_eq!(rcode("172-30-0-11.other.pod.cluster.local.", A), NXDomain);
    assert_eq!(rcode("other.pod.cluster.local.", A), NoError);
    assert_eq!(rcode("nothere.pod.cluster.local.", A), NXDomain);

    cluster.config.dns.as_mut().unwrap().pods = PodRecords::Off;
    let table = names(&cluster);
    for name in ["10-244-0-5.other.pod.cluster.local.", "pod.cluster.local."] {
        assert_eq!(ask(&table, name, A).rcode(), NXDomain);
    }
}

#[test]
fn the_zone_has_soa_and_ns_and_the_server_an_address() {
    holds("cluster.local.", SOA, &[AUTHORITY]);
    let answer = look("cluster.local.", NS);
    assert_eq!(answer.answers(), ["cluster.local. 4 IN NS ns.dns.cluster.local."]);
    assert_eq!(
        answer.additionals(),
        [
            "ns.dns.cluster.local. 4 IN A 10.3.0.10",
            "ns.dns.cluster.local. 4 IN AAAA fd00:3::a"
        ]
    );
    holds(
        "ns.dns.cluster.local.",
        A,
        &["ns.dns.cluster.local. 4 IN A 10.3.0.10"],
    );
    no_data("cluster.local.", A);
    no_data("dns.cluster.local.", A);
    no_name("x.ns.dns.cluster.local.", A);
    assert_eq!(look("cluster.local.", ANY).answers().len(), 2);
}

#[test]
fn nodata_is_told_from_nxdomain() {
    no_data("svc.cluster.local.", A);
    no_data("default.svc.cluster.local.", A);
    no_data("default.svc.cluster.local.", NS);
    no_name("other.svc.cluster.local.", A);
    no_name("nothere.default.svc.cluster.local.", A);
    no_name("x.nothere.default.svc.cluster.local.", A);
    no_name("foo.cluster.local.", NS);
    no_name("svc.svc.cluster.local.", A);
}

#[test]
fn names_of_others_are_not_ours_to_deny() {
    for name in [
        "example.com.",
        ".",
        "local.",
        "xcluster.local.",
        "4.0.4.10.in-addr.arpa.",
        "10.in-addr.arpa.",
        "arpa.",
        "8.8.8.8.in-addr.arpa.",
    ] {
        let answer = look(name, A);
        assert_eq!(
            (answer.outcome, answer.rcode()),
            (Outcome::Outside, Refused),
            "{name}"
        );
        assert!(!answer.message.metadata.authoritative);
    }
}

#[test]
fn addresses_of_our_ranges_without_a_name_do_not_exist() {
    let reverse = |name: &str, rtype| {
        let answer = look(name, rtype);
        (answer.rcode(), answer.answers().len(), answer.authorities())
    };
    let soa = |zone: &str| AUTHORITY.replacen("cluster.local.", zone, 1);
    assert_eq!(
        reverse("99.9.3.10.in-addr.arpa.", PTR),
        (NXDomain, 0, vec![soa("3.10.in-addr.arpa.")])
    );
    assert_eq!(
        reverse("x.9.3.10.in-addr.arpa.", PTR),
        (NXDomain, 0, vec![soa("3.10.in-addr.arpa.")])
    );
    assert_eq!(
        reverse("9.3.10.in-addr.arpa.", PTR),
        (NoError, 0, vec![soa("3.10.in-addr.arpa.")])
    );
    assert_eq!(
        reverse("1.0.3.10.in-addr.arpa.", A),
        (NoError, 0, vec![soa("3.10.in-addr.arpa.")])
    );
    assert_eq!(
        look("3.10.in-addr.arpa.", SOA).answers(),
        [soa("3.10.in-addr.arpa.")]
    );
    assert_eq!(look("3.10.in-addr.arpa.", NS).answers().len(), 1);
}

#[test]
fn the_case_of_the_question_is_kept() {
    let answer = look("KuberNetes.dEfault.svC.cluster.LOCAL.", A);
    assert_eq!(
        answer.answers(),
        ["KuberNetes.dEfault.svC.cluster.LOCAL. 4 IN A 10.3.0.1"]
    );
    assert_eq!(
        answer.message.queries[0].name().to_ascii(),
        "KuberNetes.dEfault.svC.cluster.LOCAL."
    );
    let answer = look("nothere.default.svc.Cluster.Local.", A);
    assert!(answer.authorities()[0].starts_with("Cluster.Local. "));
    assert_eq!(
        look("_HTTPS._Tcp.headless.default.svc.cluster.local.", SRV)
            .answers()
            .len(),
        4
    );
    assert_eq!(
        look("My-Pet.headless.default.svc.cluster.local.", A)
            .answers()
            .len(),
        1
    );
}

#[test]
fn service_names_may_start_with_a_digit() {
    let mut cluster = example();
    service(&mut cluster, "default/3scale", &["10.3.0.33"], &["http/tcp/80"]);
    let answer = ask(&names(&cluster), "3scale.default.svc.cluster.local.", A);
    assert_eq!(
        answer.answers(),
        ["3scale.default.svc.cluster.local. 4 IN A 10.3.0.33"]
    );
}

#[test]
fn labels_with_underscores_in_search_paths_are_names_that_do_not_exist() {
    no_name("_grpc_config.web.default.svc.cluster.local.", TXT);
    no_name("my_host.default.svc.cluster.local.", A);
    no_name("web.default.my_domain.cluster.local.", A);
}

#[test]
fn the_zone_can_have_another_name() {
    let mut cluster = example();
    cluster.config.dns.as_mut().unwrap().zone = "K8s.Example.Org".parse().unwrap();
    let table = names(&cluster);
    let answer = ask(&table, "_https._tcp.kubernetes.default.svc.k8s.example.org.", SRV);
    assert_eq!(
        answer.answers(),
        [
            "_https._tcp.kubernetes.default.svc.k8s.example.org. 4 IN SRV 0 100 443 kubernetes.default.svc.k8s.example.org."
        ]
    );
    assert_eq!(
        ask(&table, "kubernetes.default.svc.cluster.local.", A).outcome,
        Outcome::Outside
    );
}

#[test]
fn a_service_of_another_proxy_has_its_name() {
    let mut cluster = example();
    let service = cluster.services.get_mut(&object("default/kubernetes")).unwrap();
    service.as_mut().unwrap().proxied_elsewhere = true;
    assert_eq!(
        ask(&names(&cluster), "kubernetes.default.svc.cluster.local.", A)
            .answers()
            .len(),
        1
    );
}

#[test]
fn any_is_answered_with_what_is_there() {
    let answer = look("kube-dns.kube-system.svc.cluster.local.", ANY);
    assert_eq!(answer.answers().len(), 2);
    no_data("svc.cluster.local.", ANY);
    no_name("nothere.default.svc.cluster.local.", ANY);
}

//! The search list in one round trip.

use hickory_proto::op::ResponseCode::{NXDomain, NoError};
use hickory_proto::rr::RecordType::{self, A, AAAA, SRV};
use podnet_core::cluster::{DnsConfig, DomainName};
use podnet_dns::{Context, Outcome, Transport};

use crate::ask::{Answer, context, question, send};
use crate::cluster::{alias, empty, names, service};

/// Asked by a pod of namespace `shop` whose node has a search domain of its own.
fn look(name: &str, rtype: RecordType) -> Answer {
    look_with(name, rtype, &["corp.example"])
}

fn look_with(name: &str, rtype: RecordType, more: &[&str]) -> Answer {
    let mut cluster = empty(DnsConfig::default());
    service(&mut cluster, "shop/cart", &["10.96.0.1"], &[]);
    service(&mut cluster, "default/web", &["10.96.0.2"], &[]);
    alias(&mut cluster, "default/out", "www.example.com");
    let names = names(&cluster);
    let own = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];
    let searches: Vec<DomainName> = own.iter().chain(more).map(|text| text.parse().unwrap()).collect();
    let context = Context {
        searches: &searches,
        ..context(&names)
    };
    send(&question(name, rtype, None), Transport::Udp, &context)
}

#[test]
fn the_name_that_a_later_suffix_finds_is_told_at_once() {
    let answer = look("web.default.shop.svc.cluster.local.", A);
    assert_eq!(
        answer.answers(),
        [
            "web.default.shop.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.",
            "web.default.svc.cluster.local. 5 IN A 10.96.0.2",
        ]
    );
    let answer = look("web.default.svc.shop.svc.cluster.local.", A);
    assert_eq!(answer.answers().len(), 2);
}

#[test]
fn a_whole_name_is_found_where_nobody_else_is_asked_before() {
    // A resolver with ndots:5 appends its list to it, too.
    let name = "Web.default.svc.cluster.local.Shop.svc.cluster.local.";
    assert_eq!(
        look_with(name, A, &[]).answers(),
        [
            "Web.default.svc.cluster.local.Shop.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.",
            "web.default.svc.cluster.local. 5 IN A 10.96.0.2",
        ]
    );
    // Who has corp.example may have the name with that appended.
    assert_eq!(look(name, A).rcode(), NXDomain);
}

#[test]
fn both_families_are_led_to_the_same_name() {
    let answer = look("web.default.shop.svc.cluster.local.", AAAA);
    assert_eq!(
        answer.answers(),
        ["web.default.shop.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local."]
    );
    assert_eq!((answer.rcode(), answer.authorities().len()), (NoError, 1));
}

#[test]
fn a_name_that_exists_is_itself() {
    assert_eq!(
        look("cart.shop.svc.cluster.local.", A).answers(),
        ["cart.shop.svc.cluster.local. 5 IN A 10.96.0.1"]
    );
    assert_eq!(look("cart.shop.svc.cluster.local.", AAAA).answers(), [""; 0]);
    // Not the first suffix: a resolver asked for this on its own.
    assert_eq!(look("web.default.cluster.local.", A).rcode(), NXDomain);
}

#[test]
fn what_only_others_know_is_left_to_the_client() {
    for (name, rtype) in [
        ("www.example.com.shop.svc.cluster.local.", A),
        ("nothere.shop.svc.cluster.local.", A),
        ("web.default.shop.svc.cluster.local.", SRV),
        // The namespace's own name, which has no records.
        ("default.shop.svc.cluster.local.", A),
    ] {
        let answer = look(name, rtype);
        assert_eq!((answer.rcode(), answer.answers().len()), (NXDomain, 0), "{name}");
    }
}

#[test]
fn aliases_at_the_end_of_the_list_are_followed() {
    let answer = look("out.default.shop.svc.cluster.local.", A);
    assert_eq!(answer.outcome, Outcome::LeadsOutside);
    assert_eq!(
        answer.answers(),
        [
            "out.default.shop.svc.cluster.local. 5 IN CNAME out.default.svc.cluster.local.",
            "out.default.svc.cluster.local. 5 IN CNAME www.example.com.",
        ]
    );
}

use super::*;
use proptest::prelude::*;

const COOL_DOWN: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(1000);

fn nets(ranges: &[&str]) -> Vec<IpNet> {
    ranges.iter().map(|range| range.parse().unwrap()).collect()
}

fn allocator(ranges: &[&str]) -> Allocator {
    let mut allocator = Allocator::new(COOL_DOWN);
    allocator.set(&Addressing::of_node(&nets(ranges)));
    allocator
}

/// One of each family that there is a range of.
fn slots(allocator: &Allocator) -> Vec<Slot> {
    let mut families: Vec<bool> = allocator.ranges().map(|range| range.hosts.is_ipv4()).collect();
    families.dedup();
    let any = |ipv4| Slot::Any {
        ipv4,
        pools: vec![PoolId::Node],
    };
    families.into_iter().map(any).collect()
}

fn allocate(allocator: &mut Allocator, now: Duration) -> Result<Vec<IpAddr>, Refused> {
    let slots = slots(allocator);
    allocator.allocate(now, &slots)
}

fn all_left(allocator: &mut Allocator) -> Vec<String> {
    let mut all = Vec::new();
    while let Ok(addresses) = allocate(allocator, START) {
        all.extend(addresses.iter().map(IpAddr::to_string));
    }
    all
}

fn all_of(ranges: &[&str]) -> Vec<String> {
    all_left(&mut allocator(ranges))
}

#[test]
fn network_gateway_and_broadcast_are_never_handed_out() {
    assert_eq!(
        all_of(&["10.0.0.0/29"]),
        ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    );
    assert_eq!(all_of(&["10.0.0.0/30"]), ["10.0.0.2"]);
    assert_eq!(all_of(&["fd00::/126"]), ["fd00::2", "fd00::3"]);
    let mut named = allocator(&["10.0.0.0/29"]);
    for address in ["10.0.0.0", "10.0.0.1", "10.0.0.7"] {
        let address = address.parse().unwrap();
        let exactly = [Slot::Exactly(address, vec![PoolId::Node])];
        assert_eq!(named.allocate(START, &exactly), Err(Refused::Reserved(address)));
    }
}

#[test]
fn a_range_of_one_address_works() {
    assert_eq!(all_of(&["10.0.0.7/32"]), ["10.0.0.7"]);
    assert_eq!(all_of(&["10.0.0.6/31"]), ["10.0.0.6", "10.0.0.7"]);
    assert_eq!(all_of(&["fd00::7/128"]), ["fd00::7"]);
    assert_eq!(all_of(&["255.255.255.255/32"]), ["255.255.255.255"]);
    let top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    assert_eq!(all_of(&[&format!("{top}/128")]), [top]);
}

#[test]
fn dual_stack_gives_one_of_each_family_or_none() {
    let mut dual = allocator(&["10.0.0.0/24", "fd00::8/128"]);
    let addresses = allocate(&mut dual, START).unwrap();
    assert_eq!(
        addresses,
        ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::8".parse().unwrap()]
    );
    let error = allocate(&mut dual, START).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no address is left in the node's range fd00::8/128: all 1 are in use"
    );
    assert_eq!(
        dual.in_use().len(),
        2,
        "the IPv4 address of the failed attempt was not kept"
    );
}

#[test]
fn ipv6_only_works() {
    let mut only = allocator(&["fd00:10:244:1::/64"]);
    let first = allocate(&mut only, START).unwrap();
    assert_eq!(first, ["fd00:10:244:1::2".parse::<IpAddr>().unwrap()]);
    assert_eq!(only.usage(START)[0].size, (1 << 64) - 2);
}

#[test]
fn a_second_range_of_a_family_serves_when_the_first_is_full() {
    assert_eq!(all_of(&["10.0.0.7/32", "10.1.0.8/32"]), ["10.0.0.7", "10.1.0.8"]);
}

#[test]
fn a_freed_address_comes_last() {
    let mut small = allocator(&["10.0.0.0/29"]);
    let first = allocate(&mut small, START).unwrap()[0];
    assert!(small.release(first, START));
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(allocate(&mut small, START).unwrap()[0]);
    }
    assert!(!seen.contains(&first));
    // Nothing else is left, so it is better than a pod without an address.
    assert_eq!(allocate(&mut small, START).unwrap(), [first]);
    assert!(allocate(&mut small, START).is_err());
}

#[test]
fn a_cool_down_holds_while_others_are_free_and_then_ends() {
    let mut small = allocator(&["10.0.0.0/29"]);
    let all: Vec<_> = (0..5).map(|_| allocate(&mut small, START).unwrap()[0]).collect();
    small.release(all[1], START);
    let later = START + COOL_DOWN;
    small.release(all[0], later);
    let usage = small.usage(later).remove(0);
    assert_eq!((usage.size, usage.leased, usage.cooling), (5, 3, 1));
    // The search begins at all[0], which is still warm.
    assert_eq!(allocate(&mut small, later).unwrap(), [all[1]]);
}

#[test]
fn a_restart_knows_what_rests() {
    let mut small = allocator(&["10.0.0.0/29"]);
    for host in [2, 3, 4, 5] {
        small.rest([10, 0, 0, host].into(), START);
    }
    let mut given = Vec::new();
    for _ in 0..3 {
        given.push(allocate(&mut small, START).unwrap()[0].to_string());
    }
    assert_eq!(
        given,
        ["10.0.0.6", "10.0.0.2", "10.0.0.3"],
        "rested longest first"
    );
}

#[test]
fn reservations_are_never_handed_out() {
    let mut small = allocator(&["10.0.0.0/28"]);
    let addressing = Addressing::of_node(&nets(&["10.0.0.0/28"]));
    small.set(
        &addressing
            .clone()
            .reserving(&nets(&["10.0.0.4/30", "10.0.0.10/32"])),
    );
    let one = [Slot::Exactly("10.0.0.5".parse().unwrap(), vec![PoolId::Node])];
    assert!(matches!(small.allocate(START, &one), Err(Refused::Reserved(_))));
    assert_eq!(small.usage(START)[0].size, 8);
    let hosts: Vec<String> = [2, 3, 8, 9, 11, 12, 13, 14]
        .map(|host| format!("10.0.0.{host}"))
        .into();
    assert_eq!(all_left(&mut small), hosts);
    // One that was given out before it was reserved does not come back either.
    small.set(&addressing.reserving(&nets(&["10.0.0.8/29"])));
    small.release("10.0.0.9".parse().unwrap(), START);
    assert!(allocate(&mut small, START).is_ok_and(|given| given[0].to_string() < "10.0.0.8".into()));
    while let Ok(given) = allocate(&mut small, START) {
        assert_ne!(given[0].to_string(), "10.0.0.9");
    }
}

#[test]
fn static_addresses_are_given_or_refused_with_the_cause() {
    let mut node = allocator(&["10.0.0.0/29"]);
    let exactly = |text: &str| [Slot::Exactly(text.parse().unwrap(), vec![PoolId::Node])];
    let given = node.allocate(START, &exactly("10.0.0.5")).unwrap();
    assert_eq!(given, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
    let taken = node.allocate(START, &exactly("10.0.0.5")).unwrap_err();
    assert_eq!(taken.to_string(), "the address 10.0.0.5 is in use already");
    let elsewhere = node.allocate(START, &exactly("10.9.0.5")).unwrap_err();
    assert_eq!(
        elsewhere.to_string(),
        "the address 10.9.0.5 is in none of the ranges that this pod can have one from on this node: 10.0.0.0/29"
    );
    node.release(given[0], START);
    assert_eq!(
        node.allocate(START, &exactly("10.0.0.5")).unwrap(),
        given,
        "no rest for a name"
    );
}

#[test]
fn address_ranges_asked_for_narrow_the_choice() {
    let mut node = allocator(&["10.0.0.0/28"]);
    let within = |first: &str, last: &str| {
        let bounds = Bounds {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        };
        [Slot::Within(vec![bounds], vec![PoolId::Node])]
    };
    let slots = within("10.0.0.13", "10.0.0.200");
    let given: Vec<_> = (0..2)
        .map(|_| node.allocate(START, &slots).unwrap()[0].to_string())
        .collect();
    assert_eq!(given, ["10.0.0.13", "10.0.0.14"]);
    assert!(matches!(
        node.allocate(START, &slots),
        Err(Refused::Exhausted { size: 2, .. })
    ));
    assert!(matches!(
        node.allocate(START, &within("10.1.0.1", "10.1.0.9")),
        Err(Refused::Disjoint(_))
    ));
}

#[test]
fn ranges_change_and_come_back() {
    let mut moving = allocator(&["10.0.0.0/24"]);
    let old = allocate(&mut moving, START).unwrap()[0];
    moving.set(&Addressing::of_node(&nets(&["10.1.0.0/24"])));
    assert_eq!(moving.in_use().iter().copied().collect::<Vec<_>>(), [old]);
    let new = allocate(&mut moving, START).unwrap()[0];
    assert_eq!(new.to_string(), "10.1.0.2");
    moving.set(&Addressing::of_node(&nets(&["10.0.0.0/24", "10.1.0.0/24"])));
    assert!(!moving.take(old) && !moving.take(new));
    assert!(moving.release(old, START) && !moving.release(old, START));
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut again = allocator(&["10.0.0.0/24"]);
    again.resume_after("10.0.0.77".parse().unwrap());
    assert_eq!(allocate(&mut again, START).unwrap()[0].to_string(), "10.0.0.78");
    again.resume_after("10.0.0.254".parse().unwrap());
    assert_eq!(allocate(&mut again, START).unwrap()[0].to_string(), "10.0.0.2");
}

#[derive(Debug, Clone)]
enum Step {
    Allocate,
    Exactly(u32),
    Release(prop::sample::Index),
    Take(u32),
    Wait(u64),
    Ranges(Vec<IpNet>, Vec<IpNet>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0u32..4, 24u8..=32).prop_map(|(third, length)| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + (third << 8));
        IpNet::new(address.into(), length).unwrap()
    });
    let reserved = (0u32..1024, 28u8..=32).prop_map(|(host, length)| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + host);
        IpNet::new(address.into(), length).unwrap().trunc()
    });
    let ranges = (
        prop::collection::vec(range, 0..3),
        prop::collection::vec(reserved, 0..2),
    );
    let step = prop_oneof![
        8 => Just(Step::Allocate),
        2 => (0u32..1024).prop_map(Step::Exactly),
        6 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => (0u32..1024).prop_map(Step::Take),
        2 => (0u64..60).prop_map(Step::Wait),
        1 => ranges.prop_map(|(ranges, reserved)| Step::Ranges(ranges, reserved)),
    ];
    prop::collection::vec(step, 1..200)
}

/// What could be handed out, said naively.
fn eligible(allocator: &Allocator) -> Vec<IpAddr> {
    let all = (0..1024).map(|host| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + host)));
    all.filter(|address| {
        allocator.ranges().any(|range| range.hosts.contains(*address))
            && !allocator.reserved.iter().any(|net| net.contains(address))
    })
    .collect()
}

proptest! {
    /// Never an address twice, never one lost, whatever happens in whatever order.
    #[test]
    fn what_is_in_use_is_what_was_given_and_not_given_back(steps in steps(), length in 26u8..=30) {
        let mut allocator = allocator(&[&format!("10.0.0.0/{length}")]);
        let mut model = BTreeSet::new();
        let mut now = START;
        let any = [Slot::Any { ipv4: true, pools: vec![PoolId::Node] }];
        for step in steps {
            match step {
                Step::Allocate => {
                    let free: Vec<IpAddr> =
                        eligible(&allocator).into_iter().filter(|address| !model.contains(address)).collect();
                    match allocator.allocate(now, &any) {
                        Ok(addresses) => {
                            prop_assert!(free.contains(&addresses[0]), "{addresses:?} was not free");
                            prop_assert!(model.insert(addresses[0]), "{addresses:?} was given twice");
                        }
                        Err(_) => prop_assert_eq!(free, [] as [IpAddr; 0], "refused with addresses left"),
                    }
                }
                Step::Exactly(host) => {
                    let address = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + host));
                    let may = eligible(&allocator).contains(&address) && !model.contains(&address);
                    let given = allocator.allocate(now, &[Slot::Exactly(address, vec![PoolId::Node])]);
                    prop_assert_eq!(given.is_ok(), may);
                    if may { model.insert(address); }
                }
                Step::Release(which) => {
                    if model.is_empty() { continue }
                    let address = **which.get(&model.iter().collect::<Vec<_>>());
                    prop_assert!(allocator.release(address, now));
                    model.remove(&address);
                    prop_assert!(!allocator.release(address, now));
                }
                Step::Take(host) => {
                    let address = IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + host));
                    prop_assert_eq!(allocator.take(address), model.insert(address));
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Ranges(ranges, reserved) => {
                    allocator.set(&Addressing::of_node(&ranges).reserving(&reserved));
                }
            }
            prop_assert_eq!(allocator.in_use(), &model);
        }
    }
}

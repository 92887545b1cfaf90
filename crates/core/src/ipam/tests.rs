use super::*;
use proptest::prelude::*;

const COOL_DOWN: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(1000);

fn allocator(ranges: &[&str]) -> Allocator {
    let mut allocator = Allocator::new(COOL_DOWN);
    allocator.set_ranges(
        &ranges
            .iter()
            .map(|range| range.parse().unwrap())
            .collect::<Vec<_>>(),
    );
    allocator
}

fn all_of(ranges: &[&str]) -> Vec<String> {
    let mut allocator = allocator(ranges);
    let mut all = Vec::new();
    while let Ok(addresses) = allocator.allocate(START) {
        all.extend(addresses.iter().map(IpAddr::to_string));
    }
    all
}

#[test]
fn network_gateway_and_broadcast_stay_out() {
    assert_eq!(
        all_of(&["10.0.0.0/29"]),
        ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    );
    assert_eq!(all_of(&["10.0.0.0/30"]), ["10.0.0.2"]);
    assert_eq!(all_of(&["fd00::/126"]), ["fd00::2", "fd00::3"]);
}

#[test]
fn ranges_of_one_and_two_addresses_are_all_hosts() {
    assert_eq!(all_of(&["10.0.0.7/32"]), ["10.0.0.7"]);
    assert_eq!(all_of(&["10.0.0.6/31"]), ["10.0.0.6", "10.0.0.7"]);
    assert_eq!(all_of(&["fd00::7/128"]), ["fd00::7"]);
    assert_eq!(all_of(&["255.255.255.255/32"]), ["255.255.255.255"]);
    let top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    assert_eq!(all_of(&[&format!("{top}/128")]), [top]);
}

#[test]
fn a_pod_gets_one_of_each_family_or_none() {
    let mut dual = allocator(&["10.0.0.0/24", "fd00::8/128"]);
    let addresses = dual.allocate(START).unwrap();
    assert_eq!(
        addresses,
        ["10.0.0.2".parse::<IpAddr>().unwrap(), "fd00::8".parse().unwrap()]
    );
    let error = dual.allocate(START).unwrap_err();
    assert_eq!(
        error,
        Exhausted {
            pool: "fd00::8/128".parse().unwrap(),
            size: 1
        }
    );
    assert_eq!(
        error.to_string(),
        "no address is left in the pool fd00::8/128: all 1 are in use"
    );
    assert_eq!(
        dual.in_use().count(),
        2,
        "the IPv4 address of the failed attempt was not kept"
    );
}

#[test]
fn a_second_range_of_a_family_serves_when_the_first_is_full() {
    assert_eq!(all_of(&["10.0.0.7/32", "10.1.0.8/32"]), ["10.0.0.7", "10.1.0.8"]);
}

#[test]
fn a_freed_address_comes_last() {
    let mut small = allocator(&["10.0.0.0/29"]);
    let first = small.allocate(START).unwrap()[0];
    assert!(small.release(first, START));
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(small.allocate(START).unwrap()[0]);
    }
    assert!(!seen.contains(&first));
    // Nothing else is left, so it is better than a pod without an address.
    assert_eq!(small.allocate(START).unwrap(), [first]);
    assert!(small.allocate(START).is_err());
}

#[test]
fn the_cool_down_holds_while_others_are_free_and_then_ends() {
    let mut small = allocator(&["10.0.0.0/29"]);
    let all: Vec<_> = (0..5).map(|_| small.allocate(START).unwrap()[0]).collect();
    small.release(all[1], START);
    let later = START + COOL_DOWN;
    small.release(all[0], later);
    // The search begins at all[0], which is still warm.
    assert_eq!(small.allocate(later).unwrap(), [all[1]]);
}

#[test]
fn ranges_change_and_come_back() {
    let mut moving = allocator(&["10.0.0.0/24"]);
    let old = moving.allocate(START).unwrap()[0];
    moving.set_ranges(&["10.1.0.0/24".parse().unwrap()]);
    assert_eq!(moving.in_use().collect::<Vec<_>>(), [old]);
    let new = moving.allocate(START).unwrap()[0];
    assert_eq!(new.to_string(), "10.1.0.2");
    moving.set_ranges(&["10.0.0.0/24".parse().unwrap(), "10.1.0.0/24".parse().unwrap()]);
    assert_eq!(moving.take(old), Err(Taken(old)));
    assert_eq!(moving.take(new), Err(Taken(new)));
    assert!(moving.release(old, START) && !moving.release(old, START));
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut again = allocator(&["10.0.0.0/24"]);
    again.resume_after("10.0.0.77".parse().unwrap());
    assert_eq!(again.allocate(START).unwrap()[0].to_string(), "10.0.0.78");
    again.resume_after("10.0.0.254".parse().unwrap());
    assert_eq!(again.allocate(START).unwrap()[0].to_string(), "10.0.0.2");
}

#[derive(Debug, Clone)]
enum Step {
    Allocate,
    Release(prop::sample::Index),
    Take(u32),
    Wait(u64),
    Ranges(Vec<IpNet>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0u32..4, 24u8..=32).prop_map(|(third, length)| {
        IpNet::new(Ipv4Addr::from_bits(0x0a00_0000 + (third << 8)).into(), length).unwrap()
    });
    let step = prop_oneof![
        8 => Just(Step::Allocate),
        6 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => (0u32..1024).prop_map(Step::Take),
        2 => (0u64..60).prop_map(Step::Wait),
        1 => prop::collection::vec(range, 0..3).prop_map(Step::Ranges),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    /// Never an address twice, never one lost, whatever happens in whatever order.
    #[test]
    fn what_is_in_use_is_what_was_given_and_not_given_back(steps in steps(), length in 26u8..=30) {
        let mut allocator = allocator(&[&format!("10.0.0.0/{length}")]);
        let mut model = BTreeSet::new();
        let mut now = START;
        for step in steps {
            match step {
                Step::Allocate => match allocator.allocate(now) {
                    Ok(addresses) => {
                        for address in addresses {
                            prop_assert!(model.insert(address), "{address} was given twice");
                            prop_assert!(allocator.pools().iter().any(|pool| pool.range().contains(&address)));
                        }
                    }
                    Err(_) => {
                        let size: u128 = allocator.pools().iter().map(Pool::size).sum();
                        let held = model.iter().filter(|a| allocator.pools().iter().any(|p| p.holds(**a).is_some()));
                        prop_assert_eq!(held.count() as u128, size, "refused with addresses left");
                    }
                },
                Step::Release(which) => {
                    if model.is_empty() { continue }
                    let address = *which.get(&model.iter().collect::<Vec<_>>());
                    prop_assert!(allocator.release(*address, now));
                    let address = *address;
                    model.remove(&address);
                    prop_assert!(!allocator.release(address, now));
                }
                Step::Take(host) => {
                    let address = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + host));
                    prop_assert_eq!(allocator.take(address).is_ok(), model.insert(address));
                }
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
                Step::Ranges(ranges) => allocator.set_ranges(&ranges),
            }
            prop_assert_eq!(&allocator.in_use().collect::<BTreeSet<_>>(), &model);
        }
    }
}

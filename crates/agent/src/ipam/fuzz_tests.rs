//! Whatever the state directory holds, the leases open, and no address is handed out that a link has.

use std::collections::BTreeSet;
use std::fs;

use super::*;

/// Where the parts of a document go, one a line.
const FILES: [&str; 6] = [
    "leases/c1:eth0",
    "leases/c2:eth0",
    "released/c1:eth0",
    "released/c3:eth0",
    "resting/7-c4:eth0",
    "leases/.new-1",
];

fn seed(container: &str, host: u8, sequence: u64) -> String {
    let lease = Lease {
        attachment: Attachment::new(container, "eth0").unwrap(),
        addresses: vec![[10, 0, 0, host].into()],
        network: "podnet".into(),
        pod: PodReference::default(),
        port_mappings: Vec::new(),
        bandwidth: Bandwidth::default(),
        netns: 7,
        netns_cookie: 9,
        boot_id: "boot".into(),
        sequence,
    };
    serde_json::to_string(&lease).unwrap()
}

/// The links of c1 to c3, as the kernel has them.
fn links() -> LinksInKernel {
    let link = |n: u8| {
        let attachment = Attachment::new(&format!("c{n}"), "eth0").unwrap();
        (attachment.host_link(), vec![IpAddr::from([10, 0, 0, n + 1])])
    };
    (1..=3).map(link).collect()
}

#[test]
fn fuzz_ipam_state() {
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let whole = [
        ("c1", 2, 1),
        ("c2", 3, 2),
        ("c1", 6, 3),
        ("c3", 4, 4),
        ("c4", 5, 5),
    ]
    .map(|(container, host, sequence)| seed(container, host, sequence))
    .join("\n");
    let one = seed("c1", 2, 9);
    let seeds: [&[u8]; 4] = [whole.as_bytes(), one.as_bytes(), b"\n\n\n\n", b""];
    let words = [
        "attachment",
        "containerId",
        "ifname",
        "addresses",
        "network",
        "pod",
        "namespace",
        "name",
        "uid",
        "bootId",
        "sequence",
        "c1",
        "c2",
        "c3",
        "eth0",
        "boot",
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.6",
        "fd00::2",
        "::",
        "0.0.0.0",
        "18446744073709551615",
        "4611686018427387904",
        "0",
        "\n",
    ];
    podnet_fuzz::run("ipam-state", &seeds, &words, |document| {
        let name = |sub: &str| dir.path().join(sub);
        for sub in ["leases", "released", "resting"] {
            fs::create_dir_all(name(sub)).unwrap();
        }
        let mut parts = document.split(|byte| *byte == b'\n');
        for file in FILES {
            match parts.next() {
                Some(part) => fs::write(name(file), part).unwrap(),
                None => drop(fs::remove_file(name(file))),
            }
        }
        let answer = judge(dir.path());
        for sub in ["leases", "released", "resting"] {
            fs::remove_dir_all(name(sub)).unwrap();
        }
        answer
    });
}

fn open(dir: &Path) -> Leases {
    let leases = Leases::open(dir, "boot", &links()).unwrap();
    leases.set(&Addressing::of_node(&["10.0.0.0/29".parse().unwrap()]).into());
    leases
}

fn judge(dir: &Path) -> String {
    let first = open(dir);
    let (held, ended) = (first.all(), first.ended());
    let resting = first.usage()[0].cooling;
    drop(first);
    let leases = open(dir);
    assert_eq!(
        leases.all().len(),
        held.len(),
        "a second start finds what the first found"
    );
    assert_eq!(leases.ended().len(), ended.len());
    let linked: BTreeSet<IpAddr> = links().into_values().flatten().collect();
    let mut given = BTreeSet::new();
    let spare = |n: usize| Attachment::new(&format!("spare{n}"), "eth0").unwrap();
    while let Ok(lease) = leases.lease(&Ask::any(&spare(given.len()), "podnet", &PodReference::default())) {
        for address in lease.addresses {
            assert!(!linked.contains(&address), "{address} has a link");
            assert!(given.insert(address), "{address} was given twice");
        }
        leases.wired(&leases.get(&spare(given.len() - 1)).unwrap());
    }
    let mut sequences = BTreeSet::new();
    for lease in leases.all().iter().chain(&leases.ended()) {
        assert!(
            sequences.insert(lease.sequence),
            "two leases are number {}",
            lease.sequence
        );
    }
    for lease in leases.all() {
        let ended = leases.release(&lease.attachment).unwrap().unwrap();
        leases.forget(&ended);
    }
    for lease in leases.ended() {
        leases.forget(&lease);
    }
    // All links are gone now, those without a lease too.
    leases
        .collect(|| Ok::<_, std::convert::Infallible>(LinksInKernel::new()))
        .unwrap();
    assert!(leases.inner().allocator.in_use().is_empty(), "an address is lost");
    format!(
        "{} held, {} ended, {resting} resting, {} free",
        held.len(),
        ended.len(),
        given.len()
    )
}

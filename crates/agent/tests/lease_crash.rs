//! A process that leases and releases is killed at a random moment, many times over: afterwards no address is
//! held twice and none is lost.
//!
//! The links are files here, made and removed in one step each as the kernel does it; what is judged are the
//! leases.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use podnet_agent::ipam::{Ask, Lease, Leases, LinksInKernel};
use podnet_cni::{Attachment, PodReference};
use podnet_core::ipam::Addressing;
use podnet_fuzz::Random;

const ROUNDS: usize = 60;
const RANGES: [&str; 2] = ["10.0.0.0/27", "fd00::/122"];
/// Addresses of the smaller range that a pod can have.
const CAPACITY: usize = 29;
const DIRECTORY: &str = "PODNET_TEST_LEASES";

fn open(dir: &Path) -> Leases {
    fs::create_dir_all(dir.join("links")).unwrap();
    let leases = Leases::open(&dir.join("state"), "boot", &links(dir)).unwrap();
    leases.set(&Addressing::of_node(&RANGES.map(|range| range.parse().unwrap())).into());
    leases
}

fn links(dir: &Path) -> LinksInKernel {
    let entries = fs::read_dir(dir.join("links"))
        .unwrap()
        .map(|entry| entry.unwrap());
    entries
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter_map(|entry| {
            // Another thread may have taken it away meanwhile.
            let text = fs::read_to_string(entry.path()).ok()?;
            let addresses = text.lines().map(|line| line.parse().unwrap()).collect();
            Some((entry.file_name().into_string().unwrap(), addresses))
        })
        .collect()
}

fn make_link(dir: &Path, lease: &Lease) {
    let name = lease.attachment.host_link();
    let aside = dir.join("links").join(format!(".{name}"));
    let text: Vec<String> = lease.addresses.iter().map(ToString::to_string).collect();
    fs::write(&aside, text.join("\n")).unwrap();
    fs::rename(aside, dir.join("links").join(name)).unwrap();
}

fn end(dir: &Path, leases: &Leases, lease: &Lease) {
    let _ = fs::remove_file(dir.join("links").join(lease.attachment.host_link()));
    leases.forget(lease);
}

/// Run as a process of its own by the test below; alone it does nothing.
#[test]
fn leases_and_releases_until_it_is_killed() {
    let Some(dir) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let dir = Path::new(&dir);
    let leases = open(dir);
    for lease in leases.ended() {
        end(dir, &leases, &lease);
    }
    println!("ready");
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let linking = Mutex::new(());
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (leases, linking) = (&leases, &linking);
            scope.spawn(move || {
                let mut random = Random::new(seed ^ (thread + 1) << 32);
                loop {
                    // Each thread has containers of its own, as each has one runtime.
                    let id = format!("t{thread}-{}", random.below(14));
                    let attachment = Attachment::new(&id, "eth0").unwrap();
                    if leases.get(&attachment).is_some() {
                        let lease = leases.release(&attachment).unwrap().unwrap();
                        end(dir, leases, &lease);
                    } else if let Ok(lease) =
                        leases.lease(&Ask::any(&attachment, "podnet", &PodReference::default()))
                    {
                        let _one = linking.lock().unwrap();
                        let taken: BTreeSet<_> = links(dir).into_values().flatten().collect();
                        if lease.addresses.iter().any(|address| taken.contains(address)) {
                            eprintln!("{:?} was given twice", lease.addresses);
                            std::process::exit(3);
                        }
                        make_link(dir, &lease);
                        leases.wired(&lease);
                    }
                }
            });
        }
    });
}

fn judge(dir: &Path) {
    let leases = open(dir);
    let in_kernel = links(dir);
    let held = leases.all();
    let mut seen = BTreeSet::new();
    for lease in held.iter().chain(&leases.ended()) {
        assert_eq!(
            in_kernel.get(&lease.attachment.host_link()),
            Some(&lease.addresses),
            "{lease:?}"
        );
        for address in &lease.addresses {
            assert!(seen.insert(*address), "{address} is held twice");
        }
    }
    let linked: BTreeSet<_> = in_kernel.values().flatten().copied().collect();
    assert_eq!(seen, linked, "every link has a lease");
    for lease in leases.ended() {
        end(dir, &leases, &lease);
    }
    let mut of_held: BTreeSet<_> = held.iter().flat_map(|lease| lease.addresses.clone()).collect();
    let mut free = Vec::new();
    let spare = |n: usize| Attachment::new(&format!("spare{n}"), "eth0").unwrap();
    while let Ok(lease) = leases.lease(&Ask::any(&spare(free.len()), "podnet", &PodReference::default())) {
        assert!(
            lease.addresses.iter().all(|address| of_held.insert(*address)),
            "{lease:?}"
        );
        free.push(lease);
    }
    assert_eq!(held.len() + free.len(), CAPACITY, "an address is lost");
    for lease in free {
        leases.give_up(&lease);
    }
    assert_eq!(
        fs::read_dir(dir.join("state/leases")).unwrap().count(),
        held.len(),
        "a file is left"
    );
    assert_eq!(fs::read_dir(dir.join("state/released")).unwrap().count(), 0);
}

#[test]
fn sigkill_at_any_moment_neither_doubles_nor_loses_an_address() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random::new(1);
    let mut leases_seen = 0;
    for _ in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "leases_and_releases_until_it_is_killed", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("ready")));
        std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "the process ended by itself: {status}");
        judge(dir.path());
        leases_seen += links(dir.path()).len();
    }
    assert!(
        leases_seen > ROUNDS,
        "the process came to nothing before it was killed"
    );
}

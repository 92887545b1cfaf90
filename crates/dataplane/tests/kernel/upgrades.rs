//! Agents that end and begin again, and builds with other programs and other maps, while packets are under way.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use podnet_core::cluster::{Family, Routing};

use crate::common::{BackEnd, Lab, Machine, PATIENCE};
use crate::talk::Talk;

const SERVER: &str = "10.244.1.2";
const SERVICE: &str = "10.96.0.10:80";

/// What clients did so far, each without a fault.
#[derive(Default)]
struct Done {
    is_over: AtomicBool,
    bytes: AtomicU64,
    requests: AtomicU64,
    connections: AtomicU64,
    datagrams: AtomicU64,
    to_service: AtomicU64,
}

impl Done {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn counts(&self) -> [u64; 5] {
        let all = [
            &self.bytes,
            &self.requests,
            &self.connections,
            &self.datagrams,
            &self.to_service,
        ];
        all.map(|count| count.load(Ordering::Relaxed))
    }

    /// Waits until each of them has done more.
    fn more(&self) {
        let before = self.counts();
        let end = Instant::now() + 4 * PATIENCE;
        while self
            .counts()
            .iter()
            .zip(before)
            .any(|(now, before)| *now < before + 3)
        {
            assert!(Instant::now() < end, "{before:?} {:?}", self.counts());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn once_more(&self, count: &AtomicU64, mut work: impl FnMut()) {
        while self.goes_on() {
            work();
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Bytes that say which they are, from one pod to another.
    fn transfer(&self, client: &Machine, listener: &TcpListener) {
        let to = format!("{SERVER}:9001");
        let mut stream = client.run(|| TcpStream::connect(&to).unwrap());
        let (mut far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0_u64;
                while self.goes_on() {
                    let numbers: Vec<u8> = (next..next + 8192).flat_map(u64::to_be_bytes).collect();
                    stream.write_all(&numbers).unwrap();
                    next += 8192;
                }
            });
            let (mut next, mut chunk) = (0_u64, vec![0; 65_536]);
            while far.read_exact(&mut chunk).is_ok() {
                for number in chunk.chunks_exact(8) {
                    assert_eq!(number, next.to_be_bytes());
                    next += 1;
                }
                self.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            assert!(!self.goes_on(), "the transfer broke off");
        });
    }
}

/// What another build would have left: the same things under other names. At the end of hooks' is their group.
fn rename(directory: &Path, is_such: impl Fn(&str) -> bool) {
    let entries: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if is_such(&name) {
            let (kind, of) = name.split_once('-').unwrap_or((&name, ""));
            fs::rename(&path, path.with_file_name(format!("{kind}-another-{of}"))).unwrap();
        }
    }
}

fn nothing_is_lost(routing: Routing) {
    let mut lab = Lab::new(2, routing, Family::V4, 1500).carried_by(BackEnd::Ebpf);
    let (client, server) = (lab.pod(0, 9), lab.pod(1, 2));
    server.serve("a", 8080);
    lab.service(10, &[(1, 2)]);
    lab.apply_all();
    let pins: Vec<PathBuf> = lab
        .nodes
        .iter()
        .map(|node| node.programs().bpffs.join("podnet"))
        .collect();
    let listener = server.run(|| TcpListener::bind("[::]:9001").unwrap());
    let mut talk = Talk::begin(&client, &format!("{SERVER}:8080"));
    let done = Done::default();
    let asked = format!("{SERVER}:8080");
    let connect = |to: &str| assert_eq!(client.tcp(to).unwrap().0, "a");
    let send = || assert_eq!(client.udp(&asked).unwrap().0, "a");
    std::thread::scope(|scope| {
        scope.spawn(|| done.transfer(&client, &listener));
        scope.spawn(|| done.once_more(&done.requests, || assert_eq!(talk.ask(), "a")));
        scope.spawn(|| done.once_more(&done.connections, || connect(&asked)));
        scope.spawn(|| done.once_more(&done.to_service, || connect(SERVICE)));
        scope.spawn(|| done.once_more(&done.datagrams, send));
        // However this ends, they do.
        let _over = Over(&done);
        let apply = || (0..2).for_each(|node| drop(lab.apply(node)));
        for _ in 0..3 {
            done.more();
            // Another agent.
            apply();
            done.more();
            // Another build's programs at links and at sockets.
            for pins in &pins {
                rename(&pins.join("path"), |name| name.starts_with("programs-"));
                rename(pins, |name| name.starts_with("hooks-"));
            }
            apply();
            done.more();
            // And with maps of another layout.
            for pins in &pins {
                rename(&pins.join("path"), |name| name != "links");
                rename(pins, |name| name != "path");
            }
            apply();
        }
        done.more();
    });
}

struct Over<'a>(&'a Done);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_is_lost_over_direct_routes_while_agents_builds_and_layouts_change() {
    nothing_is_lost(Routing::Direct);
}

#[test]
fn nothing_is_lost_in_the_tunnel_while_agents_builds_and_layouts_change() {
    nothing_is_lost(Routing::default());
}

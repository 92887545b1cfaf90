//! What a service costs its clients: the first packet's way there and back, and how many connections can be made.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podnet_linux::sysctl;
use rustix::net::sockopt::set_socket_linger;

use crate::common::{Machine, PATIENCE};

/// So many first packets, and so many spans of connections, of either way.
const FIRST: usize = 1_000;
const SPANS: usize = 5;
const SPAN: Duration = Duration::from_millis(200);

/// Answers on a port over TCP, by closing, and over UDP.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    wake: Vec<Box<dyn Fn()>>,
}

impl Server {
    pub(crate) fn start(pod: &Machine, at: SocketAddr) -> Self {
        let (tcp, udp) = pod.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_tcp, stop_udp) = (stop.clone(), stop.clone());
        let accept = move || {
            while !stop_tcp.load(Ordering::Relaxed) {
                drop(tcp.accept());
            }
        };
        let answer = move || {
            let mut buffer = [0; 64];
            while !stop_udp.load(Ordering::Relaxed) {
                if let Ok((length, client)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..length], client);
                }
            }
        };
        let threads = vec![std::thread::spawn(accept), std::thread::spawn(answer)];
        let own = pod.again();
        let wake = move || {
            own.run(|| {
                let _ = TcpStream::connect(at);
                let _ = UdpSocket::bind((at.ip(), 0)).and_then(|socket| socket.send_to(b"?", at));
            });
        };
        Server {
            stop,
            threads,
            wake: vec![Box::new(wake)],
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.iter().for_each(|wake| wake());
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// What clients of one address get.
pub(crate) struct Cost {
    /// From a first packet to its answer, in microseconds.
    pub(crate) first_p50: f64,
    pub(crate) first_p99: f64,
    /// Connections made in a second.
    pub(crate) connects: f64,
}

impl fmt::Display for Cost {
    /// As JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cost {
            first_p50,
            first_p99,
            connects,
        } = self;
        write!(
            f,
            "{{\"first_p50\": {first_p50:.2}, \"first_p99\": {first_p99:.2}, \"connects\": {connects:.0}}}"
        )
    }
}

/// From `client` to each of the addresses, by turns.
pub(crate) fn measure<const N: usize>(client: &Machine, to: [SocketAddr; N]) -> [Cost; N] {
    client.run(|| {
        let mut first = [(); N].map(|()| Vec::with_capacity(FIRST));
        let mut rates = [(); N].map(|()| Vec::with_capacity(SPANS));
        for _ in 0..FIRST {
            for (to, times) in to.iter().zip(&mut first) {
                times.push(exchange(*to).unwrap());
            }
        }
        // Each way has ports of its own: what one left of a connection is nothing to the other.
        let share = 28_000 / N;
        for _ in 0..SPANS {
            for (way, (to, rates)) in to.iter().zip(&mut rates).enumerate() {
                let begin = 32_000 + way * share;
                let range = format!("{begin} {}", begin + share - 1);
                sysctl::set("net/ipv4/ip_local_port_range", &range).unwrap();
                rates.push(connects(*to).unwrap());
            }
        }
        let mut costs = first.into_iter().zip(rates).map(|(mut times, mut rates)| {
            times.sort_by(f64::total_cmp);
            rates.sort_by(f64::total_cmp);
            Cost {
                first_p50: times[FIRST / 2],
                first_p99: times[FIRST * 99 / 100],
                connects: rates[SPANS / 2],
            }
        });
        [(); N].map(|()| costs.next().unwrap())
    })
}

/// The first packet of a flow, and the answer. No port has had another flow.
fn exchange(to: SocketAddr) -> io::Result<f64> {
    static PORT: AtomicU16 = AtomicU16::new(10_000);
    let port = PORT.fetch_add(1, Ordering::Relaxed);
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    let begin = Instant::now();
    socket.send(b"?")?;
    socket.recv(&mut [0; 64])?;
    Ok(begin.elapsed().as_secs_f64() * 1e6)
}

/// Connections are ended by a reset: no port waits.
fn connects(to: SocketAddr) -> io::Result<f64> {
    let begin = Instant::now();
    let mut made = 0.0;
    while begin.elapsed() < SPAN {
        let stream = TcpStream::connect(to)?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        made += 1.0;
    }
    Ok(made / begin.elapsed().as_secs_f64())
}

//! A load generator and its server: one thread each, pinned to a CPU, plain blocking sockets.
//!
//! Both count the CPU time of their process. The kernel works off what they send on the way down and up their own
//! system calls, so this is the whole cost of the path, and other load on the machine does not show in it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use miette::{Context, IntoDiagnostic};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One side.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serves until it is killed; says `ready` when it listens
    Server {
        /// Where to listen
        #[arg(long)]
        listen: SocketAddr,
        /// The CPU to run on
        #[arg(long)]
        cpu: usize,
    },
    /// Runs one test and prints a [`Sample`] as JSON
    Client {
        /// The server
        #[arg(long)]
        connect: SocketAddr,
        /// The CPU to run on
        #[arg(long)]
        cpu: usize,
        /// For how long
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// What to do
        #[arg(long)]
        test: Test,
    },
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Test {
    /// One connection, bytes in one direction as fast as they go
    Throughput,
    /// One connection, one byte there and one byte back, over and over
    Requests,
    /// A new connection for every request
    Connects,
}

impl Test {
    /// All of them.
    pub(crate) const ALL: [Test; 3] = [Test::Throughput, Test::Requests, Test::Connects];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Test::Throughput => "throughput",
            Test::Requests => "requests",
            Test::Connects => "connects",
        }
    }
}

/// What one run of a test gave.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// By the clock.
    pub(crate) seconds: f64,
    /// CPU time of client and server together, in seconds.
    pub(crate) cpu_seconds: f64,
    /// Requests or connections; bits for the throughput.
    pub(crate) count: f64,
}

/// The first byte of a connection says what it is for.
mod purpose {
    /// Send every byte back.
    pub(super) const ECHO: u8 = b'E';
    /// Read to the end, then say how many bytes came.
    pub(super) const SINK: u8 = b'S';
    /// Say how much CPU time the server has used, in nanoseconds.
    pub(super) const CPU: u8 = b'C';
}

const BLOCK: usize = 128 * 1024;

/// Runs one side.
pub(crate) fn run(command: Command) -> miette::Result<()> {
    match command {
        Command::Server { listen, cpu } => {
            pin(cpu)?;
            server(listen)
                .into_diagnostic()
                .wrap_err_with(|| format!("the server at {listen} failed"))
        }
        Command::Client {
            connect,
            cpu,
            seconds,
            test,
        } => {
            pin(cpu)?;
            let sample = client(connect, Duration::from_secs_f64(seconds), test)
                .into_diagnostic()
                .wrap_err_with(|| format!("the test {} with {connect} failed", test.name()))?;
            println!("{}", serde_json::to_string(&sample).into_diagnostic()?);
            Ok(())
        }
    }
}

fn pin(cpu: usize) -> miette::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run on CPU {cpu}"))
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn server(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    println!("ready");
    io::stdout().flush()?;
    let mut buffer = vec![0; BLOCK];
    loop {
        let (connection, _) = listener.accept()?;
        // Clients end their connections by a reset, and may go at any time.
        let _ = answer(connection, &mut buffer);
    }
}

fn answer(mut connection: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let first = connection.read(buffer)?;
    match buffer[..first].split_first() {
        Some((&purpose::ECHO, rest)) => {
            connection.write_all(rest)?;
            loop {
                let read = connection.read(buffer)?;
                if read == 0 {
                    return Ok(());
                }
                connection.write_all(&buffer[..read])?;
            }
        }
        Some((&purpose::SINK, rest)) => {
            let mut total = rest.len() as u64;
            loop {
                let read = connection.read(buffer)?;
                if read == 0 {
                    return connection.write_all(&total.to_be_bytes());
                }
                total += read as u64;
            }
        }
        Some((&purpose::CPU, _)) => {
            let nanoseconds = u64::try_from(cpu_time().as_nanos()).unwrap_or(u64::MAX);
            connection.write_all(&nanoseconds.to_be_bytes())
        }
        _ => Ok(()),
    }
}

fn client(server: SocketAddr, length: Duration, test: Test) -> io::Result<Sample> {
    // Neighbour entries, route caches and conntrack are set up before the clock starts.
    let before = server_cpu(server)?;
    let (own, started) = (cpu_time(), Instant::now());
    let count = match test {
        Test::Throughput => send_bits(server, length)?,
        Test::Requests => request(server, length)?,
        Test::Connects => connect(server, length)?,
    };
    let (seconds, own) = (started.elapsed().as_secs_f64(), cpu_time() - own);
    let cpu_seconds = (own + server_cpu(server)?.saturating_sub(before)).as_secs_f64();
    Ok(Sample {
        seconds,
        cpu_seconds,
        count: count as f64,
    })
}

fn open(server: SocketAddr) -> io::Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

fn server_cpu(server: SocketAddr) -> io::Result<Duration> {
    let mut connection = open(server)?;
    connection.write_all(&[purpose::CPU])?;
    Ok(Duration::from_nanos(read_number(&mut connection)?))
}

fn read_number(connection: &mut TcpStream) -> io::Result<u64> {
    let mut number = [0; 8];
    connection.read_exact(&mut number)?;
    Ok(u64::from_be_bytes(number))
}

fn send_bits(server: SocketAddr, length: Duration) -> io::Result<u64> {
    let mut connection = open(server)?;
    let block = vec![purpose::SINK; BLOCK];
    let started = Instant::now();
    while started.elapsed() < length {
        connection.write_all(&block)?;
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    // What has arrived counts, not what was sent; the purpose is one byte of it.
    Ok((read_number(&mut connection)? + 1) * 8)
}

fn request(server: SocketAddr, length: Duration) -> io::Result<u64> {
    let mut connection = open(server)?;
    connection.write_all(&[purpose::ECHO])?;
    let (mut byte, mut count) = ([b'x'], 0);
    let started = Instant::now();
    while started.elapsed() < length {
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(count)
}

fn connect(server: SocketAddr, length: Duration) -> io::Result<u64> {
    let (mut byte, mut count) = ([0], 0);
    let started = Instant::now();
    while started.elapsed() < length {
        let mut connection = open(server)?;
        connection.write_all(&[purpose::ECHO, b'x'])?;
        connection.read_exact(&mut byte)?;
        // A reset instead of TIME_WAIT, or the ports would be used up in two seconds.
        rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO))?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_gives_numbers() {
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let free = TcpListener::bind(address).unwrap().local_addr().unwrap();
        // Ends with the test's process.
        std::thread::spawn(move || server(free));
        while open(free).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        for test in Test::ALL {
            let sample = client(free, Duration::from_millis(100), test).unwrap();
            assert!(
                sample.count > 1.0 && sample.cpu_seconds > 0.0,
                "{test:?}: {sample:?}"
            );
            assert!((0.1..5.0).contains(&sample.seconds), "{test:?}: {sample:?}");
        }
    }
}

//! The way from a lab to the outside, as pods, nodes and servers of the machine meet it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::support::{DEMO, Lab, Machine, PODNET, Pod, kill_9, stdout, text};
use serde_json::Value;

/// How the machine's loopback is called inside, and what it is.
const LOOPBACKS: [(&str, &str); 2] = [("172.30.255.1", "127.0.0.1:0"), ("fd30:0:0:ff::1", "[::1]:0")];

/// What curl ends with when it is refused or told that there is no way.
const REFUSED: Option<i32> = Some(7);

/// Clients, by the name of what they do.
const CLIENT: &str = r#"
import errno, socket, struct, sys, time
what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
def tcp():
    return socket.create_connection((host, port), timeout=30)
def udp():
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    asking = socket.socket(family, socket.SOCK_DGRAM)
    asking.settimeout(30)
    asking.connect((host, port))
    return asking
def everything(connection):
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)
if what == "half-close":
    sent = bytes(number % 251 for number in range(3_000_000))
    connection = tcp()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    print("the same" if everything(connection) == sent else "something else")
elif what == "be-reset":
    connection = tcp()
    connection.sendall(b"x")
    try:
        print("said", connection.recv(100))
    except ConnectionResetError:
        print("reset")
elif what == "reset":
    connection = tcp()
    connection.sendall(b"x")
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    print("done")
elif what == "hold":
    connection = tcp()
    connection.sendall(b"x")
    connection.recv(1)
    print("held", flush=True)
    try:
        everything(connection)
    except OSError:
        pass
elif what == "datagrams":
    asking = udp()
    for size in [1, 1400, 20_000]:
        sent = bytes(number % 251 for number in range(size))
        asking.send(sent)
        print("the same" if asking.recv(65535) == sent else "something else")
elif what == "no-datagrams":
    asking = udp()
    asking.send(b"hello")
    try:
        print("said", asking.recv(100))
    except ConnectionRefusedError:
        print("refused")
elif what == "too-many":
    def talk(open_one):
        connection = open_one()
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        return connection
    for open_one in [tcp, udp]:
        held = []
        try:
            while True:
                held.append(talk(open_one))
        except OSError as error:
            print(len(held), errno.errorcode.get(error.errno, error))
        for connection in held:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        if open_one is udp:
            continue
        held.pop().close()
        while True:
            try:
                talk(open_one)
                print("room again")
                break
            except OSError:
                time.sleep(0.1)
"#;

/// A server on the machine's loopback: every connection goes to `handle`, on a thread that ends with the test.
fn serve(address: &str, handle: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        listener
            .incoming()
            .for_each(|connection| handle(connection.unwrap()))
    });
    port
}

/// Answers with what it was sent, after the end of it.
fn answer_at_the_end(mut connection: TcpStream) {
    let mut all = Vec::new();
    connection.read_to_end(&mut all).unwrap();
    connection.write_all(&all).unwrap();
}

/// Answers bytes with themselves, on a thread.
fn answer_bytes(mut connection: TcpStream) {
    std::thread::spawn(move || {
        let mut byte = [0];
        while connection.read_exact(&mut byte).is_ok() && connection.write_all(&byte).is_ok() {}
    });
}

/// A minimal server of HTTP that says whom it sees.
fn answer_http(mut connection: TcpStream) {
    let mut request = [0; 4096];
    let _ = connection.read(&mut request).unwrap();
    let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\noutside");
}

/// Resets the connection when it has read a byte.
fn answer_with_a_reset(mut connection: TcpStream) {
    connection.read_exact(&mut [0]).unwrap();
    rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
}

/// Answers datagrams with themselves.
fn serve_datagrams(address: &str) -> u16 {
    let socket = UdpSocket::bind(address).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65535];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            socket.send_to(&buffer[..length], from).unwrap();
        }
    });
    port
}

/// A port of the loopback that nobody has.
fn nobodys_port(address: &str) -> u16 {
    TcpListener::bind(address).unwrap().local_addr().unwrap().port()
}

fn url(host: &str, port: u16) -> String {
    let host: std::net::IpAddr = host.parse().unwrap();
    format!("http://{}/", SocketAddr::new(host, port))
}

/// Runs the client in the toolbox.
fn client(lab: &Lab, what: &str, host: &str, port: u16) -> String {
    let port = port.to_string();
    let output = lab.exec("toolbox", &["python3", "-c", CLIENT, what, host, &port]);
    assert!(output.status.success(), "{what} {host}: {}", text(&output));
    stdout(&output)
}

fn reaches_the_machine(lab: &Lab) {
    for (host, loopback) in LOOPBACKS {
        let port = serve(loopback, answer_http);
        let curl = ["curl", "-sS", "--max-time", "30", &url(host, port)];
        let pod = lab.exec("toolbox", &curl);
        assert_eq!(stdout(&pod), "outside", "a pod by {host}: {}", text(&pod));
        let node = lab.node("node1", &curl);
        assert_eq!(stdout(&node), "outside", "a node by {host}: {}", text(&node));
    }
}

#[test]
fn what_goes_outside_is_what_a_direct_connection_would_be() {
    let before = Machine::now();
    let lab = Lab::named("uplink");
    let said = lab.podnet(&[
        "lab", "up", "--name", &lab.name, "--nodes", "2", "--uplink", "-f", DEMO,
    ]);
    assert!(said.status.success(), "{}\n{}", text(&said), lab.logs());
    let status = stdout(&lab.podnet(&["lab", "status", "--name", &lab.name]));
    for (host, _) in LOOPBACKS {
        assert!(stdout(&said).contains(host), "{}", text(&said));
        assert!(status.contains(host), "{status}");
    }
    reaches_the_machine(&lab);
    for (host, loopback) in LOOPBACKS {
        let port = serve(loopback, answer_at_the_end);
        assert_eq!(client(&lab, "half-close", host, port), "the same", "{host}");
        let port = serve(loopback, answer_with_a_reset);
        assert_eq!(client(&lab, "be-reset", host, port), "reset", "{host}");
        let (tell, told) = mpsc::channel();
        let port = serve(loopback, move |mut connection| {
            connection.read_exact(&mut [0]).unwrap();
            connection.write_all(b"y").unwrap();
            tell.send(connection.read(&mut [0]).map_err(|error| error.kind()))
                .unwrap();
        });
        assert_eq!(client(&lab, "reset", host, port), "done");
        let ended = told.recv_timeout(Duration::from_secs(30));
        assert_eq!(ended, Ok(Err(ErrorKind::ConnectionReset)), "{host}");

        let refused = lab.exec("toolbox", &["curl", "-sS", &url(host, nobodys_port(loopback))]);
        assert_eq!(refused.status.code(), REFUSED, "{host}: {}", text(&refused));
        assert!(text(&refused).contains("Connection refused") || text(&refused).contains("Couldn't connect"));

        let port = serve_datagrams(loopback);
        let same = ["the same"; 3].join("\n");
        assert_eq!(client(&lab, "datagrams", host, port), same, "{host}");
        let port = nobodys_port(loopback);
        assert_eq!(client(&lab, "no-datagrams", host, port), "refused", "{host}");

        let ping = lab.exec("toolbox", &["ping", "-c1", "-W10", host]);
        let told = ["Packet filtered", "Administratively prohibited"];
        assert!(
            told.iter().any(|told| stdout(&ping).contains(told)),
            "{}",
            text(&ping)
        );
    }
    // What is the lab's own, and does not exist, is not looked for outside.
    for nobody in [
        "http://10.244.250.1/",
        "http://[fd00:10:244:99::1]/",
        "http://172.30.90.1/",
    ] {
        let nowhere = lab.exec("toolbox", &["curl", "-sS", "--max-time", "20", nobody]);
        assert_eq!(nowhere.status.code(), REFUSED, "{nobody}: {}", text(&nowhere));
    }
    lab.down();
    Machine::assert_as(&before, "by a lab with an uplink");
}

#[test]
fn an_uplink_that_is_killed_takes_only_what_went_through_it() {
    let lab = Lab::up("uplink-kill", &["--nodes", "2", "--uplink", "-f", DEMO]);
    let pods = lab.pods("default");
    let toolbox = pods.iter().find(|pod| pod.name == "toolbox").unwrap();
    let echo = pods
        .iter()
        .find(|pod| pod.is_app("echo") && pod.node != toolbox.node)
        .unwrap();
    let hold = |host: &str, port: u16| -> (Child, std::io::BufReader<std::process::ChildStdout>) {
        let mut child = Command::new(PODNET)
            .args([
                "lab", "exec", "--name", &lab.name, "toolbox", "--", "python3", "-c", CLIENT, "hold",
            ])
            .args([host, &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
        assert_eq!(line, "held\n");
        (child, said)
    };
    let (host, loopback) = LOOPBACKS[0];
    let held_outside = serve(loopback, answer_bytes);
    let (mut outside, _) = hold(host, held_outside);
    let uplinks = lab.pids(" uplink ");
    assert_eq!(uplinks.len(), 1);
    kill_9(uplinks[0]);
    // The connection that went through it ends; so the client does.
    assert!(outside.wait().unwrap().success());
    // Nothing else notices.
    let inside = lab.exec(
        "toolbox",
        &["curl", "-sS", "--max-time", "10", &url(&echo.ips[0], 8080)],
    );
    assert!(inside.status.success(), "{}", text(&inside));
    let port = serve(loopback, answer_http);
    lab.until("the uplink's start", || {
        let again = lab.exec("toolbox", &["curl", "-sS", "--max-time", "5", &url(host, port)]);
        (stdout(&again) == "outside").then_some(())
    });
    let status = stdout(&lab.podnet(&["lab", "status", "--name", &lab.name, "-o", "json"]));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["services"]["uplink"]["restarts"], 1, "{status}");
    for service in ["apiserver", "controller", "node1-agent", "node2-agent"] {
        assert_eq!(status["services"][service]["restarts"], 0, "{status}");
    }
    reaches_the_machine(&lab);
}

#[test]
fn labs_of_root_and_of_an_ordinary_user_have_uplinks_side_by_side() {
    let lab = Lab::up("uplink-root", &["--nodes", "1", "--uplink", "-f", DEMO]);
    let mut rootless = Lab::named("uplink-user");
    rootless.user = Some(65534);
    rootless.raise(&["--nodes", "1", "--uplink", "-f", DEMO]);
    for lab in [&lab, &rootless] {
        reaches_the_machine(lab);
        for (host, loopback) in LOOPBACKS {
            let port = serve_datagrams(loopback);
            assert_eq!(client(lab, "datagrams", host, port), ["the same"; 3].join("\n"));
            let refused = lab.exec("toolbox", &["curl", "-sS", &url(host, nobodys_port(loopback))]);
            assert_eq!(refused.status.code(), REFUSED, "{}", text(&refused));
        }
    }
    rootless.down();
    reaches_the_machine(&lab);
    lab.down();
}

#[test]
fn who_takes_all_connections_is_refused_more_and_those_there_are_go_on() {
    let lab = Lab::named("uplink-full");
    // Room for (1024 - 128) / 8 connections, and as many sessions.
    let up = Command::new("prlimit")
        .args(["--nofile=1024:1024", PODNET, "lab", "up", "--name", &lab.name])
        .args(["--nodes", "1", "--uplink", "-f", DEMO])
        .output()
        .unwrap();
    assert!(up.status.success(), "{}\n{}", text(&up), lab.logs());
    let (host, loopback) = LOOPBACKS[0];
    // The same port for both protocols.
    let port = serve(loopback, answer_bytes);
    serve_datagrams(&format!("127.0.0.1:{port}"));
    let said = client(&lab, "too-many", host, port);
    assert_eq!(said, "112 EHOSTUNREACH\nroom again\n112 EHOSTUNREACH");
}

#[test]
fn without_an_uplink_nothing_gets_outside() {
    let lab = Lab::up("no-uplink", &["--nodes", "1", "-f", DEMO]);
    for (host, loopback) in LOOPBACKS {
        let port = serve(loopback, answer_http);
        let nowhere = lab.exec("toolbox", &["curl", "-sS", "--max-time", "5", &url(host, port)]);
        assert_eq!(nowhere.status.code(), REFUSED, "{}", text(&nowhere));
    }
    assert!(lab.pids(" uplink ").is_empty());
    let status = stdout(&lab.podnet(&["lab", "status", "--name", &lab.name]));
    assert!(!status.contains("loopback"), "{status}");
}

/// A server that says whom it sees, on a node or in the underlay, which is outside of the cluster.
struct Observer<'a> {
    lab: &'a Lab,
    child: Child,
}

/// The port of all observers.
const OBSERVED: u16 = 7777;

impl<'a> Observer<'a> {
    fn start(lab: &'a Lab, place: &str) -> Self {
        let port = OBSERVED.to_string();
        let program = if place == "underlay" {
            PODNET
        } else {
            "/usr/local/bin/podnet"
        };
        let child = Command::new(PODNET)
            .args([
                "lab", "node", "--name", &lab.name, place, "--", program, "echo", "--http", &port,
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Observer { lab, child }
    }

    /// The address from which `client` is seen at one of the observer's addresses.
    fn sees(&self, client: &Pod, address: &str) -> String {
        let answer = self.lab.until("the observer's answer", || {
            let curl = ["curl", "-sS", "--max-time", "5", &url(address, OBSERVED)];
            let output = self.lab.exec(&client.name, &curl);
            output.status.success().then(|| stdout(&output))
        });
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let seen: SocketAddr = answer["client"].as_str().unwrap().parse().unwrap();
        seen.ip().to_string()
    }
}

impl Drop for Observer<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address from which the uplink sees the toolbox, when that connects to the machine's loopback.
fn uplink_sees(lab: &Lab, host: &str, loopback: &str) -> String {
    let (tell, told) = mpsc::channel();
    let lab_name = lab.name.clone();
    let host_name = host.to_owned();
    let port = serve(loopback, move |mut connection| {
        connection.read_exact(&mut [0]).unwrap();
        let port = connection.local_addr().unwrap().port();
        let output = Command::new(PODNET)
            .args([
                "lab", "node", "--name", &lab_name, "underlay", "--", "ss", "-Htn", "sport",
            ])
            .args(["=", &format!(":{port}")])
            .output()
            .unwrap();
        tell.send((host_name.clone(), stdout(&output))).unwrap();
        connection.write_all(b"y").unwrap();
    });
    assert_eq!(client(lab, "reset", host, port), "done");
    let (_, sockets) = told.recv_timeout(Duration::from_secs(30)).unwrap();
    let peers: Vec<SocketAddr> = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4)?.parse().ok())
        .collect();
    assert_eq!(peers.len(), 1, "{sockets}");
    peers[0].ip().to_string()
}

fn toolbox(lab: &Lab) -> Pod {
    let pods = lab.pods("default");
    pods.into_iter().find(|pod| pod.name == "toolbox").unwrap()
}

/// A node's addresses on the underlay, IPv4 first.
fn addresses(lab: &Lab, node: &str) -> [String; 2] {
    let node = lab.kubectl_json(&["get", "node", node]);
    let all = node["status"]["addresses"].as_array().unwrap().iter();
    let mut own: Vec<String> = all
        .filter(|address| address["type"] == "InternalIP")
        .map(|address| address["address"].as_str().unwrap().to_owned())
        .collect();
    own.sort_by_key(|address| address.contains(':'));
    own.try_into().unwrap()
}

/// The underlay's own addresses: a host outside of the cluster.
const GATEWAYS: [&str; 2] = ["172.30.0.1", "fd30::1"];

#[test]
fn pods_leave_the_cluster_with_their_nodes_address_but_where_theirs_is_known() {
    let kept = "172.30.255.0/24,fd30:0:0:ff::/64";
    let lab = Lab::up(
        "masquerade",
        &[
            "--nodes",
            "2",
            "--uplink",
            "--non-masquerade-cidr",
            kept,
            "-f",
            DEMO,
        ],
    );
    let pod = toolbox(&lab);
    let own = addresses(&lab, &pod.node);
    let outside = Observer::start(&lab, "underlay");
    for (gateway, node) in GATEWAYS.iter().zip(&own) {
        assert_eq!(&outside.sees(&pod, gateway), node, "not excluded");
    }
    for ((host, loopback), ip) in LOOPBACKS.into_iter().zip(&pod.ips) {
        assert_eq!(&uplink_sees(&lab, host, loopback), ip, "excluded");
    }
    // Within the cluster everyone has their own address.
    for node in ["node1", "node2"] {
        let on_node = Observer::start(&lab, node);
        for (address, ip) in addresses(&lab, node).iter().zip(&pod.ips) {
            assert_eq!(&on_node.sees(&pod, address), ip, "to {node}");
        }
    }
    for echo in lab.pods("default").iter().filter(|pod| pod.is_app("echo")) {
        for (server, client) in echo.ips.iter().zip(&pod.ips) {
            let answer = lab.sh(
                "toolbox",
                &format!("curl -sS --max-time 10 '{}'", url(server, 8080)),
            );
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let seen: SocketAddr = answer["client"].as_str().unwrap().parse().unwrap();
            assert_eq!(&seen.ip().to_string(), client, "to a pod on {}", echo.node);
        }
    }
}

#[test]
fn through_the_uplink_too_a_node_stands_for_its_pods() {
    let lab = Lab::up("masquerade-uplink", &["--nodes", "2", "--uplink", "-f", DEMO]);
    let own = addresses(&lab, &toolbox(&lab).node);
    for ((host, loopback), node) in LOOPBACKS.into_iter().zip(&own) {
        assert_eq!(&uplink_sees(&lab, host, loopback), node);
    }
}

#[test]
fn with_masquerading_off_pods_keep_their_address_everywhere() {
    let lab = Lab::up(
        "masquerade-off",
        &["--nodes", "2", "--uplink", "--masquerade", "off", "-f", DEMO],
    );
    let pod = toolbox(&lab);
    let outside = Observer::start(&lab, "underlay");
    for (gateway, ip) in GATEWAYS.iter().zip(&pod.ips) {
        assert_eq!(&outside.sees(&pod, gateway), ip);
    }
    for ((host, loopback), ip) in LOOPBACKS.into_iter().zip(&pod.ips) {
        assert_eq!(&uplink_sees(&lab, host, loopback), ip);
    }
}

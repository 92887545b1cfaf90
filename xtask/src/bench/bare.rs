//! The kernel's own paths: network namespaces joined by veth pairs, with nothing in them but addresses and routes.

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use miette::{Context, IntoDiagnostic, miette};

use super::Station;

/// A network namespace, held by a process that ends when its input does: with this value, or with us.
#[derive(Clone)]
pub(crate) struct Namespace {
    holder: Rc<Holder>,
    /// That of the node it is on, for a pod.
    node: Option<Rc<Holder>>,
    /// What belongs to the same set-up must live as long.
    _with: Vec<Rc<Holder>>,
}

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Namespace {
    fn new() -> miette::Result<Self> {
        // `cat` says that the namespace is there by sending back what it gets.
        let mut child = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot run unshare (Debian: util-linux)")?;
        let mut byte = [b'\n'];
        let (Some(stdin), Some(stdout)) = (&mut child.stdin, &mut child.stdout) else {
            return Err(miette!("unshare has no input or output"));
        };
        stdin
            .write_all(&byte)
            .and_then(|()| std::io::Read::read_exact(stdout, &mut byte))
            .into_diagnostic()?;
        let namespace = Namespace {
            holder: Rc::new(Holder(child)),
            node: None,
            _with: Vec::new(),
        };
        namespace.ip(&["link set lo up".to_owned()])?;
        Ok(namespace)
    }

    fn pid(&self) -> u32 {
        self.holder.0.id()
    }

    /// `program` with its arguments to come, in this namespace, and in a session of its own as a pod's processes are: the
    /// scheduler goes from one session's processes to another's at a cost (autogroup) that is not the network's.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setsid");
        command
            .arg("nsenter")
            .arg(format!("--net=/proc/{}/ns/net", self.pid()))
            .arg(program);
        command
    }

    /// Runs lines of `ip`.
    fn ip(&self, lines: &[String]) -> miette::Result<()> {
        let mut command = self.command(Path::new("ip"));
        command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot run ip (Debian: iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all((lines.join("\n") + "\n").as_bytes())
                .into_diagnostic()?;
        }
        let output = child.wait_with_output().into_diagnostic()?;
        if output.status.success() {
            return Ok(());
        }
        Err(miette!(
            "ip: {}in\n{}",
            String::from_utf8_lossy(&output.stderr),
            lines.join("\n")
        ))
    }

    /// The node's namespace.
    fn node(&self) -> miette::Result<Namespace> {
        let holder = self.node.clone().ok_or_else(|| miette!("this is no pod"))?;
        Ok(Namespace {
            holder,
            node: None,
            _with: Vec::new(),
        })
    }

    /// Adds rules.
    fn nft(&self, rules: &str) -> miette::Result<()> {
        let mut command = self.command(Path::new("nft"));
        let mut child = command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot run nft (Debian: nftables)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(rules.as_bytes()).into_diagnostic()?;
        }
        match child.wait().into_diagnostic()?.success() {
            true => Ok(()),
            false => Err(miette!("nft does not take these rules:\n{rules}")),
        }
    }

    /// Sets sysctls, whose files show the namespace of whoever opens them.
    fn sysctl(&self, name: &str, value: &str) -> miette::Result<()> {
        let path = format!("/proc/sys/{name}");
        let mut command = self.command(Path::new("sh"));
        let status = command
            .args(["-c", &format!("echo {value} > {path}")])
            .status()
            .into_diagnostic()?;
        if status.success() {
            Ok(())
        } else {
            Err(miette!("cannot set {path} to {value}"))
        }
    }
}

/// Client, server and the server's address.
type Ends = (Station, Station, IpAddr);

/// Two namespaces with one veth pair between them: no path can be shorter.
pub(super) fn pair() -> miette::Result<Ends> {
    let (client, server) = (Namespace::new()?, Namespace::new()?);
    client.ip(&[
        format!("link add eth0 type veth peer name eth0 netns {}", server.pid()),
        "addr add 10.201.0.1/24 dev eth0".into(),
        "link set eth0 up".into(),
    ])?;
    server.ip(&[
        "addr add 10.201.0.2/24 dev eth0".into(),
        "link set eth0 up".into(),
    ])?;
    Ok((
        Station::Namespace(client),
        Station::Namespace(server),
        IpAddr::from([10, 201, 0, 2]),
    ))
}

/// How the nodes reach each other's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// A route via the other node, as Flannel's host-gw sets it up.
    Routes,
    /// A tunnel as Flannel's vxlan sets it up.
    Vxlan,
}

/// Two nodes joined by a bridge, as in the lab, with one pod each.
pub(super) fn two_nodes(between: Between) -> miette::Result<Ends> {
    // The bridge is as the kernel makes it, which is how the lab leaves it too.
    let wire = Namespace::new()?;
    wire.ip(&["link add br0 type bridge".into(), "link set br0 up".into()])?;
    let mut pods = Vec::new();
    let mut all = vec![wire.holder.clone()];
    for number in [1, 2] {
        let (node, pod) = node(&wire, number, between)?;
        all.extend([node.holder.clone(), pod.holder.clone()]);
        pods.push(pod);
    }
    let mut stations = pods.into_iter().map(|pod| {
        Station::Namespace(Namespace {
            _with: all.clone(),
            ..pod
        })
    });
    match (stations.next(), stations.next()) {
        (Some(client), Some(server)) => Ok((client, server, IpAddr::from([10, 201, 2, 2]))),
        _ => Err(miette!("there are two pods")),
    }
}

/// One node with two pods: what a plugin such as ptp sets up.
pub(super) fn one_node() -> miette::Result<Ends> {
    let node = router()?;
    let (client, server) = (pod(&node, 1, 1500)?, pod(&node, 2, 1500)?);
    let all = vec![node.holder.clone(), client.holder.clone(), server.holder.clone()];
    let station = |pod| {
        Station::Namespace(Namespace {
            _with: all.clone(),
            ..pod
        })
    };
    Ok((station(client), station(server), IpAddr::from([10, 201, 2, 2])))
}

/// What a node with services does on top of routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// It tracks connections, as it must to translate any; there is no service.
    Tracking,
    /// One service in rules of kube-proxy's shape: a verdict map to a chain per service, from there to a chain per
    /// endpoint, and checks of first packets in the filter chains.
    KubeProxy,
}

/// The service of [`Rules::KubeProxy`].
const SERVICE: [u8; 4] = [10, 96, 0, 1];

/// The same with rules. With a service, the server's address is the service's.
pub(super) fn one_node_with(rules: Rules) -> miette::Result<Ends> {
    let (client, server, pod) = one_node()?;
    let text = match rules {
        Rules::Tracking => TRACKING.to_owned(),
        Rules::KubeProxy => KUBE_PROXY.replace("PORT", &super::PORT.to_string()),
    };
    if let Station::Namespace(client) = &client {
        client.node()?.nft(&text)?;
    }
    let address = match rules {
        Rules::Tracking => pod,
        Rules::KubeProxy => IpAddr::from(SERVICE),
    };
    Ok((client, server, address))
}

const TRACKING: &str = "table inet tracking {
    chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 dnat ip to 10.201.2.2; }
    chain postrouting { type nat hook postrouting priority srcnat; }
}
";

const KUBE_PROXY: &str = "table ip services {
    set addresses { type ipv4_addr; elements = { 10.96.0.1 }; }
    set node-addresses { type ipv4_addr; elements = { 169.254.1.1 }; }
    map firewalled { type ipv4_addr . inet_proto . inet_service : verdict; }
    map empty { type ipv4_addr . inet_proto . inet_service : verdict; }
    map node-ports { type inet_proto . inet_service : verdict; }
    map ports { type ipv4_addr . inet_proto . inet_service : verdict; }
    chain marked { meta mark set meta mark | 0x4000; }
    chain endpoint { ip saddr 10.201.2.2 jump marked; meta l4proto tcp dnat to 10.201.2.2:PORT; }
    chain service { ip daddr 10.96.0.1 tcp dport PORT ip saddr != 10.201.0.0/16 jump marked
        numgen random mod 1 vmap { 0 : goto endpoint }; }
    chain translate { ip daddr . meta l4proto . th dport vmap @ports
        ip daddr @node-addresses meta l4proto . th dport vmap @node-ports; }
    chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewalled; }
    chain endpoints-check { ip daddr . meta l4proto . th dport vmap @empty; }
    chain refuse { reject; }
    chain addresses-check { ip daddr @addresses goto refuse; ip daddr 10.96.0.0/12 drop; }
    chain masquerading { meta mark & 0x4000 == 0 return; meta mark set meta mark ^ 0x4000; masquerade; }
    chain filter-prerouting { type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check; }
    chain filter-forward { type filter hook forward priority filter; ct state invalid drop
        ct state new jump endpoints-check; ct state new jump addresses-check; }
    chain prerouting { type nat hook prerouting priority dstnat; jump translate; }
    chain postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
}
add element ip services ports { 10.96.0.1 . tcp . PORT : goto service }
";

/// A namespace that forwards.
fn router() -> miette::Result<Namespace> {
    let node = Namespace::new()?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    Ok(node)
}

/// A pod with the address 10.201.NUMBER.2, wired as podnet wires one: no bridge, a route on either side.
fn pod(node: &Namespace, number: u8, mtu: u16) -> miette::Result<Namespace> {
    let pod = Namespace::new()?;
    node.ip(&[
        format!(
            "link add pod{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
            pod.pid()
        ),
        format!("addr add 169.254.1.1/32 dev pod{number}"),
        format!("link set pod{number} up"),
        format!("route add 10.201.{number}.2/32 dev pod{number}"),
    ])?;
    pod.ip(&[
        format!("addr add 10.201.{number}.2/32 dev eth0"),
        "link set eth0 up".into(),
        "route add 169.254.1.1 dev eth0 scope link".into(),
        "route add default via 169.254.1.1 dev eth0".into(),
    ])?;
    Ok(Namespace {
        node: Some(node.holder.clone()),
        ..pod
    })
}

fn node(wire: &Namespace, number: u8, between: Between) -> miette::Result<(Namespace, Namespace)> {
    let other = 3 - number;
    let mtu = if between == Between::Vxlan { 1450 } else { 1500 };
    let node = router()?;
    node.ip(&[
        format!(
            "link add eth0 type veth peer name node{number} netns {}",
            wire.pid()
        ),
        format!("addr add 172.31.0.{number}/24 dev eth0"),
        "link set eth0 up".into(),
    ])?;
    wire.ip(&[format!("link set node{number} master br0 up")])?;
    let pod = pod(&node, number, mtu)?;
    let to_other = match between {
        Between::Routes => vec![format!("route add 10.201.{other}.0/24 via 172.31.0.{other}")],
        Between::Vxlan => vec![
            format!(
                "link add vxlan1 mtu {mtu} address 02:00:00:00:00:0{number} type vxlan id 1 dstport 8472 \
                 local 172.31.0.{number} dev eth0 nolearning"
            ),
            format!("addr add 10.201.{number}.0/32 dev vxlan1"),
            "link set vxlan1 up".into(),
            format!("neigh add 10.201.{other}.0 lladdr 02:00:00:00:00:0{other} dev vxlan1 nud permanent"),
            format!("route add 10.201.{other}.0/24 via 10.201.{other}.0 dev vxlan1 onlink"),
        ],
    };
    node.ip(&to_other)?;
    if between == Between::Vxlan {
        fdb(&node, other)?;
    }
    Ok((node, pod))
}

/// To which node the tunnel's frames for the other end go.
fn fdb(node: &Namespace, other: u8) -> miette::Result<()> {
    let mut command = node.command(Path::new("bridge"));
    let (mac, to) = (format!("02:00:00:00:00:0{other}"), format!("172.31.0.{other}"));
    let status = command
        .args([
            "fdb",
            "add",
            &mac,
            "dev",
            "vxlan1",
            "dst",
            &to,
            "self",
            "permanent",
        ])
        .status();
    match status
        .into_diagnostic()
        .wrap_err("cannot run bridge (Debian: iproute2)")?
        .success()
    {
        true => Ok(()),
        false => Err(miette!("the tunnel does not learn of node {other}")),
    }
}

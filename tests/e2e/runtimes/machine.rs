//! A machine that podnet has never been on: namespaces of the test's own, in which what is written goes to memory. On
//! it run an API server on loopback, and the agent once it is started.

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PODNET: &str = env!("CARGO_BIN_EXE_podnet");
const PATIENCE: Duration = Duration::from_secs(60);

/// The machine. It goes, with all of its processes, when dropped.
pub(crate) struct Machine {
    holder: Child,
    /// The first process of its PID namespace.
    first: String,
    dir: tempfile::TempDir,
}

impl Machine {
    /// A machine with a network of its own and an API server, which knows it as `node1`.
    pub(crate) fn start() -> Machine {
        let holder = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["--propagation", "private", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut machine = Machine {
            holder,
            first: String::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        machine.first = machine.until("the machine is there", || {
            let id = machine.holder.id();
            let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
            let first = children.trim().to_owned();
            let command = std::fs::read_to_string(format!("/proc/{first}/comm")).ok()?;
            (command == "sleep\n").then_some(first)
        });
        machine.run(
            "mount -t tmpfs written /media
             for place in etc opt var; do
                 mkdir -p /media/$place /media/.work/$place
                 mount -t overlay $place -o lowerdir=/$place,upperdir=/media/$place,workdir=/media/.work/$place /$place
             done
             mount -t tmpfs run /run
             mkdir -p /etc/cni/net.d /opt/cni/bin
             # No addresses that appear by and by.
             echo 1 >/proc/sys/net/ipv6/conf/default/addr_gen_mode
             ip link set lo up
             ip link add eth0 type veth peer name far
             ip link set eth0 up
             ip link set far up
             ip address add 172.31.0.10/24 dev eth0
             ip address add fd31::a/64 dev eth0 nodad",
        );
        machine.start_apiserver();
        machine
    }

    fn start_apiserver(&self) {
        let dir = self.dir.path().display();
        self.run(&format!(
            "setsid {PODNET} apiserver --listen 127.0.0.1:6443 --pki-dir {dir}/pki \\
                 --write-kubeconfig '{dir}/kubeconfig=https://127.0.0.1:{{port}}' </dev/null >{dir}/apiserver.log 2>&1 &
             for attempt in $(seq 300); do
                 {kubectl} get --raw /readyz >/dev/null 2>&1 && break
                 sleep 0.1
             done
             {kubectl} create -f - <<'END'
apiVersion: v1
kind: Node
metadata: {{name: node1}}
spec: {{podCIDR: 10.77.0.0/24, podCIDRs: [10.77.0.0/24, 'fd77::/64']}}
END
             # As kubelets do it; Debian's kubectl cannot write a status in another way.
             {kubectl} replace --raw /api/v1/nodes/node1/status -f - <<'END'
{{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{{\"name\":\"node1\"}},\"status\":{{\"addresses\":[
    {{\"type\":\"InternalIP\",\"address\":\"172.31.0.10\"}},{{\"type\":\"InternalIP\",\"address\":\"fd31::a\"}}]}}}}
END
",
            kubectl = self.kubectl()
        ));
    }

    fn kubectl(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "env HOME={dir} {} --kubeconfig {dir}/kubeconfig",
            crate::support::kubectl().display()
        )
    }

    /// Starts the agent with its defaults and waits until it has installed the plugin.
    pub(crate) fn start_agent(&self) {
        let dir = self.dir.path().display();
        self.run(&format!(
            "setsid {PODNET} agent --node node1 --kubeconfig {dir}/kubeconfig --routing vxlan \\
                 --cluster-cidr 10.77.0.0/16,fd77::/48 --service-cidr 10.96.0.0/16,fd96::/112 \\
                 </dev/null >{dir}/agent.log 2>&1 &
             echo $! >{dir}/agent.pid
             for attempt in $(seq 300); do [ -e /etc/cni/net.d/10-podnet.conflist ] && exit 0; sleep 0.1; done
             cat {dir}/agent.log; exit 1"
        ));
    }

    /// Ends the agent, then `podnet cleanup`; what that printed.
    pub(crate) fn clean_up(&self) -> String {
        let dir = self.dir.path().display();
        self.run(&format!(
            "kill $(cat {dir}/agent.pid)
             for attempt in $(seq 300); do
                 # Nobody here takes note of what has ended: it stays as a zombie.
                 case $(cut -d' ' -f3 /proc/$(cat {dir}/agent.pid)/stat) in Z | '') exec {PODNET} cleanup;; esac
                 sleep 0.1
             done
             echo 'the agent does not end'; exit 1"
        ))
    }

    /// Links, addresses, routes, rules, neighbours, firewall, shaping, settings, and every file written.
    pub(crate) fn snapshot(&self) -> String {
        self.run(
            "for family in 4 6; do
                 ip -$family -o address show | sed 's/^[0-9]*: //; s/valid_lft.*//'
                 ip -$family route show table all
                 ip -$family rule show
             done
             ip -o link show | sed 's/^[0-9]*: //'
             ip neighbour show nud permanent
             bridge fdb show | grep -v '33:33:\\|01:00:5e' || true
             tc qdisc show
             nft list ruleset | sed 's/ counter packets [0-9]* bytes [0-9]*//'
             iptables-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'
             ip6tables-save | grep -v '^#' | sed 's/\\[[0-9:]*\\]//'
             # All but what counts or is drawn by lot.
             sysctl -a 2>/dev/null | grep '^net\\.' | grep -v -e nf_conntrack_count -e fastopen_key -e stable_secret
             find /run /media -path /media/.work -prune -o \\( -type f -o -type s \\) -print | grep -v \\
                 -e '^/run/\\(containerd\\|crun\\|netns\\|user\\)/' -e '^/media/var/lib/cni/' -e '/net.d/cni.lock$' || true",
        )
    }

    /// Panics with the lines that differ from an earlier snapshot.
    pub(crate) fn assert_as(&self, before: &str) {
        let now = self.snapshot();
        let only = |these: &str, others: &str, sign| {
            let others: Vec<String> = others.lines().map(str::to_owned).collect();
            let only = these.lines().filter(|line| !others.contains(&(*line).to_owned()));
            only.map(|line| format!("{sign} {line}\n")).collect::<String>()
        };
        let (gone, come) = (only(before, &now, '-'), only(&now, before, '+'));
        assert!(before == now, "the machine is not as it was:\n{gone}{come}");
    }

    /// Runs a shell script.
    pub(crate) fn shell(&self, script: &str) -> Output {
        Command::new("nsenter")
            .args(["-t", &self.first, "-m", "-n", "-p", "sh", "-c", script])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// A script that must succeed; what it printed.
    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.shell(&format!("set -e\n{script}"));
        assert!(
            output.status.success(),
            "{script}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = found() {
                return value;
            }
            assert!(Instant::now() < end, "{what}: not within a minute");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["apiserver.log", "agent.log"] {
                let text = std::fs::read_to_string(self.dir.path().join(log)).unwrap_or_default();
                eprintln!("--- {log}\n{text}");
            }
        }
        // Its child, the first process, is killed with it, and with that all others.
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

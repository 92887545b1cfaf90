//! Labs for tests: raised with the real executable, removed when dropped.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The executable under test.
pub(crate) const PODNET: &str = env!("CARGO_BIN_EXE_podnet");

/// A lab that goes when the test does, however that ends.
pub(crate) struct Lab {
    pub(crate) name: String,
    /// The user it is raised as, if not the test's own.
    pub(crate) user: Option<u32>,
}

/// Three echo pods spread over the nodes, a service in front of them, and a toolbox.
pub(crate) const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo.yaml");

impl Lab {
    /// A name of its own, nothing raised yet.
    pub(crate) fn named(test: &str) -> Self {
        let lab = Lab {
            name: format!("{test}-{}", std::process::id()),
            user: None,
        };
        lab.podnet(&["lab", "down", "--name", &lab.name]);
        lab
    }

    /// Raises a lab with further arguments; panics with what was printed if it fails.
    pub(crate) fn up(test: &str, args: &[&str]) -> Self {
        let lab = Self::named(test);
        lab.raise(args);
        lab
    }

    /// `PODNET_E2E_DATAPLANE` is what labs get that are not for a certain data plane.
    pub(crate) fn raise(&self, args: &[&str]) {
        let named = std::env::var("PODNET_E2E_DATAPLANE").ok();
        let named = named.filter(|_| !args.contains(&"--dataplane"));
        let chosen: Vec<&str> = named
            .iter()
            .flat_map(|name| ["--dataplane", name.as_str()])
            .collect();
        let output = self.podnet(&[&["lab", "up", "--name", &self.name], &chosen[..], args].concat());
        assert!(
            output.status.success(),
            "lab up {args:?}: {}\n{}",
            text(&output),
            self.logs()
        );
    }

    pub(crate) fn podnet(&self, args: &[&str]) -> Output {
        let mut command = match self.user {
            None => Command::new(PODNET),
            Some(user) => {
                let mut command = Command::new("setpriv");
                let id = user.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", PODNET]);
                command.env_remove("XDG_RUNTIME_DIR");
                command
            }
        };
        command
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("podnet starts")
    }

    pub(crate) fn logs(&self) -> String {
        let all = stdout(&self.podnet(&["lab", "logs", "--name", &self.name]));
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(150)..].join("\n")
    }

    pub(crate) fn kubeconfig(&self) -> String {
        let output = self.podnet(&["lab", "kubeconfig", "--name", &self.name]);
        assert!(output.status.success(), "{}", text(&output));
        stdout(&output)
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Output {
        Command::new(kubectl())
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("kubectl starts")
    }

    /// kubectl that must succeed; what it printed.
    pub(crate) fn kubectl_ok(&self, args: &[&str]) -> String {
        let output = self.kubectl(args);
        assert!(output.status.success(), "kubectl {args:?}: {}", text(&output));
        stdout(&output)
    }

    pub(crate) fn kubectl_json(&self, args: &[&str]) -> Value {
        let printed = self.kubectl_ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&printed).expect("kubectl prints JSON")
    }

    /// kubectl with a manifest on standard input, which it must take.
    pub(crate) fn apply(&self, manifest: &str) {
        let output = self.apply_output(manifest);
        assert!(output.status.success(), "kubectl apply: {}", text(&output));
    }

    /// kubectl with a manifest on standard input.
    pub(crate) fn apply_output(&self, manifest: &str) -> Output {
        use std::io::Write;
        let mut child = Command::new(kubectl())
            .args(["--kubeconfig", &self.kubeconfig(), "apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let mut stdin = child.stdin.take().unwrap();
        // kubectl takes what begins with a brace for JSON.
        stdin.write_all(b"---\n").unwrap();
        stdin.write_all(manifest.as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> Output {
        self.podnet(&[&["lab", "exec", "--name", &self.name, pod, "--"], command].concat())
    }

    /// A client of its API server.
    pub(crate) fn client(&self, runtime: &tokio::runtime::Runtime) -> kube::Client {
        runtime.block_on(async {
            let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
            kube::Client::try_from(config.unwrap()).unwrap()
        })
    }

    /// A shell script in a pod that must succeed; what it printed.
    pub(crate) fn sh(&self, pod: &str, script: &str) -> String {
        let output = self.exec(pod, &["sh", "-c", script]);
        assert!(output.status.success(), "in {pod}: {script}: {}", text(&output));
        stdout(&output)
    }

    pub(crate) fn node(&self, node: &str, command: &[&str]) -> Output {
        self.podnet(&[&["lab", "node", "--name", &self.name, node, "--"], command].concat())
    }

    pub(crate) fn node_sh(&self, node: &str, script: &str) -> String {
        let output = self.node(node, &["sh", "-c", script]);
        assert!(output.status.success(), "on {node}: {script}: {}", text(&output));
        stdout(&output)
    }

    /// The pods of a namespace: name, node, addresses.
    pub(crate) fn pods(&self, namespace: &str) -> Vec<Pod> {
        let list = self.kubectl_json(&["get", "pods", "-n", namespace]);
        list["items"].as_array().unwrap().iter().map(Pod::new).collect()
    }

    /// Polls until `found` gives something; panics with `what` after a minute.
    pub(crate) fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(value) = found() {
                return value;
            }
            assert!(
                Instant::now() < end,
                "{what} did not happen within a minute\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// PIDs, as the machine sees them, of this lab's processes whose command line contains `part`.
    pub(crate) fn pids(&self, part: &str) -> Vec<u32> {
        let init = self.init();
        processes()
            .into_iter()
            .filter(|process| process.command.contains(part) && process.is_below(init))
            .map(|process| process.pid)
            .collect()
    }

    /// The PID of the lab's first process.
    pub(crate) fn init(&self) -> u32 {
        let record = std::fs::read(self.dir().join("lab.json")).expect("the lab has a record");
        let record: Value = serde_json::from_slice(&record).unwrap();
        u32::try_from(record["init"]["pid"].as_u64().unwrap()).unwrap()
    }

    pub(crate) fn dir(&self) -> PathBuf {
        match self.user {
            None => PathBuf::from("/run/podnet-lab").join(&self.name),
            Some(user) => PathBuf::from(format!("/tmp/podnet-lab-{user}")).join(&self.name),
        }
    }

    /// Removes the lab: no process of it may be left, and with the processes go their namespaces.
    pub(crate) fn down(&self) {
        let processes = if self.dir().join("lab.json").exists() {
            self.pids("")
        } else {
            Vec::new()
        };
        let output = self.podnet(&["lab", "down", "--name", &self.name]);
        assert!(output.status.success(), "lab down: {}", text(&output));
        let alive = processes.iter().filter(|pid| runs(**pid)).count();
        assert_eq!(alive, 0, "lab down leaves processes");
        assert!(!self.dir().exists(), "lab down leaves {}", self.dir().display());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- logs of {}\n{}", self.name, self.logs());
        }
        self.podnet(&["lab", "down", "--name", &self.name]);
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) ips: Vec<String>,
    pub(crate) labels: Value,
}

impl Pod {
    fn new(object: &Value) -> Self {
        let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let ips = object["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        Pod {
            name: string(&object["metadata"]["name"]),
            node: string(&object["spec"]["nodeName"]),
            ips: ips.iter().map(|ip| string(&ip["ip"])).collect(),
            labels: object["metadata"]["labels"].clone(),
        }
    }

    pub(crate) fn is_app(&self, app: &str) -> bool {
        self.labels["app"] == app
    }
}

struct Process {
    pid: u32,
    command: String,
}

impl Process {
    /// Whether its PID namespace is the one whose first process is `init`.
    fn is_below(&self, init: u32) -> bool {
        let mut pid = self.pid;
        while pid > 1 {
            if pid == init {
                return true;
            }
            pid = parent(pid).unwrap_or(0);
        }
        false
    }
}

/// Whether a process does anything still: one that has ended and waits for its parent to notice does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some(Process {
                pid,
                command: String::from_utf8_lossy(&command).replace('\0', " "),
            })
        })
        .collect()
}

/// Debian's kubectl, which `.ci/setup` unpacks.
pub(crate) fn kubectl() -> PathBuf {
    if let Some(path) = std::env::var_os("KUBECTL") {
        return path.into();
    }
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bin/kubectl"));
    assert!(
        path.exists(),
        "there is no {}: run .ci/setup, or set KUBECTL",
        path.display()
    );
    path
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        stdout(output),
        stderr(output)
    )
}

/// `kill -9` of one process.
pub(crate) fn kill_9(pid: u32) {
    Command::new("kill")
        .args(["-9", &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

/// What a lab must not change on the machine, a line each.
#[derive(PartialEq, Eq)]
pub(crate) struct Machine {
    links: String,
    routes: String,
    rules: String,
    sysctls: String,
    mounts: String,
    cgroups: String,
}

impl Machine {
    /// Panics with the lines that differ from `before`.
    pub(crate) fn assert_as(before: &Machine, when: &str) {
        Machine::assert_same(before, &Machine::now(), when);
    }

    /// The same while `lab` is up, which has a control group.
    pub(crate) fn assert_as_beside(lab: &Lab, before: &Machine) {
        let mut now = Machine::now();
        let groups = now.cgroups.lines();
        let own = format!("/podnet-lab-{}", lab.name);
        now.cgroups = groups
            .filter(|group| !group.ends_with(&own))
            .collect::<Vec<_>>()
            .join("\n");
        Machine::assert_same(before, &now, "while a lab is up");
    }

    fn assert_same(before: &Machine, now: &Machine, when: &str) {
        let mut changes = Vec::new();
        for (old, new) in before.parts().into_iter().zip(now.parts()) {
            let (old, new): (Vec<_>, Vec<_>) = (old.lines().collect(), new.lines().collect());
            changes.extend(
                old.iter()
                    .filter(|line| !new.contains(line))
                    .map(|line| format!("- {line}")),
            );
            changes.extend(
                new.iter()
                    .filter(|line| !old.contains(line))
                    .map(|line| format!("+ {line}")),
            );
        }
        assert!(
            changes.is_empty(),
            "the machine changed {when}:\n{}",
            changes.join("\n")
        );
    }

    fn parts(&self) -> [&str; 6] {
        [
            &self.links,
            &self.routes,
            &self.rules,
            &self.sysctls,
            &self.mounts,
            &self.cgroups,
        ]
    }

    pub(crate) fn now() -> Self {
        let run = |script: &str| {
            let output = Command::new("sh").args(["-c", script]).output().unwrap();
            stdout(&output)
        };
        Machine {
            links: run("ip -o link | sed 's/ state .*//'; ip -o addr | awk '{print $2, $3, $4}'"),
            routes: run("ip route; ip -6 route; ip rule; ip -6 rule"),
            rules: run("nft list ruleset"),
            // Counters and clocks change by themselves.
            sysctls: run(
                "sysctl -a 2>/dev/null | grep -E '^(net|kernel|fs|user|vm)\\.' | grep -vE \
                 'random|nr_|inode|dentry|ns_last_pid|_count|usage|stat|cad_pid|pty.nr|bpf_jit|sched_domain|tcp_fastopen_key|hung_task|perf|fs.quota|file-nr|aio-nr'",
            ),
            // Other labs' come and go.
            cgroups: run(&format!(
                "find /sys/fs/cgroup -type d -iname '*podnet*' | grep -vE 'podnet-(lab|test)-' || true
                 find /sys/fs/cgroup -type d -name 'podnet-lab-*-{}'",
                std::process::id()
            )),
            mounts: run("grep -v nsfs /proc/self/mountinfo | cut -d' ' -f4-"),
        }
    }
}

//! Debian's containerd and podman on a node: started from `target/runtimes`, where `.ci/setup` unpacks them, with
//! everything of theirs on a file system of its own below /mnt.

use std::process::Output;

use serde_json::Value;

const PODNET: &str = env!("CARGO_BIN_EXE_podnet");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/runtimes/root");

/// Runs a shell script on the node.
pub(crate) type Shell<'a> = &'a dyn Fn(&str) -> Output;

/// The runtimes of a node.
pub(crate) struct Runtimes<'a> {
    shell: Shell<'a>,
    /// What the node needs of this checkout, where the node sees it: it has a /tmp of its own.
    _files: tempfile::TempDir,
}

/// Which runtime runs a container.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Runtime {
    /// `ctr run --cni`: the first network by name.
    Containerd,
    /// podman with its CNI back end.
    Podman,
}

impl<'a> Runtimes<'a> {
    /// Starts containerd; podman needs nothing that runs.
    pub(crate) fn start(shell: Shell<'a>) -> Self {
        assert!(
            std::path::Path::new(ROOT).is_dir(),
            "run .ci/setup: it unpacks Debian's runtimes to {ROOT}"
        );
        let files = tempfile::tempdir_in("/var/tmp").unwrap();
        let at = files.path().display().to_string();
        let copied = std::process::Command::new("cp")
            .args(["-a", ROOT, PODNET, &at])
            .status();
        assert!(copied.unwrap().success(), "cannot copy to {at}");
        let (root, podnet) = (format!("{at}/root"), format!("{at}/podnet"));
        let runtimes = Runtimes { shell, _files: files };
        // crun takes cgroups in hybrid mode for a mistake: it is shown those of version 1 only.
        runtimes.run(&format!(
            "mount -t tmpfs runtimes /mnt
             if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
             mkdir -p /mnt/rootfs /mnt/containerd /mnt/state
             cp {podnet} /mnt/rootfs/podnet
             cat >/mnt/env <<'END'
export PATH={root}/usr/bin:{root}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin
export LD_LIBRARY_PATH={root}/usr/lib/x86_64-linux-gnu:{root}/lib/x86_64-linux-gnu
export CONTAINERS_CONF=/mnt/containers.conf
export CONTAINERD_ADDRESS=/mnt/containerd.sock
podman() {{
    command podman --root /mnt/podman --runroot /mnt/podman-run --tmpdir /mnt/podman-tmp --storage-driver vfs \"$@\"
}}
END
             printf '#!/bin/sh\\n. /mnt/env\\nexec {root}/usr/bin/crun \"$@\"\\n' >/mnt/crun
             chmod +x /mnt/crun
             cat >/mnt/containers.conf <<'END'
[engine]
cgroup_manager = \"cgroupfs\"
events_logger = \"none\"
runtime = \"crun\"
conmon_path = [\"{root}/usr/bin/conmon\"]
[engine.runtimes]
crun = [\"/mnt/crun\"]
[network]
network_backend = \"cni\"
cni_plugin_dirs = [\"/opt/cni/bin\"]
network_config_dir = \"/etc/cni/net.d\"
default_network = \"podnet\"
END
             . /mnt/env
             setsid containerd --root /mnt/containerd --state /mnt/state --address /mnt/containerd.sock \\
                 --log-level error </dev/null >/mnt/containerd.log 2>&1 &
             echo $! >/mnt/containerd.pid
             for attempt in $(seq 300); do ctr version >/dev/null 2>&1 && exit 0; sleep 0.1; done
             cat /mnt/containerd.log; exit 1"
        ));
        runtimes
    }

    /// A script on the node that must succeed; what it printed.
    pub(crate) fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        assert!(
            output.status.success(),
            "{script}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn try_run(&self, script: &str) -> Output {
        (self.shell)(&format!("[ ! -e /mnt/env ] || . /mnt/env\n{script}"))
    }

    /// Starts a container that runs `podnet echo --http 8080`, in `network` where the runtime lets one choose.
    pub(crate) fn start_echo(
        &self,
        runtime: Runtime,
        name: &str,
        network: &str,
        more: &str,
    ) -> Container<'_> {
        let command = "/podnet echo --http 8080";
        match runtime {
            // Not detached, for only then ctr takes the network away in the end.
            Runtime::Containerd => self.run(&format!(
                "setsid ctr run --rm --cni --cgroup '' {more} --rootfs /mnt/rootfs {name} {command} \\
                     </dev/null >/mnt/{name}.log 2>&1 &
                 for attempt in $(seq 300); do
                     ctr task ls | grep -q \"^{name} .*RUNNING\" && exit 0
                     sleep 0.1
                 done
                 cat /mnt/{name}.log; exit 1"
            )),
            Runtime::Podman => self.run(&format!(
                "podman run -d --name {name} --cgroups=disabled --network {network} {more} --rootfs /mnt/rootfs \\
                     {command} </dev/null"
            )),
        };
        let pid = match runtime {
            Runtime::Containerd => self.run(&format!("ctr task ls | awk '$1 == \"{name}\" {{ print $2 }}'")),
            Runtime::Podman => self.run(&format!("podman inspect -f '{{{{.State.Pid}}}}' {name}")),
        };
        assert!(
            pid.parse::<u32>().is_ok_and(|pid| pid > 0),
            "{name} does not run: {pid:?}"
        );
        Container {
            runtimes: self,
            runtime,
            name: name.to_owned(),
            pid,
        }
    }
}

/// A container that runs.
pub(crate) struct Container<'a> {
    runtimes: &'a Runtimes<'a>,
    runtime: Runtime,
    name: String,
    pid: String,
}

impl Container<'_> {
    /// A script in the container's network.
    pub(crate) fn run(&self, script: &str) -> String {
        self.runtimes
            .run(&format!("nsenter -t {} -n sh -c '{script}'", self.pid))
    }

    /// Its addresses: IPv4, then IPv6.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let links: Value =
            serde_json::from_str(&self.run("ip -j address show dev eth0 scope global")).unwrap();
        let infos = links[0]["addr_info"].as_array().unwrap();
        let of = |family: &str| {
            let info = infos.iter().find(|info| info["family"] == family);
            info.and_then(|info| info["local"].as_str()).map(str::to_owned)
        };
        ["inet", "inet6"].into_iter().filter_map(of).collect()
    }

    /// Asks an echo server over HTTP; what it saw.
    pub(crate) fn ask(&self, url: &str) -> Value {
        let answer = self.run(&format!(
            "curl -gsS --max-time 20 --retry 5 --retry-connrefused {url}"
        ));
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{url}: {error}: {answer}"))
    }

    /// Ends it and takes its network away, as its runtime does.
    pub(crate) fn remove(self) {
        let name = &self.name;
        let script = match self.runtime {
            Runtime::Containerd => format!(
                "ctr task kill -s KILL {name}
                 for attempt in $(seq 300); do ctr c ls -q | grep -qx {name} || exit 0; sleep 0.1; done
                 cat /mnt/{name}.log; exit 1"
            ),
            Runtime::Podman => format!("podman rm -f -t 0 {name}"),
        };
        self.runtimes.run(&script);
    }
}

impl Drop for Runtimes<'_> {
    /// Ends everything that containerd started. The file system of theirs goes with the node.
    fn drop(&mut self) {
        drop(self.try_run(
            "podman rm -af -t 0
             ctr task ls -q | while read name; do ctr task kill -s KILL $name; done
             kill $(cat /mnt/containerd.pid)",
        ));
    }
}

/// The host part of `ADDRESS:PORT`, without brackets.
pub(crate) fn host(socket: &Value) -> String {
    let text = socket.as_str().unwrap_or_else(|| panic!("{socket} is no text"));
    let (host, _) = text.rsplit_once(':').unwrap();
    host.trim_matches(['[', ']']).to_owned()
}

/// A URL's host.
pub(crate) fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

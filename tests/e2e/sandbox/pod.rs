//! A pod for a test: a sandbox, shell scripts as containers, and what came of them.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podnet_lab::image::{Image, Store};
use podnet_lab::sandbox::{ContainerSpec, ContainerState, ExecSpec, Sandbox, SandboxSpec};

/// The executable under test; a copy of it where the tests run as somebody who may not read the original.
pub(crate) fn podnet() -> PathBuf {
    std::env::var_os("PODNET")
        .unwrap_or(env!("CARGO_BIN_EXE_podnet").into())
        .into()
}

/// A sandbox in a directory of its own; ends with the test, however that ends.
pub(crate) struct Pod {
    pub(crate) sandbox: Sandbox,
    pub(crate) dir: tempfile::TempDir,
    started: std::cell::Cell<u32>,
}

impl Pod {
    pub(crate) async fn new() -> Pod {
        Pod::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut SandboxSpec)) -> Pod {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = SandboxSpec {
            dir: dir.path().join("pod"),
            hostname: "web-0".into(),
            ..SandboxSpec::default()
        };
        change(&mut spec);
        let sandbox = Sandbox::create_with(&podnet(), &spec).await.unwrap();
        Pod {
            sandbox,
            dir,
            started: 0.into(),
        }
    }

    /// A container of the machine's root that runs a shell script.
    pub(crate) fn shell(&self, script: &str) -> ContainerSpec {
        let number = self.started.replace(self.started.get() + 1);
        ContainerSpec {
            id: format!("{number:064x}"),
            name: format!("c{number}"),
            image: host(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: self.log(number),
            ..ContainerSpec::default()
        }
    }

    pub(crate) fn log(&self, number: u32) -> PathBuf {
        self.dir.path().join(format!("logs/{number}.log"))
    }

    pub(crate) async fn run(&self, script: &str) -> ContainerState {
        self.sandbox.start_container(&self.shell(script)).await.unwrap()
    }

    /// Runs a script to its end; gives its state and what it printed.
    pub(crate) async fn output(&self, script: &str) -> (ContainerState, String) {
        self.output_of(self.shell(script)).await
    }

    pub(crate) async fn output_of(&self, spec: ContainerSpec) -> (ContainerState, String) {
        self.sandbox.start_container(&spec).await.unwrap();
        let state = self.finished(&spec.id).await;
        (state, printed(&spec.log_path))
    }

    pub(crate) async fn finished(&self, id: &str) -> ContainerState {
        let watch = self.sandbox.clone();
        loop {
            let state = self.state(id).await;
            if state.finished.is_some() {
                return state;
            }
            tokio::time::timeout(Duration::from_secs(20), watch.changed())
                .await
                .expect("it ends")
                .unwrap();
        }
    }

    pub(crate) async fn state(&self, id: &str) -> ContainerState {
        let states = self.sandbox.containers().await.unwrap();
        states
            .into_iter()
            .find(|state| state.id == id)
            .expect("a container that was started is listed")
    }

    pub(crate) async fn exec(&self, id: &str, script: &str) -> (i32, String) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let spec = ExecSpec {
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            stdout: Some(writer.into()),
            ..ExecSpec::default()
        };
        let mut exec = self.sandbox.exec(id, &spec).await.unwrap();
        drop(spec);
        let code = exec.wait().await.unwrap();
        let mut out = String::new();
        reader.read_to_string(&mut out).unwrap();
        (code, out)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        signal(self.sandbox.pid(), "KILL");
        until("pause is gone", || !alive(self.sandbox.pid()));
    }
}

pub(crate) fn host() -> Image {
    Store::new("/nowhere").resolve("host").unwrap()
}

/// A log without time stamps: `stdout F line`.
pub(crate) fn printed(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap();
    log.lines()
        .map(|line| line.split_once(' ').unwrap().1.to_owned() + "\n")
        .collect()
}

pub(crate) fn signal(pid: u32, name: &str) {
    // kill(1) fails when the process is gone, which is as well.
    let _ = std::process::Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .output()
        .unwrap();
}

/// A zombie is not alive.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn namespaces(pid: u32) -> BTreeSet<String> {
    let links = ["net", "ipc", "uts", "pid", "mnt"].map(|kind| format!("/proc/{pid}/ns/{kind}"));
    links
        .iter()
        .map(|link| std::fs::read_link(link).unwrap().to_string_lossy().into_owned())
        .collect()
}

//! A control plane on loopback for one test: the real `podnet apiserver`, and `podnet controller` where it is asked for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PODNET: &str = env!("CARGO_BIN_EXE_podnet");

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with its owner.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// An API server of the test's own.
pub(crate) struct ControlPlane {
    // Fields drop in order: the controllers before the server, the directory last.
    controllers: Option<Process>,
    _apiserver: Process,
    dir: tempfile::TempDir,
}

impl ControlPlane {
    /// Starts an API server and waits until it is ready.
    pub(crate) fn start() -> ControlPlane {
        ControlPlane::start_with(&[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(args: &[&str]) -> ControlPlane {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let log = std::fs::File::create(path("apiserver.log")).unwrap();
        let child = Command::new(PODNET)
            .args(["apiserver", "--listen", "127.0.0.1:0", "--pki-dir", &path("pki")])
            .args([
                "--write-kubeconfig",
                &format!("{}=https://127.0.0.1:{{port}}", path("kubeconfig")),
            ])
            .args(args)
            .stderr(log)
            .spawn()
            .unwrap();
        let plane = ControlPlane {
            controllers: None,
            _apiserver: Process(child),
            dir,
        };
        let deadline = Instant::now() + PATIENCE;
        while !plane.kubeconfig().exists() || !plane.kubectl(["get", "--raw", "/readyz"]).status.success() {
            assert!(
                Instant::now() < deadline,
                "the API server is not ready:\n{}",
                plane.log("apiserver.log")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        plane
    }

    /// Starts the controllers too.
    pub(crate) fn with_controllers() -> ControlPlane {
        let mut plane = ControlPlane::start();
        let log = std::fs::File::create(plane.dir.path().join("controller.log")).unwrap();
        let child = Command::new(PODNET)
            .arg("controller")
            .args(["--controllers", "all", "--leader-elect", "false", "--kubeconfig"])
            .arg(plane.kubeconfig())
            .stderr(log)
            .spawn()
            .unwrap();
        plane.controllers = Some(Process(child));
        plane
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// The test's own directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// A kubectl for this server, its caches in the test's directory.
    pub(crate) fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(kubectl());
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .args(args);
        command
    }

    /// Runs kubectl.
    pub(crate) fn kubectl<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs kubectl with a manifest on its standard input.
    pub(crate) fn feed<'a>(&self, args: impl IntoIterator<Item = &'a str>, manifest: &str) -> Output {
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(manifest.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    #[track_caller]
    pub(crate) fn ok<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> String {
        said(&self.kubectl(args), &self.log("apiserver.log"))
    }

    /// As [`ControlPlane::ok`], with a manifest.
    #[track_caller]
    pub(crate) fn ok_with<'a>(&self, args: impl IntoIterator<Item = &'a str>, manifest: &str) -> String {
        said(&self.feed(args, manifest), &self.log("apiserver.log"))
    }

    /// Runs kubectl with a manifest, which must fail, and returns what it complained of.
    #[track_caller]
    pub(crate) fn refused<'a>(&self, args: impl IntoIterator<Item = &'a str>, manifest: &str) -> String {
        let output = self.feed(args, manifest);
        assert!(
            !output.status.success(),
            "kubectl succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    }

    /// Waits until kubectl prints this.
    #[track_caller]
    pub(crate) fn until<'a>(&self, args: impl IntoIterator<Item = &'a str> + Clone, want: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.kubectl(args.clone());
            let got = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if got == want {
                return;
            }
            let logs = format!("{}{}", self.log("apiserver.log"), self.log("controller.log"));
            assert!(Instant::now() < deadline, "want {want:?}, have {got:?}\n{logs}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[track_caller]
fn said(output: &Output, log: &str) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "kubectl failed: {err}{out}\n{log}");
    out.trim().to_owned()
}

/// Debian's kubectl (package kubernetes-client).
pub(crate) fn kubectl() -> PathBuf {
    if let Some(path) = std::env::var_os("KUBECTL") {
        return path.into();
    }
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bin/kubectl");
    for path in [unpacked, "/opt/kubectl120/usr/bin/kubectl", "kubectl"] {
        let version = Command::new(path).args(["version", "--client"]).output();
        let debian = |o: &Output| String::from_utf8_lossy(&o.stdout).contains("v1.20");
        if version.as_ref().is_ok_and(debian) {
            return path.into();
        }
    }
    panic!(
        "Debian's kubectl 1.20 is needed: run `.ci/setup`, which unpacks it to target/bin, or name one in KUBECTL"
    );
}

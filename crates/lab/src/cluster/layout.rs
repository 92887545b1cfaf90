//! Where a lab keeps its files. One lab is one directory; removing it removes every file of the lab.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::plan::LabName;

/// The directory of one lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabDir {
    root: PathBuf,
}

impl LabDir {
    /// The directory that the lab `name` of this user has or would have.
    pub fn of(name: &LabName) -> Self {
        LabDir {
            root: base().join(name.as_str()),
        }
    }

    /// A directory known by its path, as handed to the lab's own processes.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        LabDir { root: root.into() }
    }

    /// All labs of this user that have a directory, by name; dead ones too.
    pub fn all() -> io::Result<Vec<(LabName, LabDir)>> {
        let entries = match fs::read_dir(base()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut labs = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<LabName>().ok())
            {
                labs.push((name, LabDir { root: entry.path() }));
            }
        }
        labs.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(labs)
    }

    /// The lab's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the lab has left anything on disk.
    pub fn exists(&self) -> bool {
        self.root.exists()
    }

    /// Makes the directory and those every lab has. Fails with `AlreadyExists` when the lab is there.
    ///
    /// Only its owner may enter: it holds keys and the pods' files.
    pub fn create(&self) -> io::Result<()> {
        private_dir().recursive(true).create(base())?;
        private_dir().create(&self.root)?;
        for dir in ["pki", "logs", "images", "kubelet", "nodes", "datastore"] {
            private_dir().create(self.root.join(dir))?;
        }
        Ok(())
    }

    /// What was asked for and what stands.
    pub fn record(&self) -> PathBuf {
        self.root.join("lab.json")
    }

    /// The processes that init keeps running.
    pub fn services(&self) -> PathBuf {
        self.root.join("services.json")
    }

    /// The certificate authority and the keys.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Admin access from the machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Access from inside the nodes, over the underlay.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.root.join("pki/node.kubeconfig")
    }

    /// The log of one process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// Names the control group of a lab that has one.
    pub fn group(&self) -> PathBuf {
        self.root.join("cgroup")
    }

    /// There once the uplink has been open.
    pub fn uplink_ready(&self) -> PathBuf {
        self.root.join("uplink")
    }

    /// All logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Images loaded with `podnet lab load`.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The API server's store.
    pub fn datastore(&self) -> PathBuf {
        self.root.join("datastore")
    }

    /// One socket per node, on which its runtime serves logs and exec.
    pub fn kubelet(&self) -> PathBuf {
        self.root.join("kubelet")
    }

    /// The socket of one node's runtime.
    pub fn kubelet_socket(&self, node: &str) -> PathBuf {
        self.kubelet().join(format!("{node}.sock"))
    }

    /// All that belongs to one node.
    pub fn node(&self, node: &str) -> NodeDir {
        NodeDir {
            root: self.root.join("nodes").join(node),
        }
    }
}

/// The directory of one node.
#[derive(Debug, Clone)]
pub struct NodeDir {
    root: PathBuf,
}

/// The directories of a node that are its own, as on a real node.
pub const OWN_DIRS: [&str; 4] = ["etc/cni/net.d", "opt/cni/bin", "run/podnet", "var/lib/podnet"];

impl NodeDir {
    /// Makes the node's directories.
    pub fn create(&self) -> io::Result<()> {
        for dir in OWN_DIRS {
            fs::create_dir_all(self.own(dir))?;
        }
        fs::create_dir_all(self.view())
    }

    /// One of [`OWN_DIRS`] as seen from outside the node.
    pub fn own(&self, dir: &str) -> PathBuf {
        self.root.join("fs").join(dir)
    }

    /// Where the node's root is put together.
    pub fn view(&self) -> PathBuf {
        self.root.join("root")
    }

    /// The node's pods, one directory each.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
}

/// `/run/podnet-lab` for root, else a directory of the user's own.
fn base() -> PathBuf {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return PathBuf::from("/run/podnet-lab");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => Path::new(&dir).join("podnet-lab"),
        _ => PathBuf::from(format!("/tmp/podnet-lab-{}", user.as_raw())),
    }
}

fn private_dir() -> fs::DirBuilder {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

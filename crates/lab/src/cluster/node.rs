//! A node: a network, UTS and mount namespace, laid out like a real node.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use podnet_linux::ns::{self, Kind, Namespace, on_own_thread};
use rustix::mount::mount_bind;

use super::layout::{LabDir, NodeDir, OWN_DIRS};
use super::plan::NodePlan;
use crate::rootview::RootView;

/// Where podnet's executable is found inside a node, and podnet-cni beside it.
pub const EXECUTABLE: &str = "/usr/local/bin/podnet";

/// The namespaces of a node, held open by init for the lab's life.
#[derive(Debug)]
pub struct NodeSpaces {
    /// Links, addresses, routes, nftables.
    pub net: Arc<Namespace>,
    /// The hostname.
    pub uts: Arc<Namespace>,
    /// The machine's files under a private overlay, with the node's own /etc/cni/net.d and its kin.
    pub mnt: Arc<Namespace>,
}

/// Makes the node's directories and namespaces.
pub fn create(lab: &LabDir, plan: &NodePlan) -> io::Result<NodeSpaces> {
    let dir = lab.node(&plan.name);
    dir.create()?;
    let exe = std::env::current_exe()?;
    on_own_thread(|| {
        ns::unshare(Kind::Net.flag() | Kind::Uts.flag() | Kind::Mount.flag())?;
        rustix::system::sethostname(plan.name.as_bytes())?;
        build_view(&dir, &exe)?;
        Ok(NodeSpaces {
            net: Arc::new(Namespace::current(Kind::Net)?),
            uts: Arc::new(Namespace::current(Kind::Uts)?),
            mnt: Arc::new(Namespace::current(Kind::Mount)?),
        })
    })?
}

/// Puts the node's root together and moves the calling thread into it.
fn build_view(dir: &NodeDir, exe: &Path) -> io::Result<()> {
    let root = dir.view();
    RootView::build(&root, &dir.scratch())?;
    for own in OWN_DIRS {
        let target = root.join(own);
        fs::create_dir_all(&target)?;
        mount_bind(dir.own(own), &target)?;
    }
    let target = root.join(EXECUTABLE.trim_start_matches('/'));
    bind_file(exe, &target)?;
    let plugin = exe.with_file_name("podnet-cni");
    if plugin.exists() {
        bind_file(&plugin, &target.with_file_name("podnet-cni"))?;
    }
    RootView::enter(&root)
}

fn bind_file(source: &Path, target: &Path) -> io::Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::OpenOptions::new().create(true).append(true).open(target)?;
    mount_bind(source, target)?;
    Ok(())
}

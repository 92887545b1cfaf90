//! A node: a network, UTS and mount namespace, laid out like a real node.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podnet_linux::mount;
use podnet_linux::ns::{self, Kind, Namespace, on_own_thread};

use super::layout::{LabDir, NodeDir, OWN_DIRS};
use super::plan::NodePlan;
use crate::rootview::{Kind as PlaceKind, Place, RootView};

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
    /// The control group of its processes, where it has one of its own.
    pub group: Option<PathBuf>,
}

/// Makes the node's directories and namespaces.
pub fn create(lab: &LabDir, plan: &NodePlan) -> io::Result<NodeSpaces> {
    let dir = lab.node(&plan.name);
    dir.create()?;
    let exe = std::env::current_exe()?;
    on_own_thread(|| {
        ns::unshare(Kind::Net.flag() | Kind::Uts.flag() | Kind::Mount.flag())?;
        mount::make_private()?;
        rustix::system::sethostname(plan.name.as_bytes())?;
        build_view(&dir, &exe)?;
        Ok(NodeSpaces {
            net: Arc::new(Namespace::current(Kind::Net)?),
            uts: Arc::new(Namespace::current(Kind::Uts)?),
            mnt: Arc::new(Namespace::current(Kind::Mount)?),
            group: None,
        })
    })?
}

/// Puts the node's root together and moves the calling thread into it.
fn build_view(dir: &NodeDir, exe: &Path) -> io::Result<()> {
    let mut binds: Vec<(PathBuf, String)> = OWN_DIRS
        .iter()
        .map(|own| (dir.own(own), format!("/{own}")))
        .collect();
    binds.push((exe.to_owned(), EXECUTABLE.to_owned()));
    let plugin = exe.with_file_name("podnet-cni");
    if plugin.exists() {
        binds.push((plugin, format!("{EXECUTABLE}-cni")));
    }
    let places = binds
        .iter()
        .map(|(source, target)| {
            Ok(Place {
                path: target,
                kind: PlaceKind::of(source)?,
            })
        })
        .collect::<io::Result<Vec<_>>>()?;
    let view = RootView::build(&dir.view(), &places)?;
    for (source, target) in &binds {
        view.bind(source, target)?;
    }
    view.enter()
}

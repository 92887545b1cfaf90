//! Tells the machine's own network managers to leave podnet's links and routes alone.
//!
//! Files of ours beside theirs, put in place where the managers' directories exist and nowhere else, and taken away by
//! `podnet cleanup`. A manager that runs already reads them when it is next started or reloaded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file, and the directory of the manager that has to exist for it.
struct DropIn {
    needs: &'static str,
    path: &'static str,
    text: &'static str,
}

const DROP_INS: [DropIn; 4] = [
    DropIn {
        needs: "systemd/network",
        path: "systemd/network/10-podnet.network",
        text: include_str!("../dropins/10-podnet.network"),
    },
    DropIn {
        needs: "systemd/network",
        path: "systemd/network/10-podnet.link",
        text: include_str!("../dropins/10-podnet.link"),
    },
    DropIn {
        needs: "systemd/network",
        path: "systemd/networkd.conf.d/10-podnet.conf",
        text: include_str!("../dropins/networkd.conf"),
    },
    DropIn {
        needs: "NetworkManager/conf.d",
        path: "NetworkManager/conf.d/10-podnet.conf",
        text: include_str!("../dropins/NetworkManager.conf"),
    },
];

/// Puts the files in place below `etc`. Returns those that changed.
pub fn install(etc: &Path) -> io::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for drop_in in DROP_INS.iter().filter(|drop_in| etc.join(drop_in.needs).is_dir()) {
        let path = etc.join(drop_in.path);
        if fs::read(&path).is_ok_and(|found| found == drop_in.text.as_bytes()) {
            continue;
        }
        let put = || -> io::Result<()> {
            let directory = path.parent().unwrap_or(etc);
            fs::create_dir_all(directory)?;
            let aside = directory.join(".podnet.new");
            fs::write(&aside, drop_in.text)?;
            fs::rename(&aside, &path)
        };
        put().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
        })?;
        written.push(path);
    }
    Ok(written)
}

/// The files that are there.
pub fn installed(etc: &Path) -> Vec<PathBuf> {
    let paths = DROP_INS.iter().map(|drop_in| etc.join(drop_in.path));
    paths.filter(|path| path.symlink_metadata().is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_are_put_only_where_their_manager_is() {
        let etc = tempfile::tempdir().unwrap();
        assert!(install(etc.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(etc.path()).unwrap().count(), 0);
        fs::create_dir_all(etc.path().join("NetworkManager/conf.d")).unwrap();
        let written = install(etc.path()).unwrap();
        assert_eq!(written, [etc.path().join("NetworkManager/conf.d/10-podnet.conf")]);
        fs::create_dir_all(etc.path().join("systemd/network")).unwrap();
        assert_eq!(install(etc.path()).unwrap().len(), 3);
        assert!(install(etc.path()).unwrap().is_empty(), "they are there");
        assert_eq!(installed(etc.path()).len(), 4);
    }

    #[test]
    fn drop_ins_name_every_link_of_ours() {
        for drop_in in DROP_INS
            .iter()
            .filter(|drop_in| !drop_in.path.ends_with("networkd.conf.d/10-podnet.conf"))
        {
            for link in ["podnet*", crate::wiring::BRIDGE] {
                assert!(drop_in.text.contains(link), "{} lacks {link}", drop_in.path);
            }
        }
        assert!(podnet_dataplane::route::TUNNEL_LINK.starts_with("podnet"));
        assert!(podnet_cni::HOST_LINK_PREFIX.starts_with("podnet"));
    }
}

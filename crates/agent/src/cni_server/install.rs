//! Puts the plugin and its configuration where the runtime looks for them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::CniServerConfig;
use super::request::ENFORCED;

/// The executable's name, and the plugin's `type`.
pub const PLUGIN: &str = "podnet-cni";
/// The name of the network that the configuration describes.
pub(super) const NETWORK: &str = "podnet";
/// The configuration's name. Runtimes take the first of the directory in the order of names.
const CONFLIST: &str = "10-podnet.conflist";

/// Installs the plugin that lies beside this executable. See [`install_from`].
pub fn install(cni_bin_dir: &Path, cni_conf_dir: &Path, config: &CniServerConfig) -> io::Result<()> {
    let executable = std::env::current_exe()?;
    let plugin = executable.parent().unwrap_or(Path::new("/")).join(PLUGIN);
    install_from(&plugin, cni_bin_dir, cni_conf_dir, config)
}

/// Installs a plugin, then its configuration: each whole or not at all, and the configuration last, since it
/// tells the runtime that the network is ready.
pub fn install_from(
    plugin: &Path,
    cni_bin_dir: &Path,
    cni_conf_dir: &Path,
    config: &CniServerConfig,
) -> io::Result<()> {
    let binary = fs::read(plugin).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot read the CNI plugin {}: {error}", plugin.display()),
        )
    })?;
    put(cni_bin_dir, PLUGIN, &binary, 0o755)?;
    let conflist = serde_json::to_vec_pretty(&conflist(config))?;
    put(cni_conf_dir, CONFLIST, &conflist, 0o644)
}

/// The files of both that are there, in the order in which they are to go: first what makes the runtime ask for more.
pub fn installed(cni_bin_dir: &Path, cni_conf_dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![cni_conf_dir.join(CONFLIST), cni_bin_dir.join(PLUGIN)];
    files.retain(|file| file.symlink_metadata().is_ok());
    files
}

/// Takes both away again, the configuration first; says of each file that was there what came of it.
pub fn uninstall(cni_bin_dir: &Path, cni_conf_dir: &Path) -> Vec<(PathBuf, io::Result<()>)> {
    let files = installed(cni_bin_dir, cni_conf_dir).into_iter();
    files
        .map(|file| {
            let outcome = fs::remove_file(&file);
            (file, outcome)
        })
        .collect()
}

fn conflist(config: &CniServerConfig) -> serde_json::Value {
    // Of what no plugin declares a runtime says nothing.
    let capabilities: serde_json::Map<_, _> = ENFORCED
        .iter()
        .map(|capability| (capability.key().to_owned(), true.into()))
        .collect();
    json!({
        // Runtimes that know `cniVersions` (libcni 1.2) take the newest of those that they speak.
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": NETWORK,
        "plugins": [{
            "type": PLUGIN,
            "socket": config.socket,
            "stateDir": config.state_dir,
            "capabilities": capabilities,
        }],
    })
}

fn put(directory: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let put = || -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let path: PathBuf = directory.join(name);
        let up_to_date = fs::read(&path).is_ok_and(|found| found == bytes);
        if up_to_date {
            return fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        }
        // Runtimes ignore names that do not end in .conf, .conflist or .json.
        let aside = directory.join(format!(".{name}.new"));
        fs::write(&aside, bytes)?;
        fs::set_permissions(&aside, fs::Permissions::from_mode(mode))?;
        fs::rename(&aside, &path)
    };
    put().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot install {name} in {}: {error}", directory.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_and_configuration_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (dir.path().join("bin"), dir.path().join("net.d"));
        let plugin = dir.path().join("plugin");
        fs::write(&plugin, "#!/bin/true").unwrap();
        let config = CniServerConfig {
            socket: "/run/podnet/cni.sock".into(),
            state_dir: "/var/lib/podnet".into(),
            node: "node1".into(),
            wiring: podnet_cni::WiringName::Bridge,
            allowed_sysctls: Vec::new(),
            settings: Default::default(),
            programs: None,
        };
        for _ in 0..2 {
            install_from(&plugin, &bin, &conf, &config).unwrap();
        }
        assert_eq!(
            fs::metadata(bin.join(PLUGIN)).unwrap().permissions().mode() & 0o777,
            0o755
        );
        let conflist: serde_json::Value =
            serde_json::from_slice(&fs::read(conf.join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(conflist["plugins"][0]["socket"], "/run/podnet/cni.sock");
        assert_eq!(fs::read_dir(&conf).unwrap().count(), 1);
        assert_eq!(installed(&bin, &conf), [conf.join(CONFLIST), bin.join(PLUGIN)]);
        let removed = uninstall(&bin, &conf);
        assert_eq!(removed.iter().filter(|(_, outcome)| outcome.is_ok()).count(), 2);
        assert!(uninstall(&bin, &conf).is_empty());
        assert_eq!(
            fs::read_dir(&conf).unwrap().count() + fs::read_dir(&bin).unwrap().count(),
            0
        );
        let missing = install_from(&dir.path().join("nosuch"), &bin, &conf, &config).unwrap_err();
        assert!(missing.to_string().contains("nosuch"));
        assert!(!conf.join(CONFLIST).exists());
    }
}

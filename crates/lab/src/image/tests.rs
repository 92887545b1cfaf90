//! Archives made here, as docker and others make them, and as nobody should.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::{ImageMissing, LoadError, Store};

/// A tar under construction.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Tar {
        Tar(Builder::new(Vec::new()))
    }

    fn file(self, path: &str, contents: impl AsRef<[u8]>) -> Tar {
        self.entry(path, EntryType::Regular, "", contents.as_ref())
    }

    fn dir(self, path: &str) -> Tar {
        self.entry(path, EntryType::Directory, "", &[])
    }

    fn symlink(self, path: &str, to: &str) -> Tar {
        self.entry(path, EntryType::Symlink, to, &[])
    }

    fn hard_link(self, path: &str, to: &str) -> Tar {
        self.entry(path, EntryType::Link, to, &[])
    }

    /// Writes names into the header as they are: the library refuses bad ones.
    fn entry(mut self, path: &str, kind: EntryType, link: &str, contents: &[u8]) -> Tar {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o640 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(contents.len() as u64);
        header.set_cksum();
        self.0.append(&header, contents).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    }
}

fn config() -> Vec<u8> {
    json!({"architecture": architecture(), "os": "linux", "config": {
        "Entrypoint": ["/bin/app"], "Cmd": ["--flag"], "Env": ["PATH=/bin", "A=b=c"],
        "WorkingDir": "/srv", "User": "www", "ExposedPorts": {"80/tcp": {}}
    }})
    .to_string()
    .into_bytes()
}

/// What `docker save` wrote before it wrote OCI layouts.
fn docker(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Tar::new().file("config.json", config());
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        names.push(format!("{index}/layer.tar"));
        tar = tar.file(&names[index], layer);
    }
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    tar.file("manifest.json", manifest.to_string()).bytes()
}

struct Lab {
    dir: tempfile::TempDir,
    store: Store,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().join("images"));
        Lab { dir, store }
    }

    fn load(&self, archive: &[u8]) -> Result<Vec<String>, LoadError> {
        let path = self.dir.path().join("archive.tar");
        fs::write(&path, archive).unwrap();
        self.store.load(&path)
    }

    /// Loads a docker archive of these layers; gives the root.
    fn root(&self, layers: &[Vec<u8>]) -> PathBuf {
        self.load(&docker("app:1", layers)).unwrap();
        self.store.resolve("app:1").unwrap().root.unwrap()
    }

    fn refused(&self, layer: Tar) -> String {
        let error = self.load(&docker("bad:1", &[layer.bytes()])).unwrap_err();
        assert!(matches!(
            self.store.resolve("bad:1"),
            Err(ImageMissing::NotLoaded { .. })
        ));
        let left: Vec<_> = fs::read_dir(self.dir.path().join("images/roots"))
            .unwrap()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        error.to_string()
    }
}

#[test]
fn a_docker_archive_is_loaded_with_its_configuration() {
    let lab = Lab::new();
    let layer = Tar::new()
        .dir("bin")
        .file("bin/app", "program")
        .symlink("sbin", "bin")
        .bytes();
    assert_eq!(
        lab.load(&docker("app:1", &[layer])).unwrap(),
        ["docker.io/library/app:1"]
    );
    let image = lab.store.resolve("app:1").unwrap();
    assert_eq!(image.id, format!("sha256:{}", hex(&config())));
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert_eq!(image.config.cmd, ["--flag"]);
    assert_eq!(
        image.config.env,
        [("PATH".into(), "/bin".into()), ("A".into(), "b=c".into())]
    );
    assert_eq!(image.config.working_dir.as_deref(), Some("/srv"));
    assert_eq!(image.config.user.as_deref(), Some("www"));
    assert_eq!(
        fs::read_to_string(image.root.unwrap().join("sbin/app")).unwrap(),
        "program"
    );
    assert_eq!(lab.store.resolve("docker.io/library/app:1").unwrap().id, image.id);
    assert_eq!(lab.store.list().unwrap().len(), 1);
}

fn oci(media_type: &str, layer: &[u8]) -> Vec<u8> {
    let (config, layer_digest) = (config(), hex(layer));
    let manifest = json!({"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": format!("sha256:{}", hex(&config)), "size": config.len()},
        "layers": [{"mediaType": media_type, "digest": format!("sha256:{layer_digest}"), "size": layer.len()}]})
    .to_string();
    let other = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": "sha256:00", "platform": {"os": "linux", "architecture": "s390x"}});
    let here = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", hex(manifest.as_bytes())),
        "platform": {"os": "linux", "architecture": architecture()}});
    let index = json!({"manifests": [other, here]}).to_string();
    let top = json!({"manifests": [{"mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{}", hex(index.as_bytes())),
        "annotations": {"io.containerd.image.name": "quay.io/a/b:2", "org.opencontainers.image.ref.name": "2"}}]});
    let mut tar = Tar::new().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    for blob in [config.as_slice(), layer, manifest.as_bytes(), index.as_bytes()] {
        // A long name needs the library's own way.
        let mut header = Header::new_gnu();
        header.set_size(blob.len() as u64);
        header.set_mode(0o644);
        tar.0
            .append_data(&mut header, format!("blobs/sha256/{}", hex(blob)), blob)
            .unwrap();
    }
    tar.file("index.json", top.to_string()).bytes()
}

#[test]
fn an_oci_layout_of_several_platforms_is_loaded_compressed_twice() {
    let lab = Lab::new();
    let layer = gzip(&Tar::new().file("./hello", "there").bytes());
    let archive = gzip(&oci("application/vnd.oci.image.layer.v1.tar+gzip", &layer));
    assert_eq!(lab.load(&archive).unwrap(), ["quay.io/a/b:2"]);
    let root = lab.store.resolve("quay.io/a/b:2").unwrap().root.unwrap();
    assert_eq!(fs::read_to_string(root.join("hello")).unwrap(), "there");
}

#[test]
fn zstd_and_damage_are_told() {
    let lab = Lab::new();
    let told = lab
        .load(&oci("tar+zstd", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0]))
        .unwrap_err()
        .to_string();
    assert!(told.contains("zstd"), "{told}");
    let layer = Tar::new().file("f", "intact").bytes();
    let mut archive = oci("tar", &layer);
    let at = archive.windows(6).position(|bytes| bytes == b"intact").unwrap();
    archive[at] = b'X';
    let told = lab.load(&archive).unwrap_err().to_string();
    assert!(told.contains("not what its digest says"), "{told}");
    assert!(lab.store.list().unwrap().is_empty());
}

#[test]
fn upper_layers_hide_and_replace_what_is_below() {
    let lab = Lab::new();
    let lower = Tar::new()
        .dir("d")
        .file("d/a", "1")
        .file("d/b", "1")
        .dir("o")
        .file("o/old", "1")
        .file("f", "1");
    let lower = lower.symlink("link", "d").dir("gone").file("gone/x", "1");
    let upper = Tar::new()
        .file("d/.wh.a", "")
        .file("o/new", "2")
        .file("o/.wh..wh..opq", "")
        .file(".wh.gone", "");
    let upper = upper
        .file("link/through", "2")
        .dir("f")
        .file("f/now-a-directory", "2")
        .file("d/b", "2");
    let root = lab.root(&[lower.bytes(), upper.bytes()]);
    let names = |dir: &str| {
        let mut names: Vec<_> = fs::read_dir(root.join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["d", "f", "link", "o"]);
    assert_eq!(names("d"), ["b", "through"]);
    assert_eq!(names("o"), ["new"]);
    assert_eq!(names("f"), ["now-a-directory"]);
    assert_eq!(fs::read_to_string(root.join("d/b")).unwrap(), "2");
}

#[test]
fn metadata_and_links_are_kept() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new();
    let layer = Tar::new()
        .file("a", "x")
        .hard_link("b", "a")
        .hard_link("c", "/a")
        .symlink("abs", "/a");
    let root = lab.root(&[layer.entry("pipe", EntryType::Fifo, "", &[]).bytes()]);
    let [a, b, c] = ["a", "b", "c"].map(|name| fs::metadata(root.join(name)).unwrap());
    assert_eq!((a.ino(), a.ino()), (b.ino(), c.ino()));
    assert_eq!((a.mode() & 0o7777, a.mtime()), (0o640, 1_000_000_000));
    assert_eq!(fs::read_link(root.join("abs")).unwrap(), Path::new("/a"));
}

#[test]
fn nothing_is_written_outside_the_image() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().to_str().unwrap();
    let lab = Lab::new();
    for layer in [
        Tar::new().file("../escape", "x"),
        Tar::new().file("a/../../escape", "x"),
    ] {
        assert!(lab.refused(layer).contains("leads out of the image"));
    }
    // Links that point outside are resolved inside: there the directory does not exist.
    lab.refused(Tar::new().symlink("up", path).file("up/escape", "x"));
    lab.refused(Tar::new().hard_link("passwd", "/etc/passwd-of-no-image"));
    lab.refused(Tar::new().hard_link("passwd", "../../../../../etc/passwd"));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // A link as the last component is replaced, not followed; an absolute path is one inside.
    let layer = Tar::new()
        .symlink("file", &format!("{path}/escape"))
        .file("file", "x")
        .file("/abs", "y");
    let root = lab.root(&[layer.bytes()]);
    assert!(fs::symlink_metadata(root.join("file")).unwrap().is_file());
    assert!(root.join("abs").is_file());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_image_is_told_so() {
    let lab = Lab::new();
    for (archive, why) in [
        (b"just text, and not even much of it".to_vec(), "no tar archive"),
        (
            Tar::new().file("readme", "hello").bytes(),
            "neither a manifest.json",
        ),
        (
            Tar::new().file("manifest.json", "{").bytes(),
            "manifest.json is damaged",
        ),
        (
            Tar::new().file("manifest.json", "[]").bytes(),
            "list of images is empty",
        ),
        (docker("app:1", &[])[..1024].to_vec(), "an image archive"),
        (gzip(b"compressed text"), "no tar archive"),
    ] {
        let told = lab.load(&archive).unwrap_err().to_string();
        assert!(told.contains(why), "{why}: {told}");
    }
    let told = lab.store.load(Path::new("/no/such.tar")).unwrap_err().to_string();
    assert!(told.contains("/no/such.tar"), "{told}");
    let other = json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": []}]).to_string();
    let arm = Tar::new()
        .file("c", r#"{"architecture":"mips"}"#)
        .file("manifest.json", other)
        .bytes();
    let told = lab.load(&arm).unwrap_err().to_string();
    assert!(told.contains("it is for mips"), "{told}");
}

#[test]
fn a_missing_image_says_what_to_do() {
    let lab = Lab::new();
    let missing = lab.store.resolve("nginx:1.25").unwrap_err();
    assert_eq!(missing.reason(), "ErrImageNeverPull");
    assert!(missing.to_string().contains("podnet lab load"), "{missing}");
    assert_eq!(
        lab.store.resolve("No Name").unwrap_err().reason(),
        "InvalidImageName"
    );
}

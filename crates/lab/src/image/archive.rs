//! Image archives: what `docker save` writes, and OCI image layouts in a tar.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::ImageConfig;
use super::name::ImageRef;

/// Why an archive could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The archive.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no tar, or a tar without an image.
    #[error(
        "{} is not an image archive: {why}; make one with `docker save NAME -o FILE`, `podman save` or \
         `skopeo copy ... oci-archive:FILE`",
        path.display()
    )]
    NoImage {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image is one that cannot be used here.
    #[error("the image {name} in the archive cannot be used: {why}")]
    Unusable {
        /// Its name, or its digest.
        name: String,
        /// Why.
        why: String,
    },
    /// A layer is damaged, or tries what it must not.
    #[error("cannot unpack layer {layer}: {source}")]
    Layer {
        /// Its name in the archive.
        layer: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The store cannot be written.
    #[error("cannot write the image store {}: {source}", dir.display())]
    Store {
        /// The store's directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An image found in an archive.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) names: Vec<String>,
    pub(super) layers: Vec<String>,
    pub(super) config: ImageConfig,
}

/// An archive, by the place of each entry.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    File {
        offset: u64,
        size: u64,
    },
    /// Old `docker save` links equal layers together.
    Link(String),
}

impl Archive {
    /// Reads the table of contents. A compressed archive is first unpacked to a nameless file in `scratch`.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Archive, LoadError> {
        let failed = |source| LoadError::Read {
            path: path.to_owned(),
            source,
        };
        let no_image = |why: &str| LoadError::NoImage {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        let mut file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(no_image("it is a directory"));
        }
        match Compression::of(&mut file).map_err(failed)? {
            Compression::None => {}
            Compression::Gzip => file = decompress(&file, scratch).map_err(failed)?,
            Compression::Zstd => return Err(no_image("it is compressed with zstd; decompress it first")),
        }
        let entries = index(&mut file).map_err(|_| no_image("it is no tar archive"))?;
        Ok(Archive {
            path: path.to_owned(),
            file,
            entries,
        })
    }

    /// The images in it.
    pub(super) fn images(&mut self) -> Result<Vec<Found>, LoadError> {
        let found = if self.entries.contains_key("manifest.json") {
            self.docker()?
        } else if self.entries.contains_key("index.json") {
            self.oci()?
        } else {
            return Err(self.no_image("it has neither a manifest.json (docker save) nor an index.json (OCI)"));
        };
        if found.is_empty() {
            return Err(self.no_image("its list of images is empty"));
        }
        Ok(found)
    }

    /// A layer, decompressed.
    pub(super) fn layer(&mut self, name: &str) -> Result<Layer, LoadError> {
        let damaged = |source| LoadError::Layer {
            layer: name.to_owned(),
            source,
        };
        let (offset, size) = self.place(name)?;
        let mut file = self.file.try_clone().map_err(damaged)?;
        file.seek(SeekFrom::Start(offset)).map_err(damaged)?;
        let compression = Compression::of(&mut file).map_err(damaged)?;
        let blob = Hashing {
            inner: BufReader::with_capacity(256 << 10, file).take(size),
            hash: Sha256::new(),
        };
        let reader = match compression {
            Compression::None => Decoder::Plain(blob),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(blob))),
            Compression::Zstd => {
                return Err(LoadError::Unusable {
                    name: name.to_owned(),
                    why: "its layers are compressed with zstd; save it again with gzip (`skopeo copy \
                          --dest-compress-format gzip`)"
                        .into(),
                });
            }
        };
        Ok(Layer {
            name: name.to_owned(),
            reader,
        })
    }

    fn docker(&mut self) -> Result<Vec<Found>, LoadError> {
        let manifests: Vec<DockerManifest> = self.json("manifest.json")?;
        manifests
            .into_iter()
            .map(|m| self.found(&m.config, m.layers, m.repo_tags.unwrap_or_default()))
            .collect()
    }

    fn oci(&mut self) -> Result<Vec<Found>, LoadError> {
        let index: OciIndex = self.json("index.json")?;
        let mut found = Vec::new();
        for entry in index.manifests {
            let names = entry.names();
            let Some(manifest) = self.manifest(entry, 0)? else {
                continue;
            };
            let layers = manifest.layers.iter().map(Descriptor::blob).collect();
            found.push(self.found(&manifest.config.blob(), layers, names)?);
        }
        Ok(found)
    }

    /// Follows an index of several platforms to the manifest for this machine.
    fn manifest(&mut self, entry: Descriptor, depth: u8) -> Result<Option<OciManifest>, LoadError> {
        if !entry.media_type.contains("index") && !entry.media_type.contains("manifest.list") {
            return self.json(&entry.blob()).map(Some);
        }
        let index: OciIndex = self.json(&entry.blob())?;
        let here = index.manifests.into_iter().find(|m| {
            let platform = m.platform.as_ref();
            platform.is_none_or(|p| p.os == "linux" && p.architecture == architecture())
        });
        match here {
            Some(entry) if depth < 4 => self.manifest(entry, depth + 1),
            _ => Ok(None),
        }
    }

    fn found(&mut self, config: &str, layers: Vec<String>, names: Vec<String>) -> Result<Found, LoadError> {
        let bytes = self.bytes(config)?;
        let id = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        let label = names.first().cloned().unwrap_or_else(|| id.clone());
        let unusable = |why: String| LoadError::Unusable {
            name: label.clone(),
            why,
        };
        let parsed: ConfigFile = serde_json::from_slice(&bytes)
            .map_err(|error| unusable(format!("its configuration is damaged: {error}")))?;
        if let Some(other) = parsed
            .architecture
            .filter(|a| !a.is_empty() && a != architecture())
        {
            return Err(unusable(format!(
                "it is for {other}, and this machine is {}",
                architecture()
            )));
        }
        let mut full = vec![];
        for name in names {
            match ImageRef::parse(&name) {
                Ok(ImageRef::Loaded(name)) => full.push(name),
                Ok(_) => {
                    return Err(unusable(
                        "its name is that of a built-in image; tag it anew".into(),
                    ));
                }
                Err(error) => return Err(unusable(error.to_string())),
            }
        }
        if full.is_empty() {
            return Err(unusable(
                "it has no name; save it by its name, not by its ID".into(),
            ));
        }
        Ok(Found {
            id,
            names: full,
            layers,
            config: parsed.config.unwrap_or_default().into(),
        })
    }

    fn json<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, LoadError> {
        let bytes = self.bytes(name)?;
        serde_json::from_slice(&bytes).map_err(|error| self.no_image(&format!("{name} is damaged: {error}")))
    }

    /// A small entry, checked against the digest in its name.
    fn bytes(&mut self, name: &str) -> Result<Vec<u8>, LoadError> {
        let (offset, size) = self.place(name)?;
        if size > 8 << 20 {
            return Err(self.no_image(&format!("{name} has {size} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        let read = self
            .file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(|source| LoadError::Read {
            path: self.path.clone(),
            source,
        })?;
        if digest_in(name).is_some_and(|digest| digest != hex(&Sha256::digest(&bytes))) {
            return Err(self.no_image(&format!(
                "{name} is not what its digest says; the archive is damaged"
            )));
        }
        Ok(bytes)
    }

    fn place(&self, name: &str) -> Result<(u64, u64), LoadError> {
        let mut at = name.to_owned();
        for _ in 0..4 {
            match self.entries.get(&at) {
                Some(&Entry::File { offset, size }) => return Ok((offset, size)),
                Some(Entry::Link(to)) => at.clone_from(to),
                None => break,
            }
        }
        Err(self.no_image(&format!("{name} is missing in it; the archive is incomplete")))
    }

    fn no_image(&self, why: &str) -> LoadError {
        LoadError::NoImage {
            path: self.path.clone(),
            why: why.to_owned(),
        }
    }
}

/// A layer while it is read.
pub(super) struct Layer {
    name: String,
    reader: Decoder,
}

impl Layer {
    /// Reads what is left and compares with the digest in the name.
    pub(super) fn verify(mut self) -> Result<(), LoadError> {
        let damaged = |layer: &str, source| LoadError::Layer {
            layer: layer.to_owned(),
            source,
        };
        io::copy(&mut self.reader, &mut io::sink()).map_err(|source| damaged(&self.name, source))?;
        let mut blob = match self.reader {
            Decoder::Plain(blob) => blob,
            Decoder::Gzip(decoder) => decoder.into_inner(),
        };
        io::copy(&mut blob, &mut io::sink()).map_err(|source| damaged(&self.name, source))?;
        let hash = hex(&blob.hash.finalize());
        match digest_in(&self.name) {
            Some(digest) if digest != hash => Err(damaged(
                &self.name,
                io::Error::other("its contents are not what its digest says"),
            )),
            _ => Ok(()),
        }
    }
}

impl Read for Layer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

enum Decoder {
    Plain(Hashing),
    Gzip(Box<MultiGzDecoder<Hashing>>),
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(reader) => reader.read(buffer),
            Decoder::Gzip(reader) => reader.read(buffer),
        }
    }
}

struct Hashing {
    inner: Take<BufReader<File>>,
    hash: Sha256,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the magic number at the file's position, which stays where it was.
    fn of(file: &mut File) -> io::Result<Compression> {
        let position = file.stream_position()?;
        let mut magic = Vec::with_capacity(4);
        file.take(4).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(position))?;
        Ok(match magic.as_slice() {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
            _ => Compression::None,
        })
    }
}

fn decompress(file: &File, scratch: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::TMPFILE.bits() as i32;
    let mut plain = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .mode(0o600)
        .open(scratch)?;
    io::copy(&mut MultiGzDecoder::new(BufReader::new(file)), &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

fn index(file: &mut File) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = clean(&entry.path()?);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            entries.insert(
                name,
                Entry::File {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                },
            );
        } else if let (true, Some(to)) = (kind.is_symlink() || kind.is_hard_link(), entry.link_name()?) {
            let base = if kind.is_symlink() {
                Path::new(&name).parent()
            } else {
                None
            };
            entries.insert(
                name.clone(),
                Entry::Link(clean(&base.unwrap_or(Path::new("")).join(to))),
            );
        }
    }
    Ok(entries)
}

/// The path with `.` and `..` resolved; these are keys of a map, never paths of the machine.
fn clean(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

/// `blobs/sha256/HEX` is named by its digest.
fn digest_in(name: &str) -> Option<&str> {
    name.strip_prefix("blobs/sha256/")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// This machine's architecture in the images' words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct OciIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct OciManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

impl Descriptor {
    fn blob(&self) -> String {
        format!("blobs/{}", self.digest.replacen(':', "/", 1))
    }

    /// containerd writes the full name; others only what the OCI annotation holds.
    fn names(&self) -> Vec<String> {
        let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        keys.iter()
            .find_map(|&key| self.annotations.get(key).cloned())
            .into_iter()
            .collect()
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    architecture: Option<String>,
    config: Option<RunConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

impl From<RunConfig> for ImageConfig {
    fn from(run: RunConfig) -> Self {
        let pair = |entry: String| match entry.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (entry, String::new()),
        };
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        ImageConfig {
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default().into_iter().map(pair).collect(),
            working_dir: filled(run.working_dir),
            user: filled(run.user),
        }
    }
}

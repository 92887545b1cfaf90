//! The images of one lab: unpacked roots and an index by name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::archive::{Archive, LoadError};
use super::name::{ImageRef, InvalidName};
use super::{Image, ImageConfig, layer};

/// The images of one lab, in a directory of its own (`LABDIR/images`).
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// An image that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    /// Where its root is unpacked, below the store's directory.
    root: PathBuf,
    /// Its defaults.
    pub config: ImageConfig,
}

/// Why a name gives no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageMissing {
    /// Not a name.
    #[error(transparent)]
    Invalid(#[from] InvalidName),
    /// Nothing of this name was loaded, and nothing is ever pulled.
    #[error(
        "image {written:?} is not present, and a lab pulls nothing: save it to an archive (`docker save {written} -o \
         image.tar`) and load it with `podnet lab load image.tar`, or use the image `host` (this machine's own files)"
    )]
    NotLoaded {
        /// The name as the pod has it.
        written: String,
    },
    /// The store itself cannot be read.
    #[error("cannot read the image store {}: {source}", dir.display())]
    Unreadable {
        /// The store's directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ImageMissing {
    /// The waiting reason kubelet gives.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageMissing::Invalid(_) => "InvalidImageName",
            ImageMissing::NotLoaded { .. } => "ErrImageNeverPull",
            ImageMissing::Unreadable { .. } => "ImageInspectError",
        }
    }
}

type Index = BTreeMap<String, Loaded>;

impl Store {
    /// The store in `dir`, which is made by the first load.
    pub fn new(dir: impl Into<PathBuf>) -> Store {
        Store { dir: dir.into() }
    }

    /// The image a pod names.
    pub fn resolve(&self, name: &str) -> Result<Image, ImageMissing> {
        match ImageRef::parse(name)? {
            ImageRef::Host => Ok(built_in(ImageRef::Host, &[])),
            ImageRef::Echo => Ok(built_in(ImageRef::Echo, &[ECHO_PROGRAM, "echo"])),
            ImageRef::Loaded(full) => self.find(name, full),
        }
    }

    /// Every image that was loaded, by full name.
    pub fn list(&self) -> io::Result<BTreeMap<String, Loaded>> {
        match fs::read(self.index_path()) {
            Ok(json) => serde_json::from_slice(&json).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index::new()),
            Err(error) => Err(error),
        }
    }

    /// Unpacks the images of an OCI layout or `docker save` archive; gives their full names.
    pub fn load(&self, path: &Path) -> Result<Vec<String>, LoadError> {
        let failed = |source| LoadError::Store {
            dir: self.dir.clone(),
            source,
        };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        // One load at a time: two of the same image would unpack into one directory.
        let lock = File::create(self.dir.join("lock")).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut archive = Archive::open(path, &self.dir)?;
        let mut index = self.list().map_err(failed)?;
        let mut names = Vec::new();
        for found in archive.images()? {
            let root = self.unpack(&mut archive, &found)?;
            let loaded = Loaded {
                id: found.id,
                root,
                config: found.config,
            };
            for name in found.names {
                index.insert(name.clone(), loaded.clone());
                names.push(name);
            }
        }
        self.write_index(&index).map_err(failed)?;
        Ok(names)
    }

    fn find(&self, written: &str, full: String) -> Result<Image, ImageMissing> {
        let index = self.list().map_err(|source| ImageMissing::Unreadable {
            dir: self.dir.clone(),
            source,
        })?;
        let Some(loaded) = index.get(&full) else {
            return Err(ImageMissing::NotLoaded {
                written: written.to_owned(),
            });
        };
        Ok(Image {
            reference: ImageRef::Loaded(full),
            id: loaded.id.clone(),
            root: Some(self.dir.join(&loaded.root)),
            config: loaded.config.clone(),
        })
    }

    /// Unpacks all layers into one directory: no layer is shared, and no whiteout is needed afterwards.
    fn unpack(&self, archive: &mut Archive, image: &super::archive::Found) -> Result<PathBuf, LoadError> {
        let failed = |source| LoadError::Store {
            dir: self.dir.clone(),
            source,
        };
        let digest = image.id.trim_start_matches("sha256:");
        let root = PathBuf::from("roots").join(digest);
        if self.dir.join(&root).is_dir() {
            return Ok(root);
        }
        fs::create_dir_all(self.dir.join("roots")).map_err(failed)?;
        let unfinished = self.dir.join("roots").join(format!("{digest}.unfinished"));
        remove(&unfinished).map_err(failed)?;
        fs::create_dir(&unfinished).map_err(failed)?;
        for name in &image.layers {
            let applied =
                archive
                    .layer(name)
                    .and_then(|mut layer| match layer::apply(&mut layer, &unfinished) {
                        Ok(()) => layer.verify(),
                        Err(source) => Err(LoadError::Layer {
                            layer: name.clone(),
                            source,
                        }),
                    });
            if let Err(error) = applied {
                remove(&unfinished).map_err(failed)?;
                return Err(error);
            }
        }
        fs::rename(&unfinished, self.dir.join(&root)).map_err(failed)?;
        Ok(root)
    }

    fn write_index(&self, index: &Index) -> io::Result<()> {
        let unfinished = self.dir.join("index.json.unfinished");
        fs::write(
            &unfinished,
            serde_json::to_vec_pretty(index).map_err(io::Error::other)?,
        )?;
        fs::rename(unfinished, self.index_path())
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index.json")
    }
}

/// Where the echo image has the podnet executable.
pub(crate) const ECHO_PROGRAM: &str = "/usr/local/bin/podnet";

fn built_in(reference: ImageRef, entrypoint: &[&str]) -> Image {
    let entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
    let config = ImageConfig {
        entrypoint,
        ..ImageConfig::default()
    };
    Image {
        id: reference.to_string(),
        reference,
        root: None,
        config,
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

//! A certificate authority of the server's own: what a cluster on one machine needs to talk TLS.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Why the keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be written or read.
    #[error("cannot use {0}: {1}")]
    File(PathBuf, io::Error),
    /// The crypto library refused.
    #[error("cannot make a certificate ({0}): {1}")]
    Certificate(&'static str, rcgen::Error),
}

/// The CA in a directory: `ca.crt`, `ca.key`, `server.crt`, `server.key`, `admin.crt`, `admin.key`.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    move |error| PkiError::File(path.to_owned(), error)
}

/// Writes a file that only its owner can read, at once or not at all.
fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, path)
    })();
    written.map_err(file_error(path))
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(file_error(path))
}

impl Pki {
    /// Opens the directory, makes the CA and the admin's certificate if they are missing, and a server certificate
    /// for these names and addresses.
    pub fn create(dir: &Path, sans: &[String]) -> Result<Pki, PkiError> {
        fs::create_dir_all(dir).map_err(file_error(dir))?;
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !certificate.exists() || !key.exists() {
            let (pem, key_pem) = self_signed()?;
            write_private(&key, &key_pem)?;
            write_private(&certificate, &pem)?;
        }
        let failed = |error| PkiError::Certificate("reading the CA", error);
        let key = KeyPair::from_pem(&read(&key)?).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&read(&certificate)?, key).map_err(failed)?;
        let pki = Pki {
            dir: dir.to_owned(),
            issuer,
        };
        let (pem, key_pem) = pki.server(sans)?;
        write_private(&pki.server_key(), &key_pem)?;
        write_private(&pki.server_certificate(), &pem)?;
        if !pki.dir.join("admin.crt").exists() {
            let (pem, key_pem) = pki.client("kubernetes-admin", &["system:masters".to_owned()])?;
            write_private(&pki.dir.join("admin.key"), &key_pem)?;
            write_private(&pki.dir.join("admin.crt"), &pem)?;
        }
        Ok(pki)
    }

    /// The CA's certificate.
    pub fn ca_certificate(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// The server's certificate.
    pub fn server_certificate(&self) -> PathBuf {
        self.dir.join("server.crt")
    }

    /// The server's key.
    pub fn server_key(&self) -> PathBuf {
        self.dir.join("server.key")
    }

    fn server(&self, sans: &[String]) -> Result<(String, String), PkiError> {
        let failed = |error| PkiError::Certificate("the server's", error);
        let mut names = vec![
            "localhost".to_owned(),
            "kubernetes".to_owned(),
            "kubernetes.default".to_owned(),
            "kubernetes.default.svc".to_owned(),
            "kubernetes.default.svc.cluster.local".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        names.extend(
            sans.iter()
                .filter(|san| !names.contains(san))
                .cloned()
                .collect::<Vec<_>>(),
        );
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params).map_err(failed)
    }

    /// A client certificate: CN is the user, O the groups.
    fn client(&self, user: &str, groups: &[String]) -> Result<(String, String), PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // One O per type is all that the library keeps; Kubernetes' own kubeconfigs have one group too.
        if let Some(group) = groups.first() {
            params
                .distinguished_name
                .push(DnType::OrganizationName, group.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
            .map_err(|error| PkiError::Certificate("a client's", error))
    }

    fn sign(&self, mut params: CertificateParams) -> Result<(String, String), rcgen::Error> {
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A kubeconfig with everything embedded, for this user in these groups.
    pub fn kubeconfig(&self, server_url: &str, user: &str, groups: &[String]) -> Result<String, PkiError> {
        let (certificate, key) = match user {
            "kubernetes-admin" => (
                read(&self.dir.join("admin.crt"))?,
                read(&self.dir.join("admin.key"))?,
            ),
            user => self.client(user, groups)?,
        };
        let (ca, certificate, key) = (
            STANDARD.encode(read(&self.ca_certificate())?),
            STANDARD.encode(certificate),
            STANDARD.encode(key),
        );
        Ok(format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: podnet\n\
             clusters:\n- name: podnet\n  cluster:\n    server: {server_url}\n    certificate-authority-data: {ca}\n\
             users:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
             contexts:\n- name: podnet\n  context:\n    cluster: podnet\n    user: {user}\n"
        ))
    }

    /// Writes the administrator's kubeconfig, readable by its owner only.
    pub fn write_kubeconfig(&self, path: &Path, server_url: &str) -> Result<(), PkiError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(file_error(parent))?;
        }
        write_private(
            path,
            &self.kubeconfig(server_url, "kubernetes-admin", &["system:masters".to_owned()])?,
        )
    }
}

fn self_signed() -> Result<(String, String), PkiError> {
    let failed = |error| PkiError::Certificate("the CA's", error);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "podnet-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ca_is_kept_and_files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::create(dir.path(), &["10.0.0.1".to_owned()]).unwrap();
        let ca = read(&pki.ca_certificate()).unwrap();
        let again = Pki::create(dir.path(), &["node1".to_owned()]).unwrap();
        assert_eq!(read(&again.ca_certificate()).unwrap(), ca);
        let config = dir.path().join("sub/kubeconfig");
        again.write_kubeconfig(&config, "https://127.0.0.1:1").unwrap();
        assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&config).unwrap().contains("server: https://127.0.0.1:1"));
    }
}

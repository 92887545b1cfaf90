//! Who asks: by client certificate (CN is the user, O its groups) or by bearer token.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Unreadable.
    #[error("cannot read the token file {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// Not `token,user,uid[,"group1,group2"]`.
    #[error("token file {0}, line {1}: expected token,user,uid[,\"group1,group2\"]")]
    Line(PathBuf, usize),
}

/// Bearer tokens and whose they are.
#[derive(Clone, Debug, Default)]
pub struct Tokens(HashMap<String, User>);

impl Tokens {
    /// Reads Kubernetes' static token file (CSV).
    pub fn read(file: &Path) -> Result<Tokens, TokenError> {
        let text = std::fs::read_to_string(file).map_err(|error| TokenError::Read(file.to_owned(), error))?;
        let mut tokens = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (token, user) = parse_line(line).ok_or_else(|| TokenError::Line(file.to_owned(), at + 1))?;
            tokens.insert(token, user);
        }
        Ok(Tokens(tokens))
    }

    /// The user of a request's bearer token.
    pub fn user(&self, headers: &HeaderMap) -> Option<&User> {
        let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| self.0.get(token.trim()))?
    }
}

fn parse_line(line: &str) -> Option<(String, User)> {
    let mut parts = line.splitn(4, ',').map(str::trim);
    let (token, name, _uid) = (parts.next()?, parts.next()?, parts.next()?);
    if token.is_empty() || name.is_empty() {
        return None;
    }
    let groups = parts
        .next()
        .unwrap_or_default()
        .trim_matches('"')
        .split(',')
        .map(str::trim);
    let groups = groups
        .filter(|group| !group.is_empty())
        .map(str::to_owned)
        .collect();
    Some((
        token.to_owned(),
        User {
            name: name.to_owned(),
            groups,
        },
    ))
}

/// The user that a verified client certificate names.
pub(super) fn user_of_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    Some(User { name, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_lines() {
        let (token, user) = parse_line(r#"secret,alice,1,"system:masters,dev""#).unwrap();
        assert_eq!((token.as_str(), user.name.as_str()), ("secret", "alice"));
        assert_eq!(user.groups, ["system:masters", "dev"]);
        assert!(parse_line("only,two").is_none());
    }
}

//! Addresses that a pod asks for by name.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// The annotations that name a pod's addresses: podnet's own, and Calico's. The first that is there counts.
pub const STATIC_ANNOTATIONS: [&str; 2] = ["podnet.io/ips", "cni.projectcalico.org/ipAddrs"];

/// The addresses that annotations ask for; none if no annotation does. They are written as a JSON list, or with commas
/// in between. An error names the annotation.
pub fn static_addresses(annotations: &BTreeMap<String, String>) -> Result<Vec<IpAddr>, String> {
    let found = STATIC_ANNOTATIONS
        .iter()
        .find_map(|name| Some((name, annotations.get(*name)?)));
    let Some((name, text)) = found else {
        return Ok(Vec::new());
    };
    let list = texts(text).ok_or_else(|| {
        format!("the annotation {name} is {text:?}; write addresses such as \"10.90.0.7\" or [\"10.90.0.7\", \"fd00:90::7\"]")
    })?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in list {
        let address: IpAddr = text
            .parse()
            .map_err(|_| format!("the annotation {name} has {text:?}, which is no IP address"))?;
        if let Some(other) = addresses
            .iter()
            .find(|other| other.is_ipv4() == address.is_ipv4())
        {
            return Err(format!(
                "the annotation {name} has {other} and {address}; a pod has one address of each family"
            ));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

fn texts(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    let texts: Vec<String> = match text.strip_prefix('[') {
        Some(_) => serde_json::from_str(text).ok()?,
        None => text.split(',').map(|part| part.trim().to_owned()).collect(),
    };
    let sound = !texts.is_empty() && texts.iter().all(|text| !text.is_empty());
    sound.then_some(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let annotations = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Ok(static_addresses(&annotations)?
            .iter()
            .map(IpAddr::to_string)
            .collect())
    }

    #[test]
    fn static_addresses_are_read_as_the_ecosystem_writes_them() {
        assert_eq!(of(&[]).unwrap(), [""; 0]);
        assert_eq!(of(&[("podnet.io/ips", "10.0.0.7")]).unwrap(), ["10.0.0.7"]);
        assert_eq!(
            of(&[("podnet.io/ips", "10.0.0.7, fd00::7")]).unwrap(),
            ["10.0.0.7", "fd00::7"]
        );
        assert_eq!(
            of(&[("cni.projectcalico.org/ipAddrs", r#"["10.0.0.7"]"#)]).unwrap(),
            ["10.0.0.7"]
        );
        let both = [
            ("podnet.io/ips", "10.0.0.1"),
            ("cni.projectcalico.org/ipAddrs", "x"),
        ];
        assert_eq!(of(&both).unwrap(), ["10.0.0.1"], "podnet's own counts");
    }

    #[test]
    fn a_malformed_annotation_is_named() {
        for (text, why) in [
            ("", "write addresses such as"),
            ("[", "write addresses such as"),
            ("[1]", "write addresses such as"),
            ("10.0.0.7,,", "write addresses such as"),
            ("10.0.0.777", "has \"10.0.0.777\", which is no IP address"),
            ("10.0.0.7/24", "which is no IP address"),
            ("10.0.0.7,10.0.0.8", "a pod has one address of each family"),
        ] {
            let error = of(&[("podnet.io/ips", text)]).unwrap_err();
            assert!(
                error.contains("podnet.io/ips") && error.contains(why),
                "{text}: {error}"
            );
        }
    }
}

//! The string formats that Kubernetes checks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;

/// Whether a string has a format; formats that nobody checks are always had.
pub(super) fn has(format: &str, value: &str) -> bool {
    match format {
        "ipv4" => value.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => value.parse::<Ipv6Addr>().is_ok(),
        "cidr" => value.contains('/') && value.parse::<ipnet::IpNet>().is_ok(),
        "mac" => is_mac(value),
        "uuid" => is_uuid(value),
        "date" => value.parse::<jiff::civil::Date>().is_ok() && value.len() == 10,
        "date-time" | "datetime" => value.parse::<jiff::Timestamp>().is_ok(),
        "duration" => is_duration(value),
        "byte" => base64::engine::general_purpose::STANDARD.decode(value).is_ok(),
        "hostname" => is_hostname(value),
        "email" => value
            .split_once('@')
            .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "uri" => value.starts_with('/') || value.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)),
        "ip" => value.parse::<IpAddr>().is_ok(),
        _ => true,
    }
}

fn is_mac(value: &str) -> bool {
    let parts: Vec<&str> = value.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts
            .iter()
            .all(|p| p.len() == 2 && p.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn is_uuid(value: &str) -> bool {
    let digits: String = value.chars().filter(|&c| c != '-').collect();
    digits.len() == 32 && digits.bytes().all(|c| c.is_ascii_hexdigit())
}

fn is_hostname(value: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    value.len() <= 253 && value.split('.').all(label)
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'))
}

/// Go's durations (`1h30m`), and the spelled-out ones (`22 ns`).
fn is_duration(value: &str) -> bool {
    let mut rest = value.trim().trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let number = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        if number == 0 {
            return false;
        }
        rest = rest[number..].trim_start();
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let known = ["ns", "us", "µs", "ms", "s", "m", "h", "d", "w"];
        if !known.contains(&rest[..unit].trim()) {
            return false;
        }
        rest = &rest[unit..];
    }
    true
}

//! What is worth telling of paths that changed.

use std::collections::BTreeMap;

use super::{Checksums, PathKey, Reach, Report};

/// So many paths are named; more are counted.
const NAMED: usize = 5;

/// Something to tell the node's owner, as an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Something got worse.
    pub warning: bool,
    /// In one word, for programs.
    pub reason: &'static str,
    /// In words.
    pub note: String,
}

/// What changed from one set of reports to the next. However many paths changed, there are few notices. A path that is
/// new is only told of when it is not well, and one that went is not told of.
pub fn notices(before: &[Report], now: &[Report]) -> Vec<Notice> {
    let before: BTreeMap<&PathKey, &Report> = before.iter().map(|report| (&report.key, report)).collect();
    let mut told: BTreeMap<(bool, &'static str, &'static str), Vec<String>> = BTreeMap::new();
    for report in now {
        for (warning, reason, text, detail) in changes(before.get(&report.key).copied(), report) {
            let path = format!("{} ({}{detail})", report.key.peer, report.key.range);
            told.entry((warning, reason, text)).or_default().push(path);
        }
    }
    let notice = |((warning, reason, text), paths): ((bool, &'static str, &'static str), Vec<String>)| {
        let more = paths.len().saturating_sub(NAMED);
        let mut names = paths[..paths.len() - more].join(", ");
        if more > 0 {
            names.push_str(&format!(" and {more} more"));
        }
        Notice {
            warning,
            reason,
            note: format!("{text} {names}; see `podnet status`"),
        }
    };
    told.into_iter().map(notice).collect()
}

type Change = (bool, &'static str, &'static str, String);

fn changes(before: Option<&Report>, now: &Report) -> Vec<Change> {
    let mut changes = Vec::new();
    let arrives = |reach: Reach| matches!(reach, Reach::Reachable | Reach::NoAgent);
    let was = |reach: fn(Reach) -> bool| before.is_some_and(|before| reach(before.reach));
    let lost = |reach: Reach| reach == Reach::Unreachable;
    if lost(now.reach) && !was(lost) {
        changes.push((true, "PathLost", "no packets arrive at", String::new()));
    } else if arrives(now.reach) && was(lost) {
        changes.push((false, "PathRestored", "packets arrive again at", String::new()));
    }
    let mtu_before = before.and_then(|before| before.mtu.filter(|_| before.is_narrow()));
    match now.mtu.filter(|_| now.is_narrow()) {
        Some(mtu) if mtu_before != Some(mtu) => {
            let detail = format!(", {mtu} of {} bytes", now.link_mtu);
            changes.push((true, "PathMTUReduced", "large packets do not arrive at", detail));
        }
        None if mtu_before.is_some() && now.mtu.is_some() => {
            changes.push((
                false,
                "PathMTURestored",
                "large packets arrive again at",
                String::new(),
            ));
        }
        _ => {}
    }
    let checksums_before = before.map_or(Checksums::Unknown, |before| before.checksums);
    match (checksums_before, now.checksums) {
        (Checksums::Wrong, Checksums::Right) => {
            changes.push((
                false,
                "PathChecksumsRight",
                "checksums arrive right again at",
                String::new(),
            ));
        }
        (before, Checksums::Wrong) if before != Checksums::Wrong => {
            let text = "checksums that are left to the network device arrive wrong at";
            changes.push((true, "PathChecksumsWrong", text, String::new()));
        }
        _ => {}
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeName;

    fn report(peer: u8, reach: Reach, mtu: u32, checksums: Checksums) -> Report {
        Report {
            key: PathKey {
                peer: NodeName::new(format!("node{peer}")).unwrap(),
                range: format!("10.244.{peer}.0/24").parse().unwrap(),
            },
            to: [10, 244, peer, 0].into(),
            reach,
            latency: None,
            mtu: Some(mtu),
            link_mtu: 1450,
            checksums,
            corrupt: 0,
            tunnel: true,
        }
    }

    #[test]
    fn what_gets_worse_and_what_gets_well_is_told_once() {
        let well = report(1, Reach::Reachable, 1450, Checksums::Right);
        let told = |before: &Report, now: &Report| -> Vec<String> {
            let before = std::slice::from_ref(before);
            assert_eq!(notices(before, before), []);
            notices(before, std::slice::from_ref(now))
                .into_iter()
                .map(|notice| format!("{} {}: {}", notice.warning, notice.reason, notice.note))
                .collect()
        };
        for (ill, text, again) in [
            (
                report(1, Reach::Unreachable, 1450, Checksums::Right),
                "true PathLost: no packets arrive at node1 (10.244.1.0/24); see `podnet status`",
                "false PathRestored: packets arrive again at node1 (10.244.1.0/24); see `podnet status`",
            ),
            (
                report(1, Reach::Reachable, 1300, Checksums::Right),
                "true PathMTUReduced: large packets do not arrive at node1 (10.244.1.0/24, 1300 of 1450 bytes); see \
                 `podnet status`",
                "false PathMTURestored: large packets arrive again at node1 (10.244.1.0/24); see `podnet status`",
            ),
            (
                report(1, Reach::Reachable, 1450, Checksums::Wrong),
                "true PathChecksumsWrong: checksums that are left to the network device arrive wrong at node1 \
                 (10.244.1.0/24); see `podnet status`",
                "false PathChecksumsRight: checksums arrive right again at node1 (10.244.1.0/24); see `podnet status`",
            ),
        ] {
            assert_eq!(told(&well, &ill), [text]);
            assert_eq!(told(&ill, &well), [again]);
            assert_eq!(notices(&[], std::slice::from_ref(&ill)).len(), 1);
            assert_eq!(notices(std::slice::from_ref(&ill), &[]), []);
        }
        assert_eq!(notices(&[], &[well]), []);
    }

    #[test]
    fn five_hundred_paths_are_one_notice() {
        let reports: Vec<Report> = (0..250)
            .map(|peer| report(peer, Reach::Unreachable, 1450, Checksums::Right))
            .collect();
        let notices = notices(&[], &reports);
        assert_eq!(notices.len(), 1);
        assert!(notices[0].note.contains("and 245 more"), "{}", notices[0].note);
    }
}

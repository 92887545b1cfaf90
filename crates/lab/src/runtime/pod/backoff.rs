//! The wait before a container that keeps ending is started again.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The first wait.
const FIRST: i64 = 10;
/// The longest wait.
const LONGEST: i64 = 300;
/// A container that ran this long is forgiven.
const FORGIVEN_AFTER: i64 = 2 * LONGEST;

/// The state of one container's back-off. It exists once the container was restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait that applies to the next end, in seconds.
    pub seconds: i64,
    /// When the container was last let through.
    pub since: Timestamp,
}

impl Backoff {
    /// Until when a container that ended at `ended` has to wait; `None` when it need not.
    pub fn until(this: Option<Backoff>, ended: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let backoff = this.filter(|it| !it.forgiven(ended))?;
        let until = ended
            .checked_add(SignedDuration::from_secs(backoff.seconds))
            .ok()?;
        (now < until).then_some(until)
    }

    /// The state after a container that ended at `ended` is let through at `now`: 10 s at first, then doubled
    /// up to 5 minutes.
    pub fn next(this: Option<Backoff>, ended: Timestamp, now: Timestamp) -> Backoff {
        match this.filter(|it| !it.forgiven(ended)) {
            None => Backoff {
                seconds: FIRST,
                since: now,
            },
            Some(backoff) => Backoff {
                seconds: (backoff.seconds * 2).min(LONGEST),
                since: now,
            },
        }
    }

    fn forgiven(&self, ended: Timestamp) -> bool {
        ended.duration_since(self.since) > SignedDuration::from_secs(FORGIVEN_AFTER)
    }

    /// The wait as kubelet writes it: `10s`, `2m40s`.
    pub fn text(&self) -> String {
        match (self.seconds / 60, self.seconds % 60) {
            (0, seconds) => format!("{seconds}s"),
            (minutes, seconds) => format!("{minutes}m{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn the_wait_doubles_from_ten_seconds_to_five_minutes() {
        let mut state = None;
        let mut waits = Vec::new();
        let mut now = at(0);
        for _ in 0..9 {
            let ended = now;
            if let Some(until) = Backoff::until(state, ended, now) {
                waits.push(until.duration_since(ended).as_secs());
                now = until;
            } else {
                waits.push(0);
            }
            assert_eq!(Backoff::until(state, ended, now), None);
            state = Some(Backoff::next(state, ended, now));
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let state = Some(Backoff {
            seconds: 300,
            since: at(0),
        });
        assert_eq!(Backoff::until(state, at(599), at(600)), Some(at(899)));
        assert_eq!(Backoff::until(state, at(601), at(601)), None);
        assert_eq!(
            Backoff::next(state, at(601), at(602)),
            Backoff {
                seconds: 10,
                since: at(602)
            }
        );
    }

    #[test]
    fn waits_are_written_as_go_writes_them() {
        let text = |seconds| {
            Backoff {
                seconds,
                since: at(0),
            }
            .text()
        };
        assert_eq!(
            (text(10), text(160), text(300)),
            ("10s".into(), "2m40s".into(), "5m0s".into())
        );
    }
}

//! How often the kernel is looked over: each look reads all that is ours there, and others change nftables as often as they
//! like.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// At least so long after a look nobody's change makes another.
const LEAST: Duration = Duration::from_millis(300);
/// At most so long: others' changes are to be put back within a second.
const MOST: Duration = Duration::from_millis(800);

/// How long after a look the kernel is left alone, so that most of the time is for objects.
pub(crate) fn pause(took: Duration) -> Duration {
    took.saturating_mul(2).clamp(LEAST, MOST)
}

/// Returns when somebody else changed something that had to be looked at, and not before `calm`; never, when nobody tells.
pub(crate) async fn told(disturbed: &mut mpsc::Receiver<()>, calm: Instant) {
    // What is told meanwhile waits in the channel, whoever stops waiting here.
    if Instant::now() < calm {
        sleep_until(calm).await;
    }
    if disturbed.recv().await.is_none() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_followed_by_a_pause_of_twice_its_time_within_bounds() {
        let pauses = [0, 20, 150, 200, 400, 401, 5000]
            .map(Duration::from_millis)
            .map(pause);
        let wanted = [300, 300, 300, 400, 800, 800, 800].map(Duration::from_millis);
        assert_eq!(pauses, wanted);
        assert_eq!(pause(Duration::MAX), MOST);
    }

    #[tokio::test]
    async fn what_is_told_in_the_pause_is_heard_after_it_and_once() {
        let (tell, mut disturbed) = mpsc::channel(1);
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
        tell.try_send(()).unwrap();
        for calm in [later, now] {
            let object = tokio::task::yield_now();
            let heard = tokio::select! {
                biased;
                () = told(&mut disturbed, calm) => true,
                () = object => false,
            };
            assert_eq!(heard, calm == now);
            // What nobody heard is not told twice.
            assert_eq!(tell.try_send(()).is_ok(), heard);
        }
        disturbed.recv().await.unwrap();
        drop(tell);
        tokio::select! {
            biased;
            () = told(&mut disturbed, now) => panic!("nobody tells any more"),
            () = tokio::task::yield_now() => {}
        }
    }
}

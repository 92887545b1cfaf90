//! Limits on a pod's traffic, as token buckets at the two ends of its link: what the pod receives is held where the
//! node sends it, and what the pod sends is held where the pod sends it.
//!
//! Both shape, neither polices: what is too fast waits in the sender's own queue, which makes TCP slow down instead of
//! losing packets. Other plugins hold the pod's sending on the node, with a second device (`ifb`) that every packet
//! takes the way round by; that withstands a pod with CAP_NET_ADMIN, which could take this bucket off. Whoever gives
//! such pods to strangers chains that plugin. CHECK sees a bucket that is gone.

use podnet_cni::Rate;
use podnet_linux::netlink::TokenBucket;

/// How long packets may wait for tokens, in milliseconds; what would wait longer is dropped.
const LATENCY_MS: u64 = 25;
/// How much time's worth of traffic may pass at once when no burst is chosen, in milliseconds.
const BURST_MS: u64 = 50;
/// The smallest bucket that lets a burst of full packets through.
const SMALLEST_BURST: u64 = 32 * 1024;
/// From here on a burst is a runtime's stand-in for none (containerd's and CRI-O's is the largest number of 31 or 32
/// bits): a bucket of 256 MB would let a pod at 10 Mbit/s have whatever it wants for hours.
const NO_BURST: u64 = i32::MAX as u64;

/// The bucket for a limit.
pub(super) fn bucket(link: u32, limit: &Rate) -> TokenBucket {
    let rate = (limit.rate.get() / 8).max(1);
    let chosen = limit.burst.map(|bits| bits.get()).filter(|bits| *bits < NO_BURST);
    let burst = chosen.map_or(rate.saturating_mul(BURST_MS) / 1000, |bits| bits / 8);
    let burst = burst.max(SMALLEST_BURST);
    let waiting = rate.saturating_mul(LATENCY_MS) / 1000;
    TokenBucket {
        link,
        rate,
        burst: clamped(burst),
        limit: clamped(burst.saturating_add(waiting)),
    }
}

fn clamped(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Whether the kernel has a bucket as it should be. It rounds the burst.
pub(super) fn agrees(wanted: &TokenBucket, found: &TokenBucket) -> bool {
    let (burst, there) = (u64::from(wanted.burst), u64::from(found.burst));
    // The kernel keeps a bucket as the time its tokens take, in 32 bits of 64 ns, and so cuts bursts of minutes.
    let longest = u128::from(u32::MAX) * 64 * u128::from(wanted.rate) / 1_000_000_000;
    let burst = u64::try_from(longest).unwrap_or(u64::MAX).min(burst);
    wanted.rate == found.rate && burst.abs_diff(there) <= burst / 100 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: u64, burst: Option<u64>) -> Rate {
        serde_json::from_value(serde_json::json!({ "rate": rate, "burst": burst })).unwrap()
    }

    #[test]
    fn a_bucket_has_the_rate_and_a_burst_that_lets_packets_through() {
        let ten = bucket(1, &limit(10_000_000, Some(8_000_000)));
        assert_eq!(
            (ten.rate, ten.burst, ten.limit),
            (1_250_000, 1_000_000, 1_031_250)
        );
        for stand_in in [None, Some(i32::MAX as u64), Some(u64::from(u32::MAX))] {
            assert_eq!(bucket(1, &limit(10_000_000, stand_in)).burst, 62_500);
        }
        let slow = bucket(1, &limit(1_000, Some(8)));
        assert_eq!((slow.rate, slow.burst), (125, 32 * 1024));
        let fast = bucket(1, &limit(1_000_000_000_000_000, None));
        assert_eq!(
            (fast.rate, fast.burst, fast.limit),
            (125_000_000_000_000, u32::MAX, u32::MAX)
        );
    }
}

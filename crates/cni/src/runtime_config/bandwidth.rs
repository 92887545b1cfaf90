//! Limits on a pod's traffic, as the capability and as annotations.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use podnet_core::quantity::Quantity;
use serde::{Deserialize, Serialize};

/// Kubernetes' limits of what an annotation may say: 1k to 1P (pkg/util/bandwidth).
const ANNOTATION_BOUNDS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Limits on a pod's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// What the pod receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Rate>,
    /// What the pod sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Rate>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Bits per second.
    pub rate: NonZeroU64,
    /// Bits that may go at once; left to whoever enforces it when none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU64>,
}

impl Bandwidth {
    /// Nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Bandwidth::default()
    }

    /// These limits, and the other's where there are none.
    pub(super) fn or(self, other: Bandwidth) -> Bandwidth {
        Bandwidth {
            ingress: self.ingress.or(other.ingress),
            egress: self.egress.or(other.egress),
        }
    }

    /// The limits that annotations set: `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`.
    /// An error names the annotation and what is wrong with it.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Bandwidth, (String, String)> {
        let limit = |direction: &str| -> Result<Option<Rate>, (String, String)> {
            let key = format!("kubernetes.io/{direction}-bandwidth");
            let Some(text) = annotations.get(&key) else {
                return Ok(None);
            };
            let quantity: Quantity = text.parse().map_err(|_| {
                let why = format!("{text:?} is no quantity such as 10M, in bits per second");
                (key.clone(), why)
            })?;
            let rate = u64::try_from(quantity.whole()).unwrap_or_default();
            let in_bounds = ANNOTATION_BOUNDS.contains(&rate).then_some(rate);
            match in_bounds.and_then(NonZeroU64::new) {
                Some(rate) => Ok(Some(Rate { rate, burst: None })),
                None => Err((key, format!("{text:?} is not between 1k and 1P bits per second"))),
            }
        };
        Ok(Bandwidth {
            ingress: limit("ingress")?,
            egress: limit("egress")?,
        })
    }
}

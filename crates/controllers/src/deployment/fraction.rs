//! maxSurge and maxUnavailable.

use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Whether the Deployment replaces pods little by little.
pub(super) fn rolls(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

/// How many pods may be too many, and how many may be missing.
pub(super) fn fences(spec: &DeploymentSpec) -> (i32, i32) {
    let replicas = spec.replicas.unwrap_or(1);
    if !rolls(spec) || replicas == 0 {
        return (0, 0);
    }
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
    let missing = rolling
        .and_then(|r| r.max_unavailable.as_ref())
        .unwrap_or(&quarter);
    // A surge is rounded up, a lack down; if both came to nothing, no step could be made.
    match (resolve(surge, replicas, true), resolve(missing, replicas, false)) {
        (0, 0) => (0, 1),
        (surge, missing) => (surge, missing.min(replicas)),
    }
}

fn resolve(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|p| p.parse::<i64>().ok())
                .unwrap_or(0)
                .max(0);
            let hundredfold = percent * i64::from(total);
            let rounded = if up {
                hundredfold.div_euclid(100) + i64::from(hundredfold % 100 != 0)
            } else {
                hundredfold / 100
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment};

    use super::*;

    #[test]
    fn rounds_as_kubernetes_does() {
        let percent = |p: &str| IntOrString::String(p.into());
        let cases = [
            (3, percent("25%"), percent("25%"), (1, 0)),
            (10, percent("25%"), percent("25%"), (3, 2)),
            (10, percent("0%"), percent("5%"), (0, 1)),
            (10, IntOrString::Int(0), IntOrString::Int(0), (0, 1)),
            (2, IntOrString::Int(3), IntOrString::Int(5), (3, 2)),
            (0, percent("25%"), percent("25%"), (0, 0)),
            (4, percent("100%"), percent("100%"), (4, 4)),
        ];
        for (replicas, max_surge, max_unavailable, expected) in cases {
            let rolling = RollingUpdateDeployment {
                max_surge: Some(max_surge.clone()),
                max_unavailable: Some(max_unavailable.clone()),
            };
            let strategy = DeploymentStrategy {
                type_: None,
                rolling_update: Some(rolling),
            };
            let spec = DeploymentSpec {
                replicas: Some(replicas),
                strategy: Some(strategy),
                ..DeploymentSpec::default()
            };
            assert_eq!(
                fences(&spec),
                expected,
                "{replicas} {max_surge:?} {max_unavailable:?}"
            );
        }
    }
}

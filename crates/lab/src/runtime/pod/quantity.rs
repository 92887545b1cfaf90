//! Kubernetes quantities: `100m`, `1.5Gi`, `2e3`.

/// The quantity in billionths, or `None` when it is not one.
pub fn nano(text: &str) -> Option<i128> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    scale(decimal_nano(number)?, suffix)
}

/// The quantity rounded up to a multiple of `divisor`, counted in divisors, as `resourceFieldRef` gives it.
pub fn divided(text: &str, divisor: Option<&str>) -> Option<i128> {
    let divisor = match divisor {
        None | Some("" | "0") => 1_000_000_000,
        Some(divisor) => nano(divisor)?,
    };
    let value = nano(text)?;
    (divisor > 0).then(|| value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0))
}

fn decimal_nano(number: &str) -> Option<i128> {
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    value = value.checked_mul(1_000_000_000)?;
    let padded: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    value = value.checked_add(padded.parse().ok()?)?;
    Some(if negative { -value } else { value })
}

fn scale(nano: i128, suffix: &str) -> Option<i128> {
    let binary = |power: u32| nano.checked_mul(1_i128 << (10 * power));
    let decimal = |power: u32| nano.checked_mul(10_i128.checked_pow(power)?);
    match suffix {
        "" => Some(nano),
        "n" => Some(nano / 1_000_000_000),
        "u" => Some(nano / 1_000_000),
        "m" => Some(nano / 1_000),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let factor = 10_i128.checked_pow(power.unsigned_abs())?;
            if power < 0 {
                Some(nano / factor)
            } else {
                nano.checked_mul(factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        assert_eq!(nano("1"), Some(1_000_000_000));
        assert_eq!(nano("100m"), Some(100_000_000));
        assert_eq!(nano("1.5Ki"), Some(1_536_000_000_000));
        assert_eq!(nano("2e3"), nano("2k"));
        assert_eq!(nano("-1"), Some(-1_000_000_000));
        assert_eq!(nano("x"), None);
        assert_eq!(nano(""), None);
    }

    #[test]
    fn divisors_round_up() {
        assert_eq!(divided("100m", None), Some(1));
        assert_eq!(divided("100m", Some("1m")), Some(100));
        assert_eq!(divided("1Gi", Some("1Mi")), Some(1024));
        assert_eq!(divided("1500Mi", Some("1Gi")), Some(2));
        assert_eq!(divided("1", Some("0")), Some(1));
    }
}

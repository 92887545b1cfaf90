//! Kubernetes quantities: `10M`, `1.5Gi`, `2e3`.

/// A quantity that is not negative, rounded up to a whole number as `resource.Quantity.Value` does. None for anything
/// else, and for what is too large.
pub(super) fn whole(text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (before, after) = number.split_once('.').unwrap_or((number, ""));
    if after.contains('.') || (before.is_empty() && after.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{before}{after}").parse().ok()?;
    let (factor, exponent) = scale(suffix)?;
    let exponent = exponent.checked_sub(i32::try_from(after.len()).ok()?)?;
    let mantissa = digits.checked_mul(factor)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = match (exponent >= 0, power) {
        _ if mantissa == 0 => 0,
        (true, power) => mantissa.checked_mul(power?)?,
        (false, Some(power)) => mantissa.div_ceil(power),
        // Smaller than anything that a power of ten fits 128 bits for.
        (false, None) => 1,
    };
    value.try_into().ok()
}

/// What a suffix multiplies by: a factor and a power of ten.
fn scale(suffix: &str) -> Option<(u128, i32)> {
    let decimal = |exponent| Some((1, exponent));
    let binary = |power: u32| Some((1_u128 << (10 * power), 0));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
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
        exponent => decimal(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn quantities_as_kubernetes_writes_them() {
        for (text, value) in [
            ("10M", 10_000_000),
            ("1.5Gi", 1_610_612_736),
            ("2e3", 2_000),
            ("2E3", 2_000),
            ("1500m", 2),
            ("1n", 1),
            ("0", 0),
            ("+5k", 5_000),
            (".5k", 500),
            ("5.", 5),
            ("1e-30", 1),
            ("1e-300", 1),
            ("0e300", 0),
        ] {
            assert_eq!(whole(text), Some(value), "{text}");
        }
        for wrong in [
            "",
            ".",
            "-1",
            "1.2.3",
            "10Mb",
            "M",
            "1 M",
            "e3",
            "1e",
            "20E",
            "1e300",
            "1e2147483648",
            "++1",
            "٣",
        ] {
            assert_eq!(whole(wrong), None, "{wrong}");
        }
    }
}

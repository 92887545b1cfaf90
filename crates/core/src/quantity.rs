//! Kubernetes quantities (`500m`, `1.5Gi`, `2e3`): read exactly, written in their canonical form.

use std::fmt;
use std::str::FromStr;

/// A quantity in billionths: Kubernetes keeps no finer value.
///
/// Two that are equal in value may be written differently: see [`Quantity::nanos`] to compare values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    nanos: i128,
    form: Form,
}

/// The family of suffixes a quantity was written with, and is written with again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Binary,
    Decimal,
    Exponent,
}

/// A text that is no quantity; displays as Kubernetes says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix, or one of more than 128 bits.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Decimal suffixes and their powers of ten, from that of [`Quantity::nanos`] on, three by three.
const DECIMAL: [(&str, i64); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    /// `1`.
    pub const ONE: Quantity = Quantity {
        nanos: NANO,
        form: Form::Decimal,
    };
    /// `1m`.
    pub const MILLI: Quantity = Quantity {
        nanos: NANO / 1000,
        form: Form::Decimal,
    };

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// In billionths.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// As a whole number, rounded away from zero as `resource.Quantity.Value` does.
    pub fn whole(self) -> i128 {
        away_from_zero(self.nanos, NANO)
    }

    /// How many times a divisor is in it, rounded away from zero, as `resourceFieldRef` has it; `None` for a divisor that
    /// is not above zero.
    pub fn divided(self, divisor: Quantity) -> Option<i128> {
        (divisor.nanos > 0).then(|| away_from_zero(self.nanos, divisor.nanos))
    }
}

fn away_from_zero(value: i128, divisor: i128) -> i128 {
    value / divisor + (value % divisor).signum()
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Format);
        }
        let (scale, form) = parse_suffix(suffix)?;
        let nanos = scaled(whole, fraction, &scale).ok_or(QuantityError::Format)?;
        Ok(Quantity {
            nanos: if text.starts_with('-') { -nanos } else { nanos },
            form,
        })
    }
}

/// What a suffix multiplies by.
struct Scale {
    factor: u128,
    /// Of ten.
    power: i64,
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Form), QuantityError> {
    let ten = |power| Scale { factor: 1, power };
    if let Some(i) = BINARY.iter().position(|&s| s == suffix) {
        let factor = 1 << (10 * (i + 1));
        return Ok((Scale { factor, power: 0 }, Form::Binary));
    }
    if let Some(&(_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((ten(power), Form::Decimal));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E'])
        && let Ok(power) = exponent.parse::<i32>()
    {
        return Ok((ten(power.into()), Form::Exponent));
    }
    let allowed = |c: char| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit();
    Err(if suffix.chars().all(allowed) {
        QuantityError::Suffix
    } else {
        QuantityError::Format
    })
}

/// The value in billionths, rounded up; `None` when it does not fit.
fn scaled(whole: &str, fraction: &str, scale: &Scale) -> Option<i128> {
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let mantissa = significant.parse::<u128>().ok()?.checked_mul(scale.factor)?;
    let zeros = digits.len() - significant.len();
    let power = scale.power + 9 + i64::try_from(zeros).ok()? - i64::try_from(fraction.len()).ok()?;
    let ten = u32::try_from(power.unsigned_abs())
        .ok()
        .and_then(|power| 10_u128.checked_pow(power));
    let nanos = match (power >= 0, ten) {
        (true, ten) => mantissa.checked_mul(ten?)?,
        (false, Some(ten)) => mantissa.div_ceil(ten),
        // Less than a billionth, whatever the mantissa.
        (false, None) => 1,
    };
    nanos.try_into().ok()
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.abs();
        // A binary form below 1024 or with a fraction falls back to the decimal one, as in Kubernetes.
        if self.form == Form::Binary && nanos % NANO == 0 && nanos / NANO >= 1024 {
            let mut value = nanos / NANO;
            let mut suffix = "";
            for next in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = next;
            }
            return write!(f, "{sign}{value}{suffix}");
        }
        let mut value = nanos;
        let mut step = 0;
        while value % 1000 == 0 && (self.form == Form::Exponent || step + 1 < DECIMAL.len()) {
            value /= 1000;
            step += 1;
        }
        let power = 3 * i32::try_from(step).unwrap_or(i32::MAX) - 9;
        match (self.form, DECIMAL.get(step)) {
            (Form::Exponent, _) if power != 0 => write!(f, "{sign}{value}e{power}"),
            (_, Some((suffix, _))) => write!(f, "{sign}{value}{suffix}"),
            (_, None) => write!(f, "{sign}{value}e{power}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn quantities_get_their_canonical_form() {
        for (text, want) in [
            ("0", "0"),
            ("0e300", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("100Ki", "100Ki"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("1E21", "1e21"),
            ("1e-30", "1e-9"),
            ("20E", "20E"),
            ("1000", "1k"),
            ("110", "110"),
            ("-1", "-1"),
            ("+5k", "5k"),
            ("0.1m", "100u"),
            (".5", "500m"),
            ("5.", "5"),
            ("1Ei", "1Ei"),
            ("8132376Ki", "8132376Ki"),
        ] {
            assert_eq!(read(text).to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", ".", "+", "lots", "1.2.3", "1Kb", "10Mb", "M", "1 M", " 1", "e3", "++1", "٣", "1e300", "1e38",
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError::Format), "{text}");
        }
        for text in ["1KM", "1e", "1e2147483648", "1.5e1.5", "1i"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        assert_eq!("1KM".parse::<Quantity>(), Err(QuantityError::Suffix));
    }

    #[test]
    fn what_is_finer_than_a_billionth_or_a_whole_is_rounded_away_from_zero() {
        for (text, nanos, whole) in [
            ("1n", 1, 1),
            ("-1n", -1, -1),
            ("0.1n", 1, 1),
            ("-0.1n", -1, -1),
            ("1e-300", 1, 1),
            ("1500m", 1_500_000_000, 2),
            ("-1500m", -1_500_000_000, -2),
            ("1.0000000000000000000001k", 1_000_000_000_001, 1001),
            ("0.5Ki", 512_000_000_000, 512),
            ("1000000000000000000000000000000000000000e-39", 1_000_000_000, 1),
            ("10M", 10_000_000_000_000_000, 10_000_000),
        ] {
            assert_eq!((read(text).nanos(), read(text).whole()), (nanos, whole), "{text}");
        }
    }

    #[test]
    fn divisors_round_up() {
        for (text, divisor, count) in [
            ("100m", "1", Some(1)),
            ("100m", "1m", Some(100)),
            ("1Gi", "1Mi", Some(1024)),
            ("1500Mi", "1Gi", Some(2)),
            ("1n", "1m", Some(1)),
            ("1", "0", None),
            ("1", "-1", None),
        ] {
            assert_eq!(read(text).divided(read(divisor)), count, "{text} by {divisor}");
        }
        assert_eq!(read("1.5").divided(Quantity::MILLI), Some(1500));
        assert_eq!(read("1.5").divided(Quantity::ONE), Some(2));
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back_as_the_same_value(
            text in "[+-]?[0-9]{0,12}(\\.[0-9]{0,12})?(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,2})",
        ) {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let again: Quantity = quantity.to_string().parse().unwrap();
                prop_assert_eq!(again.nanos(), quantity.nanos());
            }
        }
    }
}

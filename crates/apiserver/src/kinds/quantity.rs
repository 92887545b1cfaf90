//! Resource quantities (`500m`, `1Gi`): parsed exactly, written in Kubernetes' canonical form.

use std::fmt;
use std::str::FromStr;

/// A quantity in billionths: Kubernetes keeps no finer value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quantity {
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
pub(super) enum QuantityError {
    /// Not a number with a suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that is none.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

const NANO: i128 = 1_000_000_000;
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Decimal suffixes and their powers of ten.
const DECIMAL: [(&str, i32); 10] = [
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
    /// Below zero.
    pub(super) fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// In billionths, for comparison.
    pub(super) fn nanos(self) -> i128 {
        self.nanos
    }
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
        let nanos = scaled(whole, fraction, scale).ok_or(QuantityError::Format)?;
        Ok(Quantity {
            nanos: if text.starts_with('-') { -nanos } else { nanos },
            form,
        })
    }
}

/// What a suffix multiplies by: a power of 1024 or of ten.
enum Scale {
    Binary(u32),
    Ten(i32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Form), QuantityError> {
    if let Some(i) = BINARY.iter().position(|&s| s == suffix) {
        return Ok((Scale::Binary(i as u32 + 1), Form::Binary));
    }
    if let Some(&(_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Scale::Ten(power), Form::Decimal));
    }
    if let Some(exponent) = suffix.strip_prefix(['e', 'E'])
        && let Ok(power) = exponent.parse::<i32>()
        && (-18..=18).contains(&power)
    {
        return Ok((Scale::Ten(power), Form::Exponent));
    }
    let allowed = |c: char| "eEinumkKMGTP+-".contains(c) || c.is_ascii_digit();
    Err(if suffix.chars().all(allowed) {
        QuantityError::Suffix
    } else {
        QuantityError::Format
    })
}

/// The value in billionths, rounded up; `None` when it does not fit.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> Option<i128> {
    let digits: String = format!("{whole}{fraction}");
    let mantissa: i128 = digits
        .trim_start_matches('0')
        .parse()
        .or_else(|_| "0".parse())
        .ok()?;
    if digits.trim_start_matches('0').len() > 30 {
        return None;
    }
    let (mantissa, ten) = match scale {
        Scale::Binary(power) => (mantissa.checked_mul(1i128.checked_shl(10 * power)?)?, 0),
        Scale::Ten(power) => (mantissa, power),
    };
    let power = ten + 9 - i32::try_from(fraction.len()).ok()?;
    if power >= 0 {
        mantissa.checked_mul(10i128.checked_pow(power as u32)?)
    } else {
        let divisor = 10i128.checked_pow(power.unsigned_abs())?;
        Some((mantissa + divisor - 1) / divisor)
    }
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
        while value % 1000 == 0 && step + 1 < DECIMAL.len() {
            value /= 1000;
            step += 1;
        }
        let (suffix, power) = DECIMAL[step];
        match self.form {
            Form::Exponent if power != 0 => write!(f, "{sign}{value}e{power}"),
            _ => write!(f, "{sign}{value}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_get_their_canonical_form() {
        let cases = [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("100Ki", "100Ki"),
            ("1000k", "1M"),
            ("1e3", "1e3"),
            ("1000", "1k"),
            ("110", "110"),
            ("-1", "-1"),
            ("0.1m", "100u"),
            (".5", "500m"),
            ("5.", "5"),
            ("1Ei", "1Ei"),
            ("8132376Ki", "8132376Ki"),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Quantity>().unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        assert_eq!("lots".parse::<Quantity>(), Err(QuantityError::Format));
        assert_eq!("".parse::<Quantity>(), Err(QuantityError::Format));
        assert_eq!("1.2.3".parse::<Quantity>(), Err(QuantityError::Format));
        assert_eq!("1Kb".parse::<Quantity>(), Err(QuantityError::Format));
        assert_eq!("1KM".parse::<Quantity>(), Err(QuantityError::Suffix));
    }
}

//! Sizes and rates as people write and read them.
//!
//! **What.** `50MB` is 50,000,000 bytes and `50MiB` is 52,428,800: both are written in the field, so both are taken at
//! their word. What is printed is always binary (`1.5 GiB`), because disks of machines are sized so.
//! **Why not `20` alone.** Whoever writes it of a disk means 20 GiB and would get 20 bytes.
//! **Invariants.** A fraction of a larger unit is cut to whole bytes (`1.1GiB`); a fraction of a byte is refused. Only 0 needs
//! no unit.

/// Factors of the units that may be written.
const UNITS: &[(&str, u64)] = &[
    ("b", 1),
    ("k", 1 << 10),
    ("kb", 1000),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mb", 1_000_000),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gb", 1_000_000_000),
    ("gib", 1 << 30),
    ("t", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("tib", 1 << 40),
];

/// Bytes from a text such as `512B`, `50MB`, `1.5GiB` or `50MB/s`.
///
/// # Errors
/// A sentence for the person who wrote it.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let body = lower.strip_suffix("/s").unwrap_or(&lower);
    let digits_end = body.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(body.len());
    let (number, unit) = body.split_at(digits_end);
    let unit = unit.trim();
    let no_size = || format!("{text:?} is not a size: write for example 50MB or 1.5GiB");
    if unit.is_empty() {
        return match scaled(number, 1).ok_or_else(no_size)? {
            0 => Ok(0),
            bytes => {
                Err(format!("{text:?} has no unit: write {bytes}GiB, {bytes}MB or, for bytes, {bytes}B"))
            }
        };
    }
    let known = UNITS.iter().find(|(name, _)| *name == unit);
    let known =
        known.ok_or_else(|| format!("unknown unit {unit:?}: write B, kB, MB, GB, TB or KiB, MiB, GiB, TiB"));
    scaled(number, known?.1).ok_or_else(no_size)
}

/// `number * factor`, cut to whole bytes, if it is below 2^64.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut total = whole.checked_mul(u128::from(factor))?;
    if !fraction.is_empty() {
        let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = fraction.parse::<u128>().ok()? * u128::from(factor);
        if part % divisor != 0 && factor == 1 {
            return None;
        }
        total = total.checked_add(part / divisor)?;
    }
    u64::try_from(total).ok()
}

/// `1.5 GiB`, `512 B`: three digits at most before the unit, one after the point below 100.
#[must_use]
pub(crate) fn human(bytes: u64) -> String {
    const NAMES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Tenths of the unit, rounded to the nearest; a unit that would round up to 1024 gives way to the next one.
    for (step, name) in NAMES.iter().enumerate() {
        let unit = 1_u128 << (10 * (step + 1));
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        if tenths < 10_240 || step + 1 == NAMES.len() {
            return if tenths < 1000 {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            } else {
                format!("{} {name}", (tenths + 5) / 10)
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_taken_at_their_word() {
        let cases = [
            ("0", 0),
            ("512B", 512),
            ("50MB", 50_000_000),
            ("50 MiB", 52_428_800),
            ("50MB/s", 50_000_000),
            ("1.5GiB", 1_610_612_736),
            (".5k", 512),
            ("16t", 17_592_186_044_416),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "MB", "-1", "1.5", "1,5GB", "50 potatoes", "99999999999TB", "1..2k", "0x10"] {
            assert!(parse_bytes(text).is_err(), "{text} was taken");
        }
        assert!(parse_bytes("5 XB").unwrap_err().contains("unknown unit"));
        for bare in ["20", "20/s", "1048576"] {
            assert!(parse_bytes(bare).unwrap_err().contains("has no unit: write"), "{bare} was taken");
        }
    }

    #[test]
    fn printed_sizes_have_a_unit_that_fits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (268_435_456, "256 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}

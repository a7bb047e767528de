//! Reads and writes sizes in bytes with PostgreSQL's units.

/// The units from the smallest to the largest, each 1024 times the one before.
const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

/// A text that is not a size. It reads as a sentence, for the DETAIL of a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{value}\" is not a size: {reason}. A size is a number with one of the units {}, each 1024 \
     times the one before, or without a unit for bytes.",
    UNITS.join(", ")
)]
pub struct SizeError {
    /// The text.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads a size: `100MB`, `1.5 GB`, `64B`, or bytes without a unit.
///
/// Units may be written in any case and as `KiB`, `MiB` and so on, which mean the same. The answer
/// is exact; what a fraction leaves of a byte is rounded to the nearest.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_ascii();
    let wrong = |reason: String| SizeError { value: text.to_string(), reason };
    if text.is_empty() {
        return Err(wrong("it is empty".to_string()));
    }
    if text.starts_with('-') {
        return Err(wrong("it is negative".to_string()));
    }
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => split_digits(rest),
        None => ("0", rest),
    };
    if whole.is_empty() || fraction.is_empty() {
        return Err(wrong("it does not begin with a number such as 10 or 1.5".to_string()));
    }
    let unit = rest.trim_ascii();
    let power = power_of(unit).ok_or_else(|| wrong(format!("\"{unit}\" is not a unit")))?;

    let bits = 10 * power;
    let bytes = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(1 << bits));
    bytes
        .and_then(|bytes| bytes.checked_add(scaled(fraction, bits)))
        .ok_or_else(|| wrong(format!("it is larger than {} bytes", u64::MAX)))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The power of 1024 that a unit stands for.
fn power_of(unit: &str) -> Option<u32> {
    let unit = unit.to_ascii_lowercase();
    if matches!(unit.as_str(), "" | "byte" | "bytes") {
        return Some(0);
    }
    let same = |known: &str| {
        let known = known.to_ascii_lowercase();
        unit == known || known.len() == 2 && unit == known.replace('b', "ib")
    };
    UNITS.iter().position(|known| same(known)).map(|power| power as u32)
}

/// The number 0.`fraction` times two to the `bits`, rounded to the nearest.
///
/// Doubles the digits on paper: a float would have lost some of them.
fn scaled(fraction: &str, bits: u32) -> u64 {
    let mut digits: Vec<u8> = fraction.bytes().map(|digit| digit - b'0').collect();
    let mut doubled = 0;
    // Once more than asked for: the last bit says which way to round.
    for _ in 0..=bits {
        let mut carry = 0;
        for digit in digits.iter_mut().rev() {
            let twice = *digit * 2 + carry;
            (*digit, carry) = (twice % 10, twice / 10);
        }
        doubled = doubled << 1 | u64::from(carry);
    }
    doubled.div_ceil(2)
}

/// Writes a size for people: `512 bytes`, `16 MB`, `1.5 GB`.
///
/// In the largest unit of which there is one. A whole number of units is exact and so is a half;
/// everything else is rounded to one decimal, even if that is a zero: `16.0 MB` is about 16 MB.
pub fn format_size(bytes: u64) -> String {
    let largest = UNITS.len() as u32 - 1;
    let power = (bytes.checked_ilog2().unwrap_or(0) / 10).min(largest);
    if power == 0 {
        return if bytes == 1 { "1 byte".to_string() } else { format!("{bytes} bytes") };
    }
    let unit = 1u128 << (10 * power);
    let bytes = u128::from(bytes);
    if bytes % unit == 0 {
        return format!("{} {}", bytes / unit, UNITS[power as usize]);
    }
    let tenths = (bytes * 10 + unit / 2) / unit;
    // 1023.95 kB and more are nearer to 1 MB than to anything that is written in kB.
    let (tenths, name) = match UNITS.get(power as usize + 1) {
        Some(next) if tenths >= 10_240 => (10, next),
        _ => (tenths, &UNITS[power as usize]),
    };
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KB: u64 = 1 << 10;
    const MB: u64 = 1 << 20;
    const GB: u64 = 1 << 30;
    const TB: u64 = 1 << 40;
    const PB: u64 = 1 << 50;

    #[test]
    fn reads_sizes_as_postgres_means_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", MB),
            ("100MB", 100 * MB),
            ("1.5GB", 1_610_612_736),
            ("512KB", 512 * KB),
            ("512kb", 512 * KB),
            ("1kB", KB),
            ("64B", 64),
            ("64 bytes", 64),
            ("1 byte", 1),
            ("2TB", 2 * TB),
            ("3pb", 3 * PB),
            ("10 MB", 10 * MB),
            (" \t10MB\n", 10 * MB),
            ("1MiB", MB),
            ("1.25gib", 5 * GB / 4),
            ("7KIB", 7 * KB),
            ("007MB", 7 * MB),
            ("0.5kB", 512),
            ("18446744073709551615", u64::MAX),
            ("16383.9999999999999991118215802998747676610946655273437500PB", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn rounds_what_is_no_whole_byte_to_the_nearest() {
        for (text, bytes) in [
            ("1.4", 1),
            ("1.5", 2),
            ("0.49999999999999999999999999B", 0),
            ("0.1kB", 102),                     // 102.4
            ("0.3kB", 307),                     // 307.2
            ("0.0004kB", 0),                    // 0.4096
            ("0.00048828125kB", 1),             // exactly one half
            ("0.00048828124999999999999kB", 0), // just below it
            ("0.1PB", 112_589_990_684_262),     // 112589990684262.4
            // 2^53 + 1 is the first number that a float of 64 bits does not have.
            ("9007199254740993.0B", 9_007_199_254_740_993),
            ("8.0000000000000008881784197001252323389053344726562500PB", 8 * PB + 1),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn refuses_the_rest_with_a_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            ("  ", "it is empty"),
            ("-1MB", "it is negative"),
            ("+1MB", "it does not begin with a number such as 10 or 1.5"),
            ("MB", "it does not begin with a number such as 10 or 1.5"),
            (".5GB", "it does not begin with a number such as 10 or 1.5"),
            ("5.GB", "it does not begin with a number such as 10 or 1.5"),
            ("1e3", "\"e3\" is not a unit"),
            ("0x10", "\"x10\" is not a unit"),
            ("1,5GB", "\",5GB\" is not a unit"),
            ("1.5.5GB", "\".5GB\" is not a unit"),
            ("1 000MB", "\"000MB\" is not a unit"),
            ("100M", "\"M\" is not a unit"),
            ("1iB", "\"iB\" is not a unit"),
            ("1 M B", "\"M B\" is not a unit"),
            ("1EB", "\"EB\" is not a unit"),
            ("1\u{b5}B", "\"\u{b5}B\" is not a unit"),
            ("NaN", "it does not begin with a number such as 10 or 1.5"),
            ("18446744073709551616", "it is larger than 18446744073709551615 bytes"),
            ("18446744073709551615.5", "it is larger than 18446744073709551615 bytes"),
            ("16384PB", "it is larger than 18446744073709551615 bytes"),
            ("99999999999999999999999999999kB", "it is larger than 18446744073709551615 bytes"),
        ] {
            let error = parse_size(text).expect_err(text);
            assert_eq!(error.reason, reason, "{text:?}");
        }
        assert_eq!(
            parse_size("12XB").expect_err("no unit").to_string(),
            "\"12XB\" is not a size: \"XB\" is not a unit. A size is a number with one of the \
             units B, kB, MB, GB, TB, PB, each 1024 times the one before, or without a unit for \
             bytes."
        );
    }

    #[test]
    fn writes_sizes_for_people() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (KB, "1 kB"),
            (16 * MB, "16 MB"),
            (1000 * MB, "1000 MB"),
            (3 * GB / 2, "1.5 GB"),
            (5 * GB / 4, "1.3 GB"), // 1.25
            (16 * MB + 1, "16.0 MB"),
            (16 * MB - 1, "16.0 MB"),
            (MB - 1, "1.0 MB"),
            (1023 * KB + 972, "1023.9 kB"), // 1023.949...
            (1023 * KB + 973, "1.0 MB"),    // 1023.950...
            (16383 * PB, "16383 PB"),
            (u64::MAX, "16384.0 PB"),
        ] {
            assert_eq!(format_size(bytes), text, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn halves_of_a_unit_survive_their_text(halves in 2u64..2048, power in 1u32..=5) {
            let bytes = halves << (10 * power - 1);
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn bytes_survive_their_text(bytes: u64) {
            prop_assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
        }

        // 1.0 of a unit may stand for 1023.95 of the one below: 1 part in 20 at most.
        #[test]
        fn a_written_size_is_near(bytes in 0u64..=u64::MAX / 2, shift in 0u32..63) {
            let bytes = bytes >> shift;
            let read = parse_size(&format_size(bytes)).expect("our own writing");
            prop_assert!(read.abs_diff(bytes) <= bytes / 20, "{} as {}", bytes, format_size(bytes));
        }

        // By another way: with 12 decimals everything fits into 128 bits.
        #[test]
        fn fractions_are_exact(whole in 0u64..8192, parts in 0u64..1_000_000_000_000, power in 0u32..=5) {
            let text = format!("{whole}.{parts:012}{}", UNITS[power as usize]);
            let trillion = 1_000_000_000_000u128;
            let exact = (u128::from(whole) * trillion + u128::from(parts)) << (10 * power);
            let nearest = (exact + trillion / 2) / trillion;
            prop_assert_eq!(parse_size(&text).map(u128::from), Ok(nearest));
        }

        #[test]
        fn never_panics(text in "\\PC*|[0-9.kKmMgGiIbB -]{0,12}") {
            let _ = parse_size(&text);
        }
    }
}

//! Durations, sizes and shares of CPUs as people write them: `30s`, `64MiB`, `0.5`.

use std::time::Duration;

/// No duration is longer than this: a year.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Nobody has more CPUs than a million, in thousandths of one.
const MOST_CPU_MILLIS: u64 = 1_000_000_000;

/// A decimal number, exactly: `digits` without its point, of which the last `places` are behind it.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    digits: u128,
    places: u32,
}

impl Decimal {
    /// More digits than any quantity has would not fit.
    const MOST_DIGITS: usize = 24;

    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let empty = whole.is_empty() || (fraction.is_empty() && text.contains('.'));
        if empty
            || text.len() > Self::MOST_DIGITS
            || !(whole.bytes().chain(fraction.bytes())).all(|byte| byte.is_ascii_digit())
        {
            return None;
        }
        let digits = format!("{whole}{fraction}").parse().ok()?;
        Some(Self { digits, places: u32::try_from(fraction.len()).ok()? })
    }

    /// How many of the smallest unit so many `units` of it are; nothing if it is no whole number of them.
    fn times(self, units: u64) -> Option<u128> {
        let product = self.digits.checked_mul(units.into())?;
        let divisor = 10_u128.pow(self.places);
        product.is_multiple_of(divisor).then(|| product / divisor)
    }
}

/// A number and what is behind it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `500ms`, `30s`, `2m`, `1h`, `1d`, and several in a row: `1m30s`. 0 needs no unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration; write 500ms, 30s, 2m, 1h or 1m30s");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let (number, behind) = split(rest);
        let unit_ends = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, more) = behind.split_at(unit_ends);
        let unit = match unit {
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" | "min" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            "d" => 86_400 * 1_000_000_000,
            _ => return Err(wrong()),
        };
        let number = Decimal::parse(number).ok_or_else(wrong)?;
        nanos += number.times(unit).ok_or_else(|| format!("{text:?} is finer than a nanosecond"))?;
        if nanos > LONGEST.as_nanos() {
            return Err(format!("{text:?} is longer than a year"));
        }
        rest = more.trim_start();
    }
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| wrong())
}

/// `64MiB`, `1GiB`, `512KiB`, `10MB`, `4096`: in bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write 64MiB, 1.5GiB, 10MB or a number of bytes");
    let (number, unit) = split(text.trim());
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let number = Decimal::parse(number).ok_or_else(wrong)?;
    let size = number.times(unit).ok_or_else(|| format!("{text:?} is no whole number of bytes"))?;
    u64::try_from(size).map_err(|_| format!("{text:?} is too large"))
}

/// `0.5`, `2`, and also `500m`: in thousandths of one CPU.
pub(super) fn cpu_millis(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let millis = match text.strip_suffix('m') {
        Some(millis) => Decimal::parse(millis).and_then(|number| number.times(1)),
        None => Decimal::parse(text).and_then(|number| number.times(1_000)),
    };
    match millis.and_then(|millis| u64::try_from(millis).ok()) {
        Some(millis) if (1..=MOST_CPU_MILLIS).contains(&millis) => Ok(millis),
        _ => Err(format!("{text:?} is no number of CPUs; write 0.5 or 2, by thousandths")),
    }
}

/// How long ago, in one or two units: `5s`, `3m12s`, `4h`, `12d`.
pub(super) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..600 => format!("{minutes}m{}s", seconds % 60),
        600..3_600 => format!("{minutes}m"),
        3_600..36_000 => format!("{hours}h{}m", minutes % 60),
        36_000..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_what_they_say() {
        let millis = |text: &str| duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("30s"), Ok(30_000));
        assert_eq!(millis("1m30s"), Ok(90_000));
        assert_eq!(millis("0.3 s"), Ok(300));
        assert_eq!(millis("1d"), Ok(86_400_000));
        assert_eq!(millis("0"), Ok(0));
        assert_eq!(duration("0.3s"), Ok(Duration::from_millis(300)));
        for wrong in
            ["", "5", "s", "5 years", "-1s", "1.2.3s", "1e3s", "400d", "99999999999999999999h", "5s3"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_what_they_say() {
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("64m"), Ok(64 << 20));
        assert_eq!(bytes("1.5GiB"), Ok(3 << 29));
        assert_eq!(bytes("10MB"), Ok(10_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("18446744073709551615"), Ok(u64::MAX));
        for wrong in
            ["", "MiB", "-1", "64 bananas", "18446744073709551616", "99999999TiB", "1.2.3M", "0.3KiB"]
        {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares_of_cpus_are_what_they_say() {
        assert_eq!(cpu_millis("0.5"), Ok(500));
        assert_eq!(cpu_millis("2"), Ok(2_000));
        assert_eq!(cpu_millis("250m"), Ok(250));
        for wrong in ["", "0", "-1", "NaN", "inf", "x", "0.0001", "0.0005m", "99999999999"] {
            assert!(cpu_millis(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ages_have_one_or_two_units() {
        let text = |seconds| age(Duration::from_secs(seconds));
        assert_eq!([text(5), text(192), text(900), text(4_000)], ["5s", "3m12s", "15m", "1h6m"]);
        assert_eq!([text(90_000), text(200_000)], ["25h", "2d"]);
    }
}

//! Moments in Unix milliseconds, and as text.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

/// The last moment of the year 9999: no year has five digits.
const LAST_MS: u64 = 253_402_300_799_999;

/// This machine's clock.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// RFC 3339, in UTC: `2026-01-31T23:59:59.123Z`.
pub fn to_text(unix_ms: u64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms.min(LAST_MS)) * 1_000_000);
    let moment = moment.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let parts = [
        (0..4, moment.year().unsigned_abs()),
        (5..7, u8::from(moment.month()).into()),
        (8..10, moment.day().into()),
        (11..13, moment.hour().into()),
        (14..16, moment.minute().into()),
        (17..19, moment.second().into()),
        (20..23, moment.millisecond().into()),
    ];
    // Digit by digit: a list has ten thousand of them.
    let mut text = *b"0000-00-00T00:00:00.000Z";
    for (digits, mut number) in parts {
        for digit in text[digits].iter_mut().rev() {
            *digit += (number % 10) as u8;
            number /= 10;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Reads ISO 8601 as JavaScript does: `2026`, `2026-01`, `2026-01-31`, `2026-01-31T23:59`, with seconds and fractions of them,
/// and `Z` or an offset; UTC where it says nothing. What is before 1970 is 0. `None`: it is something else.
pub fn parse(text: &str) -> Option<u64> {
    let (date, clock) = match text.split_once(['T', 't', ' ']) {
        Some((date, clock)) => (date, Some(clock)),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4..=4)?;
    let month = parts.next().map_or(Some(1), |month| digits(month, 2..=2))?;
    let day = parts.next().map_or(Some(1), |day| digits(day, 2..=2))?;
    if parts.next().is_some() {
        return None;
    }
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day).ok()?).ok()?;
    let (time, offset) = clock.map_or(Some((Time::MIDNIGHT, UtcOffset::UTC)), parse_clock)?;
    let moment = date.with_time(time).assume_offset(offset);
    Some(u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
}

fn parse_clock(text: &str) -> Option<(Time, UtcOffset)> {
    let end = text.find(['Z', 'z', '+', '-']).unwrap_or(text.len());
    let (clock, zone) = text.split_at(end);
    let mut parts = clock.split(':');
    let hour = digits(parts.next()?, 2..=2)?;
    let minute = digits(parts.next()?, 2..=2)?;
    let (second, nanosecond) = match parts.next() {
        None => (0, 0),
        Some(seconds) => {
            let (second, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
            digits(fraction, 1..=usize::MAX)?;
            let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
            (digits(second, 2..=2)?, digits(&nanoseconds, 9..=9)?)
        }
    };
    if parts.next().is_some() {
        return None;
    }
    let small = |number: u32| u8::try_from(number).ok();
    let time = Time::from_hms_nano(small(hour)?, small(minute)?, small(second)?, nanosecond).ok()?;
    Some((time, parse_zone(zone)?))
}

fn parse_zone(text: &str) -> Option<UtcOffset> {
    if matches!(text, "" | "Z" | "z") {
        return Some(UtcOffset::UTC);
    }
    let (sign, zone) = match text.strip_prefix('-') {
        Some(zone) => (-1, zone),
        None => (1, text.strip_prefix('+')?),
    };
    let (hours, minutes) = zone.split_once(':').or_else(|| zone.split_at_checked(2))?;
    let part = |text| i8::try_from(digits(text, 2..=2)?).ok();
    UtcOffset::from_hms(sign * part(hours)?, sign * part(minutes)?, 0).ok()
}

fn digits(text: &str, lengths: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit()) && lengths.contains(&text.len());
    let first = text.get(..text.len().min(9))?;
    all.then(|| first.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_and_read() {
        for (unix_ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_789, "2000-02-29T12:34:56.789Z"),
            (LAST_MS, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(to_text(unix_ms), text);
            assert_eq!(parse(text), Some(unix_ms));
        }
        assert_eq!(to_text(u64::MAX), to_text(LAST_MS));
    }

    #[test]
    fn what_javascript_takes_for_iso_8601_is_taken() {
        let new_year = 1_577_836_800_000;
        for text in [
            "2020",
            "2020-01",
            "2020-01-01",
            "2020-01-01T00:00",
            "2020-01-01T00:00:00",
            "2020-01-01 00:00:00.0000000000000Z",
            "2020-01-01T01:00:00+01:00",
            "2019-12-31T22:30:00-0130",
        ] {
            assert_eq!(parse(text), Some(new_year), "{text}");
        }
        assert_eq!(parse("1969-12-31"), Some(0));
        for wrong in [
            "",
            "now",
            "20",
            "2020-1",
            "2020-13",
            "2020-02-30",
            "2020-01-01T",
            "2020-01-01T25:00",
            "2020-01-01T00:00:60",
            "2020-01-01T00:00:00.",
            "2020-01-01T00:00:00+1",
            "2020-01-01T00:00:00+99:00",
            "2020-01-01T00:00:00é",
            "2020-01-01T00:00:00Zé",
            "2020-01-01-01",
            "２０２０",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}

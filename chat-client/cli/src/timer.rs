//! Timers of conversations: how the user writes and reads them.

use std::time::Duration;

/// Returns a time such as 30s, 5m, 12h or 7d in milliseconds; 0 for "off".
pub(crate) fn parse_time(written: &str) -> Result<u64, String> {
    let invalid = || "write a time such as 30s, 5m, 12h or 7d, or off".to_owned();
    if written == "off" {
        return Ok(0);
    }
    let unit = written.chars().last().ok_or_else(invalid)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(invalid()),
    };
    let count: u64 = written[..written.len() - 1].parse().map_err(|_| invalid())?;
    count.checked_mul(seconds * 1000).filter(|ms| *ms > 0).ok_or_else(invalid)
}

/// Returns a time in words, the shortest way that [`parse_time`] reads.
pub(crate) fn time_text(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(24 * 3600, 'd'), (3600, 'h'), (60, 'm')];
    let unit = units.into_iter().find(|(length, _)| seconds > 0 && seconds.is_multiple_of(*length));
    unit.map_or_else(|| format!("{seconds}s"), |(length, unit)| format!("{}{unit}", seconds / length))
}

/// Returns the time of a timer; `None` for 0, which ends it.
pub(crate) fn timer(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

/// Returns a description of a new timer.
pub(crate) fn timer_text(after: Option<Duration>) -> String {
    match after {
        Some(after) => format!("messages disappear after {}", time_text(after)),
        None => "messages do not disappear any more".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for (written, seconds) in [("30s", 30), ("5m", 300), ("12h", 43_200), ("7d", 604_800), ("90s", 90)] {
            assert_eq!(parse_time(written), Ok(seconds * 1000));
            assert_eq!(time_text(Duration::from_secs(seconds)), written);
        }
        assert_eq!(parse_time("off"), Ok(0));
        for wrong in ["", "5", "m", "0s", "-1s", "5é", "1.5h", "99999999999999999d"] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}

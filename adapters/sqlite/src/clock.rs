//! The store's clock: one for all processes that share the file.
//!
//! A host's clock may be set back (a resumed machine, a clock in local time, NTP), and processes that read it before and after
//! would disagree for as long as it was set back by. So the file holds an [`ClockAnchor`]: a time, and what the uptime of the host
//! was then. From there on the time is the anchor's plus the uptime that has passed, which nobody sets; every process computes
//! the same, and leases and TTLs go on at their pace. If the host's clock is ahead of that (it was set forward), the anchor
//! moves there, in the transaction that sees it first.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use onceward::store::transition::micros;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, query};

use crate::row::integer;

/// By how many microseconds the host's clock may be ahead before the anchor moves. The two clocks drift together, so that it moves
/// with a step and hardly ever else.
const STEP: u64 = 1_000;

/// The store's source of time: the host's clock, moved as tests ask. Clones move together.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// What tests add to the host's clock, in microseconds.
    ahead: Arc<AtomicI64>,
}

/// A time in the file, and the uptime that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockAnchor {
    /// Microseconds since 1970.
    time: u64,
    /// Microseconds since the host was started.
    uptime: u64,
    /// Which start that was.
    boot: u64,
}

/// The time now, and the anchor that says so to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockReading {
    pub(crate) now: u64,
    pub(crate) anchor: ClockAnchor,
}

impl Clock {
    /// The host's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// Moves the host's clock forward, for this `Clock` and its clones.
    pub fn advance(&self, by: Duration) {
        self.ahead.fetch_add(integer(micros(by)), Ordering::SeqCst);
    }

    /// Sets the host's clock back, for this `Clock` and its clones.
    pub fn set_back(&self, by: Duration) {
        self.ahead.fetch_sub(integer(micros(by)), Ordering::SeqCst);
    }

    /// What the time is, given the file's anchor.
    pub(crate) fn read(&self, anchor: Option<ClockAnchor>) -> ClockReading {
        read(anchor, self.wall(), uptime(), boot())
    }

    /// The host's clock, in microseconds since 1970.
    fn wall(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        micros(since_epoch).saturating_add_signed(self.ahead.load(Ordering::SeqCst))
    }
}

fn read(anchor: Option<ClockAnchor>, wall: u64, uptime: u64, boot: u64) -> ClockReading {
    let anew = |time| ClockReading { now: time, anchor: ClockAnchor { time, uptime, boot } };
    let Some(anchor) = anchor else { return anew(wall) };
    let passed = uptime.checked_sub(anchor.uptime).filter(|_| boot == anchor.boot);
    let Some(passed) = passed else {
        // The host was started anew, or the file was brought here: its time has stood still, but never goes back.
        return anew(wall.max(anchor.time));
    };
    let now = anchor.time.saturating_add(passed);
    if wall > now.saturating_add(STEP) { anew(wall) } else { ClockReading { now, anchor } }
}

/// Microseconds since the host was started, times of sleep included.
fn uptime() -> u64 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let read = rustix::time::clock_gettime(CLOCK);
    let seconds = u64::try_from(read.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(read.tv_nsec).unwrap_or(0) / 1_000)
}

/// A number for this boot of the host; 0 where the system gives none: then a shorter uptime shows a reboot.
fn boot() -> u64 {
    static BOOT: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(15).collect();
        u64::from_str_radix(&digits, 16).unwrap_or(0)
    });
    *BOOT
}

/// What the file's table of facts says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MetaValues {
    pub(crate) anchor: Option<ClockAnchor>,
    /// The largest fence of all records that were removed.
    pub(crate) fence_floor: u64,
}

/// Reads the anchor and the fence floor.
pub(crate) async fn facts(conn: &mut SqliteConnection) -> Result<MetaValues, sqlx::Error> {
    let (mut time, mut uptime, mut boot, mut fence_floor) = (None, None, None, 0);
    let rows = query(
        "SELECT name, value FROM onceward_meta \
         WHERE name IN ('fence_floor', 'clock_time', 'clock_uptime', 'clock_boot')",
    );
    for row in rows.fetch_all(conn).await? {
        let value = u64::try_from(row.try_get::<i64, _>(1)?).unwrap_or(0);
        match row.try_get(0)? {
            "fence_floor" => fence_floor = value,
            "clock_time" => time = Some(value),
            "clock_uptime" => uptime = Some(value),
            "clock_boot" => boot = Some(value),
            _ => {}
        }
    }
    let anchor = match (time, uptime, boot) {
        (Some(time), Some(uptime), Some(boot)) => Some(ClockAnchor { time, uptime, boot }),
        _ => None,
    };
    Ok(MetaValues { anchor, fence_floor })
}

/// Writes the anchor, inside a transaction.
pub(crate) async fn set_anchor(conn: &mut SqliteConnection, anchor: ClockAnchor) -> Result<(), sqlx::Error> {
    query(
        "INSERT INTO onceward_meta (name, value) VALUES ('clock_time', ?), ('clock_uptime', ?), ('clock_boot', ?) \
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .bind(integer(anchor.time))
    .bind(integer(anchor.uptime))
    .bind(integer(anchor.boot))
    .execute(conn)
    .await
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;
    const HOUR: u64 = 3_600 * SECOND;

    fn anchor(time: u64, uptime: u64, boot: u64) -> Option<ClockAnchor> {
        Some(ClockAnchor { time, uptime, boot })
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_the_time() {
        let first = read(None, 10 * HOUR, HOUR, 7);
        assert_eq!((first.now, Some(first.anchor)), (10 * HOUR, anchor(10 * HOUR, HOUR, 7)));
        let later = read(Some(first.anchor), 9 * HOUR, HOUR + 5 * SECOND, 7);
        assert_eq!((later.now, later.anchor), (10 * HOUR + 5 * SECOND, first.anchor));
    }

    #[test]
    fn a_clock_that_is_set_forward_moves_the_time_for_all() {
        let at = anchor(10 * HOUR, HOUR, 7);
        let ahead = read(at, 12 * HOUR, HOUR + SECOND, 7);
        assert_eq!((ahead.now, Some(ahead.anchor)), (12 * HOUR, anchor(12 * HOUR, HOUR + SECOND, 7)));
        let back = read(Some(ahead.anchor), 10 * HOUR, HOUR + 2 * SECOND, 7);
        assert_eq!(back.now, 12 * HOUR + SECOND);
    }

    #[test]
    fn a_difference_below_a_millisecond_is_not_seen_so_that_all_agree() {
        let at = anchor(10 * HOUR, HOUR, 7);
        assert_eq!(read(at, 10 * HOUR + STEP, HOUR, 7), ClockReading { now: 10 * HOUR, anchor: at.unwrap() });
    }

    #[test]
    fn after_a_start_of_the_host_the_time_goes_on_and_never_back() {
        let at = anchor(10 * HOUR, HOUR, 7);
        for (wall, uptime, boot, now) in [
            (9 * HOUR, 0, 8, 10 * HOUR),
            (11 * HOUR, 2 * HOUR, 8, 11 * HOUR),
            (9 * HOUR, SECOND, 7, 10 * HOUR),
        ] {
            let started = read(at, wall, uptime, boot);
            assert_eq!((started.now, Some(started.anchor)), (now, anchor(now, uptime, boot)));
            assert_eq!(read(Some(started.anchor), wall, uptime + SECOND, boot).now, now + SECOND);
        }
    }

    #[test]
    fn the_uptime_and_the_boot_are_known_here() {
        let before = uptime();
        assert!(before > 0 && uptime() >= before);
        if cfg!(target_os = "linux") {
            assert_ne!(boot(), 0);
        }
    }
}

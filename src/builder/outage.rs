//! A state into which many builds run at once and which is told once: when it begins, and when it is over.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Since when the state lasts, if it does.
#[derive(Debug, Default)]
pub(super) struct Outage {
    times: Mutex<Option<Times>>,
    /// For how long all must be well until it is over.
    steady: Duration,
}

#[derive(Debug)]
struct Times {
    began: Instant,
    /// Since when all is well.
    well: Option<Instant>,
}

impl Outage {
    /// One that is over only after all was well for this long: good and bad answers can alternate.
    pub(super) fn with_steady(steady: Duration) -> Self {
        Self { times: Mutex::default(), steady }
    }

    /// Whether it begins with this observation.
    pub(super) fn begins(&self, now: Instant) -> bool {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = times.is_none();
        times.get_or_insert(Times { began: now, well: None }).well = None;
        begins
    }

    /// How long it lasted, when it ends with this observation.
    pub(super) fn ends(&self, now: Instant) -> Option<Duration> {
        let mut lasting = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let times = lasting.as_mut()?;
        let (began, well) = (times.began, *times.well.get_or_insert(now));
        if now.duration_since(well) < self.steady {
            return None;
        }
        *lasting = None;
        Some(well.duration_since(began))
    }
}

#[cfg(test)]
impl Outage {
    /// Whether it lasts.
    pub(super) fn lasts(&self) -> bool {
        self.times.lock().expect("no panic").is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_begins_once_and_ends_once() {
        let (outage, start) = (Outage::default(), Instant::now());
        let later = start + Duration::from_secs(12);
        assert_eq!(outage.ends(start), None);
        assert!(outage.begins(start) && !outage.begins(later));
        assert_eq!(outage.ends(later), Some(Duration::from_secs(12)));
        assert_eq!(outage.ends(later), None);
        assert!(outage.begins(later), "the next one");
    }

    #[test]
    fn good_answers_among_bad_ones_do_not_end_an_outage() {
        let (outage, start) = (Outage::with_steady(Duration::from_secs(5)), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        assert!(outage.begins(at(0)));
        assert_eq!(outage.ends(at(1)), None);
        assert!(!outage.begins(at(4)), "the same one");
        assert_eq!((outage.ends(at(6)), outage.ends(at(10))), (None, None));
        assert_eq!(outage.ends(at(11)), Some(Duration::from_secs(6)), "until all was well");
    }
}

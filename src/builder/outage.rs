//! A state into which many builds run at once and which is told once: when it begins, and when it is over.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Since when the state lasts, if it does.
#[derive(Debug, Default)]
pub(super) struct Outage(Mutex<Option<Instant>>);

impl Outage {
    /// Whether it begins with this observation.
    pub(super) fn begins(&self, now: Instant) -> bool {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = since.is_none();
        since.get_or_insert(now);
        begins
    }

    /// How long it lasted, when it ends with this observation.
    pub(super) fn ends(&self, now: Instant) -> Option<Duration> {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        since.map(|since| now - since)
    }
}

#[cfg(test)]
impl Outage {
    /// Whether it lasts.
    pub(super) fn lasts(&self) -> bool {
        self.0.lock().expect("no panic").is_some()
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
}

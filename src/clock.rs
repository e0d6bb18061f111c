//! The wall clock.
//!
//! Decisions take a time as an argument; this is where the argument comes from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::settings::Timestamps;

/// Wall-clock time, as Sidekiq's scores and timestamps have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Epoch(Duration);

impl Epoch {
    /// This machine's clock.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// From seconds; what is not a time counts as the epoch itself.
    pub fn from_secs_f64(seconds: f64) -> Self {
        Self(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    /// From whole milliseconds.
    pub fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// Float seconds: scores, and timestamps before Sidekiq 8.
    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }

    /// Whole milliseconds: timestamps from Sidekiq 8 on.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// A timestamp of a job.
    pub fn json(self, form: Timestamps) -> Value {
        match form {
            Timestamps::Milliseconds => self.as_millis().into(),
            // Written with a fraction always, or Sidekiq 8 would take it for milliseconds.
            Timestamps::Seconds => self.as_secs_f64().into(),
        }
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// How long after `earlier`; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The UTC day, `YYYY-MM-DD`, as in the keys of Sidekiq's statistics.
    pub fn day(self) -> String {
        self.timestamp().strftime("%Y-%m-%d").to_string()
    }

    /// The same instant as a calendar has it, to the second.
    pub fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::new(i64::try_from(self.0.as_secs()).unwrap_or(0), 0).unwrap_or_default()
    }
}

//! `[log]`: the log.

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// Levels of the log, the fewest lines first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The log, on standard output.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`, or directives for parts of the program, such as
    /// `sidebake=debug,info`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Log {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        let Some(unknown) = self.unknown_level() else { return Ok(()) };
        let known = LEVELS.join(", ");
        refuse("log.level", format!("unknown level {unknown:?}; known: {known}, TARGET=LEVEL"))
    }

    /// A word where a level belongs. As a directive it would be a target, and nothing else would be logged.
    fn unknown_level(&self) -> Option<&str> {
        let levels = self.level.split(',').map(|directive| directive.rsplit('=').next().unwrap_or(directive).trim());
        levels.into_iter().find(|level| !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)))
    }
}

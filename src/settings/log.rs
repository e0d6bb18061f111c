//! `[log]`: the log.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// Levels of the log, the fewest lines first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The modules that log. A test compares them with the source.
pub const LOG_MODULES: [&str; 17] = [
    "bake",
    "builder",
    "cli",
    "github",
    "health",
    "journal",
    "log_stream",
    "own_pod",
    "processor",
    "redis",
    "sidekiq",
    "source",
    "state",
    "statsd",
    "systemd",
    "traces",
    "worker",
];

/// The log, on standard output. HUP makes a worker read `level` and `modules` again.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace`, or directives for parts of the program, such as
    /// `sidebake=debug,info`.
    pub level: String,
    /// Levels of single modules, such as `{ sidekiq = "debug" }`. The modules are `bake`, `builder`, `cli`, `github`, `health`,
    /// `journal`, `log_stream`, `own_pod`, `processor`, `redis`, `sidekiq`, `source`, `state`, `statsd`, `systemd`, `traces` and `worker`.
    pub modules: BTreeMap<String, String>,
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
        Self { level: "info".into(), modules: BTreeMap::new(), format: LogFormat::Text }
    }
}

impl Log {
    /// `level`, and a directive for each of `modules`. A longer target wins over a shorter one.
    pub fn directives(&self) -> String {
        let modules = self.modules.iter().map(|(module, level)| format!(",sidebake::{module}={level}"));
        std::iter::once(self.level.clone()).chain(modules).collect()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        let known = LEVELS.join(", ");
        if let Some(unknown) = self.unknown_level() {
            return refuse("log.level", format!("unknown level {unknown:?}; known: {known}, TARGET=LEVEL"));
        }
        for (module, level) in &self.modules {
            if !LOG_MODULES.contains(&module.as_str()) {
                let known = LOG_MODULES.join(", ");
                return refuse(format!("log.modules.{module}"), format!("unknown module; known: {known}"));
            }
            if !is_level(level) {
                return refuse(format!("log.modules.{module}"), format!("unknown level {level:?}; known: {known}"));
            }
        }
        Ok(())
    }

    /// A word where a level belongs. As a directive it would be a target, and nothing else would be logged.
    fn unknown_level(&self) -> Option<&str> {
        let levels = self.level.split(',').map(|directive| directive.rsplit('=').next().unwrap_or(directive).trim());
        levels.into_iter().find(|level| !is_level(level))
    }
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|known| known.eq_ignore_ascii_case(word))
}

//! Where settings come from: defaults, a `sidekiq.yml`, TOML files, the environment; a later one wins.
//!
//! Variables are named `SIDEBAKE__SECTION__KEY`. Unknown keys are refused with their path. [`Settings`] knows the defaults and
//! the checks.

mod lists;
mod sidekiq_yml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::builder::DefaultState;
use config::{Config, ConfigBuilder, ConfigError, Environment, File, FileFormat};

use crate::environment;
use crate::field_error::FieldError;
use crate::settings::Settings;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file is missing or is not TOML.
    #[error("{}", without_source(.0))]
    Read(ConfigError),
    /// A key is unknown, or its value cannot be used.
    #[error(transparent)]
    Setting(#[from] FieldError),
}

/// The sources of settings, as far as they are known.
type Sources = ConfigBuilder<DefaultState>;

/// Reads and checks the settings.
///
/// Files ending in `.yml`, `.yaml` or `.erb` are Sidekiq's, and are read as defaults. `environment` is the section of them that
/// counts; without it, `APP_ENV`, `RAILS_ENV` or `RACK_ENV` names it.
///
/// # Errors
///
/// When a file cannot be read, or a setting cannot be used. The message names the file and line, or the key.
pub fn load(files: &[PathBuf], environment: Option<&str>) -> Result<Settings, ConfigurationError> {
    read(files, environment, environment::variables())
}

fn read(
    files: &[PathBuf],
    environment: Option<&str>,
    variables: BTreeMap<String, String>,
) -> Result<Settings, ConfigurationError> {
    let (sidekiqs, ours): (Vec<_>, Vec<_>) = files.iter().partition(|path| is_sidekiqs(path));
    let (mut sources, mut notes) = (sidekiqs_variables(&variables)?, Vec::new());
    for path in sidekiqs {
        let refuse = |message| FieldError::new(path.display().to_string(), message);
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let yml = sidekiq_yml::read(&text, environment_of(environment, &variables)).map_err(refuse)?;
        for (key, value) in yml.settings {
            sources = default(sources, key, value)?;
        }
        notes.extend(yml.notes.into_iter().map(|note| format!("{}: {note}", path.display())));
    }
    for path in ours {
        sources = sources.add_source(File::from(path.as_path()).format(FileFormat::Toml));
    }
    let mut settings = with_variables(sources, variables)?;
    let builders = settings.builders.iter().map(|(name, builder)| (name.clone(), builder.accounts.clone()));
    settings.tenants.builders = builders.collect();
    settings.check()?;
    Ok(Settings { notes, ..settings })
}

fn default(sources: Sources, path: &str, value: config::Value) -> Result<Sources, ConfigurationError> {
    sources.set_default(path, value).map_err(ConfigurationError::Read)
}

/// The variables that Sidekiq reads too, as defaults.
fn sidekiqs_variables(variables: &BTreeMap<String, String>) -> Result<Sources, ConfigurationError> {
    let url = variables.get(variables.get("REDIS_PROVIDER").map_or("REDIS_URL", String::as_str));
    let given = [("redis.url", url), ("concurrency", variables.get("RAILS_MAX_THREADS"))];
    let given = given.into_iter().filter_map(|(path, value)| Some((path, value?.as_str().into())));
    given.into_iter().try_fold(Config::builder(), |sources, (path, value)| default(sources, path, value))
}

fn with_variables(sources: Sources, variables: BTreeMap<String, String>) -> Result<Settings, ConfigurationError> {
    let (lists, variables) = lists::split(variables)?;
    let environment = Environment::with_prefix("SIDEBAKE")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .list_separator(",")
        .with_list_parse_key("labels")
        .with_list_parse_key("sandbox.registry_ports")
        .source(Some(variables.into_iter().collect()));
    let sources = lists.into_iter().try_fold(sources.add_source(environment), |sources, (key, list)| {
        sources.set_override(key, list).map_err(ConfigurationError::Read)
    })?;
    let merged = sources.build().map_err(ConfigurationError::Read)?;
    let refused = |error: serde_path_to_error::Error<ConfigError>| {
        FieldError::new(error.path().to_string(), error.inner().to_string())
    };
    Ok(serde_path_to_error::deserialize(merged).map_err(refused)?)
}

/// What is wrong and where, without the lines of the file that a TOML error quotes: they may contain a secret.
fn without_source(error: &ConfigError) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains('|') && !line.trim().is_empty()).collect();
    lines.join(": ")
}

fn is_sidekiqs(file: &Path) -> bool {
    file.extension().is_some_and(|extension| ["yml", "yaml", "erb"].iter().any(|known| extension == *known))
}

/// The section of a `sidekiq.yml` that counts, as in Sidekiq.
fn environment_of<'a>(given: Option<&'a str>, variables: &'a BTreeMap<String, String>) -> &'a str {
    let named = ["APP_ENV", "RAILS_ENV", "RACK_ENV"].into_iter().find_map(|name| variables.get(name));
    given.or(named.map(String::as_str)).unwrap_or("development")
}

#[cfg(test)]
mod tests;

//! An existing `sidekiq.yml`, as it is: symbol keys, weights, capsules, a section for each environment.
//!
//! Follows Sidekiq 8.1, `CLI#parse_config`. What only Ruby can do with the file is refused (ERB) or noted.

use config::Value as Setting;
use serde_json::{Map, Value};

use crate::settings::DEFAULT_CAPSULE;

/// The options of a capsule.
type CapsuleOptions = config::Map<String, Setting>;

/// What sidebake reads of the file.
#[derive(Debug, Default)]
pub(super) struct SidekiqYml {
    /// Paths of settings with their values.
    pub(super) settings: Vec<(&'static str, Setting)>,
    /// What is not read, for the log.
    pub(super) notes: Vec<String>,
}

/// Reads the text of a `sidekiq.yml`; the section of `environment` is laid over the rest. An error names the key.
pub(super) fn read(text: &str, environment: &str) -> Result<SidekiqYml, String> {
    let mut lines = text.lines().zip(1..).filter(|(line, _)| !line.trim_start().starts_with('#'));
    if let Some((_, number)) = lines.find(|(line, _)| line.contains("<%")) {
        return Err(format!(
            "line {number} has ERB, which only Ruby can run: write its value, or leave it out and set SIDEBAKE__… in the environment"
        ));
    }
    let file = match serde_saphyr::from_str(text).map_err(|error| error.to_string())? {
        Value::Object(file) => file,
        Value::Null => Map::new(),
        _ => return Err("expected keys and values".into()),
    };
    let mut options = without_colons(file);
    match options.remove(environment) {
        Some(Value::Object(section)) => options.extend(without_colons(section)),
        Some(Value::Null) | None => {}
        Some(_) => return Err(format!("{environment}: expected keys and values")),
    }
    let mut yml = SidekiqYml::default();
    // Last: of two values for one setting the later one counts.
    let capsules = options.shift_remove_entry("capsules");
    for (key, value) in options.into_iter().chain(capsules) {
        yml.take(&key, value).map_err(|message| format!("{key}: {message}"))?;
    }
    Ok(yml)
}

/// Ruby's symbols are text that begins with a colon.
fn without_colons(options: Map<String, Value>) -> Map<String, Value> {
    options.into_iter().map(|(key, value)| (key.trim_start_matches(':').to_owned(), value)).collect()
}

impl SidekiqYml {
    fn take(&mut self, key: &str, value: Value) -> Result<(), String> {
        let seconds = |value: &Value| match value.as_f64() {
            // Ruby takes fractions of a second.
            Some(seconds) if seconds > 0.0 && seconds.fract() != 0.0 => {
                Ok::<_, String>(Setting::from(format!("{}ms", (seconds * 1e3) as u64)))
            }
            _ => Ok(Setting::from(format!("{}s", number(value)?))),
        };
        let (path, setting) = match key {
            "concurrency" => ("concurrency", number(&value)?.into()),
            "queues" => ("queues", queues(&value)?),
            "capsules" => {
                let mut capsules = capsules(value)?;
                // Wherever they stand, it wins over `concurrency` and `queues`, which are its own.
                let mut default = capsules.remove(DEFAULT_CAPSULE).unwrap_or_default();
                let own = ["concurrency", "queues"].into_iter().filter_map(|key| Some((key, default.remove(key)?)));
                self.settings.extend(own);
                let others = capsules.into_iter().map(|(name, capsule)| (name, Setting::from(capsule)));
                ("capsules", others.collect::<config::Map<_, _>>().into())
            }
            "timeout" => ("shutdown.timeout", seconds(&value)?),
            "tag" => ("tag", text(&value)?.into()),
            "labels" => ("labels", list(&value)?.iter().map(text).collect::<Result<Vec<_>, _>>()?.into()),
            "max_retries" => ("jobs.max_retries", number(&value)?.into()),
            "dead_max_jobs" => ("jobs.dead_max_jobs", number(&value)?.into()),
            "dead_timeout_in_seconds" => ("jobs.dead_timeout", seconds(&value)?),
            "average_scheduled_poll_interval" => ("jobs.poll_interval", seconds(&value)?),
            "poll_interval_average" => ("jobs.poll_interval_average", seconds(&value)?),
            "verbose" if value == Value::Bool(true) => ("log.level", "debug".into()),
            "verbose" | "environment" => return Ok(()),
            "require" => {
                self.notes.push("require: no Ruby is loaded".into());
                return Ok(());
            }
            // Another environment's.
            _ if value.is_object() => return Ok(()),
            _ => {
                self.notes.push(format!("{key} is not read"));
                return Ok(());
            }
        };
        self.settings.push((path, setting));
        Ok(())
    }
}

fn number(value: &Value) -> Result<u64, String> {
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.ok_or_else(|| format!("expected a number, found {value}"))
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.trim_start_matches(':').to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("expected text, found {other}")),
    }
}

fn list(value: &Value) -> Result<&[Value], String> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| format!("expected a list, found {value}"))
}

/// Each is `name`, `"name,weight"` or `[name, weight]`.
fn queues(value: &Value) -> Result<Setting, String> {
    let one = |queue: &Value| match queue {
        Value::Array(pair) => match pair.as_slice() {
            [name] => text(name),
            [name, weight] => Ok(format!("{},{}", text(name)?, number(weight)?)),
            _ => Err(format!("expected a queue and its weight, found {queue}")),
        },
        name => text(name),
    };
    Ok(list(value)?.iter().map(one).collect::<Result<Vec<_>, _>>()?.into())
}

fn capsules(value: Value) -> Result<config::Map<String, CapsuleOptions>, String> {
    let Value::Object(capsules) = value else { return Err(format!("expected keys and values, found {value}")) };
    let one = |(name, value)| {
        let Value::Object(options) = value else { return Err(format!("{name}: expected keys and values")) };
        let mut capsule = CapsuleOptions::new();
        for (key, value) in without_colons(options) {
            let setting = match key.as_str() {
                "concurrency" => number(&value)?.into(),
                "queues" => queues(&value)?,
                _ => return Err(format!("{name}: unknown option {key} of a capsule")),
            };
            capsule.insert(key, setting);
        }
        Ok((name, capsule))
    };
    without_colons(capsules).into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(text: &str, path: &str) -> Option<String> {
        let yml = read(text, "production").expect("read");
        let setting = yml.settings.into_iter().rev().find(|(known, _)| *known == path);
        setting.map(|(_, value)| value.to_string())
    }

    const FILE: &str = "---\n:concurrency: 5\n:timeout: 25\n:queues:\n  - critical\n  - \"default,3\"\n  - [low, 1]\n\
                        production:\n  :concurrency: 20\nstaging:\n  :concurrency: 1\n\
                        # queues: <%= commented %>\n:scheduler:\n  x: 1\n:strict: true\n";

    #[test]
    fn symbols_weights_and_the_section_of_the_environment_are_read() {
        assert_eq!(read_one(FILE, "concurrency").as_deref(), Some("20"));
        assert_eq!(read_one(FILE, "shutdown.timeout").as_deref(), Some("25s"));
        let queues = read(FILE, "test").expect("read").settings.into_iter().find(|(path, _)| *path == "queues");
        let queues: Vec<String> = queues.expect("queues").1.try_deserialize().expect("texts");
        assert_eq!(queues, ["critical", "default,3", "low,1"]);
        assert_eq!(read(FILE, "test").expect("read").notes, ["strict is not read"]);
    }

    #[test]
    fn the_capsule_called_default_is_the_main_one() {
        let yml = ":capsules:\n  default:\n    :concurrency: 7\n    :queues: [high, \"low,2\"]\n  one:\n    concurrency: 1\n    \
                   queues: [x]\n:concurrency: 3\n:queues: [a]\n";
        assert_eq!(read_one(yml, "concurrency").as_deref(), Some("7"));
        assert!(read_one(yml, "queues").is_some_and(|queues| queues.contains("high") && !queues.contains('a')));
        assert!(
            read_one(yml, "capsules").is_some_and(|capsules| capsules.contains("one") && !capsules.contains("default"))
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key_or_line() {
        let message = |text: &str| read(text, "production").expect_err("refused");
        assert!(message("a: 1\n:concurrency: <%= 5 %>\n").starts_with("line 2 has ERB"));
        assert_eq!(message("concurrency: many"), "concurrency: expected a number, found \"many\"");
        assert_eq!(message("queues: [[a, b]]"), "queues: expected a number, found \"b\"");
        assert_eq!(message("- a"), "expected keys and values");
        assert_eq!(message("capsules: {one: {threads: 1}}"), "capsules: one: unknown option threads of a capsule");
        assert!(read("", "production").expect("an empty file").settings.is_empty());
    }
}

//! `sidebake why`: why the first uncached step of each target was not cached. Needs Redis alone.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::recorded::{Recorded, State, print, why_not_cached};
use crate::settings::Settings;
use crate::text;

#[derive(Debug, Args)]
pub(super) struct Why {
    /// The jid or the build_id
    #[arg(value_name = "BUILD_ID|JID")]
    build: String,
    /// Print a JSON object with all targets
    #[arg(long)]
    json: bool,
}

/// What a target has in JSON.
const FIELDS: [&str; 5] = ["name", "status", "steps_total", "steps_cached", "why_not_cached"];

impl Why {
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let build = match Recorded::open(settings, &self.build).await? {
            Ok(build) => build,
            Err(status) => return Ok(status),
        };
        let last = build.last();
        if self.json {
            let targets: Vec<Value> = last.targets.iter().map(fields).collect();
            print(&format!("{}\n", json!({"id": build.id, "attempt": last.summary.attempt, "targets": targets})));
        } else {
            last.targets.iter().for_each(|target| print(&format!("{}\n", line(target))));
            if last.targets_left_out > 0 {
                print(&format!("… {} more targets are not recorded\n", last.targets_left_out));
            }
            if last.targets.is_empty() {
                print(&format!("{}\n", without_targets(&build)));
            }
        }
        Ok(build.exit_status())
    }
}

fn fields(target: &Value) -> Value {
    FIELDS.iter().filter_map(|field| Some((*field, target.get(field)?.clone()))).collect()
}

/// A target in one line.
fn line(target: &Value) -> String {
    let n = |field: &str| target[field].as_u64().unwrap_or(0);
    let (n_cached, n_steps) = (n("steps_cached"), n("steps_total"));
    let why = match why_not_cached(target) {
        Some(why) => why,
        None if target["status"].is_null() => "not reached".into(),
        None if n_steps == 0 => "no step ran".into(),
        None if n_cached >= n_steps => format!("all {n_steps} steps were cached"),
        // Null where a record had no room for it.
        None => format!("{n_cached} of {n_steps} steps were cached; the reason is not recorded"),
    };
    format!("{}: {why}", text::one_line(target["name"].as_str().unwrap_or("?")))
}

fn without_targets(build: &Recorded) -> String {
    let Recorded { id, state, .. } = build;
    let last = build.last();
    match (state, &last.message) {
        (State::Running(_), _) => format!("build {id} runs; its targets are recorded when docker-buildx ends"),
        (_, Some(message)) => format!("build {id} reached no target: {}", text::one_line(message)),
        (_, None) => format!("build {id} has no recorded targets"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_has_its_reason_or_a_sentence_that_says_why_there_is_none() {
        let target = |cached: u64, total: u64, why: Value| json!({"name": "vote", "status": "succeeded", "steps_cached": cached, "steps_total": total, "why_not_cached": why});
        let known = json!({"cause": "files_changed", "message": "A file\nchanged."});
        let mut old = target(1, 3, Value::Null);
        old.as_object_mut().expect("an object").shift_remove("why_not_cached");
        for (target, expected) in [
            (target(1, 3, known), "vote: A file changed."),
            (target(1, 3, Value::Null), "vote: 1 of 3 steps were cached; the reason is not recorded"),
            (target(1, 3, json!({"message": 7})), "vote: 1 of 3 steps were cached; the reason is not recorded"),
            (target(3, 3, Value::Null), "vote: all 3 steps were cached"),
            (target(0, 0, Value::Null), "vote: no step ran"),
            (old, "vote: 1 of 3 steps were cached; the reason is not recorded"),
            (json!({"name": "web", "status": null}), "web: not reached"),
            (json!([]), "?: not reached"),
        ] {
            assert_eq!(line(&target), expected);
        }
    }
}

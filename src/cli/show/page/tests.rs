//! The pages of builds, as a person sees them.

use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::log_stream::{BuildRecord, RecordedAttempt};
use crate::sidekiq::cancel::JobLocation;

fn attempt(more: Value) -> Value {
    let mut attempt = json!({
        "jid": "5c1e8f2ab90d4c6e7f013a2b", "attempt": 1, "worker": "host:1:abc", "account": "acme",
        "repository": "acme/voting-app", "sha": "0123456789abcdef0123456789abcdef01234567", "ref": null,
        "queued_at_ms": 1_794_038_699_000_u64, "began_at_ms": 1_794_038_700_000_u64, "ended_at_ms": null,
    });
    attempt.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    attempt
}

fn page_of(attempts: &[Value], state: State) -> String {
    let attempts = attempts.iter().map(|json| {
        let attempt = AttemptRecord::deserialize(json).expect("an attempt");
        RecordedAttempt { json: json.clone(), attempt }
    });
    let record = BuildRecord { attempts: attempts.collect(), flaws: Vec::new() };
    page(&Recorded { id: "42".into(), record, state }, Epoch::from_millis(1_794_038_712_300))
}

#[test]
fn a_failed_build_has_its_attempts_targets_and_output_in_80_columns() {
    let first = attempt(json!({
        "status": "failed", "reason": "git_unavailable", "message": "The repository could not be fetched. timed out",
        "ended_at_ms": 1_794_038_701_250_u64, "timings": {"queued_ms": 1000, "token_ms": 0, "fetch_ms": 1200},
    }));
    let second = attempt(json!({
        "attempt": 2, "status": "failed", "reason": "step_failed", "is_over": true, "began_at_ms": 1_794_038_730_000_u64,
        "message": "Step 2/3 of `vote` failed: `RUN npm ci` (vote/Dockerfile:4) exited with 1: `npm ERR! missing script`",
        "ended_at_ms": 1_794_038_855_000_u64, "log_url": "https://logs.example/42",
        "placement": {"builder": "default", "pod": "default0-0", "why": "takes every account; the pod of this repository"},
        "targets": [{
            "name": "vote", "status": "failed", "duration_ms": 8100, "steps_total": 3, "steps_cached": 1,
            "digest": format!("sha256:{}", "0".repeat(64)), "tags": ["registry.example/acme/vote:1"],
            "why_not_cached": {"cause": "files_changed", "message": "COPY . /app copies a file that changed."},
            "error": "exited with another status", "log_tail": "line one\n\u{1b}[31mnpm ERR!\u{1b}[0m",
            "slowest_steps": [{"step": "[2/3] RUN npm ci", "ms": 7100, "is_cached": false},
                              {"step": "[1/3] FROM node", "ms": 300, "is_cached": true}],
        }],
        "warnings": [{"target": "vote", "message": "JSONArgsRecommended", "dockerfile": "vote/Dockerfile", "line": 3, "url": null}],
        "notices": ["a notice"],
    }));
    let page = page_of(&[first, second], State::Over);
    let expected = format!(
        "\
build 42: failed (step_failed), 2 attempts
repository  acme/voting-app
commit      0123456789abcdef0123456789abcdef01234567
account     acme
queued      2026-11-07 08:04:59 UTC
began       2026-11-07 08:05:00 UTC
ended       2026-11-07 08:07:35 UTC
log         https://logs.example/42

attempt 1: failed (git_unavailable) in 1.2s
  job 5c1e8f2ab90d4c6e7f013a2b
  worker host:1:abc, since 2026-11-07 08:05:00 UTC
  phases queued 1.0s, fetch 1.2s
  The repository could not be fetched. timed out

attempt 2: failed (step_failed) in 2m 05s
  job 5c1e8f2ab90d4c6e7f013a2b
  worker host:1:abc, since 2026-11-07 08:05:30 UTC
  builder default, pod default0-0: takes every account; the pod of this
          repository
  Step 2/3 of `vote` failed: `RUN npm ci` (vote/Dockerfile:4) exited with 1:
  `npm ERR! missing script`
  target vote: failed in 8.1s, 1 of 3 steps cached
    sha256:{}
    registry.example/acme/vote:1
    not cached: COPY . /app copies a file that changed.
    error: exited with another status
    slowest steps:
        7.1s  [2/3] RUN npm ci
       300ms  [1/3] FROM node (cached)
    output:
    | line one
    | npm ERR!
  vote: warning: vote/Dockerfile:3: JSONArgsRecommended
  notice: a notice
",
        "0".repeat(64)
    );
    assert_eq!(page, expected);
    assert!(page.lines().all(|line| line.chars().count() <= WIDTH), "{page}");
}

#[test]
fn a_build_runs_only_while_the_worker_of_its_record_has_its_job() {
    let unended = attempt(json!({"phase": "bake"}));
    let first_line = |state| page_of(std::slice::from_ref(&unended), state).lines().next().expect("a line").to_owned();
    let running = page_of(std::slice::from_ref(&unended), State::Running("host:1:abc".into()));
    assert!(running.starts_with("build 42: running since 2026-11-07 08:05:00 UTC, for 12.3s\n"), "{running}");
    assert!(running.contains("\nattempt 1: running, bake\n"), "{running}");
    for state in [
        State::Running("other:1:abc".into()),
        State::Silent("host:1:abc".into()),
        State::Waiting(JobLocation::Queue("default".into())),
        State::Lost,
        State::Unknown("away".into()),
    ] {
        let page = page_of(std::slice::from_ref(&unended), state.clone());
        assert!(!page.contains("running"), "{state:?}: {page}");
        assert!(page.contains("attempt 1: no end is recorded;"), "{page}");
    }
    let queued = first_line(State::Waiting(JobLocation::Queue("default".into())));
    assert_eq!(queued, "build 42: queued on default; the end of its last attempt is not recorded");
}

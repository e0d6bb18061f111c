//! `sidebake list --queued`: the builds that wait in queues, the next ones first.

use anyhow::Context;
use serde_json::json;

use crate::cli::cancel::id_in;
use crate::cli::recorded::{columns, complain, duration};
use crate::clock::Epoch;
use crate::redis::Redis;
use crate::settings::{PROBE, Settings};
use crate::sidekiq::line::Wait;
use crate::sidekiq::payload::Payload;
use crate::sidekiq::{limits, waiting};
use crate::text;

/// Jobs of each queue that are read to find so many builds.
const LOOKED_AT: usize = 1000;

/// A build that waits.
#[derive(Debug)]
pub(super) struct Line {
    /// The `build_id`, else the jid.
    id: String,
    jid: String,
    queue: String,
    /// In lower case.
    account: String,
    queued_at: Option<Epoch>,
    wait: Wait,
}

/// The next `n` builds, of one account or of all: by their places in line, then those that wait for something else. Of long queues only
/// the first jobs are read.
pub(super) async fn lines(settings: &Settings, account: Option<&str>, n: usize) -> anyhow::Result<Vec<Line>> {
    let redis = Redis::new(&settings.redis)?;
    let account = account.map(str::to_lowercase);
    let mut tenants = settings.tenants.clone();
    tenants.others = limits::of_fleet(&redis).await.context("failed to read the limits in Redis")?;
    let (mut lines, n_read) = (Vec::new(), LOOKED_AT.max(n));
    for queue in settings.queues() {
        let (jobs, has_more) = waiting::head(&redis, &queue, &settings.jobs, &tenants, n_read)
            .await
            .with_context(|| format!("failed to read queue {queue} in Redis"))?;
        if has_more {
            let (n, queue) = (jobs.len(), text::one_line(&queue));
            complain(&format!("only the first {n} jobs of queue {queue} were read"));
        }
        lines.extend(jobs.into_iter().filter_map(|job| {
            let payload = Payload::parse_shared(&job.candidate.text).ok()?;
            let is_build = payload.class != PROBE && settings.jobs.runs(&payload.class);
            let is_wanted = account.as_ref().is_none_or(|account| *account == job.candidate.claim.tenant);
            (is_build && is_wanted).then(|| Line {
                id: id_in(&settings.jobs, &payload).unwrap_or_else(|| payload.jid.clone()),
                queued_at: payload.enqueued_at(),
                jid: payload.jid,
                queue: queue.clone(),
                account: job.candidate.claim.tenant.clone(),
                wait: job.wait,
            })
        }));
    }
    lines.sort_by_key(|line: &Line| line.wait.place().unwrap_or(usize::MAX));
    lines.truncate(n);
    Ok(lines)
}

pub(super) fn json_line(line: &Line) -> String {
    let line = json!({"id": line.id, "state": "queued", "jid": line.jid, "queue": line.queue, "account": line.account,
        "queued_at_ms": line.queued_at.map(Epoch::as_millis), "place": line.wait.place(), "waits_for": line.wait.to_string()});
    format!("{line}\n")
}

/// The columns line up.
pub(super) fn table(lines: &[Line], now: Epoch) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let header = ["BUILD", "QUEUE", "WAITED", "ACCOUNT", "WAITS FOR"].map(str::to_owned);
    let row = |line: &Line| {
        [
            text::one_line(&line.id),
            text::one_line(&line.queue),
            line.queued_at.map_or("-".into(), |at| duration(now.since(at).as_millis() as u64)),
            text::one_line(&line.account),
            text::one_line(&line.wait.to_string()),
        ]
    };
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(lines.iter().map(row)).collect();
    columns(&rows, "  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_long_a_build_has_waited_and_for_what() {
        let at = Epoch::from_secs_f64(1_800_000_000.0);
        let line = |id: &str, queued_at, wait| Line {
            id: id.into(),
            jid: "j".into(),
            queue: "builds".into(),
            account: "acme".into(),
            queued_at,
            wait,
        };
        let room = Wait::Room { counter: "tenant acme".into(), n_running: 3, limit: 3 };
        let lines = [line("b-1", Some(at), Wait::Turn(2)), line("b-22", None, room)];
        assert_eq!(
            table(&lines, Epoch::from_secs_f64(1_800_000_075.0)),
            "BUILD  QUEUE   WAITED  ACCOUNT  WAITS FOR\n\
             b-1    builds  1m 15s  acme     2nd in line\n\
             b-22   builds  -       acme     3 running of 3 allowed for acme\n"
        );
        let json: serde_json::Value = serde_json::from_str(&json_line(&lines[1])).expect("JSON");
        assert_eq!((&json["place"], &json["waits_for"]), (&json!(null), &json!("3 running of 3 allowed for acme")));
    }
}

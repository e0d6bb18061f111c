//! `sidebake list`: one line for each build, the newest first. Needs Redis alone.

mod queued;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::cancel::id_in;
use super::recorded::{columns, complain, duration, print, time};
use crate::clock::Epoch;
use crate::log_stream::{Summary, ids, page_of_builds, summaries};
use crate::redis::{Redis, RedisError};
use crate::settings::{PROBE, Settings, Shape};
use crate::sidekiq::{inflight, keys};
use crate::text;

/// Builds in one request.
const PAGE: usize = 200;

#[derive(Debug, Args)]
pub(super) struct List {
    /// List only builds that run now
    #[arg(long, conflicts_with = "failed")]
    running: bool,
    /// List only builds that wait in a queue, the next one first, and what each waits for
    #[arg(long, conflicts_with_all = ["failed", "running"])]
    queued: bool,
    /// List only builds that are over and failed
    #[arg(long)]
    failed: bool,
    /// List only builds of this account
    #[arg(long, value_name = "ACCOUNT")]
    account: Option<String>,
    /// The most builds to list
    #[arg(long, value_name = "N", default_value = "50")]
    limit: NonZeroUsize,
    /// Print a JSON object for each build
    #[arg(long)]
    json: bool,
}

/// A line of the list.
#[derive(Debug)]
struct Line {
    id: String,
    state: &'static str,
    /// `None` when the build has no record, or one that cannot be read.
    summary: Option<Summary>,
    /// When the last attempt began; `None` while it has no record.
    began_at_ms: Option<u64>,
}

/// A job in flight.
#[derive(Debug)]
struct Job {
    jid: String,
    /// As far as the job itself says it.
    id: Option<String>,
    /// Whether each attempt asks Rails for the build request.
    is_resolved: bool,
    /// From 1.
    attempt: u32,
    queued_at: Option<Epoch>,
    owner: String,
    has_lease: bool,
    is_idle: bool,
}

impl List {
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        if self.queued {
            return self.run_queued(settings).await;
        }
        let redis = Redis::new(&settings.redis_of_logs())?;
        let lines =
            if self.running { self.running(settings, &redis).await? } else { self.recorded(settings, &redis).await? };
        print(&if self.json { lines.iter().map(json_line).collect() } else { table(&lines, Epoch::now()) });
        if lines.is_empty() && !self.json {
            complain("no such build is recorded");
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn run_queued(&self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let lines = queued::lines(settings, self.account.as_deref(), self.limit.get()).await?;
        print(&if self.json {
            lines.iter().map(queued::json_line).collect()
        } else {
            queued::table(&lines, Epoch::now())
        });
        if lines.is_empty() && !self.json {
            complain("no such build waits");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The builds that run now, also those without a record.
    async fn running(&self, settings: &Settings, redis: &Redis) -> anyhow::Result<Vec<Line>> {
        let mut jobs = jobs_in_flight(settings).await.context("failed to ask Redis for the jobs in flight")?;
        jobs.retain(|job| !job.is_idle);
        let recorded = async {
            let logs: Vec<String> = jobs.iter().map(|job| keys::build_log(&job.jid)).collect();
            let known = ids(redis, &logs).await?;
            let ids: Vec<String> = jobs.iter().zip(known).map(|(job, known)| job.id_or(known)).collect();
            let records: Vec<String> = ids.iter().map(|id| keys::build_record(id)).collect();
            Ok::<_, RedisError>(ids.into_iter().zip(summaries(redis, &records).await?).collect::<Vec<_>>())
        };
        let recorded = recorded.await.unwrap_or_else(|error| {
            complain(&format!("the records of builds cannot be read: {error}"));
            jobs.iter().map(|job| (job.id_or(None), Ok(None))).collect()
        });
        let mut lines: Vec<Line> =
            jobs.iter().zip(recorded).map(|(job, (id, summary))| job.line(id, summary.ok().flatten())).collect();
        let n_unknown = lines.iter().filter(|line| line.summary.is_none()).count();
        if self.account.is_some() && n_unknown > 0 {
            complain(&format!("{n_unknown} running builds have no record, so their accounts are not known"));
        }
        lines.retain(|line| self.wants(line));
        lines.sort_by_key(|line| std::cmp::Reverse(line.began_at_ms.unwrap_or(u64::MAX)));
        lines.truncate(self.limit.get());
        Ok(lines)
    }

    /// The newest builds with a record. Reads page after page until there are enough.
    async fn recorded(&self, settings: &Settings, redis: &Redis) -> anyhow::Result<Vec<Line>> {
        let (mut lines, mut seen, mut in_flight) = (Vec::new(), HashSet::new(), None);
        for start in (0..).step_by(PAGE) {
            let mut page = page_of_builds(redis, keys::BUILDS, start, PAGE).await.context("failed to read the list")?;
            let is_last = page.len() < PAGE;
            // A build that begins meanwhile moves the others to the next page.
            page.retain(|id| seen.insert(id.clone()));
            let records: Vec<String> = page.iter().map(|id| keys::build_record(id)).collect();
            let summaries = summaries(redis, &records).await.context("failed to read the records of builds")?;
            for (id, summary) in page.into_iter().zip(summaries) {
                let summary = match summary {
                    // It has expired.
                    Ok(None) => continue,
                    Ok(summary) => summary,
                    Err(why) => {
                        complain(&format!("build {}: {why}", text::one_line(&id)));
                        None
                    }
                };
                let line = match summary {
                    None => Line { id, state: "unreadable", summary: None, began_at_ms: None },
                    Some(summary) if summary.is_over => Line::of_record(id, "over", summary),
                    Some(summary) => {
                        if in_flight.is_none() {
                            in_flight = Some(by_jid(settings).await);
                        }
                        line(id, summary, in_flight.as_ref().and_then(Option::as_ref))
                    }
                };
                if self.wants(&line) {
                    lines.push(line);
                }
                if lines.len() >= self.limit.get() {
                    return Ok(lines);
                }
            }
            if is_last {
                break;
            }
        }
        Ok(lines)
    }

    fn wants(&self, line: &Line) -> bool {
        let account = line.summary.as_ref().and_then(|summary| summary.account.as_deref());
        let has_failed =
            || line.summary.as_ref().is_some_and(|its| its.is_over && its.status.as_deref() == Some("failed"));
        (self.account.is_none() || self.account.as_deref() == account) && (!self.failed || has_failed())
    }
}

impl Job {
    fn id_or(&self, known: Option<String>) -> String {
        known.or_else(|| self.id.clone()).unwrap_or_else(|| self.jid.clone())
    }

    /// The job as a line, with what is recorded of its build.
    fn line(&self, id: String, recorded: Option<Summary>) -> Line {
        let state = match (self.has_lease, self.is_idle) {
            (false, _) => "silent",
            (true, true) => "held",
            (true, false) => "running",
        };
        // Another job with the same id is another build.
        match recorded.filter(|its| its.jid == self.jid) {
            None => Line { id, state, summary: None, began_at_ms: None },
            Some(summary) if self.is_idle || self.runs(&summary) => Line::of_record(id, state, summary),
            Some(earlier) => Line { id, state, summary: Some(self.again(earlier)), began_at_ms: None },
        }
    }

    /// Whether a summary tells of this run.
    fn runs(&self, summary: &Summary) -> bool {
        summary.worker == self.owner && summary.ended_at_ms.is_none()
    }

    /// What is known of this run when only an earlier attempt has a record.
    fn again(&self, earlier: Summary) -> Summary {
        // Rails may name another commit than for the earlier attempt.
        let (sha, git_ref) = if self.is_resolved { (None, None) } else { (earlier.sha, earlier.git_ref) };
        Summary {
            attempt: self.attempt,
            worker: self.owner.clone(),
            queued_at_ms: self.queued_at.map(Epoch::as_millis),
            ended_at_ms: None,
            status: None,
            reason: None,
            sha,
            git_ref,
            ..earlier
        }
    }
}

impl Line {
    /// A build whose last attempt has a record.
    fn of_record(id: String, state: &'static str, summary: Summary) -> Self {
        Self { id, state, began_at_ms: Some(summary.began_at_ms), summary: Some(summary) }
    }
}

/// The build jobs that processes hold, as far as Redis knows.
async fn jobs_in_flight(settings: &Settings) -> Result<Vec<Job>, RedisError> {
    let mut jobs = Vec::new();
    inflight::for_each(&Redis::new(&settings.redis)?, |held| {
        let class = held.payload.class.as_str();
        if class != PROBE && settings.jobs.runs(class) {
            jobs.push(Job {
                id: id_in(&settings.jobs, &held.payload),
                is_resolved: settings
                    .jobs
                    .classes
                    .get(class)
                    .is_some_and(|class| matches!(class.arguments, Shape::Resolved(_))),
                attempt: held.payload.n_failures().saturating_add(1),
                queued_at: held.payload.enqueued_at(),
                jid: held.payload.jid,
                owner: held.owner,
                has_lease: held.has_lease,
                is_idle: held.is_idle,
            });
        }
    })
    .await?;
    Ok(jobs)
}

/// The jobs in flight; `None` when their Redis does not answer.
async fn by_jid(settings: &Settings) -> Option<HashMap<String, Job>> {
    match jobs_in_flight(settings).await {
        Ok(jobs) => Some(jobs.into_iter().map(|job| (job.jid.clone(), job)).collect()),
        Err(error) => {
            complain(&format!("which builds run is not known: {error}"));
            None
        }
    }
}

/// A build that is not over in its record.
fn line(id: String, summary: Summary, in_flight: Option<&HashMap<String, Job>>) -> Line {
    let state = match in_flight.map(|jobs| jobs.get(&summary.jid)) {
        Some(Some(job)) => return job.line(id, Some(summary)),
        Some(None) if summary.ended_at_ms.is_some() => "waiting",
        Some(None) => "not_running",
        None => "unknown",
    };
    Line::of_record(id, state, summary)
}

fn json_line(line: &Line) -> String {
    let mut json = json!({"id": line.id, "state": line.state});
    let summary = line.summary.as_ref().map(|summary| serde_json::to_value(summary).expect("a summary is plain data"));
    if let (Value::Object(json), Some(Value::Object(summary))) = (&mut json, summary) {
        json.extend(summary);
        json.insert("began_at_ms".into(), json!(line.began_at_ms));
    }
    format!("{json}\n")
}

/// The columns line up.
fn table(lines: &[Line], now: Epoch) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let header = ["BUILD", "BEGAN (UTC)", "REPOSITORY", "COMMIT", "RESULT", "TOOK", "ACCOUNT"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(lines.iter().map(|line| row(line, now))).collect();
    columns(&rows, " ")
}

fn row(line: &Line, now: Epoch) -> [String; 7] {
    let shown = |text: Option<&str>| text.map_or_else(|| "-".into(), text::one_line);
    let id = text::one_line(&line.id);
    let Some(summary) = &line.summary else {
        let [began, repository, commit, took, account] = std::array::from_fn(|_| "-".to_owned());
        return [id, began, repository, commit, line.state.into(), took, account];
    };
    let result = summary.reason.as_deref().or(summary.status.as_deref());
    let result = match line.state {
        "over" => shown(result),
        "waiting" => format!("waits after {}", shown(result)),
        state => state.replace('_', " "),
    };
    let until = summary.ended_at_ms.or((line.state == "running").then(|| now.as_millis()));
    let took = line.began_at_ms.zip(until).map(|(began, until)| duration(until.saturating_sub(began)));
    [
        id,
        line.began_at_ms.map_or_else(|| "-".to_owned(), |began| time(began)[5..16].to_owned()),
        shown(summary.repository.as_deref()),
        shown(summary.sha.as_deref().map(|sha| sha.get(..7).unwrap_or(sha))),
        result,
        shown(took.as_deref()),
        shown(summary.account.as_deref()),
    ]
}

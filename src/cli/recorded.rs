//! Finds the record of a build, and says what is true of the build now: a record alone does not prove that a build runs.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::sleep;

use super::cancel::is_meant;
use crate::clock::Epoch;
use crate::log_stream::{AttemptRecord, BuildRecord, Lookup, look_up, read_record};
use crate::redis::{Redis, RedisError};
use crate::settings::Settings;
use crate::sidekiq::cancel::{self, JobLocation};
use crate::sidekiq::{inflight, keys};
use crate::text;

/// The build is unknown, or nothing is written of it yet.
pub(super) const UNKNOWN: u8 = 2;
/// What was written has expired.
pub(super) const EXPIRED: u8 = 3;

/// How long the end of a build may take from its settlement to its record.
const LATE: Duration = Duration::from_millis(500);

/// A build with its record, which has at least one attempt.
#[derive(Debug)]
pub(super) struct Recorded {
    /// In the keys of the build.
    pub id: String,
    pub record: BuildRecord,
    pub state: State,
}

/// What is true of a build now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its last attempt ended, and no other follows.
    Over,
    /// This worker runs it.
    Running(String),
    /// The worker that holds its job has no lease.
    Silent(String),
    /// This worker holds its job without running it.
    Held(String),
    /// Its job waits for a worker.
    Waiting(JobLocation),
    /// No process holds its job, and it has no recorded end.
    Lost,
    /// The Redis of the jobs does not say it.
    Unknown(String),
}

impl State {
    /// The name in JSON.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Over => "over",
            Self::Running(_) => "running",
            Self::Silent(_) => "silent",
            Self::Held(_) => "held",
            Self::Waiting(_) => "waiting",
            Self::Lost => "lost",
            Self::Unknown(_) => "unknown",
        }
    }

    /// The process that holds the job.
    pub(super) fn owner(&self) -> Option<&str> {
        match self {
            Self::Running(owner) | Self::Silent(owner) | Self::Held(owner) => Some(owner),
            _ => None,
        }
    }
}

impl Recorded {
    /// Opens the record of the build with this id or jid. Without one, complains and returns the exit status.
    pub(super) async fn open(settings: &Settings, build: &str) -> anyhow::Result<Result<Self, ExitCode>> {
        let redis = Redis::new(&settings.redis_of_logs())?;
        let Some(id) = find(&redis, build).await? else {
            return Ok(Err(complain_of_unknown(settings, build).await?));
        };
        let Some(mut record) = read(&redis, &id).await? else {
            let ttl = humantime_serde::re::humantime::format_duration(settings.journal.record_ttl);
            complain(&format!("the record of build {build} has expired; journal.record_ttl is {ttl}"));
            return Ok(Err(ExitCode::from(EXPIRED)));
        };
        let mut state = state_of(settings, &record).await;
        if matches!(state, State::Lost) {
            // It may have ended after its record was read.
            sleep(LATE).await;
            record = read(&redis, &id).await?.unwrap_or(record);
            state = state_of(settings, &record).await;
        }
        record.flaws.iter().for_each(|flaw| {
            complain(&format!("a part of the record of build {build} cannot be read: {}", text::one_line(flaw)));
        });
        if record.attempts.is_empty() {
            return Ok(Err(ExitCode::FAILURE));
        }
        Ok(Ok(Self { id, record, state }))
    }

    /// The last attempt.
    pub(super) fn last(&self) -> &AttemptRecord {
        &self.record.attempts.last().expect("the record has an attempt").attempt
    }

    /// The status of a command that has printed what can be read.
    pub(super) fn exit_status(&self) -> ExitCode {
        if self.record.flaws.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// The id in the keys of the build with this id or jid.
pub(super) async fn find(redis: &Redis, build: &str) -> anyhow::Result<Option<String>> {
    let found = look_up(redis, build, &keys::build_log(build), &keys::build_record(build)).await;
    match found.with_context(|| format!("failed to look for build {build} in Redis"))? {
        Lookup::Unknown => Ok(None),
        Lookup::Build(id) => Ok(Some(id)),
        Lookup::Ambiguous { jid, other } => bail!(
            "{build} names two builds: say {} for the build with this build_id, or {} for the build of this job",
            text::one_line(&jid),
            text::one_line(&other)
        ),
    }
}

async fn read(redis: &Redis, id: &str) -> anyhow::Result<Option<BuildRecord>> {
    let record = read_record(redis, &keys::build_record(id)).await;
    record.with_context(|| format!("failed to read the record of build {id}"))
}

async fn complain_of_unknown(settings: &Settings, build: &str) -> anyhow::Result<ExitCode> {
    let jobs = Redis::new(&settings.redis)?;
    let found = cancel::find(&jobs, |payload| is_meant(&settings.jobs, payload, build)).await;
    let found = found.with_context(|| format!("no record of build {build}; failed to look for its job in Redis"))?;
    match found.first() {
        Some(job) => complain(&format!("build {build} has no record yet; it is {}", job.location)),
        None => complain(&format!("no build {build} is known")),
    }
    if !settings.journal.stream {
        complain("journal.stream is off in these settings; workers with this setting write no records");
    }
    Ok(ExitCode::from(UNKNOWN))
}

async fn state_of(settings: &Settings, record: &BuildRecord) -> State {
    let Some(last) = record.attempts.last() else { return State::Lost };
    if last.attempt.summary.is_over {
        return State::Over;
    }
    let state = async { state_of_job(&Redis::new(&settings.redis)?, &last.attempt.summary.jid).await };
    state.await.unwrap_or_else(|error: RedisError| State::Unknown(error.to_string()))
}

/// Where a job is. Queues are long, so they come last.
async fn state_of_job(redis: &Redis, jid: &str) -> Result<State, RedisError> {
    let mut state = None;
    inflight::for_each(redis, |job| {
        if job.payload.jid == jid {
            state = Some(match (job.has_lease, job.is_idle) {
                (false, _) => State::Silent(job.owner),
                (true, true) => State::Held(job.owner),
                (true, false) => State::Running(job.owner),
            });
        }
    })
    .await?;
    if let Some(state) = state {
        return Ok(state);
    }
    let found = cancel::find(redis, |payload| payload.jid == jid).await?;
    Ok(match found.into_iter().next().map(|job| job.location) {
        None => State::Lost,
        Some(JobLocation::InFlight(owner)) => State::Running(owner),
        Some(JobLocation::Held(owner)) => State::Held(owner),
        Some(waiting) => State::Waiting(waiting),
    })
}

/// Why the first uncached step of a recorded target was not cached, as a sentence.
pub(super) fn why_not_cached(target: &Value) -> Option<String> {
    let why = target["why_not_cached"]["message"].as_str()?;
    Some(text::one_line(why))
}

/// Prints a result. A reader that has gone, as `head` does, is not a failure.
pub(super) fn print(result: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(result.as_bytes()).and_then(|()| out.flush()));
}

#[expect(clippy::print_stderr, reason = "what is said of the result is not a part of it")]
pub(super) fn complain(message: &str) {
    eprintln!("sidebake: {message}");
}

/// Rows as lines whose columns line up, with `gap` between them.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], gap: &str) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join(gap).trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Such as `2026-11-30 00:12:05`, in UTC.
pub(super) fn time(at_ms: u64) -> String {
    Epoch::from_millis(at_ms).timestamp().strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Such as `41ms`, `8.1s`, `2m 05s` or `1h 02m`.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_units_at_most() {
        let shown = [0, 8_149, 59_999, 125_000, 3_720_000, 360_000_000].map(duration);
        assert_eq!(shown, ["0ms", "8.1s", "59.9s", "2m 05s", "1h 02m", "100h 00m"]);
        assert_eq!(time(1_794_038_699_000), "2026-11-07 08:04:59");
    }
}

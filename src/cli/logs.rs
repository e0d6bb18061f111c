//! `sidebake logs`: prints the live log of a build. Needs Redis alone.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::cancel::is_meant;
use super::recorded::{self, EXPIRED, UNKNOWN, complain};
use crate::event::{Step, Warning};
use crate::log_stream::{LogRead, LogReader, Record, StepOf};
use crate::redis::Redis;
use crate::settings::Settings;
use crate::sidekiq::{cancel, keys};
use crate::text;

/// A part of the log was removed before it was read.
const REMOVED: u8 = 4;

/// How long one request waits for new records. It must be shorter than `redis.timeout`.
const WAIT: Duration = Duration::from_secs(1);

/// How soon Redis is asked again, for a build that has not begun or after a failure.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The jid or the build_id
    #[arg(value_name = "BUILD_ID|JID")]
    build: String,
    /// Wait for more until the build is over
    #[arg(short, long)]
    follow: bool,
    /// Print only records of this target
    #[arg(short, long, value_name = "TARGET")]
    target: Option<String>,
    /// Print each record as a JSON object with the id of its entry
    #[arg(long)]
    json: bool,
}

/// What was read so far.
#[derive(Debug, Default)]
struct Seen {
    targets: BTreeSet<String>,
    has_records: bool,
    has_gap: bool,
    is_over: bool,
}

impl Logs {
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let redis = Redis::new(&settings.redis_of_logs())?;
        let Some(id) = self.find(&redis, settings).await? else { return Ok(ExitCode::from(UNKNOWN)) };
        let mut reader = LogReader::new(&redis, keys::build_events(&id));
        let mut seen = Seen::default();
        loop {
            // A build that is over may have been started again.
            let waits = self.follow && !seen.is_over;
            let wait = if waits { WAIT.min(settings.redis.timeout / 2) } else { Duration::ZERO };
            let page = match reader.read(wait).await {
                Ok(LogRead::Page(page)) => page,
                Ok(LogRead::Gone) => return Ok(self.complain_of_end(settings, &seen)),
                Ok(LogRead::Nothing) if waits => continue,
                Ok(LogRead::Nothing) => break,
                // Redis may come back, and the reader goes on where it was.
                Err(error) if waits && error.code().is_none() => {
                    sleep(PAUSE).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if page.has_gap && !seen.has_gap {
                complain(&format!("entries of the log of build {} were removed before they were read", self.build));
            }
            seen.has_gap |= page.has_gap;
            if self.print(&page.records, &mut seen).is_err() {
                // The reader of the output has gone, as `head` does.
                return Ok(ExitCode::SUCCESS);
            }
        }
        Ok(self.conclude(&seen))
    }

    /// The id in the key of the build's stream. With `--follow`, waits for a build that has not begun.
    async fn find(&self, redis: &Redis, settings: &Settings) -> anyhow::Result<Option<String>> {
        let jobs = Redis::new(&settings.redis)?;
        let mut is_told = false;
        loop {
            // The search for the job reads every queue, so it comes rarely.
            let (n_looks, pause) = if is_told { (10, PAUSE) } else { (1, Duration::ZERO) };
            for _ in 0..n_looks {
                sleep(pause).await;
                if let Some(id) = recorded::find(redis, &self.build).await? {
                    return Ok(Some(id));
                }
            }
            let found = cancel::find(&jobs, |payload| is_meant(&settings.jobs, payload, &self.build)).await?;
            let Some(job) = found.first() else {
                // It may have ended meanwhile.
                let id = recorded::find(redis, &self.build).await?;
                if id.is_none() {
                    complain(&format!("no build {} is known", self.build));
                }
                return Ok(id);
            };
            if !is_told {
                complain(&format!("build {} has no log yet; it is {}", self.build, job.location));
            }
            if !self.follow {
                return Ok(None);
            }
            is_told = true;
        }
    }

    fn complain_of_end(&self, settings: &Settings, seen: &Seen) -> ExitCode {
        if seen.has_records {
            complain(&format!("the log of build {} was deleted while it was read", self.build));
            return ExitCode::from(REMOVED);
        }
        let ttl = humantime_serde::re::humantime::format_duration(settings.journal.ttl);
        complain(&format!("the log of build {} has expired; journal.ttl is {ttl}", self.build));
        ExitCode::from(EXPIRED)
    }

    fn conclude(&self, seen: &Seen) -> ExitCode {
        if let Some(target) = self.target.as_ref().filter(|target| !seen.targets.contains(*target)) {
            let known: Vec<&str> = seen.targets.iter().map(String::as_str).collect();
            let known = if known.is_empty() { "none so far".to_owned() } else { known.join(", ") };
            complain(&format!("build {} has no target {target}; its targets: {known}", self.build));
            return ExitCode::FAILURE;
        }
        if seen.has_gap { ExitCode::from(REMOVED) } else { ExitCode::SUCCESS }
    }

    fn print(&self, records: &[(String, Value)], seen: &mut Seen) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for (id, value) in records {
            seen.has_records = true;
            let target = value["target"].as_str();
            seen.targets.extend(target.map(str::to_owned));
            let record = Record::deserialize(value).ok();
            match record {
                Some(Record::Attempt { .. }) => seen.is_over = false,
                Some(Record::End { is_over, .. }) => seen.is_over = is_over,
                _ => {}
            }
            if self.target.as_deref().is_some_and(|wanted| target != Some(wanted)) {
                continue;
            }
            if self.json {
                let mut value = value.clone();
                value.as_object_mut().into_iter().for_each(|fields| drop(fields.insert("id".into(), json!(id))));
                writeln!(out, "{value}")?;
            } else {
                // A later version may write other records.
                record.map_or(Ok(()), |record| print_record(&mut out, record))?;
            }
        }
        out.flush()
    }
}

/// Prints a record as `label | line`.
fn print_record(out: &mut impl Write, record: Record) -> io::Result<()> {
    match record {
        Record::Output { of, lines } => {
            let label = label(of);
            lines.iter().try_for_each(|line| writeln!(out, "{label} | {}", text::plain(line)))
        }
        record => match line_of(record) {
            Some((label, line)) => writeln!(out, "{label} | {}", text::one_line(&line)),
            None => Ok(()),
        },
    }
}

/// The label and the line of a record other than output. The end of a phase or a step says nothing new.
fn line_of(record: Record) -> Option<(String, String)> {
    let of_build = |line: String| Some(("build".to_owned(), line));
    match record {
        Record::Attempt { jid, number, removed_bytes: 0 } => of_build(format!("attempt {number} of job {jid}")),
        Record::Attempt { jid, number, removed_bytes } => {
            of_build(format!("attempt {number} of job {jid}; earlier attempts were removed ({removed_bytes} bytes)"))
        }
        Record::Commit { repository, sha, .. } => of_build(format!("{repository} at {sha}")),
        Record::Phase { phase } => of_build(phase),
        Record::Placed { builder, pod, why } => {
            let at = pod.map_or(builder.clone(), |pod| format!("{builder}, pod {pod}"));
            of_build(format!("on builder {at}: {why}"))
        }
        Record::Step { of } => {
            let title = of.step.clone();
            Some((label(of), title))
        }
        Record::Missing { of, lines, bytes } => {
            Some((label(of), format!("… {lines} lines ({bytes} bytes) are missing here")))
        }
        Record::StepEnd { of, error: Some(error), .. } => Some((label(of), format!("failed: {error}"))),
        Record::StepEnd { of, is_cached: true, .. } => Some((label(of), "cached".into())),
        Record::TargetEnd { target, status, digest, .. } => {
            let status = status.unwrap_or_else(|| "not reached".into());
            Some((target, digest.map_or(status.clone(), |digest| format!("{status}, {digest}"))))
        }
        Record::Warning { target, message, dockerfile, line } => {
            let warning = Warning { target: None, message, dockerfile, line, url: None };
            Some((target.unwrap_or_else(|| "build".into()), warning.to_string()))
        }
        Record::Notice { message } => of_build(format!("notice: {message}")),
        Record::LeftOut { records, lines } => {
            of_build(format!("… {records} records and {lines} lines are left out here"))
        }
        Record::End { status, message, is_over, .. } => {
            let rest = message.map_or(String::new(), |message| format!(": {message}"));
            of_build(format!("{status}{rest}{}", if is_over { "" } else { "; another attempt follows" }))
        }
        Record::Output { .. }
        | Record::PhaseEnd { .. }
        | Record::Targets { .. }
        | Record::StepEnd { .. }
        | Record::TargetDone { .. } => None,
    }
}

fn label(of: StepOf) -> String {
    Step { target: of.target.map(Into::into), name: of.step.into() }.label()
}

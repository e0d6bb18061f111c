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
use crate::log_record::LogRecord;
use crate::log_stream::{HistoryError, LogRead, LogReader};
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
                Ok(LogRead::Gone) => {
                    let archive_url = redis.query(redis::cmd("GET").arg(keys::build_archive(&id))).await?;
                    return Ok(self.complain_of_end(settings, &seen, archive_url));
                }
                Ok(LogRead::Nothing) if waits => continue,
                Ok(LogRead::Nothing) => break,
                // Redis may come back, and the reader goes on where it was.
                Err(HistoryError::Redis(error)) if waits && error.code().is_none() => {
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

    fn complain_of_end(&self, settings: &Settings, seen: &Seen, archive_url: Option<String>) -> ExitCode {
        let archived =
            archive_url.map_or(String::new(), |url| format!("; the whole log is at {}", text::one_line(&url)));
        if seen.has_records {
            complain(&format!("the log of build {} was deleted while it was read{archived}", self.build));
            return ExitCode::from(REMOVED);
        }
        let ttl = humantime_serde::re::humantime::format_duration(settings.journal.ttl);
        complain(&format!("the log of build {} has expired; journal.ttl is {ttl}{archived}", self.build));
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
        for (n, (id, value)) in records.iter().enumerate() {
            seen.has_records = true;
            let target = value["target"].as_str();
            seen.targets.extend(target.map(str::to_owned));
            let record = LogRecord::deserialize(value).ok();
            match record {
                Some(LogRecord::Attempt { .. }) => seen.is_over = false,
                Some(LogRecord::End { is_over, .. }) => seen.is_over = is_over,
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
                match record {
                    Some(LogRecord::Progress { of, lines, bytes, .. }) if self.follow && is_latest(&records[n..]) => {
                        writeln!(out, "{} | … still printing: {lines} more lines ({bytes} bytes) so far", of.label())?;
                    }
                    // A later version may write other records.
                    record => record.map_or(Ok(()), |record| record.write_text(&mut out))?,
                };
            }
        }
        out.flush()
    }
}

/// Whether the first record is the last one of its step: then its progress is news.
fn is_latest(records: &[(String, Value)]) -> bool {
    let step_of = |(_, value): &(String, Value)| (value["target"].clone(), value["step"].clone());
    records[1..].iter().all(|other| step_of(other) != step_of(&records[0]))
}

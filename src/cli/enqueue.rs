//! `sidebake enqueue`: pushes what Rails' Sidekiq client would push.

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;

use super::read_json;
use crate::clock::Epoch;
use crate::redis::Redis;
use crate::settings::Settings;
use crate::sidekiq::keys;
use crate::sidekiq::payload::Payload;
use crate::{bounds, hex};

#[derive(Debug, Args)]
pub(super) struct Enqueue {
    /// A build request or a whole Sidekiq payload, as JSON; `-` reads standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// The job class of a build request
    #[arg(long, default_value = "BuildJob")]
    class: String,
    /// The queue of a build request
    #[arg(long, default_value = "default")]
    queue: String,
}

impl Enqueue {
    #[expect(clippy::print_stdout, reason = "the jid is the command's result")]
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let given = read_json(&self.file)?;
        let (now, form) = (Epoch::now(), settings.jobs.timestamps);
        let payload = Payload::parse(self.payload(given, &now.json(form)).to_string().as_bytes())?;
        if let Some(flaw) = payload.flaw() {
            bail!("{flaw}");
        }
        if payload.jid.is_empty() {
            bail!("jid: expected one line of at most {} bytes", bounds::NAME);
        }
        let queue = payload.queue().unwrap_or_else(|| "default".into());
        let text = payload.enqueued(&queue, now, form);
        let mut push = redis::pipe();
        push.sadd(keys::QUEUES, &queue).ignore().lpush(keys::queue(&queue), text).ignore();
        Redis::new(&settings.redis)?.pipeline::<()>(&push).await?;
        println!("{}", payload.jid);
        Ok(ExitCode::SUCCESS)
    }

    fn payload(&self, given: Value, now: &Value) -> Value {
        let is_payload = given.get("class").is_some() && given.get("args").is_some();
        let mut job =
            if is_payload { given } else { json!({"class": self.class, "queue": self.queue, "args": [given]}) };
        for (field, value) in [
            ("retry", json!(true)),
            ("queue", json!("default")),
            ("jid", json!(hex::random::<12>())),
            ("created_at", now.clone()),
            ("enqueued_at", now.clone()),
        ] {
            if job.get(field).is_none() {
                job[field] = value;
            }
        }
        job
    }
}

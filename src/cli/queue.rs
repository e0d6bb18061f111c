//! `sidebake queue`: the tenants of a queue. Needs Redis alone.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;

use super::recorded::{columns, duration, print};
use crate::clock::Epoch;
use crate::redis::Redis;
use crate::settings::{Settings, Tenants};
use crate::sidekiq::limits;
use crate::sidekiq::waiting::{self, Waiting};
use crate::text;

#[derive(Debug, Args)]
pub(super) struct Queue {
    /// The queue; default: all queues of the settings
    #[arg(value_name = "QUEUE")]
    queue: Option<String>,
    /// Print a JSON object for each tenant
    #[arg(long)]
    json: bool,
}

impl Queue {
    pub(super) async fn run(self, settings: &Settings) -> anyhow::Result<ExitCode> {
        let redis = Redis::new(&settings.redis)?;
        let mut tenants = settings.tenants.clone();
        tenants.others = limits::of_fleet(&redis).await.context("failed to read the limits in Redis")?;
        for queue in self.queue.map_or_else(|| settings.queues(), |queue| vec![queue]) {
            let found = waiting::by_tenant(&redis, &queue, &settings.jobs, &tenants)
                .await
                .with_context(|| format!("failed to read queue {queue} in Redis"))?;
            let now = Epoch::now();
            print(&if self.json {
                json_lines(&queue, &found, &tenants, now)
            } else {
                table(&queue, &found, &tenants, now)
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The share of each tenant with waiting or running jobs, in percent, when all of them have enough jobs.
fn shares(found: &BTreeMap<String, Waiting>, tenants: &Tenants) -> BTreeMap<String, f64> {
    let total: f64 = found.keys().map(|tenant| tenants.weight_of(tenant)).sum();
    found.keys().map(|tenant| (tenant.clone(), 100.0 * tenants.weight_of(tenant) / total)).collect()
}

/// What the first job of a tenant waits for.
fn waits_for(waiting: &Waiting) -> String {
    match &waiting.waits_for {
        _ if waiting.n_waiting == 0 => "nothing".into(),
        Some(wait) => wait.to_string(),
        None => "jobs in front".into(),
    }
}

fn json_lines(queue: &str, found: &BTreeMap<String, Waiting>, tenants: &Tenants, now: Epoch) -> String {
    let shares = shares(found, tenants);
    let line = |(tenant, waiting): (&String, &Waiting)| {
        let limit = tenants.limit_of(tenant);
        let oldest_ms = waiting.oldest.map(|oldest| now.since(oldest).as_millis() as u64);
        let share = (shares[tenant] * 10.0).round() / 10.0;
        let line = json!({"queue": queue, "tenant": tenant, "running": waiting.n_running, "queued": waiting.n_waiting,
            "oldest_ms": oldest_ms, "share_percent": share, "limit": limit, "waits_for": waits_for(waiting)});
        format!("{line}\n")
    };
    found.iter().map(line).collect()
}

/// The tenants with the most waiting jobs first.
fn table(queue: &str, found: &BTreeMap<String, Waiting>, tenants: &Tenants, now: Epoch) -> String {
    let n_waiting: usize = found.values().map(|waiting| waiting.n_waiting).sum();
    let head = format!("queue {}: {n_waiting} waiting\n", text::one_line(queue));
    if found.is_empty() {
        return head;
    }
    let shares = shares(found, tenants);
    let mut sorted: Vec<(&String, &Waiting)> = found.iter().collect();
    sorted.sort_by(|a, b| b.1.n_waiting.cmp(&a.1.n_waiting).then(a.0.cmp(b.0)));
    let header = ["TENANT", "RUNNING", "QUEUED", "OLDEST", "SHARE", "LIMIT", "WAITS FOR"].map(str::to_owned);
    let row = |(tenant, waiting): (&String, &Waiting)| {
        let limit = tenants.limit_of(tenant);
        [
            text::one_line(tenant),
            waiting.n_running.to_string(),
            waiting.n_waiting.to_string(),
            waiting.oldest.map_or("-".into(), |oldest| duration(now.since(oldest).as_millis() as u64)),
            format!("{:.0}%", shares[tenant]),
            limit.map_or("-".into(), |limit| limit.to_string()),
            waits_for(waiting),
        ]
    };
    let rows: Vec<[String; 7]> = std::iter::once(header).chain(sorted.into_iter().map(row)).collect();
    head + &columns(&rows, "  ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::NamePattern;
    use crate::sidekiq::line::Wait;

    #[test]
    fn a_tenant_has_its_share_its_limit_and_what_it_waits_for() {
        let now = Epoch::from_secs_f64(1_800_000_000.0);
        let tenants = Tenants {
            weights: BTreeMap::from([(NamePattern::new("acme"), 3.0)]),
            limits: BTreeMap::from([(NamePattern::new("free-*"), 1)]),
            ..Tenants::default()
        };
        let oldest = Some(Epoch::from_secs_f64(1_799_999_875.0));
        let found = BTreeMap::from([
            ("acme".to_owned(), Waiting { n_waiting: 12, oldest, n_running: 4, waits_for: Some(Wait::Turn(1)) }),
            ("free-x".to_owned(), Waiting { n_waiting: 1, oldest: None, n_running: 1, waits_for: None }),
        ]);
        assert_eq!(
            table("default", &found, &tenants, now),
            "queue default: 13 waiting\n\
             TENANT  RUNNING  QUEUED  OLDEST  SHARE  LIMIT  WAITS FOR\n\
             acme    4        12      2m 05s  75%    -      1st in line\n\
             free-x  1        1       -       25%    1      jobs in front\n"
        );
        let lines = json_lines("default", &found, &tenants, now);
        let first: serde_json::Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first["oldest_ms"], 125_000);
        assert_eq!(table("q", &BTreeMap::new(), &tenants, now), "queue q: 0 waiting\n");
    }
}

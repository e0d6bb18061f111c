//! The limits of tenants in the whole fleet. Workers with other settings may share a queue, such as during a deployment: the stricter
//! limit holds.

use std::sync::LazyLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::keys;
use crate::json;
use crate::redis::{Complaint, Redis, RedisError, Script};
use crate::settings::{Limits, Tenants};

static LIMITS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("limits.lua")));

/// How often a worker exchanges limits.
const PERIOD: Duration = Duration::from_secs(10);

/// How long limits count after a worker with them was last seen.
const COUNTED_S: u64 = 60;

/// Exchanges limits until `stop`.
pub async fn run(redis: &Redis, tenants: &Tenants, fleet: &watch::Sender<Vec<Limits>>, stop: &CancellationToken) {
    let mut ticks = interval(PERIOD);
    let mut complaint = Complaint::new("limits_not_exchanged", "the limits of other workers are not known");
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        if let Some(limits) = complaint.hear(exchange(redis, &tenants.own_limits()).await) {
            fleet.send_if_modified(|known| {
                let is_new = *known != limits;
                *known = limits;
                is_new
            });
        }
    }
}

async fn exchange(redis: &Redis, own: &Limits) -> Result<Vec<Limits>, RedisError> {
    let text = if own.is_empty() { String::new() } else { serde_json::to_string(own).expect("limits are plain data") };
    let mut script = LIMITS.key(keys::LIMITS);
    script.arg(text).arg(COUNTED_S);
    Ok(read(&redis.script::<Vec<String>>(&script).await?))
}

/// The limits of all workers that were seen within a minute, each once.
pub async fn of_fleet(redis: &Redis) -> Result<Vec<Limits>, RedisError> {
    Ok(read(&redis.query::<Vec<String>>(redis::cmd("ZRANGE").arg(keys::LIMITS).arg(0).arg(-1)).await?))
}

/// Leaves out what a later version wrote in another form.
fn read(texts: &[String]) -> Vec<Limits> {
    texts.iter().filter_map(|text| json::read(text.as_bytes()).ok()).collect()
}

//! The processes that Sidekiq lists, and how often Ruby's look for due jobs.
//!
//! Each of Ruby's processes pauses for longer the more processes are listed, so that all together look every five seconds. A worker
//! is listed. Follows Sidekiq 6.4 to 8.1, `Scheduled::Poller`.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::RedisResult;
use serde::Deserialize;

use super::keys;
use crate::clock::Epoch;
use crate::json;
use crate::redis::{Redis, RedisError};

/// `average_scheduled_poll_interval` of Sidekiq.
const AVERAGE: Duration = Duration::from_secs(5);

/// From so many processes on, the pauses begin at zero.
const MANY: usize = 10;

/// The first version whose mean pause is right for many processes. Earlier ones pause for half of it.
const PAUSES_IN_FULL: [u32; 3] = [8, 0, 10];

/// The listed processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// Workers of sidebake.
    pub n_workers: usize,
    /// The versions of Ruby's processes. Sidekiq 6 does not tell its version.
    pub ruby: Vec<Option<[u32; 3]>>,
}

/// Jobs of a set whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// How many.
    pub n_jobs: usize,
    /// How long the first one has waited.
    pub oldest: Duration,
}

#[derive(Deserialize)]
struct Info {
    version: Option<String>,
}

impl Processes {
    /// Reads the list. Leaves out processes without a heartbeat, which the next poll removes.
    pub async fn read(redis: &Redis) -> Result<Self, RedisError> {
        let mut lists = redis::pipe();
        lists.cmd("SMEMBERS").arg(keys::PROCESSES).cmd("SMEMBERS").arg(keys::OWNERS);
        let (listed, owners): (Vec<String>, BTreeSet<String>) = redis.pipeline(&lists).await?;
        let mut processes = Self::default();
        if listed.is_empty() {
            return Ok(processes);
        }
        let mut look = redis::pipe();
        look.ignore_errors();
        listed.iter().for_each(|identity| {
            look.cmd("HGET").arg(identity).arg("info");
        });
        let infos: Vec<RedisResult<Option<Vec<u8>>>> = redis.pipeline(&look).await?;
        for (identity, info) in listed.into_iter().zip(infos) {
            match info.ok().flatten().and_then(|info| json::read::<Info>(&info).ok()) {
                _ if owners.contains(&identity) => processes.n_workers += 1,
                Some(info) => processes.ruby.push(info.version.as_deref().and_then(numbers)),
                None => {}
            }
        }
        Ok(processes)
    }

    /// The mean time between two looks of Ruby's processes; `None` without any.
    pub fn ruby_looks_every(&self) -> Option<Duration> {
        self.looks_every(self.ruby.len() + self.n_workers)
    }

    /// The same if no worker were listed.
    pub fn ruby_alone_looks_every(&self) -> Option<Duration> {
        self.looks_every(self.ruby.len())
    }

    fn looks_every(&self, n_listed: usize) -> Option<Duration> {
        let mean_s = AVERAGE.as_secs_f64() * n_listed as f64;
        let looks_per_s = |version: &Option<[u32; 3]>| {
            let is_short = n_listed >= MANY && version.is_none_or(|version| version < PAUSES_IN_FULL);
            if is_short { 2.0 / mean_s } else { 1.0 / mean_s }
        };
        let per_s: f64 = self.ruby.iter().map(looks_per_s).sum();
        (per_s > 0.0).then(|| Duration::from_secs_f64(1.0 / per_s))
    }

    /// The `average_scheduled_poll_interval` with which Ruby's processes look as often as without workers.
    pub fn interval_for_ruby(&self) -> Duration {
        AVERAGE.mul_f64(self.ruby.len() as f64 / (self.ruby.len() + self.n_workers).max(1) as f64)
    }
}

fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)])
}

/// The due jobs of the retry set and the schedule; `None` when there are none.
pub async fn overdue(redis: &Redis, now: Epoch) -> Result<Option<Overdue>, RedisError> {
    let mut look = redis::pipe();
    for set in [keys::RETRY, keys::SCHEDULE] {
        look.cmd("ZCOUNT").arg(set).arg("-inf").arg(now.as_secs_f64());
        look.cmd("ZRANGE").arg(set).arg(&["0", "0", "WITHSCORES"]);
    }
    type First = Vec<(Vec<u8>, f64)>;
    let (n_retries, retry, n_scheduled, scheduled): (usize, First, usize, First) = redis.pipeline(&look).await?;
    let first = retry.iter().chain(&scheduled).map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let n_jobs = n_retries + n_scheduled;
    Ok((n_jobs > 0).then(|| Overdue { n_jobs, oldest: now.since(Epoch::from_secs_f64(first.max(0.0))) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n_ruby: usize, version: Option<[u32; 3]>, n_workers: usize) -> Option<[f64; 2]> {
        let processes = Processes { n_workers, ruby: vec![version; n_ruby] };
        let looks = [processes.ruby_alone_looks_every()?, processes.ruby_looks_every()?];
        Some(looks.map(|every| every.as_secs_f64().round()))
    }

    #[test]
    fn ruby_looks_less_often_beside_workers() {
        let newest = Some([8, 1, 7]);
        assert_eq!(seconds(0, newest, 9), None);
        assert_eq!(seconds(1, newest, 0), Some([5.0, 5.0]));
        assert_eq!(seconds(1, newest, 9), Some([5.0, 50.0]));
        assert_eq!(seconds(9, newest, 9), Some([5.0, 10.0]));
        assert_eq!(seconds(30, newest, 30), Some([5.0, 10.0]));
        // Versions before 8.0.10 pause for half as long from ten processes on.
        assert_eq!(seconds(1, None, 9), Some([5.0, 25.0]));
        assert_eq!(seconds(30, Some([7, 3, 2]), 30), Some([3.0, 5.0]));
    }

    #[test]
    fn a_shorter_interval_makes_up_for_the_workers() {
        let processes = Processes { n_workers: 9, ruby: vec![None] };
        assert_eq!(processes.interval_for_ruby(), Duration::from_millis(500));
    }

    #[test]
    fn a_version_has_three_numbers() {
        assert_eq!(
            ["8.1.7", "7.3", "8.2.0.pre1", "x"].map(numbers),
            [Some([8, 1, 7]), Some([7, 3, 0]), Some([8, 2, 0]), None]
        );
    }
}

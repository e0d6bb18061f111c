//! One run: jobs come, things break, everything is mended, and the queues run dry.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::Script;
use serde_json::{Value, json};
use world::Redis;

use crate::Verdict;
use crate::audit::Ending;
use crate::faults::{self, Counts, Kind};
use crate::fleet::Fleet;
use crate::mutants::Without;
use crate::stalls::Stalls;

/// When nothing breaks any more and no job ends for this long, what is left is stuck. The longest wait there may be is that for
/// a second retry.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct Story {
    /// How long jobs come and things break.
    pub duration: Duration,
    pub n_jobs: usize,
    /// How many of a hundred jobs outlive every fault.
    pub n_long: u32,
    pub n_faults: usize,
    pub seed: u64,
    pub kinds: Vec<Kind>,
    /// `appendfsync`.
    pub fsync: &'static str,
    pub mutant: Option<Without>,
}

impl Story {
    /// The judgement about one run; when it is bad and custody was whole, the logs are kept.
    pub async fn tell(&self, judge: fn(&Ending) -> Verdict) -> Verdict {
        let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", self.fsync]);
        let rewrite = match self.mutant {
            Some(mutant) => Some(mutant.rewrite(&redis).await),
            None => None,
        };
        let mut fleet = Fleet::start(3, redis.port(), rewrite.as_ref()).await;
        let started = Instant::now();
        let stalls = Stalls::watch();
        let (jids, counts) = tokio::join!(self.push_all(&redis), self.break_all(&redis, &mut fleet));
        let mut stuck = self.run_dry(&redis).await;
        fleet.outages.extend(stalls.end());
        let mut dead = Vec::new();
        for worker in &mut fleet.workers {
            if !worker.is_running() {
                dead.push(worker.log().display().to_string());
            }
        }
        stuck.extend(dead.into_iter().map(|log| format!("a worker has ended by itself: {log}")));
        let verdict = judge(&Ending::read(&redis, &fleet, jids, counts, stuck, started.elapsed()).await);
        if verdict.is_err() && self.mutant.is_none() {
            println!("  the logs stay in {}", fleet.keep_logs().display());
        }
        verdict
    }

    /// Pushes each job once, however often that has to be tried; the jids.
    async fn push_all(&self, redis: &Redis) -> BTreeSet<String> {
        let mut random = StdRng::seed_from_u64(self.seed);
        // What was pushed is on record in the same step, so that it can be tried again.
        let push = Script::new(
            "if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[2]) end return 1",
        );
        let mut interval = tokio::time::interval(self.duration.div_f64(self.n_jobs as f64));
        let mut jids = BTreeSet::new();
        for n in 0..self.n_jobs {
            interval.tick().await;
            let jid = format!("{:08x}{n:016x}", self.seed);
            let queue = if random.random_bool(0.2) { "low" } else { "default" };
            let text = job(&mut random, &jid, queue, self.n_long).to_string();
            loop {
                let client = redis::Client::open(redis.url()).unwrap();
                let pushed = async {
                    let mut connection = client.get_multiplexed_async_connection().await?;
                    let mut push = push.key("torture:pushed");
                    push.key(format!("queue:{queue}")).arg(&jid).arg(&text);
                    push.invoke_async::<i64>(&mut connection).await
                };
                match tokio::time::timeout(Duration::from_secs(2), pushed).await {
                    Ok(Ok(_)) => break,
                    _ => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            jids.insert(jid);
        }
        jids
    }

    /// Breaks one thing after another, at times that the seed gives.
    async fn break_all(&self, redis: &Redis, fleet: &mut Fleet) -> Counts {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0xfa);
        let started = Instant::now();
        let mut at: Vec<f64> = (0..self.n_faults).map(|_| random.random_range(0.02..1.0)).collect();
        at.sort_by(f64::total_cmp);
        let mut counts = Counts::new();
        for fraction in at {
            let due = self.duration.mul_f64(fraction);
            tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
            let kind = self.kinds[random.random_range(0..self.kinds.len())];
            faults::one(kind, &mut random, fleet, redis).await;
            *counts.entry(kind).or_default() += 1;
        }
        counts
    }

    /// Waits until nothing is queued, due or in flight; what is left when no more jobs end.
    async fn run_dry(&self, redis: &Redis) -> Vec<String> {
        let mut n_processed = None;
        let mut since = Instant::now();
        loop {
            let mut left = Vec::new();
            for queue in ["default", "low"] {
                left.extend(redis.queue(queue).await.into_iter().map(|job| format!("queue:{queue} {job}")));
            }
            left.extend(redis.sorted_set("retry").await.into_iter().map(|(job, at)| format!("retry at {at} {job}")));
            for key in redis.keys("sidebake:inflight:*").await {
                let lease = key.replace(":inflight:", ":lease:");
                let turn = redis.get(&lease).await;
                let entries = redis.hgetall(&key).await;
                left.extend(entries.iter().map(|(token, job)| format!("{key} (lease {turn:?}) {token} {job}")));
            }
            let now_processed = redis.get("stat:processed").await;
            if now_processed != n_processed {
                (n_processed, since) = (now_processed, Instant::now());
            }
            if left.is_empty() || since.elapsed() > PATIENCE {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Most are short, some outlive every fault; most succeed, some are the customer's mistake, a few die.
fn job(random: &mut StdRng, jid: &str, queue: &str, n_long: u32) -> Value {
    let sleep_s: f64 = match random.random_range(0..100_u32) {
        n if n < n_long => random.random_range(8.0..14.0),
        n if n < n_long + 9 => random.random_range(0.5..2.0),
        _ => random.random_range(0.0..0.2),
    };
    let (outcome, retry) = match random.random_range(0..100) {
        0..3 => ("infrastructure", json!(0)),
        3..10 => ("user", json!(true)),
        _ => ("succeed", json!(true)),
    };
    json!({
        "class": "Sidebake::Probe", "queue": queue, "jid": jid, "retry": retry, "created_at": 1.0, "enqueued_at": 1.0,
        "args": [{"outcome": outcome, "sleep_s": sleep_s, "message": "as asked",
            "callback": {"class": "Done", "queue": "callbacks", "on": ["finished", "retrying"]}}],
    })
}

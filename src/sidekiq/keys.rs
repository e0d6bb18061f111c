//! Every key in Redis: Sidekiq's own, and those that sidebake adds.
//!
//! | key | type | content | who writes | life |
//! |---|---|---|---|---|
//! | `queues` | set | queue names | clients, workers | – |
//! | `queue:<q>` | list | job texts | clients push left, workers take right | – |
//! | `paused` | set | names of queues that no worker fetches from | Sidekiq Pro | – |
//! | `retry`, `schedule` | zset | job texts by due time, float seconds | workers; clients | – |
//! | `dead` | zset | job texts by time of death | workers | trimmed by age and count |
//! | `processes` | set | identities | heartbeat | – |
//! | `<identity>` | hash | what the Web UI shows of a process | heartbeat | 60 s |
//! | `<identity>:work`, `<identity>:workers` | hash | running jobs | heartbeat | 60 s |
//! | `<identity>-signals` | list | `TSTP`, `TERM`, `TTIN` | the Web UI | 60 s |
//! | `process_cleanup` | string | lock: one process at a time prunes `processes` | poller, Ruby | 60 s |
//! | `it-<jid>` | hash | progress of a running job; `cancelled` | iteration, cancel, `cancel!` of Ruby's client | 30 days |
//! | `stat:processed`, `stat:failed` | string | counters | turn | – |
//! | `stat:processed:<UTC day>`, `stat:failed:<UTC day>` | string | counters | turn | 5 years |
//! | `j\|…` | hash | runs, failures and milliseconds of each class | metrics | 8 hours, 3 days |
//! | `<class>-…`, `h\|<class>-…` | string | histogram of run times, for Sidekiq 7 and 8 | metrics | 8 hours |
//! | `sidebake:inflight:<identity>` | hash | jobs in flight; [`super::inflight`] has the format | turn, begin, recovery | – |
//! | `sidebake:owners` | set | identities that may hold jobs | lease | – |
//! | `sidebake:lease:<identity>` | string | incarnation, and number of the last turn | lease, turn | the lease |
//! | `sidebake:suspects` | hash | identity → since when it has no lease; `recover.lua` has the values | recovery, lease | – |
//! | `sidebake:recoveries` | hash | sha1 of a job text → its recoveries; `recover.lua` has the values | recovery | 72 h |
//! | `sidebake:interruptions` | hash | sha1 of a job text → how often a stop killed it, and when | turn | 72 h |
//! | `sidebake:apart` | set | identities of the processes that hold a suspect job | turn, recovery, lease | – |
//! | `sidebake:claims:<identity>` | hash | token → what a job in flight counts for; `claims.lua` has the values | turn, recovery, sweep | – |
//! | `sidebake:running` | hash | counter → running jobs of the fleet; the sum of all claims | turn, recovery, sweep | – |
//! | `sidebake:limits` | zset | limits as JSON, by when a worker with them was last seen | limits | a minute each |
//! | `sidebake:shares` | hash | tenant → its virtual time; `claims.lua` has the values | turn, recovery, sweep | a day |
//! | `sidebake:ahead:<queue>` | list | copies of jobs that are far behind in a queue, of tenants that are not in front | scout | 30 s |
//! | `sidebake:scout:<queue>` | string | lock: one process at a time looks for the jobs behind | scout | 5 s |
//! | `sidebake:watch:<queue>:<digest of settings>` | string | lock: one process at a time looks for jobs that only have to end | watch | 1 s |
//! | `sidebake:queued:<queue>` | string | lock: one process at a time shows what jobs wait for | queued | 5 s |
//! | `sidebake:load:<digest of queue names>` | string | JSON: what waits and runs, for `/metrics` and `/scale` | load | 10 s |
//! | `sidebake:load:<digest of queue names>:<queue>` | string | lock: one process at a time reads the first jobs for it | load | 5 s |
//! | `sidebake:newest:<hash of account, repository and ref>` | string | the newest job that builds the same; `edition.lua` has the values | newest | 30 days |
//! | `sidebake:twin:<hash of the inputs>` | hash | `result`: what jobs with the same inputs get, as JSON; `ended_us` | processor | 10 minutes |
//! | `sidebake:scan` | string | lock: one process at a time looks for dead owners | recovery | a sixth of the lease |
//! | `sidebake:poller:<digest of settings>` | string | the identity of the process that looks for due jobs | poller | twice `jobs.poll_interval` |
//! | `sidebake:shards:<builder>` | hash | token and identity of a running build → its shard | shard | a day |
//! | `sidebake:warm:<hash of a pod and a base image>` | string | the claim of a build, or `warm` when the pod has built the image | warm | a minute, a day |
//! | `sidebake:home:<builder>:<hash of the application>` | string | the shards that have its cache, its home first | shard | 30 days |
//! | `sidebake:occupancy:<identity>` | string | JSON: builder → pod → running builds | occupancy | 60 s |
//! | `sidebake:build:<build_id or jid>:events` | stream | events and output of a build; `docs/logs.md` has the format | log stream | `journal.ttl` after the end; a day while it runs |
//! | `sidebake:build:<build_id or jid>:record` | hash | the attempts, and the build in one line; `docs/history.md` has the format | log stream | `journal.record_ttl` after the end; a day at least while it runs |
//! | `sidebake:build:<build_id or jid>:log` | string | the id in the keys of the build | log stream | 7 days longer than stream and record |
//! | `sidebake:last:<builder>:<trust>:<host>:<repository id>`, the same with `:<hash of a ref>` | hash | target → JSON of what its last build depended on; [`crate::cache`] has the values, as keyed hashes | last builds | `last_builds.ttl` |
//! | `sidebake:build:<build_id or jid>:archive` | string | the URL of the last attempt's archived log | log stream | 7 days longer than stream and record |
//! | `sidebake:builds` | zset | ids of builds by the time at which their last attempt began, in milliseconds | log stream | trimmed by age and count |
//!
//! The key names in the scripts are arguments from here. Some are made in `turn.lua`, which says why: `stat:*`, the leases
//! of other processes, `sidebake:ahead:*`, and `sidebake:none`, which never exists. `claims.lua` makes `sidebake:claims:*`,
//! `sidebake:running` and `sidebake:shares`, and says why.
//!
//! A job is in exactly one of queue, in flight, retry and dead. Every move is one script. A job's text stays as it is, with one
//! exception: the second of two equal entries of a sorted set ends in white space. Follows Sidekiq 8.1.

use std::fmt::Display;

use sha2::{Digest, Sha256};

use crate::clock::Epoch;
use crate::hex;

/// Queue names.
pub const QUEUES: &str = "queues";
/// Names of paused queues.
pub const PAUSED: &str = "paused";
/// Jobs that wait for a retry.
pub const RETRY: &str = "retry";
/// Jobs that wait for their time.
pub const SCHEDULE: &str = "schedule";
/// Dead jobs.
pub const DEAD: &str = "dead";
/// Identities of the processes that Sidekiq's API lists.
pub const PROCESSES: &str = "processes";
/// The lock of the process that prunes [`PROCESSES`].
pub const PROCESS_CLEANUP: &str = "process_cleanup";
/// Identities of the processes that may hold jobs.
pub const OWNERS: &str = "sidebake:owners";
/// Owners without a lease.
pub const SUSPECTS: &str = "sidebake:suspects";
/// How often jobs were recovered.
pub const RECOVERIES: &str = "sidebake:recoveries";
/// How often stops killed jobs.
pub const INTERRUPTIONS: &str = "sidebake:interruptions";
/// Processes that hold a suspect job.
pub const APART: &str = "sidebake:apart";
/// How many running jobs each counter has.
pub const RUNNING: &str = "sidebake:running";
/// The limits of all workers.
pub const LIMITS: &str = "sidebake:limits";
/// The virtual time of each tenant.
pub const SHARES: &str = "sidebake:shares";

/// The field of the virtual time at which the job began that began last. No tenant's name begins with a space.
pub const CLOCK: &str = " clock";
/// The lock of the process that looks for dead owners.
pub const SCAN: &str = "sidebake:scan";
/// The builds with a record.
pub const BUILDS: &str = "sidebake:builds";
/// Matches [`occupancy`] of every process.
pub const OCCUPANCIES: &str = "sidebake:occupancy:*";

/// The list of a queue.
pub fn queue(name: impl Display) -> String {
    format!("queue:{name}")
}

/// The queue of a list.
pub(super) fn queue_of(list: &str) -> &str {
    list.strip_prefix("queue:").unwrap_or(list)
}

/// The running jobs of a process: from Sidekiq 6.4.2 on, and before.
pub fn work(identity: impl Display) -> [String; 2] {
    [format!("{identity}:work"), format!("{identity}:workers")]
}

/// What the Web UI asks of a process.
pub fn signals(identity: impl Display) -> String {
    format!("{identity}-signals")
}

/// Progress and cancellation of a job.
pub fn iteration(jid: impl Display) -> String {
    format!("it-{jid}")
}

/// The jobs that a process holds.
pub fn inflight(identity: impl Display) -> String {
    format!("sidebake:inflight:{identity}")
}

/// The lease of a process.
pub fn lease(identity: impl Display) -> String {
    format!("sidebake:lease:{identity}")
}

/// What the jobs of a process count for.
pub fn claims(identity: impl Display) -> String {
    format!("sidebake:claims:{identity}")
}

/// Copies of jobs that are far behind in a queue.
pub fn ahead(queue: impl Display) -> String {
    format!("sidebake:ahead:{queue}")
}

/// The process that looks for the jobs behind in a queue.
pub fn scout(queue: impl Display) -> String {
    format!("sidebake:scout:{queue}")
}

/// The process that shows what the jobs of a queue wait for.
pub fn queued(queue: impl Display) -> String {
    format!("sidebake:queued:{queue}")
}

/// The process that looks for jobs in a queue that only have to end.
pub fn watch(queue: impl Display, settings: impl Display) -> String {
    format!("sidebake:watch:{queue}:{settings}")
}

/// What waits in these queues and runs in the fleet.
pub fn load(digest: impl Display) -> String {
    format!("sidebake:load:{digest}")
}

/// The process that reads the first jobs of a queue for [`load`].
pub fn load_lock(digest: impl Display, queue: impl Display) -> String {
    format!("sidebake:load:{digest}:{queue}")
}

/// The newest job of those that build the same.
pub fn newest(key: impl Display) -> String {
    format!("sidebake:newest:{key}")
}

/// The result of a build, for jobs with the same inputs.
pub fn twin(key: impl Display) -> String {
    format!("sidebake:twin:{key}")
}

/// The process that looks for due jobs, of those that look for the same ones.
pub fn poller(digest: impl Display) -> String {
    format!("sidebake:poller:{digest}")
}

/// The running builds of the fleet, by the shards of a builder.
pub fn shards(builder: impl Display) -> String {
    format!("sidebake:shards:{builder}")
}

/// Whether a pod has built a base image.
pub fn warm(pod: &str, base: &str) -> String {
    format!("sidebake:warm:{}", hex::encode(&Sha256::digest(format!("{pod}\n{base}"))[..16]))
}

/// The shards that have the cache of an application.
pub fn home(builder: impl Display, application: &str) -> String {
    format!("sidebake:home:{builder}:{}", hex::encode(&Sha256::digest(application)[..16]))
}

/// The builds that a process runs, by builder and pod.
pub fn occupancy(identity: impl Display) -> String {
    format!("sidebake:occupancy:{identity}")
}

/// The events and output of a build.
pub fn build_events(id: &str) -> String {
    format!("sidebake:build:{id}:events")
}

/// The record of a build.
pub fn build_record(id: &str) -> String {
    format!("sidebake:build:{id}:record")
}

/// Under a `build_id` or a jid, the id in the other keys of the build.
pub fn build_log(id: &str) -> String {
    format!("sidebake:build:{id}:log")
}

/// What the last builds of a repository depended on.
pub fn last_builds(scope: &str) -> String {
    format!("sidebake:last:{scope}")
}

/// The URL of the archived log of a build, under the id in the key of its stream.
pub fn build_archive(id: &str) -> String {
    format!("sidebake:build:{id}:archive")
}

/// How often each class ran in a minute (Sidekiq 7, then 8), and in ten minutes (Sidekiq 8).
///
/// No two of them pad day, hour and minute in the same way.
pub fn class_counts(now: Epoch) -> [String; 3] {
    let now = jiff::tz::Offset::UTC.to_datetime(now.timestamp());
    let (day, hour, minute) = (now.strftime("%Y%m%d").to_string(), now.hour(), now.minute());
    let short_day = &day[2..];
    [
        format!("j|{day}|{hour}:{minute}"),
        format!("j|{short_day}|{hour}:{minute:02}"),
        format!("j|{short_day}|{hour}:{}", minute / 10),
    ]
}

/// How long the runs of a class took in a minute: for Sidekiq 7, then 8.
pub fn class_histograms(class: &str, now: Epoch) -> [String; 2] {
    let now = jiff::tz::Offset::UTC.to_datetime(now.timestamp());
    let (day, hour, minute) = (now.day(), now.hour(), now.minute());
    [format!("{class}-{day:02}-{hour:02}:{minute}"), format!("h|{class}-{day}-{hour}:{minute}")]
}

/// A key that nothing else uses. `doctor` names it in commands that Redis never executes.
pub fn probe() -> String {
    format!("sidebake:doctor:{}", hex::random::<6>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_has_its_own_keys_of_metrics() {
        // 2026-11-07 08:04:59 UTC.
        let now = Epoch::from_secs_f64(1_794_038_699.0);
        assert_eq!(class_counts(now), ["j|20261107|8:4", "j|261107|8:04", "j|261107|8:0"]);
        assert_eq!(class_histograms("A::B", now), ["A::B-07-08:4", "h|A::B-7-8:4"]);
    }
}

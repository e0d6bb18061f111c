//! The last builds of each repository: what their targets depended on, in Redis.
//!
//! One hash for a repository, trust and builder, and one for each ref of it: target → [`LastBuild`]. Redis neither delays nor
//! fails a build: without an answer in time, nothing is known, and nothing is written.
//!
//! The texts in a record are hashes with the App's private key. Every worker has it, and a reader of Redis does not: the
//! password of Redis would hide nothing from them. After a change of the key, the old records say nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{FromRedisValue, Pipeline};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use crate::bounds;
use crate::cache::{LastBuild, Marker};
use crate::hex;
use crate::redis::{Complaint, Redis, RedisError};
use crate::secret_file;
use crate::settings::{SecretSource, Settings};

/// How long a build waits for Redis, before it begins and after it has ended.
const PATIENCE: Duration = Duration::from_millis(200);

const UNAVAILABLE: &str = "Redis does not remember builds; reports do not say why steps were not cached";

/// Makes the key of a scope.
type KeyOf = fn(&str) -> String;

/// The last builds, as far as workers remember them.
#[derive(Debug, Default)]
pub struct LastBuilds(Option<Store>);

#[derive(Debug)]
struct Store {
    redis: Arc<Redis>,
    ttl: Duration,
    secret: SecretSource,
    key_of: KeyOf,
    complaint: Mutex<Complaint>,
}

/// Whose builds share a cache.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Where the repository is.
    pub host: &'a str,
    /// The host's number of the repository.
    pub repository_id: u64,
    /// The name of the trust.
    pub trust: &'a str,
    /// The builder.
    pub builder: &'a str,
    /// The job's ref.
    pub git_ref: Option<&'a str>,
}

/// The builds before this one.
#[derive(Debug)]
pub struct Earlier {
    /// Makes the hashes of the records.
    pub marker: Marker,
    /// That of the ref comes first.
    keys: Vec<String>,
    /// By key: the records by target, `None` for one that cannot be read. `None` when it is not known whether there are any.
    records: Option<Vec<BTreeMap<String, Option<LastBuild>>>>,
    /// By key: whether it has so many targets that the record starts again.
    are_full: Vec<bool>,
}

impl LastBuilds {
    /// Connects with the first request. Without the setting or the App's private key, nothing is remembered.
    pub fn new(settings: &Settings, key_of: KeyOf) -> Result<Self, RedisError> {
        let secret = settings.github.private_key().filter(|_| settings.last_builds.enabled);
        let Some(secret) = secret else { return Ok(Self(None)) };
        Ok(Self(Some(Store {
            redis: Arc::new(Redis::new(&settings.redis)?),
            ttl: settings.last_builds.ttl,
            secret,
            key_of,
            complaint: Mutex::new(Complaint::new("last_builds_unavailable", UNAVAILABLE)),
        })))
    }

    /// The last builds of a scope. `None` when nothing is remembered at all.
    pub async fn read(&self, scope: Scope<'_>) -> Option<Earlier> {
        let store = self.0.as_ref()?;
        let secret = secret_file::read(&store.secret).ok()?;
        let Scope { host, repository_id, trust, builder, git_ref } = scope;
        let shared = format!("{builder}:{trust}:{host}:{repository_id}");
        let of_ref = git_ref.map(|git_ref| format!("{shared}:{}", hex::encode(&Sha256::digest(git_ref)[..8])));
        let keys: Vec<String> = of_ref.iter().chain([&shared]).map(|scope| (store.key_of)(scope)).collect();
        let mut pipeline = redis::pipe();
        for key in &keys {
            pipeline.cmd("HGETALL").arg(key);
        }
        // A slow Redis is as good as none.
        let hashes = store.send::<Vec<BTreeMap<String, Vec<u8>>>>(pipeline).await;
        let are_full = match &hashes {
            Some(hashes) => hashes.iter().map(|hash| hash.len() > bounds::CACHE_TARGETS).collect(),
            None => vec![false; keys.len()],
        };
        let records = hashes.map(|hashes| hashes.into_iter().map(records).collect());
        Some(Earlier { marker: Marker::new(&secret, &shared), keys, records, are_full })
    }

    /// Remembers the targets of a build.
    pub async fn write(&self, earlier: &Earlier, targets: &[(String, LastBuild)]) {
        let Some(store) = self.0.as_ref().filter(|_| !targets.is_empty()) else { return };
        let mut pipeline = redis::pipe();
        // Without the right to one of the commands, nothing is written: a hash without a TTL would stay forever.
        pipeline.atomic();
        for (key, is_full) in earlier.keys.iter().zip(&earlier.are_full) {
            if *is_full {
                pipeline.cmd("DEL").arg(key).ignore();
            }
            let hset = pipeline.cmd("HSET").arg(key);
            for (target, record) in targets.iter().take(bounds::CACHE_TARGETS) {
                hset.arg(target).arg(record.to_json());
            }
            hset.ignore();
            pipeline.cmd("EXPIRE").arg(key).arg(store.ttl.as_secs()).ignore();
        }
        store.send::<()>(pipeline).await;
    }
}

fn records(hash: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Option<LastBuild>> {
    hash.into_iter().map(|(target, text)| (target, LastBuild::read(&text))).collect()
}

impl Store {
    /// What Redis answers in time. A question whose time is over goes on: only its own end closes a dead connection.
    async fn send<T: FromRedisValue + Send + 'static>(&self, pipeline: Pipeline) -> Option<T> {
        let redis = Arc::clone(&self.redis);
        let asked = tokio::spawn(async move { redis.pipeline(&pipeline).await });
        self.hear(timeout(PATIENCE, asked).await.ok()?.ok()?)
    }

    fn hear<T>(&self, result: Result<T, RedisError>) -> Option<T> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).hear(result)
    }
}

impl Earlier {
    /// The commits of the last builds.
    pub fn commits(&self) -> Vec<String> {
        let builds = self.records.iter().flatten().flat_map(BTreeMap::values).flatten();
        let commits: BTreeSet<&String> = builds.filter_map(|build| build.sha.as_ref()).collect();
        commits.into_iter().take(bounds::CACHE_COMMITS).cloned().collect()
    }

    /// The last builds of a target: that of the same ref comes first. `None` when it is not known whether there are any.
    pub fn of(&self, target: &str) -> Option<Vec<&LastBuild>> {
        let found = self.records.as_ref()?.iter().filter_map(|known| known.get(target));
        let mut builds: Vec<&LastBuild> = found.map(Option::as_ref).collect::<Option<_>>()?;
        builds.dedup();
        Some(builds)
    }
}

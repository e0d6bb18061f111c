//! Reads Redis in the middle of a story, when it may be down.

use redis::{Cmd, FromRedisValue};
use std::time::Duration;
use world::Redis;

/// Longer than any reply takes while Redis runs.
const PATIENCE: Duration = Duration::from_secs(2);

/// The reply to one command, or none without a reply.
pub async fn ask<T: FromRedisValue>(redis: &Redis, command: &Cmd) -> Option<T> {
    let answer = async {
        let client = redis::Client::open(redis.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        command.query_async(&mut connection).await
    };
    tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
}

/// Each process with its entries in flight: its id, and the values of its hash, without the tokens.
pub async fn inflight(redis: &Redis) -> Vec<(u32, Vec<Vec<u8>>)> {
    let keys: Vec<String> = ask(redis, redis::cmd("KEYS").arg("sidebake:inflight:*")).await.unwrap_or_default();
    let mut found = Vec::new();
    for key in keys {
        // An identity is host, process id and nonce.
        let Some(pid) = key.rsplit(':').nth(1).and_then(|pid| pid.parse().ok()) else { continue };
        let entries: Vec<Vec<u8>> = ask(redis, redis::cmd("HVALS").arg(key)).await.unwrap_or_default();
        found.push((pid, entries));
    }
    found
}

/// Whether an entry belongs to the job with this jid.
pub fn is_of(entry: &[u8], jid: &str) -> bool {
    String::from_utf8_lossy(entry).contains(jid)
}

/// A field of `INFO`.
pub fn field(info: &str, name: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

//! The Redis commands that a worker needs, and which of them an ACL refuses.

use redis::Value;

use super::keys;
use crate::redis::{Redis, RedisError};

/// Every command that a worker sends or that its scripts call, each in a form that Redis accepts; `k` is a key.
///
/// `tests/it/rights.rs` compares the list with the code. It leaves out `CLIENT TRACKING`: without that command a worker polls.
pub const COMMANDS: &[&str] = &[
    "BITFIELD k GET u8 0",
    "DEL k",
    "EVALSHA 0 0",
    "EXISTS k",
    "EXPIRE k 1",
    "GET k",
    "HDEL k f",
    "HEXISTS k f",
    "HGET k f",
    "HGETALL k",
    "HINCRBY k f 1",
    "HKEYS k",
    "HLEN k",
    "HMGET k f",
    "HSET k f v",
    "HSETNX k f v",
    "INCRBY k 1",
    "INFO",
    "LLEN k",
    "LPUSH k v",
    "LRANGE k 0 0",
    "LREM k 1 v",
    "PEXPIRE k 1",
    "PING",
    "RPOP k",
    "RPUSH k v",
    "SADD k v",
    "SCARD k",
    "SCRIPT LOAD x",
    "SET k v",
    "SISMEMBER k v",
    "SMEMBERS k",
    "SREM k v",
    "TIME",
    "TYPE k",
    "UNLINK k",
    "ZADD k 0 v",
    "ZCARD k",
    "ZCOUNT k 0 0",
    "ZRANGE k 0 0",
    "ZREM k v",
    "ZREMRANGEBYRANK k 0 0",
    "ZREMRANGEBYSCORE k 0 0",
    "ZSCAN k 0",
    "ZSCORE k v",
];

/// The names of the commands in this list that this user may not use.
///
/// Writes nothing: Redis checks the right to a command when a transaction queues it. The connection of this transaction closes
/// before anything is executed.
pub async fn missing(redis: Redis, commands: &[&'static str]) -> Result<Vec<&'static str>, RedisError> {
    let key = keys::probe();
    let mut missing = Vec::new();
    for form in ["EXEC", "MULTI"].iter().chain(commands) {
        if !is_allowed(&redis, form, &key).await? {
            missing.extend(form.split(' ').next());
        }
        if missing.contains(&"MULTI") {
            // Without it no other right can be checked.
            break;
        }
    }
    Ok(missing)
}

/// Whether the ACL allows the command. Any answer but NOPERM comes from a command that was allowed.
async fn is_allowed(redis: &Redis, form: &str, key: &str) -> Result<bool, RedisError> {
    let mut words = form.split(' ');
    let mut command = redis::cmd(words.next().unwrap_or_default());
    for word in words {
        command.arg(if word == "k" { key } else { word });
    }
    match redis.query::<Value>(&command).await {
        // Redis answers a forbidden EXEC with EXECABORT, and the reason in its text.
        Err(error) if error.code() == Some("NOPERM") || error.to_string().contains("NOPERM") => Ok(false),
        Err(error) if error.code().is_none() => Err(error),
        _ => Ok(true),
    }
}

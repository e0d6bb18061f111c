//! The Redis commands that a worker needs, and which of them an ACL refuses.

use redis::{RedisResult, Value};

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
    "HINCRBYFLOAT k f 1",
    "HKEYS k",
    "HLEN k",
    "HMGET k f",
    "HSET k f v",
    "HSETNX k f v",
    "INCRBY k 1",
    "INFO",
    "LLEN k",
    "LPOS k v",
    "LPUSH k v",
    "LRANGE k 0 0",
    "LREM k 1 v",
    "LSET k 0 v",
    "MGET k",
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
    "TTL k",
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
    let mut missing = forbidden(&redis, &["EXEC", "MULTI"], &key).await?;
    // Without it no other right can be checked.
    if !missing.contains(&"MULTI") {
        missing.extend(forbidden(&redis, commands, &key).await?);
    }
    Ok(missing)
}

/// The names of those commands that the ACL forbids, in one round trip.
async fn forbidden(redis: &Redis, forms: &[&'static str], key: &str) -> Result<Vec<&'static str>, RedisError> {
    let mut questions = redis::pipe();
    questions.ignore_errors();
    for form in forms {
        let mut words = form.split(' ');
        questions.cmd(words.next().unwrap_or_default());
        for word in words {
            questions.arg(if word == "k" { key } else { word });
        }
    }
    let answers: Vec<RedisResult<Value>> = redis.pipeline(&questions).await?;
    let is_forbidden = |answer: &RedisResult<Value>| match answer {
        // Redis answers a forbidden EXEC with EXECABORT, and the reason in its text. Any other answer comes from a command that was
        // allowed.
        Err(error) => error.code() == Some("NOPERM") || error.to_string().contains("NOPERM"),
        Ok(_) => false,
    };
    let forbidden = forms.iter().zip(&answers).filter(|(_, answer)| is_forbidden(answer));
    Ok(forbidden.filter_map(|(form, _)| form.split(' ').next()).collect())
}

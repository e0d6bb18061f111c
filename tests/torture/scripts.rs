//! The product's scripts on the wire, by their digests.

use world::Redis;

use crate::relay::is_command;

pub const TURN: &str =
    concat!(include_str!("../../src/sidekiq/claims.lua"), include_str!("../../src/sidekiq/turn.lua"));
pub const RECOVER: &str =
    concat!(include_str!("../../src/sidekiq/claims.lua"), include_str!("../../src/sidekiq/recover.lua"));
pub const NEWEST: &str =
    concat!(include_str!("../../src/sidekiq/edition.lua"), include_str!("../../src/sidekiq/newest.lua"));
pub const RENEW: &str = include_str!("../../src/sidekiq/renew.lua");
pub const ENTRIES: &str = include_str!("../../src/sidekiq/entries.lua");

/// Digests of the scripts that the faults of custody distinguish.
#[derive(Clone, Debug)]
pub struct Scripts {
    turn: Vec<u8>,
    renew: Vec<u8>,
    entries: Vec<u8>,
}

impl Scripts {
    pub async fn load(redis: &Redis) -> Self {
        Self {
            turn: load(redis, TURN).await.into_bytes(),
            renew: load(redis, RENEW).await.into_bytes(),
            entries: load(redis, ENTRIES).await.into_bytes(),
        }
    }

    pub fn is_turn(&self, request: &[Vec<u8>]) -> bool {
        is_command(request, b"EVALSHA") && request[1] == self.turn
    }

    pub fn is_renewal(&self, request: &[Vec<u8>]) -> bool {
        is_command(request, b"EVALSHA") && request[1] == self.renew
    }

    /// Makes Redis refuse a reconcile, and keep the connection.
    pub fn blind(&self, request: &mut [Vec<u8>]) {
        if is_command(request, b"EVALSHA") && request[1] == self.entries {
            // A set.
            request[3] = b"queues".to_vec();
        }
    }
}

/// Loads a script into Redis and returns its digest.
pub async fn load(redis: &Redis, script: &str) -> String {
    let mut connection = redis.connection().await;
    redis::cmd("SCRIPT").arg(&["LOAD", script]).query_async(&mut connection).await.unwrap()
}

//! The connection to Redis: made again when it breaks, bounded in time, and woken by Redis' own pushes.
//!
//! Knows no key of Sidekiq's. A command that fails leaves no connection behind, so that the next one starts afresh;
//! whoever needs a command to happen sends it again.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo,
    PushKind, ScriptInvocation,
};
use tokio::sync::{Mutex, Notify};

use crate::settings;

pub use redis::{RedisError, Script};

/// A connection that many tasks may use.
pub struct Redis {
    client: Client,
    timeout: Duration,
    wake: Option<Arc<Notify>>,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Redis {
    /// Checks the URL; connects with the first command.
    pub fn new(settings: &settings::Redis) -> Result<Self, RedisError> {
        Self::with(settings, ProtocolVersion::RESP2, None)
    }

    /// A connection with client-side tracking (RESP3): `wake` is notified when a key that a script has read is changed
    /// by somebody else, and when the connection is lost.
    pub fn waking(settings: &settings::Redis, wake: Arc<Notify>) -> Result<Self, RedisError> {
        Self::with(settings, ProtocolVersion::RESP3, Some(wake))
    }

    fn with(
        settings: &settings::Redis,
        protocol: ProtocolVersion,
        wake: Option<Arc<Notify>>,
    ) -> Result<Self, RedisError> {
        let info = settings.url.expose().into_connection_info()?;
        let session = info.redis_settings().clone().set_protocol(protocol);
        let client = Client::open(info.set_redis_settings(session))?;
        Ok(Self { client, timeout: settings.timeout, wake, connection: Mutex::new(None) })
    }

    /// Sends one command.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let reply = command.query_async(&mut connection).await;
        self.keep_or_drop(reply).await
    }

    /// Sends several commands in one round trip.
    pub async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let reply = pipeline.query_async(&mut connection).await;
        self.keep_or_drop(reply).await
    }

    /// Runs a script by its digest, and by its text where the server does not know it.
    pub async fn script<T: FromRedisValue>(&self, invocation: &ScriptInvocation<'_>) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let reply = invocation.invoke_async(&mut connection).await;
        self.keep_or_drop(reply).await
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref() {
            return Ok(connection.clone());
        }
        let fresh = self.connect().await?;
        Ok(connection.insert(fresh).clone())
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let Some(wake) = self.wake.clone() else {
            return self.client.get_multiplexed_async_connection_with_config(&config).await;
        };
        let config = config.set_push_sender(move |push: PushInfo| {
            if matches!(push.kind, PushKind::Invalidate | PushKind::Disconnection) {
                wake.notify_one();
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        // NOLOOP, or our own writes would wake us. Where tracking is refused, the slow poll is what is left.
        let tracking = redis::cmd("CLIENT").arg(&["TRACKING", "ON", "NOLOOP"]).query_async::<()>(&mut connection).await;
        if let Err(error) = tracking {
            tracing::warn!(%error, "Redis refuses CLIENT TRACKING: new jobs are found by polling");
        }
        Ok(connection)
    }

    /// A reply that says no leaves the connection usable; anything else may have left half a reply in it. A server that is
    /// a replica now says no for ever: the next connection may find the new master.
    async fn keep_or_drop<T>(&self, reply: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &reply
            && matches!(error.code(), None | Some("READONLY" | "MASTERDOWN"))
        {
            self.connection.lock().await.take();
        }
        reply
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis(***)")
    }
}

//! The connection to Redis: reconnects after a failure, has a timeout, and wakes the worker on Redis' pushes.
//!
//! Knows none of Sidekiq's keys. A failed command closes the connection, so that the next command connects to the current master.
//! A caller that needs its command to happen sends it again.

mod server;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, PushKind, TlsCertificates, TlsMode, Value,
};
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use crate::settings;

pub use redis::{RedisError, Script, ScriptInvocation};
pub use server::{ServerInfo, Trouble};

/// Whether an ACL refused a script, or a command in it.
pub fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// A connection that many tasks may use.
pub struct Redis {
    server: Server,
    timeout: Duration,
    wake: Option<Wake>,
    /// Whether the server pushes changes of keys.
    has_tracking: AtomicBool,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Notified of changes to these keys.
#[derive(Clone)]
struct Wake {
    notify: Arc<Notify>,
    keys: Arc<[String]>,
}

/// Where the server is.
enum Server {
    /// At this address.
    Fixed(Box<Client>),
    /// The sentinels know the address of the master; everything else is known here.
    Master { sentinels: Box<Mutex<SentinelClient>>, info: Box<ConnectionInfo> },
}

impl Redis {
    /// Checks the URL and reads the certificates; connects with the first command.
    pub fn new(settings: &settings::Redis) -> Result<Self, RedisError> {
        Self::with(settings, ProtocolVersion::RESP2, None)
    }

    /// A connection with client-side tracking (RESP3). Notifies `notify` when another client changes one of these keys after a
    /// script has read it, and when the connection is lost.
    ///
    /// Before Redis 7.2, tracking covers all declared keys of a script that reads, and no others.
    pub fn waking(settings: &settings::Redis, keys: Vec<String>, notify: Arc<Notify>) -> Result<Self, RedisError> {
        Self::with(settings, ProtocolVersion::RESP3, Some(Wake { notify, keys: keys.into() }))
    }

    fn with(settings: &settings::Redis, protocol: ProtocolVersion, wake: Option<Wake>) -> Result<Self, RedisError> {
        let info = settings.url.expose().into_connection_info()?;
        let session = info.redis_settings().clone().set_protocol(protocol);
        let info = info.set_redis_settings(session.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")));
        let certificates = certificates(settings)?;
        let server = if settings.sentinels.is_empty() {
            Server::Fixed(Box::new(fixed(info, certificates)?))
        } else {
            let sentinels = Box::new(Mutex::new(sentinels(settings, &info, certificates)?));
            Server::Master { sentinels, info: Box::new(info) }
        };
        Ok(Self {
            server,
            timeout: settings.timeout,
            wake,
            has_tracking: AtomicBool::new(true),
            connection: Mutex::new(None),
        })
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

    /// The server's version and problems.
    pub async fn server_info(&self) -> Result<ServerInfo, RedisError> {
        let info: String = self.query(&redis::cmd("INFO")).await?;
        // Without the right to CONFIG there is no answer.
        let fsync: Vec<String> =
            self.query(redis::cmd("CONFIG").arg(&["GET", "appendfsync"])).await.unwrap_or_default();
        Ok(ServerInfo::read(&info, fsync.get(1).map(String::as_str)))
    }

    /// Whether Redis pushes changes, as of the last connection.
    pub fn has_tracking(&self) -> bool {
        self.has_tracking.load(Ordering::Relaxed)
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
        let client = self.client().await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let Some(wake) = self.wake.clone() else {
            return client.get_multiplexed_async_connection_with_config(&config).await;
        };
        let config = config.set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Disconnection || (push.kind == PushKind::Invalidate && wake.concerns(&push.data))
            {
                wake.notify.notify_one();
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        // NOLOOP, or this client's own writes would wake it. Where Redis refuses tracking, the worker polls.
        let tracking = redis::cmd("CLIENT").arg(&["TRACKING", "ON", "NOLOOP"]).query_async::<()>(&mut connection).await;
        self.has_tracking.store(tracking.is_ok(), Ordering::Relaxed);
        match tracking {
            Ok(()) => Ok(connection),
            Err(error) if error.code().is_some() => {
                tracing::warn!(event = "tracking_refused", %error, "Redis refuses CLIENT TRACKING; polling for new jobs twice a second");
                Ok(connection)
            }
            Err(error) => Err(error),
        }
    }

    async fn client(&self) -> Result<Client, RedisError> {
        let (sentinels, info) = match &self.server {
            Server::Fixed(client) => return Ok(client.as_ref().clone()),
            Server::Master { sentinels, info } => (sentinels, info),
        };
        let mut sentinels = sentinels.lock().await;
        let found = timeout(self.timeout, sentinels.async_get_client()).await;
        let master = found
            .unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "no sentinel or no master answered in time"))))?;
        Client::open(info.as_ref().clone().set_addr(master.get_connection_info().addr().clone()))
    }

    /// After an error reply the connection stays usable; after any other error it may hold half a reply. A server that has become a
    /// replica refuses every write: the next connection may find the new master.
    async fn keep_or_drop<T>(&self, reply: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &reply
            && (error.code().is_none() || is_of_a_replica(error))
        {
            self.connection.lock().await.take();
        }
        reply
    }
}

/// Redis 6 has the error of a command in a script in the text of another error.
fn is_of_a_replica(error: &RedisError) -> bool {
    let text = error.to_string();
    ["READONLY", "MASTERDOWN", "read only replica"].iter().any(|word| text.contains(word))
        || matches!(error.code(), Some("READONLY" | "MASTERDOWN"))
}

impl Wake {
    /// Whether a list of changed keys contains one of these; no list means all keys.
    fn concerns(&self, data: &[Value]) -> bool {
        data.iter().any(|value| match value {
            Value::Array(keys) => keys.iter().any(|key| match key {
                Value::BulkString(key) => self.keys.iter().any(|wanted| wanted.as_bytes() == key),
                _ => true,
            }),
            _ => true,
        })
    }
}

/// Logs a failure once, and not at each try.
#[derive(Debug)]
pub struct Complaint {
    event: &'static str,
    message: &'static str,
    is_made: bool,
}

impl Complaint {
    /// Logs `message`, such as "the lease cannot be renewed", with this `event`.
    pub fn new(event: &'static str, message: &'static str) -> Self {
        Self { event, message, is_made: false }
    }

    /// Returns the value of a try. Logs the first failure after a success.
    pub fn hear<T>(&mut self, result: Result<T, RedisError>) -> Option<T> {
        let (event, message, was_made) = (self.event, self.message, self.is_made);
        self.is_made = result.is_err();
        match result {
            Ok(value) => Some(value),
            Err(error) if was_made => {
                tracing::trace!(%error, message, "still failing");
                None
            }
            Err(error) => {
                tracing::warn!(event, %error, "{message}");
                None
            }
        }
    }
}

/// The same for several failures at a time: each is news until it no longer happens.
#[derive(Debug, Default)]
pub struct Complaints(BTreeSet<String>);

impl Complaints {
    /// Takes the present failures; returns the new ones.
    pub fn news(&mut self, now: BTreeSet<String>) -> Vec<String> {
        let new = now.difference(&self.0).cloned().collect();
        self.0 = now;
        new
    }

    /// The failures of the last time.
    pub fn last(&self) -> &BTreeSet<String> {
        &self.0
    }
}

fn fixed(info: ConnectionInfo, certificates: Option<TlsCertificates>) -> Result<Client, RedisError> {
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

/// As in Ruby's redis-client, the host in `redis.url` is the sentinels' name of the master.
fn sentinels(
    settings: &settings::Redis,
    master: &ConnectionInfo,
    certificates: Option<TlsCertificates>,
) -> Result<SentinelClient, RedisError> {
    let wrong = |message| RedisError::from((ErrorKind::InvalidClientConfig, message));
    let (name, is_tls) = match master.addr() {
        ConnectionAddr::Tcp(name, _) => (name, false),
        ConnectionAddr::TcpTls { host, .. } => (host, true),
        _ => return Err(wrong("redis.url must not be a Unix socket when redis.sentinels is set")),
    };
    let infos = settings.sentinels.iter().map(|url| url.expose().into_connection_info());
    let infos = infos.collect::<Result<Vec<_>, _>>()?;
    let addresses = infos.iter().map(|info| info.addr().clone());
    let mut builder = SentinelClientBuilder::new(addresses, name, SentinelServerType::Master)?;
    let session = master.redis_settings();
    builder = builder.set_client_to_redis_protocol(session.protocol()).set_client_to_redis_db(session.db());
    if let Some(user) = session.username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = session.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if is_tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let (true, Some(certificates)) = (is_tls, certificates.clone()) {
        builder = builder.set_client_to_redis_certificates(certificates);
    }
    // The library takes one user and password for all sentinels, as is usual.
    let session = infos[0].redis_settings();
    if let Some(user) = session.username() {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = session.password() {
        builder = builder.set_client_to_sentinel_password(password);
    }
    let is_tls = |info: &ConnectionInfo| matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if let (true, Some(certificates)) = (infos.iter().all(is_tls), certificates) {
        builder = builder.set_client_to_sentinel_certificates(certificates);
    }
    builder.build()
}

fn certificates(settings: &settings::Redis) -> Result<Option<TlsCertificates>, RedisError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|error| {
            let message = format!("{}: {error}", path.display());
            RedisError::from((ErrorKind::InvalidClientConfig, "a certificate or key cannot be read", message))
        })
    };
    let root_cert = settings.ca_file.as_deref().map(read).transpose()?;
    let client_tls = match (&settings.client_certificate_file, &settings.client_key_file) {
        (Some(certificate), Some(key)) => {
            Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
        }
        _ => None,
    };
    let is_given = root_cert.is_some() || client_tls.is_some();
    Ok(is_given.then_some(TlsCertificates { client_tls, root_cert }))
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis(***)")
    }
}

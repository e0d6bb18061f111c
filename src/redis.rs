//! The connection to Redis: made again when it breaks, bounded in time, and woken by Redis' own pushes.
//!
//! Knows no key of Sidekiq's. A command that fails leaves no connection behind, so that the next one starts afresh, with
//! whoever is the master then; whoever needs a command to happen sends it again.

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

/// Whether an ACL refused a script, or a command in it; what that did before is not done again.
pub fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// A connection that many tasks may use.
pub struct Redis {
    server: Server,
    timeout: Duration,
    wake: Option<Wake>,
    /// Whether the server pushes what changes.
    is_told: AtomicBool,
    connection: Mutex<Option<MultiplexedConnection>>,
}

/// Who is told of changes to which keys.
#[derive(Clone)]
struct Wake {
    notify: Arc<Notify>,
    keys: Arc<[String]>,
}

/// Where the server is.
enum Server {
    /// At this address.
    Fixed(Box<Client>),
    /// Whichever the sentinels call the master; everything but its address is known.
    Master { sentinels: Box<Mutex<SentinelClient>>, info: Box<ConnectionInfo> },
}

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis_version`, which Valkey keeps at 7.2.4, or its own name and version.
    pub version: String,
    /// What an operator should know before jobs depend on it; fatal ones first.
    pub troubles: Vec<Trouble>,
}

/// Something about a server on which jobs would not be safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What it is about, for a list.
    pub about: &'static str,
    /// A sentence.
    pub message: String,
    /// Whether jobs are lost without any crash, or the worker cannot work at all.
    pub is_fatal: bool,
}

impl Redis {
    /// Checks the URL and reads the certificates; connects with the first command.
    pub fn new(settings: &settings::Redis) -> Result<Self, RedisError> {
        Self::with(settings, ProtocolVersion::RESP2, None)
    }

    /// A connection with client-side tracking (RESP3): `notify` is notified when one of these keys, which a script has read,
    /// is changed by another client, and when the connection is lost.
    ///
    /// Before Redis 7.2 a script that reads has all its declared keys tracked: changes to others are not told.
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
            is_told: AtomicBool::new(true),
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

    /// What the server is, and what is wrong with it.
    pub async fn server_info(&self) -> Result<ServerInfo, RedisError> {
        let info: String = self.query(&redis::cmd("INFO")).await?;
        // A user without the right to see settings sees none.
        let fsync: Vec<String> =
            self.query(redis::cmd("CONFIG").arg(&["GET", "appendfsync"])).await.unwrap_or_default();
        Ok(ServerInfo::read(&info, fsync.get(1).map(String::as_str)))
    }

    /// Whether a change wakes us, by what the last connection was told.
    pub fn is_told(&self) -> bool {
        self.is_told.load(Ordering::Relaxed)
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
        // NOLOOP, or our own writes would wake us. Where tracking is refused, polling is what is left.
        let tracking = redis::cmd("CLIENT").arg(&["TRACKING", "ON", "NOLOOP"]).query_async::<()>(&mut connection).await;
        self.is_told.store(tracking.is_ok(), Ordering::Relaxed);
        match tracking {
            Ok(()) => Ok(connection),
            Err(error) if error.code().is_some() => {
                tracing::warn!(%error, "Redis refuses CLIENT TRACKING: new jobs are found by polling twice a second");
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
        let master = found.unwrap_or_else(|_| {
            Err(RedisError::from((ErrorKind::Io, "no sentinel answered in time, or the master did not")))
        })?;
        Client::open(info.as_ref().clone().set_addr(master.get_connection_info().addr().clone()))
    }

    /// A reply that says no leaves the connection usable; anything else may have left half a reply in it. A server that is
    /// a replica now says no for ever: the next connection may find the new master.
    async fn keep_or_drop<T>(&self, reply: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &reply
            && (error.code().is_none() || is_of_a_replica(error))
        {
            self.connection.lock().await.take();
        }
        reply
    }
}

/// Redis 6 tells what a script met in the text of another error.
fn is_of_a_replica(error: &RedisError) -> bool {
    let text = error.to_string();
    ["READONLY", "MASTERDOWN", "read only replica"].iter().any(|word| text.contains(word))
        || matches!(error.code(), Some("READONLY" | "MASTERDOWN"))
}

impl Wake {
    /// Whether a list of changed keys has one of these; no list means all of them.
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

/// Says what does not work once, and not each time that it is tried.
#[derive(Debug)]
pub struct Complaint {
    what: &'static str,
    is_made: bool,
}

impl Complaint {
    /// About `what`, a sentence such as "the lease cannot be renewed".
    pub fn that(what: &'static str) -> Self {
        Self { what, is_made: false }
    }

    /// Takes the value of a try; the first failure after a success is logged.
    pub fn hear<T>(&mut self, result: Result<T, RedisError>) -> Option<T> {
        let (what, was_made) = (self.what, self.is_made);
        self.is_made = result.is_err();
        match result {
            Ok(value) => Some(value),
            Err(error) if was_made => {
                tracing::trace!(%error, what, "still");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "{what}");
                None
            }
        }
    }
}

/// The same for several things at a time: each is news until it no longer happens.
#[derive(Debug, Default)]
pub struct Complaints(BTreeSet<String>);

impl Complaints {
    /// Takes what does not work now; returns what of it is new.
    pub fn news(&mut self, now: BTreeSet<String>) -> Vec<String> {
        let new = now.difference(&self.0).cloned().collect();
        self.0 = now;
        new
    }

    /// What did not work the last time.
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

/// As Ruby's redis-client: the host in `redis.url` is the name that the sentinels know the master by.
fn sentinels(
    settings: &settings::Redis,
    master: &ConnectionInfo,
    certificates: Option<TlsCertificates>,
) -> Result<SentinelClient, RedisError> {
    let wrong = |message| RedisError::from((ErrorKind::InvalidClientConfig, message));
    let (name, is_tls) = match master.addr() {
        ConnectionAddr::Tcp(name, _) => (name, false),
        ConnectionAddr::TcpTls { host, .. } => (host, true),
        _ => return Err(wrong("a master behind sentinels has no Unix socket")),
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
    // The library takes one user and password for all of them, which is what one has.
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

impl ServerInfo {
    /// Reads the answer to `INFO`, and the setting `appendfsync` where it could be seen.
    fn read(info: &str, fsync: Option<&str>) -> Self {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("?").trim().to_owned()
        };
        let mut troubles = Vec::new();
        let mut trouble = |about, is_fatal, message| troubles.push(Trouble { about, message, is_fatal });
        if field("cluster_enabled") == "1" {
            trouble("redis cluster", true, "Redis Cluster is not supported, by Sidekiq neither".into());
        }
        let policy = field("maxmemory_policy");
        if policy != "noeviction" {
            let message = format!("maxmemory-policy is {policy}: Redis may throw jobs away; set noeviction");
            trouble("redis memory", true, message);
        }
        if field("aof_enabled") != "1" {
            let message = "no append-only file: a crash of Redis loses jobs; set appendonly yes".into();
            trouble("redis persistence", false, message);
        } else if fsync == Some("no") {
            let message = "appendfsync is no: a crash of the machine loses what the system had not written".into();
            trouble("redis persistence", false, message);
        }
        let version = match field("server_name").as_str() {
            "?" | "redis" => field("redis_version"),
            name => format!("{name} {}", field(&format!("{name}_version"))),
        };
        Self { version, troubles }
    }

    /// Why no worker can run on this server.
    pub fn refusal(&self) -> Option<&str> {
        self.troubles.iter().find(|trouble| trouble.about == "redis cluster").map(|trouble| trouble.message.as_str())
    }
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn troubles(info: &str, fsync: Option<&str>) -> Vec<&'static str> {
        ServerInfo::read(info, fsync).troubles.iter().map(|trouble| trouble.about).collect()
    }

    #[test]
    fn what_is_wrong_with_a_server_is_said() {
        let good = "redis_version:7.0.15\r\ncluster_enabled:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";
        assert_eq!(ServerInfo::read(good, Some("everysec")), ServerInfo { version: "7.0.15".into(), troubles: vec![] });
        assert_eq!(troubles(good, Some("no")), ["redis persistence"]);
        assert_eq!(troubles(&good.replace("aof_enabled:1", "aof_enabled:0"), None), ["redis persistence"]);
        assert_eq!(troubles(&good.replace("noeviction", "allkeys-lru"), None), ["redis memory"]);
        let cluster = ServerInfo::read(&good.replace("cluster_enabled:0", "cluster_enabled:1"), None);
        assert!(cluster.refusal().is_some_and(|refusal| refusal.contains("Cluster")));
        let valkey = format!("{good}server_name:valkey\r\nvalkey_version:8.0.1\r\n");
        assert_eq!(ServerInfo::read(&valkey, None).version, "valkey 8.0.1");
    }
}

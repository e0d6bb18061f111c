//! The connection to Redis: reconnects after a failure, has a timeout, and wakes the worker on Redis' pushes.
//!
//! Knows none of Sidekiq's keys. A failed command closes the connection, so that the next command connects to the current master.
//! A caller that needs its command to happen sends it again.

mod dial;
mod server;
mod url;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, Pipeline, ProtocolVersion, PushInfo, PushKind, Value,
};
use tokio::sync::{Mutex, Notify};

use crate::{metric, settings};

use dial::{Connection, Dialer};
use url::{Address, Target};

pub use redis::{RedisError, Script, ScriptInvocation};
pub use server::{ServerInfo, Trouble};

/// After so many jobs in a row without a push, Redis counts as a server that does not push.
const MISSED_PUSHES: u32 = 2;

/// Whether an ACL refused a script, or a command in it.
pub fn is_forbidden(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// A connection that many tasks may use.
pub struct Redis {
    server: Server,
    dialer: Dialer,
    wake: Option<Wake>,
    tracking: Arc<Tracking>,
    connection: Mutex<Option<Connection>>,
}

/// Notified of changes to these keys.
#[derive(Clone)]
struct Wake {
    notify: Arc<Notify>,
    keys: Arc<[String]>,
}

/// Whether the server pushes changes of keys.
#[derive(Debug)]
struct Tracking {
    is_on: AtomicBool,
    /// Changes in a row that were found and not pushed.
    n_missed: AtomicU32,
}

/// Where the server is.
enum Server {
    /// At this address.
    Fixed(Target),
    /// The sentinels know the address of the master with this name; everything else is known here.
    Master { sentinels: Vec<Target>, name: String, target: Target },
}

impl Redis {
    /// Checks the URL and reads the certificates; connects with the first command.
    pub fn new(settings: &settings::Redis) -> Result<Self, RedisError> {
        Self::with(settings, None)
    }

    /// A connection with client-side tracking (RESP3). Notifies `notify` when another client changes one of these keys after a
    /// script has read it, and when the connection is lost.
    ///
    /// Before Redis 7.2, tracking covers all declared keys of a script that reads, and no others.
    pub fn waking(settings: &settings::Redis, keys: Vec<String>, notify: Arc<Notify>) -> Result<Self, RedisError> {
        Self::with(settings, Some(Wake { notify, keys: keys.into() }))
    }

    fn with(settings: &settings::Redis, wake: Option<Wake>) -> Result<Self, RedisError> {
        let mut target = url::read(settings.url.expose())?;
        target.session = target.session.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let server = Server::of(target, settings)?;
        Ok(Self {
            dialer: Dialer::new(settings, server.targets())?,
            server,
            wake,
            tracking: Arc::new(Tracking { is_on: AtomicBool::new(true), n_missed: AtomicU32::new(0) }),
            connection: Mutex::new(None),
        })
    }

    /// Where the server is, without user and password.
    pub fn address(&self) -> String {
        match &self.server {
            Server::Fixed(target) => target.to_string(),
            Server::Master { sentinels, name, target } => {
                let sentinels: Vec<_> = sentinels.iter().map(|sentinel| sentinel.address.to_string()).collect();
                format!("master {name} of {}, database {}", sentinels.join(", "), target.session.db())
            }
        }
    }

    /// Connects, unless there is a connection. After a failure nothing was sent.
    pub async fn connect_if_needed(&self) -> Result<(), RedisError> {
        self.connection().await.map(drop)
    }

    /// Sends one command.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let reply = command.query_async(&mut connection.commands).await;
        self.keep_or_drop(&connection, reply).await
    }

    /// Sends several commands in one round trip.
    pub async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let reply = pipeline.query_async(&mut connection.commands).await;
        self.keep_or_drop(&connection, reply).await
    }

    /// Runs a script by its digest, and by its text where the server does not know it.
    pub async fn script<T: FromRedisValue>(&self, invocation: &ScriptInvocation<'_>) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        let reply = invocation.invoke_async(&mut connection.commands).await;
        self.keep_or_drop(&connection, reply).await
    }

    /// The server's version and problems.
    pub async fn server_info(&self) -> Result<ServerInfo, RedisError> {
        let info: String = self.query(&redis::cmd("INFO")).await?;
        // Without the right to CONFIG there is no answer.
        let fsync: Vec<String> =
            self.query(redis::cmd("CONFIG").arg(&["GET", "appendfsync"])).await.unwrap_or_default();
        Ok(ServerInfo::read(&info, fsync.get(1).map(String::as_str)))
    }

    /// Whether Redis pushes changes, as far as is known.
    pub fn has_tracking(&self) -> bool {
        self.tracking.is_on.load(Ordering::Relaxed)
    }

    /// Notes a change that Redis should have pushed and did not. A proxy may accept `CLIENT TRACKING` and drop the pushes.
    pub fn note_missed_push(&self) {
        let n_missed = self.tracking.n_missed.fetch_add(1, Ordering::Relaxed) + 1;
        if n_missed >= MISSED_PUSHES && self.tracking.is_on.swap(false, Ordering::Relaxed) {
            tracing::warn!(
                event = "tracking_silent",
                "Redis accepted CLIENT TRACKING and did not report new jobs; polling for new jobs twice a second"
            );
        }
    }

    async fn connection(&self) -> Result<Connection, RedisError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref() {
            return Ok(connection.clone());
        }
        let fresh = self.connect().await.inspect_err(|_| metric::REDIS_ERRORS.add(["connection"], 1))?;
        Ok(connection.insert(fresh).clone())
    }

    async fn connect(&self) -> Result<Connection, RedisError> {
        let target = self.target().await?;
        let connection = match self.wake.clone() {
            None => self.dialer.connect(&target, AsyncConnectionConfig::new()).await?,
            Some(wake) => self.connect_waking(target, wake).await?,
        };
        match self.server {
            Server::Fixed(_) => Ok(connection),
            Server::Master { .. } => expect_master(connection).await,
        }
    }

    /// Connects with tracking; without it where the server has none, and then the worker polls.
    async fn connect_waking(&self, target: Target, wake: Wake) -> Result<Connection, RedisError> {
        let tracking = Arc::clone(&self.tracking);
        let config = AsyncConnectionConfig::new().set_push_sender(move |push: PushInfo| {
            let is_lost = push.kind == PushKind::Disconnection;
            if !is_lost {
                tracking.note_push();
            }
            if is_lost || (push.kind == PushKind::Invalidate && wake.concerns(&push.data)) {
                wake.notify.notify_one();
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let with_pushes =
            Target { session: target.session.clone().set_protocol(ProtocolVersion::RESP3), ..target.clone() };
        let tracked = match self.dialer.connect(&with_pushes, config).await {
            Ok(mut connection) => {
                let mut command = redis::cmd("CLIENT");
                // NOLOOP, or this client's own writes would wake it.
                command.arg(&["TRACKING", "ON", "NOLOOP"]);
                command.query_async::<()>(&mut connection.commands).await.map(|()| connection)
            }
            Err(error) => Err(error),
        };
        self.tracking.n_missed.store(0, Ordering::Relaxed);
        self.tracking.is_on.store(tracked.is_ok(), Ordering::Relaxed);
        match tracked {
            // An old server or a proxy does not know HELLO or CLIENT, or an ACL forbids them.
            Err(error) if is_refusal(&error) => {
                let connection = self.dialer.connect(&target, AsyncConnectionConfig::new()).await?;
                tracing::warn!(event = "tracking_refused", %error, "Redis refuses CLIENT TRACKING; polling for new jobs twice a second");
                Ok(connection)
            }
            tracked => tracked,
        }
    }

    /// Where to connect to now.
    async fn target(&self) -> Result<Target, RedisError> {
        let (sentinels, name, target) = match &self.server {
            Server::Fixed(target) => return Ok(target.clone()),
            Server::Master { sentinels, name, target } => (sentinels, name, target),
        };
        let mut last = None;
        for sentinel in sentinels {
            match self.master_of(sentinel, name).await {
                Ok(Some((host, port))) => return Ok(target.at(host, port)),
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
        }
        let unknown = || {
            RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "no sentinel knows the master", name.clone()))
        };
        Err(last.unwrap_or_else(unknown))
    }

    async fn master_of(&self, sentinel: &Target, name: &str) -> Result<Option<(String, u16)>, RedisError> {
        let mut sentinel = self.dialer.connect(sentinel, AsyncConnectionConfig::new()).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(name).query_async(&mut sentinel.commands).await
    }

    /// After an error reply the connection stays usable; after any other error it may hold half a reply. A server that has become a
    /// replica refuses every write: the next connection may find the new master.
    async fn keep_or_drop<T>(&self, used: &Connection, reply: Result<T, RedisError>) -> Result<T, RedisError> {
        match &reply {
            Ok(_) => metric::REDIS_ROUND_TRIPS.add([], 1),
            Err(error) => {
                metric::REDIS_ERRORS.add([if is_answer(error) { "refused" } else { "connection" }], 1);
            }
        }
        if let Err(error) = &reply
            && (!is_answer(error) || is_of_a_replica(error))
        {
            // Another task may have opened a new one meanwhile.
            self.connection.lock().await.take_if(|present| present.is_same(used));
        }
        reply
    }
}

impl Server {
    /// As in Ruby's redis-client, the host in `redis.url` is the sentinels' name of the master.
    fn of(target: Target, settings: &settings::Redis) -> Result<Self, RedisError> {
        if settings.sentinels.is_empty() {
            return Ok(Self::Fixed(target));
        }
        let Address::Tcp { host, .. } = &target.address else {
            let message = "redis.url must not be a Unix socket when redis.sentinels is set";
            return Err(RedisError::from((ErrorKind::InvalidClientConfig, message)));
        };
        let sentinels = settings.sentinels.iter().map(|url| url::read(url.expose()));
        Ok(Self::Master { sentinels: sentinels.collect::<Result<_, _>>()?, name: host.clone(), target })
    }

    fn targets(&self) -> impl Iterator<Item = &Target> {
        let (target, sentinels): (_, &[Target]) = match self {
            Self::Fixed(target) => (target, &[]),
            Self::Master { sentinels, target, .. } => (target, sentinels),
        };
        sentinels.iter().chain([target])
    }
}

impl Tracking {
    /// A server that pushes is believed again.
    fn note_push(&self) {
        if self.n_missed.swap(0, Ordering::Relaxed) > 0 {
            self.is_on.store(true, Ordering::Relaxed);
        }
    }
}

/// During a failover, sentinels still name the old master.
async fn expect_master(mut connection: Connection) -> Result<Connection, RedisError> {
    let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut connection.commands).await?;
    let role: String = role.into_iter().next().map(redis::from_redis_value).transpose()?.unwrap_or_default();
    if role == "master" {
        return Ok(connection);
    }
    Err(RedisError::from((ErrorKind::Io, "the server that the sentinels name is not the master", role)))
}

/// Whether the server answered, with an error. One that the library does not know by name is of the kind `Extension`.
fn is_answer(error: &RedisError) -> bool {
    error.code().is_some() || error.kind() == ErrorKind::Extension
}

/// Whether the server does not know a command, or forbids it. Other errors, such as one while it loads its file, will pass.
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.code(), Some("ERR" | "NOPERM" | "NOPROTO")) || error.kind() == ErrorKind::RESP3NotSupported
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

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redis(***)")
    }
}

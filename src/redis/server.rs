//! What a Redis server reports about itself, and which of it puts jobs at risk.

/// What the server reports about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// `redis_version`, which Valkey keeps at 7.2.4, or its own name and version.
    pub version: String,
    /// Problems that an operator should know before jobs depend on the server, fatal ones first.
    pub troubles: Vec<Trouble>,
}

/// A problem of a server that puts jobs at risk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Its subject, for a list.
    pub about: &'static str,
    /// A sentence: the problem, and what to do.
    pub message: String,
    /// Whether jobs get lost without a crash, or no worker can run at all.
    pub is_fatal: bool,
}

impl ServerInfo {
    /// Reads the answer to `INFO`, and the setting `appendfsync` if this user may read it.
    pub(super) fn read(info: &str, fsync: Option<&str>) -> Self {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("?").trim().to_owned()
        };
        let mut troubles = Vec::new();
        let mut trouble = |about, is_fatal, message| troubles.push(Trouble { about, message, is_fatal });
        if field("cluster_enabled") == "1" {
            trouble("redis cluster", true, "Redis Cluster is not supported; Sidekiq does not support it either".into());
        }
        if field("role") == "slave" {
            let message =
                "this server is a replica, and refuses to change anything; name the master, or set redis.sentinels"
                    .into();
            trouble("redis role", true, message);
        }
        let policy = field("maxmemory_policy");
        if policy != "noeviction" {
            let message = format!("maxmemory-policy is {policy}: Redis may evict jobs; set noeviction");
            trouble("redis memory", true, message);
        }
        if field("aof_enabled") != "1" {
            let message = "no append-only file: a crash of Redis loses jobs; set appendonly yes".into();
            trouble("redis persistence", false, message);
        } else if fsync == Some("no") {
            let message =
                "appendfsync is no: a crash of the machine loses recent jobs; set appendfsync everysec".into();
            trouble("redis persistence", false, message);
        }
        let version = match field("server_name").as_str() {
            "?" | "redis" => field("redis_version"),
            name => format!("{name} {}", field(&format!("{name}_version"))),
        };
        Self { version, troubles }
    }

    /// Why no worker can run on this server; `None` when one can.
    pub fn refusal(&self) -> Option<&str> {
        self.troubles.iter().find(|trouble| trouble.about == "redis cluster").map(|trouble| trouble.message.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn troubles(info: &str, fsync: Option<&str>) -> Vec<&'static str> {
        ServerInfo::read(info, fsync).troubles.iter().map(|trouble| trouble.about).collect()
    }

    #[test]
    fn a_server_has_its_problems_and_its_version() {
        let good = "redis_version:7.0.15\r\ncluster_enabled:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";
        assert_eq!(ServerInfo::read(good, Some("everysec")), ServerInfo { version: "7.0.15".into(), troubles: vec![] });
        assert_eq!(troubles(good, Some("no")), ["redis persistence"]);
        assert_eq!(troubles(&good.replace("aof_enabled:1", "aof_enabled:0"), None), ["redis persistence"]);
        assert_eq!(troubles(&good.replace("noeviction", "allkeys-lru"), None), ["redis memory"]);
        assert_eq!(troubles(&format!("{good}role:slave\r\n"), None), ["redis role"]);
        let cluster = ServerInfo::read(&good.replace("cluster_enabled:0", "cluster_enabled:1"), None);
        assert!(cluster.refusal().is_some_and(|refusal| refusal.contains("Cluster")));
        let valkey = format!("{good}server_name:valkey\r\nvalkey_version:8.0.1\r\n");
        assert_eq!(ServerInfo::read(&valkey, None).version, "valkey 8.0.1");
    }
}

//! The default of every setting: what `config/sidebake.toml` shows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{
    Accounts, Bake, Buildx, Github, Health, JobClass, Jobs, Lease, Log, LogFormat, Mtimes, Queue, Redis, Sandbox,
    SandboxMode, Settings, Shutdown, Source, State, Timestamps,
};
use crate::job::Asked;
use crate::secret::Secret;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 10,
            clones: 4,
            queues: vec![Queue { name: "default".into(), weight: 0 }],
            capsules: BTreeMap::new(),
            tag: String::new(),
            labels: vec!["sidebake".into()],
            redis: Redis::default(),
            state: State::default(),
            shutdown: Shutdown::default(),
            health: Health::default(),
            lease: Lease::default(),
            jobs: Jobs::default(),
            github: Github::default(),
            source: Source::default(),
            buildx: Buildx::default(),
            bake: Bake::default(),
            builders: BTreeMap::new(),
            accounts: Accounts::default(),
            sandbox: Sandbox::default(),
            log: Log::default(),
            notes: Vec::new(),
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: Secret::new("redis://127.0.0.1:6379/0"),
            sentinels: Vec::new(),
            ca_file: None,
            client_certificate_file: None,
            client_key_file: None,
            timeout: seconds(5),
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self { directory: "/var/lib/sidebake".into(), mirrors_max_bytes: 20 << 30, min_free_bytes: 2 << 30 }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: seconds(15 * 60) }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self { ttl: seconds(30) }
    }
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            classes: BTreeMap::from([("BuildJob".into(), JobClass::default())]),
            probe: false,
            max_age: seconds(2 * 60 * 60),
            max_retries: 25,
            raise_user_failures: false,
            dead_max_jobs: 10_000,
            dead_timeout: seconds(180 * 24 * 60 * 60),
            poll_interval: seconds(5),
            poll_interval_average: None,
            timestamps: Timestamps::Milliseconds,
        }
    }
}

impl Default for Github {
    fn default() -> Self {
        Self {
            api_url: "https://api.github.com".into(),
            git_url: "https://github.com".into(),
            app_id: None,
            private_key: None,
            private_key_file: None,
            revoke: true,
            check_ref: true,
            timeout: seconds(10),
        }
    }
}

impl Default for Source {
    fn default() -> Self {
        Self {
            connect_timeout: seconds(10),
            stall_timeout: seconds(30),
            timeout: seconds(10 * 60),
            max_entries: 500_000,
            max_tree_bytes: 8 << 30,
            max_file_bytes: 2 << 30,
            max_fetch_bytes: 4 << 30,
            ca_file: "/etc/ssl/certs/ca-certificates.crt".into(),
            submodules: Vec::new(),
            mtimes: Mtimes::Checkout,
            mtimes_for: BTreeMap::new(),
            mtimes_key: None,
            mtimes_key_file: None,
        }
    }
}

impl Default for Buildx {
    fn default() -> Self {
        Self { binary: "/usr/libexec/docker/cli-plugins/docker-buildx".into() }
    }
}

impl Default for Bake {
    fn default() -> Self {
        Self {
            print_timeout: seconds(30),
            prints: 4,
            max_print_bytes: 4 << 20,
            timeout: seconds(30 * 60),
            silence: seconds(15 * 60),
            max_targets: 100,
            provenance: Asked::default(),
            sbom: Asked::default(),
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self { mode: SandboxMode::Required, registry_ports: vec![443], max_data_bytes: 4 << 30 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

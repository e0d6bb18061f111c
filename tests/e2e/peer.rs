//! A worker that runs probes, and the Sidekiqs that inspect it: this machine's own, and those of `tests/peers`.

use std::process::{Command, Stdio};

use world::{Home, Redis, Worker};

use crate::harness::PATIENCE;

/// This machine's own Sidekiq and two others: the peer's name, and the prefix of its version.
pub const ALL: [(Option<&str>, &str); 3] = [(None, "6.4"), (Some("sidekiq-7"), "7.3"), (Some("sidekiq-8"), "8.1")];

/// A Redis and its worker.
pub struct Watched {
    pub worker: Worker,
    pub home: Home,
    pub redis: Redis,
}

impl Watched {
    /// Appends `more` to the configuration.
    pub fn start(redis: Redis, more: &str) -> Self {
        let home = Home::new(env!("CARGO_BIN_EXE_sidebake"), "sidebake-peer-", PATIENCE);
        let config = home.write_config(&format!(
            "redis.url = \"{}\"\nstate.directory = \"{}/state\"\njobs.probe = true\njobs.poll_interval = \"200ms\"\n{more}\n",
            redis.url(),
            home.path().display()
        ));
        let worker = home.worker::<&str>(&config, &[], &[]);
        Self { worker, home, redis }
    }

    /// The output of a script of `tests/e2e/ruby`. `peer` is a name that `tests/peers` knows.
    pub fn ruby(&self, peer: Option<&str>, script: &str, arguments: &[&str]) -> Vec<u8> {
        ruby(&self.redis, peer, script, arguments)
    }
}

/// The same without a worker.
pub fn ruby(redis: &Redis, peer: Option<&str>, script: &str, arguments: &[&str]) -> Vec<u8> {
    let ruby = peer.map_or_else(|| "ruby".to_owned(), made);
    let output = Command::new(&ruby)
        .arg(format!("{}/tests/e2e/ruby/{script}", env!("CARGO_MANIFEST_DIR")))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("REDIS_URL", redis.url())
        .env("LANG", "C.UTF-8")
        .env_remove("REDIS_PROVIDER")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {ruby} ({error}); install it: docker/install"));
    assert!(output.status.success(), "{script} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The Ruby of a peer. Makes the peer when it is missing.
pub fn made(peer: &str) -> String {
    let output = Command::new("tests/peers").arg(peer).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "tests/peers cannot make {peer}: this needs root and Debian 12");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

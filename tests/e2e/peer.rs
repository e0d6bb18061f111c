//! A worker that runs probes, and the Sidekiqs that inspect it: this machine's own, and those of `tests/peers`.

use std::process::{Child, Command, Stdio};

use world::Redis;

/// This machine's own Sidekiq and two others: the peer's name, and the prefix of its version.
pub const ALL: [(Option<&str>, &str); 3] = [(None, "6.4"), (Some("sidekiq-7"), "7.3"), (Some("sidekiq-8"), "8.1")];

/// A Redis and its worker. Dropping it kills both.
pub struct Watched {
    pub redis: Redis,
    pub worker: Child,
    home: tempfile::TempDir,
}

impl Watched {
    /// Appends `more` to the configuration.
    pub fn start(redis: Redis, more: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (config, state) = (home.path().join("sidebake.toml"), home.path().join("state"));
        let text = format!(
            "redis.url = \"{}\"\nstate.directory = \"{}\"\njobs.probe = true\njobs.poll_interval = \"200ms\"\n{more}\n",
            redis.url(),
            state.display()
        );
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        let mut run = world::sidebake(env!("CARGO_BIN_EXE_sidebake"));
        run.args(["run", "-C"]).arg(config);
        let worker = run.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        Self { redis, worker, home }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap()
    }

    /// The output of a script of `tests/e2e/ruby`. `peer` is a name that `tests/peers` knows.
    pub fn ruby(&self, peer: Option<&str>, script: &str, arguments: &[&str]) -> Vec<u8> {
        let ruby = peer.map_or_else(|| "ruby".to_owned(), made);
        let output = Command::new(&ruby)
            .arg(format!("{}/tests/e2e/ruby/{script}", env!("CARGO_MANIFEST_DIR")))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("REDIS_URL", self.redis.url())
            .env("LANG", "C.UTF-8")
            .env_remove("REDIS_PROVIDER")
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {ruby} ({error}); install it: docker/install"));
        assert!(output.status.success(), "{script} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.worker.kill();
        let _ = self.worker.wait();
    }
}

/// The Ruby of a peer. Makes the peer when it is missing.
pub fn made(peer: &str) -> String {
    let output = Command::new("tests/peers").arg(peer).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "tests/peers cannot make {peer}: this needs root and Debian 12");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

//! The Rails side in Ruby: Sidekiq's real client, and a real Sidekiq worker that runs the callbacks.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use world::{CALLBACKS, wait_for_within};

use crate::harness::{Harness, PATIENCE};

/// A Sidekiq process. Dropping it kills the process.
pub struct Sidekiq {
    child: Child,
    reports: PathBuf,
}

/// Enqueues one job with Ruby's client and returns its jid.
pub fn enqueue(harness: &Harness, class: &str, arguments: Value) -> String {
    let mut ruby = ruby(harness);
    ruby.arg(script("enqueue.rb")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client =
        ruby.spawn().unwrap_or_else(|error| panic!("cannot run ruby ({error}); install it: docker/install"));
    client.stdin.take().unwrap().write_all(json!([[class, arguments]]).to_string().as_bytes()).unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "Ruby's Sidekiq did not enqueue; install it: docker/install");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Sidekiq {
    /// Starts a worker for the callbacks.
    pub fn start(harness: &Harness) -> Self {
        let reports = harness.home.path().join("reports");
        std::fs::create_dir(&reports).unwrap();
        let log = std::fs::File::create(harness.home.path().join("sidekiq.log")).unwrap();
        let mut ruby = ruby(harness);
        ruby.args(["-S", "sidekiq", "-q", CALLBACKS, "-c", "2", "-t", "1", "-r"]).arg(script("jobs.rb"));
        ruby.env("REPORTS", &reports).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child =
            ruby.spawn().unwrap_or_else(|error| panic!("cannot run ruby ({error}); install it: docker/install"));
        Self { child, reports }
    }

    /// Waits for the callback about a job. Returns the class that received it, and the report.
    pub async fn received(&self, jid: &str) -> (String, Value) {
        let path = self.reports.join(format!("{jid}.json"));
        wait_for_within(PATIENCE, "Ruby's worker to receive the callback", || path.exists()).await;
        let mut kept: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        (kept["received_by"].as_str().unwrap().to_owned(), kept["report"].take())
    }
}

impl Drop for Sidekiq {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ruby(harness: &Harness) -> Command {
    let mut ruby = Command::new("ruby");
    ruby.env("REDIS_URL", harness.redis.url()).env_remove("REDIS_PROVIDER");
    ruby
}

fn script(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "e2e", "ruby", name].iter().collect()
}

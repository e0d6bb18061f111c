//! Extracts the Ruby and the settings from the documents and runs them: the Rails side by real Sidekiq, Active Job and
//! Action Controller, and sidebake's side by a worker that really builds.

use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Harness, Worker};
use crate::peer::made;
use crate::registry;

const DOCUMENTS: [&str; 4] = ["README.md", "docs/jobs.md", "docs/coming-from-ruby.md", "docs/logs-in-rails.md"];
/// Replaces a commit that a job in the documents names.
const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const SECRET: &str = "what Rails and sidebake know";
/// The id of the application's only row.
pub const BUILD: u64 = 4711;

/// The text of each fenced block of a language, without the fences.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line == fence {
                let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
                blocks.push(block.join("\n"));
            }
        }
    }
    blocks
}

/// The only block of the documents that begins with this line.
pub fn block(language: &str, first_line: &str) -> String {
    let mut found: Vec<String> = blocks(language);
    found.retain(|block| block.lines().next() == Some(first_line));
    assert_eq!(found.len(), 1, "the documents have {} blocks that begin with {first_line:?}", found.len());
    found.remove(0)
}

pub fn snippet(first_line: &str) -> String {
    block("ruby", first_line)
}

#[test]
fn every_piece_of_ruby_in_the_documents_is_run_here() {
    let tests = concat!(include_str!("coming_from_ruby.rs"), include_str!("logs_in_rails.rs"));
    for block in blocks("ruby") {
        let first_line = block.lines().next().expect("a block has lines");
        let asked = format!("snippet({first_line:?})");
        assert!(tests.contains(&asked), "no test uses {asked}");
    }
}

/// A Rails application with the documents' classes, and a harness.
pub struct Application {
    pub harness: Harness,
    /// The program: this machine's Ruby, or one with another Sidekiq.
    ruby: String,
    pub sha: String,
    pub processes: Vec<Child>,
    n_files: Cell<usize>,
}

impl Application {
    /// With the model, the callback, and a commit for its only row.
    pub fn open() -> Self {
        Self::of("ruby".into())
    }

    /// The same in another Ruby.
    fn of(ruby: String) -> Self {
        let harness = Harness::open();
        let sha = harness
            .commit("voting-app", &[("vote/Dockerfile", &harness.dockerfile("COPY . /srv")), ("vote/a", "cats\n")]);
        let home = harness.home.path();
        std::fs::create_dir(home.join("application")).unwrap();
        let application = Self { ruby, sha, processes: Vec::new(), n_files: Cell::new(0), harness };
        let tag = application.tag();
        let definition = json!({"target": {"default": {"context": "./vote", "tags": [tag]}}});
        let image = json!({"name": "vote", "context": "./vote", "args": {}, "tags": [tag], "position": 1});
        application.keep(&json!({"4711": {
            "id": BUILD, "account": "acme", "repository": "acme/voting-app", "sha": application.sha, "deploy_id": 7,
            "images": [image], "definition": definition, "status": "queued",
        }}));
        application.add(&snippet("# app/models/build.rb"));
        application.add(&snippet("# app/jobs/build_job.rb"));
        application.add(&snippet("# app/jobs/build_finished_job.rb"));
        application
    }

    fn tag(&self) -> String {
        self.harness.reference("vote", &self.sha)
    }

    fn rows(&self) -> PathBuf {
        self.harness.home.path().join("rows.json")
    }

    pub fn keep(&self, rows: &Value) {
        std::fs::write(self.rows(), rows.to_string()).unwrap();
    }

    pub fn row(&self, id: u64) -> Value {
        serde_json::from_slice::<Value>(&std::fs::read(self.rows()).unwrap()).unwrap()[id.to_string()].take()
    }

    /// Adds a file of the application.
    pub fn add(&self, text: &str) -> PathBuf {
        self.n_files.set(self.n_files.get() + 1);
        let path = self.harness.home.path().join(format!("application/{:02}.rb", self.n_files.get()));
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn ruby(&self) -> Command {
        let mut ruby = Command::new(&self.ruby);
        ruby.current_dir(env!("CARGO_MANIFEST_DIR"));
        ruby.env("REDIS_URL", self.harness.redis.url()).env_remove("REDIS_PROVIDER").env("LANG", "C.UTF-8");
        ruby.env("APPLICATION", self.harness.home.path().join("application")).env("ROWS", self.rows());
        ruby.env("SIDEBAKE_SECRET", SECRET).env("BUILD", BUILD.to_string()).stdin(Stdio::null());
        ruby
    }

    /// Runs a call site and returns the jid of the job that it enqueued.
    pub fn call(&self, site: &str) -> String {
        self.call_about(site, "")
    }

    /// The same for a call site that has a `jid`.
    fn call_about(&self, site: &str, jid: &str) -> String {
        let path = self.harness.home.path().join("call-site");
        std::fs::write(&path, site).unwrap();
        let output = self.ruby().arg(script()).arg("call").arg(&path).env("JID", jid).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{site}: {said}\nInstall what is missing: docker/install ruby rails");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a Sidekiq worker for the callbacks on `default`.
    fn work(&mut self) {
        let log = std::fs::File::create(self.harness.home.path().join("sidekiq.log")).unwrap();
        let mut ruby = self.ruby();
        ruby.args(["-S", "sidekiq", "-q", "default", "-c", "1", "-t", "1", "-r"]).arg(script());
        self.processes.push(ruby.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// Serves the documents' endpoint and routes, and returns the URL.
    fn serve(&mut self) -> String {
        let endpoint = self.harness.home.path().join("sidebake_builds_controller.rb");
        std::fs::write(&endpoint, snippet("class SidebakeBuildsController < ActionController::API")).unwrap();
        let routes = self.harness.home.path().join("routes.rb");
        std::fs::write(&routes, snippet("# config/routes.rb")).unwrap();
        let log = std::fs::File::create(self.harness.home.path().join("rails.log")).unwrap();
        let mut ruby = self.ruby();
        let mut server = ruby
            .arg(script())
            .arg("serve")
            .arg(endpoint)
            .arg(routes)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        self.processes.push(server);
        assert!(!port.is_empty(), "Rails did not start: {}", self.harness.logs());
        format!("http://127.0.0.1:{}", port.trim())
    }

    /// A worker that fetches from these queues.
    pub fn worker(&self, queues: &str, more: &str) -> Worker {
        self.harness.worker_with_variables(&self.harness.config(more), &[], &[("SIDEBAKE__QUEUES", queues)])
    }

    /// Waits until Ruby's callback writes the end into the row, and checks that the registry has the image.
    async fn is_built(&self, id: u64) {
        self.harness.until("the row has a final status", async || self.row(id)["status"] != "queued").await;
        let row = self.row(id);
        assert_eq!(row["status"], "succeeded", "{row:#}\n{}", self.harness.logs());
        let digest = registry::digest(&self.tag()).await.expect("the registry has the image");
        assert!(row["digests"].as_object().unwrap().values().all(|it| *it == digest.as_str()), "{row:#}");
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

pub fn script() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "e2e", "ruby", "application.rb"].iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_request_is_built_and_updates_the_row_in_every_sidekiq() {
    for ruby in ["ruby".into(), made("sidekiq-7"), made("sidekiq-8")] {
        let mut application = Application::of(ruby);
        application.work();
        let _worker = application.worker("builds", "");
        application.call(&snippet("BuildJob.perform_async(build.to_sidebake)"));
        application.is_built(BUILD).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_readmes_call_is_built() {
    let mut application = Application::open();
    let mut rows = json!({});
    rows["4711"] = application.row(BUILD);
    rows["42"] = json!({"id": 42, "status": "queued"});
    application.keep(&rows);
    application.work();
    let _worker = application.worker("builds", "");
    let site = snippet("BuildJob.perform_async({").replace(SHA, &application.sha);
    assert!(site.contains("registry.example/acme/vote:0123456"), "{site}");
    application.call(&site.replace("registry.example/acme/vote:0123456", &application.tag()));
    application.is_built(42).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_is_explained_by_its_row() {
    let mut application = Application::open();
    application.add(&snippet("# app/models/build.rb, for the page of a build"));
    let dockerfile = application.harness.dockerfile("RUN echo please install libpq-dev; exit 3");
    let sha = application.harness.commit("voting-app", &[("vote/Dockerfile", &dockerfile)]);
    let mut row = application.row(BUILD);
    row["sha"] = json!(sha);
    application.keep(&json!({"4711": row}));
    application.work();
    let _worker = application.worker("builds", "");
    application.call(&snippet("BuildJob.perform_async(build.to_sidebake)"));
    let has_failed = async || application.row(BUILD)["status"] == "failed";
    application.harness.until("the row has a final status", has_failed).await;
    let explanation = application.call("build.explanation");
    let (message, output) = explanation.split_once("\n\n").unwrap_or_else(|| panic!("{explanation}"));
    assert!(message.ends_with("exited with 3: `please install libpq-dev`"), "{explanation}");
    assert_eq!(output, "Output of vote:\nplease install libpq-dev", "{explanation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_job_is_built_in_every_sidekiq() {
    for ruby in ["ruby".into(), made("sidekiq-7"), made("sidekiq-8")] {
        let mut application = Application::of(ruby);
        application.add(&snippet("# app/jobs/build_application_job.rb"));
        application.work();
        let _worker = application.worker("builds", &block("toml", "[jobs.classes.BuildApplicationJob]"));
        application.call(&snippet("BuildApplicationJob.perform_later(build.to_sidebake)"));
        application.is_built(BUILD).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_arguments_are_built_by_the_documents_map() {
    let mut application = Application::open();
    application.work();
    let class =
        "[jobs.classes.LegacyBuildJob]        # (\"acme/app\", sha, bake_definition, {\"build\": 42, \"deploy\": 7})";
    let _worker = application.worker("builds", &block("toml", class));
    application.call(&snippet("LegacyBuildJob.perform_async(build.repository, build.sha, build.definition,"));
    application.is_built(BUILD).await;
}

/// The documents' settings for a resolver, at this URL and with this secret.
fn resolver(application: &Application, url: &str, secret: &str) -> String {
    let file = application.harness.home.path().join("resolver-secret");
    std::fs::write(&file, secret).unwrap();
    let settings = block("toml", "[jobs.classes.BuildByIdJob]");
    let here =
        settings.replace("https://rails.example", url).replace("/run/secrets/sidebake", &file.display().to_string());
    assert!(here.contains(url) && here.contains("resolver-secret"), "{settings}");
    here
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_resolved_by_the_endpoint_and_only_with_a_right_signature() {
    let mut application = Application::open();
    application.work();
    let url = application.serve();
    let worker = application.worker("builds", &resolver(&application, &url, "the secret of another application"));
    let call = snippet("BuildByIdJob.perform_async(build.id)");
    let jid = application.call(&call);
    let retry = async || {
        let retries = application.harness.redis.sorted_set("retry").await;
        retries.into_iter().map(|(job, _)| job).find(|job| job.contains(&jid))
    };
    application.harness.until("the resolver refuses it", async || retry().await.is_some()).await;
    assert!(retry().await.unwrap().contains("Sidebake::ResolverRefused"), "{:?}", retry().await);
    drop(worker);

    let _worker = application.worker("builds", &resolver(&application, &url, SECRET));
    application.call(&call);
    application.is_built(BUILD).await;

    let missing = application.call("BuildByIdJob.perform_async(4712)");
    let is_dead = async || {
        let dead = application.harness.redis.sorted_set("dead").await;
        dead.into_iter().any(|(job, _)| job.contains(&missing) && job.contains("Sidebake::Gone"))
    };
    application.harness.until("the job without a row is dead", is_dead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_refuses_a_request_without_a_current_signature() {
    use hmac::{Hmac, KeyInit, Mac};

    let mut application = Application::open();
    let url = application.serve();
    let ask = async |date: &str, signed: &str| {
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        mac.update(signed.as_bytes());
        let mac = world::hex(&mac.finalize().into_bytes());
        let request = reqwest::Client::new().get(format!("{url}/sidebake/builds/{BUILD}")).header("date", date);
        request.header("x-sidebake-signature", format!("v1={mac}")).send().await.unwrap().status().as_u16()
    };
    let output = Command::new("date").args(["-u", "+%a, %d %b %Y %H:%M:%S GMT"]).env("LC_ALL", "C").output().unwrap();
    let now = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let old = "Tue, 24 Nov 2020 12:00:00 GMT";
    let path = format!("/sidebake/builds/{BUILD}");

    assert_eq!(ask(&now, &format!("GET\n{path}\n{now}")).await, 200, "{}", application.harness.logs());
    assert_eq!(ask(&now, &format!("GET\n{path}1\n{now}")).await, 401, "a signature of another path");
    assert_eq!(ask(&now, &format!("GET\n{path}\n{old}")).await, 401, "a signature of another time");
    assert_eq!(ask(old, &format!("GET\n{path}\n{old}")).await, 401, "a signature of a time long ago");
    let bare = reqwest::get(format!("{url}{path}")).await.unwrap().status().as_u16();
    assert_eq!(bare, 401, "no signature: {}", application.harness.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_a_ruby_job_enqueues_the_object() {
    let mut application = Application::open();
    application.add(&snippet("# app/jobs/build_by_id_job.rb, without an endpoint"));
    application.work();
    let _worker = application.worker("builds", "");
    application.call(&snippet("BuildByIdJob.perform_async(build.id)"));
    application.is_built(BUILD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_account_goes_to_sidebake_and_another_stays_with_ruby() {
    let mut application = Application::open();
    application.add(&snippet("# app/models/build.rb, while both build"));
    let mut rows = json!({"4711": application.row(BUILD)});
    for id in 1..=100 {
        rows[id.to_string()] = json!({"id": id, "account": format!("customer-{id}")});
    }
    application.keep(&rows);
    application.work();
    let url = application.serve();
    let _worker = application.worker("sidebake", &resolver(&application, &url, SECRET));
    application.call("build.enqueue");
    application.is_built(BUILD).await;

    application.call("(1..100).each { |id| Build.find(id).enqueue }; nil");
    let n_left = application.harness.redis.queue("builds").await.len();
    assert_eq!(n_left, 95, "the hash selects five percent of these accounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_sidekiq_cancels_by_two_lines() {
    let mut application = Application::open();
    application.work();
    let jid = application.call(&snippet("BuildJob.perform_async(build.to_sidebake)"));
    let cancel = snippet("Sidekiq.redis do |redis|");
    application.call_about(&cancel, &jid);
    let mut connection = application.harness.redis.connection().await;
    let ttl_s: i64 = redis::cmd("TTL").arg(format!("it-{jid}")).query_async(&mut connection).await.unwrap();
    assert!(ttl_s > 0, "a mark without a job expires");
    let _worker = application.worker("builds", "");
    application
        .harness
        .until("the row has a final status", async || application.row(BUILD)["status"] == "cancelled")
        .await;
}

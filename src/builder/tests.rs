//! Placement, status and changes of a builder, against an API server that a test changes meanwhile.

mod shards;

use std::sync::Arc;

use serde_json::{Value, json};
use world::{Kubernetes, KubernetesObjects};

use super::api_server::STEADY;
use super::cluster::Goal;
use super::*;
use crate::job::{Recipe, Repository, Trust};
use crate::reason::Failure;

/// A worker's builder `d` on an API server.
struct Setup {
    kubernetes: Kubernetes,
    builders: Builders,
    home: tempfile::TempDir,
}

impl Setup {
    /// A builder that waits as long as this.
    fn new(timeout: Duration) -> Self {
        Self::with(timeout, json!({"token": "s3cret"}), |_| ())
    }

    /// A builder of a user, with other settings.
    fn with(timeout: Duration, user: Value, change: impl Fn(&mut settings::Builder)) -> Self {
        let (kubernetes, home) = (Kubernetes::start(), tempfile::tempdir().expect("a directory"));
        let kubeconfig = home.path().join("kubeconfig");
        std::fs::write(&kubeconfig, kubernetes.kubeconfig_of(&user).to_string()).expect("written");
        let mut builder = settings::Builder::new(Driver::Kubernetes, None);
        (builder.kubeconfig, builder.timeout) = (Some(kubeconfig), timeout);
        change(&mut builder);
        let builders = builders(builder);
        Self { kubernetes, builders, home }
    }

    /// Another worker's builder, with changed settings.
    fn changed(&self, change: impl Fn(&mut settings::Builder)) -> Builders {
        let mut builder = self.builders.builders["d"].settings.clone();
        change(&mut builder);
        builders(builder)
    }

    /// Places a build, and returns its pod.
    async fn place(&self) -> Result<Option<String>, BuilderError> {
        place(&self.builders, self.home.path()).await
    }

    /// Places a build in a state that ends after a while.
    async fn place_over(&self, begin: Change, end: Change) -> Option<String> {
        begin(&mut self.kubernetes.objects());
        let pass = async {
            sleep(Duration::from_millis(1200)).await;
            end(&mut self.kubernetes.objects());
        };
        let (placed, ()) = tokio::join!(self.place(), pass);
        placed.expect("placed")
    }

    async fn status(&self) -> BuilderStatus {
        self.builders.status("d").await.expect("a status").remove(0)
    }
}

/// A change of the cluster.
type Change = fn(&mut KubernetesObjects);

async fn place(builders: &Builders, home: &Path) -> Result<Option<String>, BuilderError> {
    let job = Job::new(home);
    let session = job.place(builders).await?;
    Ok(session.placement().pod)
}

/// One build with its directory.
struct Job {
    build: Build,
    directory: JobDirectory,
    state: StateDirectory,
}

impl Job {
    fn new(home: &Path) -> Self {
        let state = StateDirectory::open(home, "test").expect("opened");
        let directory = state.job_directory().expect("made");
        let repository = Repository { owner: "acme".into(), name: "shop".into() };
        let build = Build::new(repository, Trust::Branch, Recipe::Inline("{}".into()));
        Self { build, directory, state }
    }

    async fn place<'a>(&self, builders: &'a Builders) -> Result<Session<'a>, BuilderError> {
        self.place_after(builders, None, None).await
    }

    async fn place_after<'a>(
        &self,
        builders: &'a Builders,
        loss: Option<&Loss>,
        fleet: Option<&Fleet>,
    ) -> Result<Session<'a>, BuilderError> {
        let Self { build, state, directory } = self;
        builders.place(PlaceRequest { loss, fleet, ..PlaceRequest::new(build, state, directory) }).await
    }
}

fn builders(builder: settings::Builder) -> Builders {
    Builders::new(&settings::Settings { builders: [("d".to_owned(), builder)].into(), ..Default::default() })
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_build_waits_for_a_state_that_passes() {
    let setup = Setup::new(LONG);
    let missing: Change = |objects| objects.deployments.clear();
    let made: Change = |objects| {
        objects.deployments.insert("d0".into(), Kubernetes::deployment());
    };
    assert_eq!(setup.place_over(missing, made).await.as_deref(), Some("d0-a"));
    let scaled_down: Change = |objects| objects.pods.clear();
    let scaled_up: Change = |objects| objects.pods.push(Kubernetes::pod("d0-b"));
    assert_eq!(setup.place_over(scaled_down, scaled_up).await.as_deref(), Some("d0-b"));
    let terminating: Change =
        |objects| objects.pods[0]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let replaced: Change = |objects| objects.pods = vec![Kubernetes::pod("d0-c")];
    assert_eq!(setup.place_over(terminating, replaced).await.as_deref(), Some("d0-c"));
    let unready: Change = |objects| objects.pods[0]["status"]["conditions"][0]["status"] = json!("False");
    let ready: Change = |objects| objects.pods[0]["status"]["conditions"][0]["status"] = json!("True");
    assert_eq!(setup.place_over(unready, ready).await.as_deref(), Some("d0-c"));
}

#[tokio::test]
async fn many_builds_that_wait_ask_kubernetes_as_often_as_one() {
    let setup = Setup::new(LONG);
    setup.kubernetes.objects().pods.clear();
    let (builders, deadline) = (Arc::new(setup.changed(|_| ())), Instant::now() + LONG);
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let builders = Arc::clone(&builders);
        waits.spawn(async move { builders.builders["d"].nodes[0].wait_for(Goal::Ready, deadline).await.is_ok() });
    }
    sleep(Duration::from_secs(2)).await;
    let n_requests = {
        let mut objects = setup.kubernetes.objects();
        objects.pods.push(Kubernetes::pod("d0-a"));
        objects.n_requests
    };
    assert_eq!(waits.join_all().await, [true; 20]);
    // Two for each build's first look, and for each half second.
    assert!(n_requests <= 2 * (20 + 5), "{n_requests}");
    assert!(deadline - Instant::now() > LONG - Duration::from_secs(6), "all of them go on at once");
}

#[tokio::test]
async fn a_state_that_does_not_pass_is_told_in_kubernetes_words() {
    let setup = Setup::new(Duration::from_secs(1));
    let said = async || setup.place().await.expect_err("refused").to_string();
    setup.kubernetes.objects().deployments.get_mut("d0").expect("a Deployment")["spec"]["replicas"] = json!(0);
    setup.kubernetes.objects().pods.clear();
    assert!(said().await.ends_with("s: the Deployment has 0 replicas"), "{}", said().await);
    setup.kubernetes.objects().deployments.clear();
    assert!(said().await.contains("no Deployment d0 in the namespace builds"), "{}", said().await);
}

#[tokio::test]
async fn an_outage_of_the_api_server_is_waited_for() {
    let setup = Setup::new(LONG);
    let (port, Setup { kubernetes, builders, home }) = (setup.kubernetes.port(), setup);
    drop(kubernetes);
    let kubernetes = async {
        sleep(Duration::from_secs(1)).await;
        assert!(builders.builders["d"].nodes[0].api.outage.lasts(), "logged once");
        Kubernetes::start_on(port)
    };
    let (placed, _kubernetes) = tokio::join!(place(&builders, home.path()), kubernetes);
    assert_eq!(placed.expect("placed"), Some("d0-a".into()));
    assert!(builders.builders["d"].nodes[0].api.outage.lasts(), "Kubernetes has just come back");
    sleep(STEADY).await;
    assert_eq!(place(&builders, home.path()).await.expect("placed"), Some("d0-a".into()));
    assert!(!builders.builders["d"].nodes[0].api.outage.lasts());
}

#[tokio::test]
async fn credentials_that_are_no_longer_accepted_are_looked_up_again() {
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "first").expect("written");
    let print = format!("echo '{{\"status\":{{\"token\":\"'$(cat {})'\"}}}}'", token.path().display());
    let plugin = json!({"command": "/bin/sh", "args": ["-c", print], "apiVersion": "client.authentication.k8s.io/v1"});
    let setup = Setup::with(LONG, json!({"exec": plugin}), |_| ());
    setup.kubernetes.objects().token = Some("first".into());
    assert_eq!(setup.place().await.expect("placed"), Some("d0-a".into()));
    // The plugin gave no end, and what it gave is not a minute old.
    std::fs::write(token.path(), "second").expect("written");
    setup.kubernetes.objects().token = Some("second".into());
    assert_eq!(setup.place().await.expect("placed"), Some("d0-a".into()));
    assert_eq!(setup.kubernetes.objects().n_unauthorized, 1);
}

#[tokio::test]
async fn builds_that_wait_for_credentials_share_a_failure_and_keep_their_deadline() {
    let runs = tempfile::NamedTempFile::new().expect("a file");
    let script = format!("echo run >> {}; sleep 1; exit 1", runs.path().display());
    let plugin = json!({"command": "/bin/sh", "args": ["-c", script], "apiVersion": "client.authentication.k8s.io/v1"});
    let setup = Setup::with(LONG, json!({"exec": plugin}), |_| ());
    let (builders, deadline) = (Arc::new(setup.changed(|_| ())), Instant::now() + Duration::from_secs(2));
    let mut waits = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let builders = Arc::clone(&builders);
        waits.spawn(async move { builders.builders["d"].nodes[0].wait_for(Goal::Ready, deadline).await.is_err() });
    }
    assert_eq!(waits.join_all().await, [true; 20]);
    assert!(deadline.elapsed() < Duration::from_secs(10), "{:?}", deadline.elapsed());
    assert!(builders.builders["d"].nodes[0].api.outage.lasts(), "logged once");
    let n_runs = std::fs::read_to_string(runs.path()).expect("read").lines().count();
    assert!((1..=4).contains(&n_runs), "{n_runs}");
}

#[tokio::test]
async fn a_probe_has_new_credentials_when_those_of_the_bakes_beginning_expire() {
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "first").expect("written");
    // What has expired is looked up for each question.
    let status = format!(
        "{{\\\"token\\\":\\\"$(cat {})\\\",\\\"expirationTimestamp\\\":\\\"2020-01-01T00:00:00Z\\\"}}",
        token.path().display()
    );
    let print = format!("echo \"{{\\\"status\\\":{status}}}\"");
    let plugin = json!({"command": "/bin/sh", "args": ["-c", print], "apiVersion": "client.authentication.k8s.io/v1"});
    let setup = Setup::with(LONG, json!({"exec": plugin}), |_| ());
    let job = Job::new(setup.home.path());
    let session = job.place(&setup.builders).await.expect("placed");
    let kubeconfig = || std::fs::read_to_string(&session.location.environment["KUBECONFIG"]).expect("read");
    assert!(kubeconfig().contains("\"token\":\"first\""), "{}", kubeconfig());
    std::fs::write(token.path(), "second").expect("written");
    // There is no docker-buildx here, and it would have read the file.
    assert!(session.dial().await.is_err());
    assert!(kubeconfig().contains("\"token\":\"second\""), "{}", kubeconfig());
}

#[tokio::test]
async fn a_notice_of_a_loss_has_our_words_and_the_failure_has_buildx_own() {
    let setup = Setup::new(LONG);
    let job = Job::new(setup.home.path());
    let session = job.place(&setup.builders).await.expect("placed");
    let words = "unable to upgrade connection: container not found (\"buildkitd\")";
    let loss = session.post_mortem(&Failure::new(Reason::BuilderUnavailable, words)).await.expect("a loss");
    assert_eq!(loss.notice, "the builder d: the pod d0-a could not be reached");
    assert_eq!(loss.failure.detail, format!("{}: {words}", loss.notice));
    assert!(setup.builders.builders["d"].nodes[0].is_shunned("d0-a"), "the next builds avoid it");
    let loss = session.post_mortem(&Failure::new(Reason::BuilderLost, "EOF")).await.expect("a loss");
    assert_eq!(loss.notice, "the builder d: the connection to the pod d0-a was lost");
    setup.kubernetes.objects().pods.clear();
    let loss = session.post_mortem(&Failure::new(Reason::BuilderLost, "EOF")).await.expect("a loss");
    assert_eq!(loss.notice, "the builder d: the pod d0-a was deleted during the build");
}

#[tokio::test]
async fn a_stateful_set_is_a_builder_like_any_other_and_nothing_is_made_beside_it() {
    let setup = Setup::new(LONG);
    {
        let mut objects = setup.kubernetes.objects();
        let mut live = objects.deployments.remove("d0").expect("one");
        live["kind"] = json!("StatefulSet");
        live["spec"]["volumeClaimTemplates"] = json!([{"spec": {"resources": {"requests": {"storage": "50Gi"}}}}]);
        objects.stateful_set = Some(live);
        objects.pods[0]["metadata"]["ownerReferences"] = json!([{"kind": "StatefulSet", "name": "d0"}]);
    }
    assert_eq!(setup.builders.ensure("d").await.expect("adopted"), [false]);
    let status = setup.status().await;
    assert_eq!((status.n_ready, status.n_wanted, status.why, status.drift.len()), (1, 1, None, 0));
    let changed = setup.changed(|builder| builder.image = Some("buildkit:2".into()));
    assert_eq!(changed.status("d").await.expect("a status").remove(0).drift.len(), 1);
    changed.apply("d").await.expect("applied");
    {
        let objects = setup.kubernetes.objects();
        let live = objects.stateful_set.as_ref().expect("it is there");
        assert_eq!(live["spec"]["template"]["spec"]["containers"][0]["image"], "buildkit:2");
        assert_eq!(live["kind"], "StatefulSet");
        assert!(objects.deployments.is_empty());
    }

    let job = Job::new(setup.home.path());
    let with = |text| Version::of(crate::version::Program::Buildx, text);
    let place = async |version: &Version| {
        let Job { build, state, directory } = &job;
        let request = PlaceRequest { buildx: Some(version), ..PlaceRequest::new(build, state, directory) };
        setup.builders.place(request).await.map(|session| session.location.configuration.record)
    };
    let refused = place(&with("0.29.1")).await.expect_err("refused").to_string();
    let expected =
        "the builder d is a StatefulSet, which docker-buildx 0.29.1 does not find; newer ones do, from 0.34 on";
    assert_eq!(refused, expected);
    let (_, record) = place(&with("0.36.0")).await.expect("placed").expect("a record");
    let record: Value = serde_json::from_slice(&record).expect("JSON");
    assert_eq!(record["Nodes"][0]["DriverOpts"]["persistent-volume-claim.requests.storage"], "50Gi");
}

#[tokio::test]
async fn a_sidecar_before_buildkit_is_refused_at_once() {
    let setup = Setup::new(LONG);
    let containers = json!([{"name": "proxy"}, {"name": "buildkitd"}]);
    setup.kubernetes.objects().pods[0]["spec"]["containers"] = containers.clone();
    let words = "buildx connects to the first container, proxy";
    let error = setup.place().await.expect_err("refused").to_string();
    assert!(error.contains(words), "{error}");
    assert!(setup.status().await.why.expect("red").contains(words));
    setup.kubernetes.objects().deployments.get_mut("d0").expect("one")["spec"]["template"]["spec"]["containers"] =
        containers;
    assert!(setup.builders.apply("d").await.expect_err("refused").to_string().contains(words));
}

#[tokio::test]
async fn a_setting_that_is_removed_is_drift_until_apply_removes_it() {
    let with_variable = |builder: &mut settings::Builder| {
        builder.environment = [("A".to_owned(), "b".to_owned())].into();
    };
    let setup = Setup::with(LONG, json!({"token": "s3cret"}), with_variable);
    setup.builders.apply("d").await.expect("applied");
    assert_eq!(setup.status().await.drift, []);
    let without = setup.changed(|builder| builder.environment.clear());
    let drift = without.status("d").await.expect("a status").remove(0).drift;
    assert_eq!(drift.len(), 1, "{drift:?}");
    assert_eq!((drift[0].live.as_str(), drift[0].configured.as_str()), ("b", "none"));
    without.apply("d").await.expect("applied");
    assert_eq!(without.status("d").await.expect("a status").remove(0).drift, []);
    let deployment = setup.kubernetes.objects().deployments["d0"].clone();
    assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["env"], Value::Null);
}

#[tokio::test]
async fn terminating_pods_are_not_counted() {
    let setup = Setup::new(LONG);
    {
        let mut objects = setup.kubernetes.objects();
        let mut going = Kubernetes::pod("d0-old");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        objects.pods.push(going);
    }
    let status = setup.status().await;
    assert_eq!((status.n_ready, status.n_wanted, status.pods.len(), status.why), (1, 1, 2, None));
}

#[test]
fn every_name_of_a_builder_is_one_that_buildx_finds() {
    let remote = settings::Builder::new(Driver::Remote, Some("tcp://b:1".into()));
    for (name, expected) in [("dev", "dev"), ("Dev_1", "dev_1"), ("1st", "sidebake-1st"), ("default", "sidebake")] {
        assert_eq!(Builder::new(name, &remote, None).nodes[0].instance_name(), expected);
    }
}

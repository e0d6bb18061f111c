//! Short texts with many values: a limit on the bytes of a text does not limit the memory of its parsed values.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Stdio;

use serde_json::{Value, json};
use world::{Script, Step};

use crate::harness::{HEAVY, Harness, Worker, sidebake, text};

/// The limit of a worker's resident memory: 100 MB for customers' data, and 64 MiB of its own (a debug build).
const MEMORY_KB: u64 = 100_000 + (64 << 10);

/// The same plus some copies of one text of 8 MB that passes from Redis to Redis.
const FEW_COPIES_KB: u64 = MEMORY_KB + 30_000;

/// Five bytes of text that take a hundred times as much memory as a parsed value.
const UNIT: &str = r#"{"":0}"#;

/// Without a trace of each line, because the test does not measure the log.
const QUIET: [(&str, &str); 1] = [("SIDEBAKE__LOG__LEVEL", "info")];

fn list(unit: &str, n: usize) -> String {
    format!("[{}{unit}]", format!("{unit},").repeat(n - 1))
}

fn is_small(worker: &Worker) {
    let peak_kb = worker.peak_kb();
    assert!(peak_kb < MEMORY_KB, "{peak_kb} kB");
}

/// The configuration of a worker that runs ten jobs at once.
fn ten_slots(harness: &Harness) -> std::path::PathBuf {
    let config = harness.config("");
    let text = std::fs::read_to_string(&config).unwrap().replace("concurrency = 4", "concurrency = 10");
    std::fs::write(&config, text).unwrap();
    config
}

/// Pushes the text of an argument that no client would write, and returns the reports of the callbacks.
async fn reports_of(harness: &Harness, argument: &str, n: usize) -> Vec<Value> {
    let mut redis = harness.redis.connection().await;
    for i in 0..n {
        let text = format!(
            r#"{{"class":"BuildJob","queue":"default","retry":true,"jid":"{i:024x}","created_at":1,"args":[{argument}]}}"#
        );
        redis::cmd("LPUSH").arg("queue:default").arg(text).exec_async(&mut redis).await.unwrap();
    }
    harness.callbacks(n).await
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_many_values_are_refused_before_a_value_is_made() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let callback = r#""callback":{"class":"Done","queue":"callbacks"}"#;
    let head = r#""repository":"acme/voting-app","sha":"0123456789abcdef0123456789abcdef01234567""#;
    let worker = harness.worker_with_variables(&harness.config(""), &[], &QUIET);
    let many = list(UNIT, 2_500_000 / 7);
    let argument = format!(r#"{{{head},{callback},"definition":{{"target":{many}}}}}"#);
    for report in reports_of(&harness, &argument, 3).await {
        assert_eq!(report["reason"], "invalid_arguments");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("more than 50000 names and values"), "{message}");
    }
    is_small(&worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_jobs_with_the_maximum_of_values_leave_the_worker_small() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let worker = harness.worker_with_variables(&ten_slots(&harness), &[], &QUIET);
    let callback = r#""callback":{"class":"Done","queue":"callbacks"}"#;
    let labels = list(UNIT, 16_600);
    let argument = format!(
        r#"{{"repository":"acme/voting-app","sha":"{sha}",{callback},"definition":{{"target":{{"vote":{{"labels":{labels}}}}}}}}}"#
    );
    reports_of(&harness, &argument, 10).await;
    is_small(&worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_of_many_fields_or_arguments_is_not_parsed() {
    let _alone = HEAVY.lock().await;
    let envelope = format!(r#"{{"class":"Sidebake::Malformed","queue":"default","args":{}}}"#, list("{}", 2_600_000));
    let arguments = format!(r#"{{"class":"BuildJob","queue":"default","args":{}}}"#, list("1", 3_800_000));
    let fields = format!(r#"{{"class":"BuildJob","queue":"default","args":[]{}}}"#, r#","":1"#.repeat(1_500_000));
    let names: String = (0..750_000).map(|n| format!(r#""{n:x}":1,"#)).collect();
    let names = format!(r#"{{"class":"BuildJob","queue":"default","args":[{{{names}"":1}}]}}"#);
    for (what, text) in [("envelope", envelope), ("arguments", arguments), ("fields", fields), ("names", names)] {
        let harness = Harness::start();
        let worker = harness.worker_with_variables(&harness.config(""), &[], &QUIET);
        let mut redis = harness.redis.connection().await;
        redis::cmd("LPUSH").arg("queue:default").arg(text).exec_async(&mut redis).await.unwrap();
        harness.until("the job is in the dead set", async || harness.redis.sorted_set("dead").await.len() == 1).await;
        let peak_kb = worker.peak_kb();
        assert!(peak_kb < FEW_COPIES_KB, "{what}: {peak_kb} kB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_values_of_a_resolvers_answer_are_counted_too() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let url = harness.rails.url_pattern();
    let class = format!(
        r#"jobs.classes.ById = {{ arguments = "resolved", resolve = {{ url = "{url}", secret = "s3cret" }} }}"#
    );
    let worker = harness.worker_with_variables(&harness.config(&class), &[], &QUIET);
    for id in 1..=4 {
        harness.rails.answer(id, world::Answer::Text(list(UNIT, 145_000)));
        harness.redis.push("default", "ById", json!([id])).await;
    }
    harness.until("all jobs are in the retry set", async || harness.redis.sorted_set("retry").await.len() == 4).await;
    let (job, _) = harness.redis.sorted_set("retry").await.remove(0);
    assert!(job.contains("more than 50000 names and values"), "{job}");
    is_small(&worker);
}

/// A job whose definition makes `--print` repeat a unit this many times in a field of each target.
fn printing(harness: &Harness, sha: &str, targets: &[String], filling: &str) -> Value {
    let mut native = harness.native(sha);
    native.as_object_mut().unwrap().remove("application");
    native["push"] = json!(false);
    let description = format!("scripted: print fills {filling}");
    let target = json!({"context": ".", "description": description});
    let targets: serde_json::Map<_, _> = targets.iter().map(|name| (name.clone(), target.clone())).collect();
    native["definition"] =
        json!({"group": {"default": {"targets": targets.keys().collect::<Vec<_>>()}}, "target": targets});
    native
}

#[tokio::test(flavor = "multi_thread")]
async fn the_output_of_print_is_counted_before_it_is_parsed() {
    let _alone = HEAVY.lock().await;
    for (n, unit) in [(1_300_000, "{}"), (580_000, UNIT)] {
        let harness = Harness::start();
        let (_, sha) = harness.voting_app();
        let worker = harness.worker_with_variables(&harness.config(""), &[], &QUIET);
        let native = printing(&harness, &sha, &["vote".into()], &format!("{n} labels {unit}"));
        for _ in 0..4 {
            harness.redis.push("default", "BuildJob", json!([native])).await;
        }
        for report in harness.callbacks(4).await {
            assert_eq!(report["reason"], "definition_invalid", "{report:#}");
            let message = report["message"].as_str().unwrap();
            assert!(message.contains("the resolved definition has more than 50000 names and values"), "{message}");
        }
        is_small(&worker);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_named_many_times_is_read_once() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let sha = harness.voting_app().0.commit(&[("Dockerfile", "FROM base\n")]);
    let secrets = harness.home.path().join("secrets");
    std::fs::create_dir_all(&secrets).unwrap();
    let lines: String = (0..8_000).map(|n| format!("line-{n:06}-{}\n", "s".repeat(48))).collect();
    std::fs::write(secrets.join("npm"), lines).unwrap();
    let config = harness.config(&format!("accounts.secrets = \"{}/{{name}}\"", secrets.display()));
    let worker = harness.worker_with_variables(&config, &[], &QUIET);
    let many: Vec<String> = (0..90).map(|n| format!("t{n}")).collect();
    for (targets, filling) in
        [(vec!["vote".to_owned()], r#"9000 secret {"id":"npm"}"#), (many, r#"1 secret {"id":"npm"}"#)]
    {
        let native = printing(&harness, &sha, &targets, filling);
        harness.redis.push("default", "BuildJob", json!([native])).await;
    }
    for report in harness.callbacks(2).await {
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
    is_small(&worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_over_docker_buildx_makes_no_values_and_no_log() {
    let _alone = HEAVY.lock().await;
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let digest = format!("sha256:{}", "a".repeat(64));
    let at = "2026-11-24T04:05:56Z";
    let event = format!(r#"{{"vertexes":[{{"digest":"sha256:1","name":"[1/1] RUN x","started":"{at}"}}]}}"#);
    let warnings = format!("WARNING: {}\n", "w".repeat(1000)).repeat(50) + &event + "\n";
    let mut steps: Vec<Step> = (0..60).map(|_| Step::Stderr(warnings.clone())).collect();
    for unit in ["{}", r#"{"digest":""}"#] {
        steps.push(Step::Stderr(format!("{{\"vertexes\":{}}}\n", list(unit, (4 << 20) / (unit.len() + 2)))));
    }
    let many = vec![json!({"": 0}); 550_000];
    steps.push(Step::Metadata(
        json!({"vote": {"containerimage.digest": digest}, "a": many, "b": {"containerimage.digest": digest}}),
    ));
    steps.push(Step::Exit(0));
    harness.builder.script(Script::steps(steps));
    // The journal logs at level debug that it leaves notices out.
    let variables = [("SIDEBAKE__LOG__LEVEL", "info,sidebake::journal=debug")];
    let worker = harness.worker_with_variables(&harness.config(""), &[], &variables);
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["targets"][0]["digest"], json!(digest), "{report:#}");
    is_small(&worker);
    let log = worker.log();
    assert!(log.len() < 200_000, "a log of {} bytes", log.len());
    assert_eq!(worker.logged("notices_left_out").len(), 1, "{}", &log[..2000.min(log.len())]);
}

/// An API server with one Deployment that answers every request for pods with this list.
fn api_server(pods: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let deployment = r#"{"metadata":{"name":"d0"},"spec":{"replicas":1},"status":{}}"#;
            let body = if head[0].contains("/deployments/") { deployment } else { &pods };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length:";
            let _ = stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    url
}

#[test]
fn a_list_of_millions_of_pods_is_refused_in_little_memory() {
    for unit in ["{}", r#"{"status":{"conditions":[{"type":"","status":""}]}}"#] {
        let harness = Harness::start();
        let url = api_server(format!(r#"{{"items":{}}}"#, list(unit, (8 << 20) / (unit.len() + 2))));
        let kubeconfig = harness.home.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "c", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "builds"}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let builder =
            format!("builders.pods = {{ driver = \"kubernetes\", kubeconfig = \"{}\" }}", kubeconfig.display());
        let config = harness.config(&builder);
        // 300 MB of data, mostly stacks and reserves of threads. Parsing into the API's own types took 6 GB.
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -d 300000; exec \"$0\" builder status pods --config \"$1\""]);
        command.arg(sidebake().get_program()).arg(config).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = text(&output);
        assert!(said.contains("there are more than 1000 pods"), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
    }
}

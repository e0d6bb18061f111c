//! Many customers' repositories at once, each with its own token, which is nowhere to be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use world::Script;

use crate::afternoon::Afternoon;

#[tokio::test(flavor = "multi_thread")]
async fn of_32_accounts_at_once_each_repository_sees_only_its_own_token() {
    let afternoon = Afternoon::start();
    afternoon.builder.script_for_the_rest(Script::success(&["vote"]));
    afternoon.git.faults().delay("/", Duration::from_millis(20));
    let config = afternoon.config("");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("clones = 8\n{}", text.replace("concurrency = 4", "concurrency = 32"))).unwrap();
    for n in 0..32 {
        let name = format!("acme{n}/app");
        let sha = afternoon.git.repository(&name).commit(&[("vote/Dockerfile", &format!("FROM base\n# {n}\n"))]);
        let id = afternoon.github.install(&format!("acme{n}"), &["app"]);
        let mut native = afternoon.native(&sha);
        native["repository"] = json!(name);
        native["installation_id"] = json!(id);
        afternoon.redis.push("default", "BuildJob", json!([native])).await;
    }
    let _worker = afternoon.worker_with(&config, &[]);
    for report in afternoon.callbacks(32).await {
        assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
    }

    let tokens: BTreeMap<String, Vec<String>> =
        afternoon.github.tokens().all().into_iter().map(|(token, grant)| (token, grant.reach.full_names())).collect();
    assert_eq!(tokens.len(), 32);
    let mut seen = BTreeSet::new();
    for request in afternoon.git.requests() {
        let token = request.token.expect("every request has a token");
        let [repository] = tokens[&token].as_slice() else { panic!("a token for {:?}", tokens[&token]) };
        assert!(
            request.path.starts_with(&format!("/{repository}.git/")),
            "{} with the token of {repository}",
            request.path
        );
        seen.insert(repository.clone());
    }
    assert_eq!(seen.len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_fetches_the_token_is_in_no_argument_environment_or_file() {
    let afternoon = Afternoon::start();
    let (_, sha) = afternoon.voting_app();
    afternoon.builder.script(Script::success(&["vote"]));
    afternoon.git.faults().delay("/acme", Duration::from_millis(400));
    let worker = afternoon.worker("");
    afternoon.redis.push("default", "BuildJob", json!([afternoon.native(&sha)])).await;
    let tokens = afternoon.github.tokens();
    afternoon.until("git is asked", async || !afternoon.git.requests().is_empty()).await;
    let (token, _) = tokens.all().remove(0);
    let processes = of_session(worker.pid());
    assert!(processes.len() >= 2, "the worker and its child: {processes:?}");
    for process in processes {
        for name in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(&token), "{name} of {process}");
        }
    }
    let found =
        std::process::Command::new("grep").args(["-r", "-l", &token]).arg(afternoon.home.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "the token is in a file");
    let mut redis = afternoon.redis.connection().await;
    // A dump is compressed otherwise.
    redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]).exec_async(&mut redis).await.unwrap();
    for key in afternoon.redis.keys("*").await {
        let dump: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        assert!(!String::from_utf8_lossy(&dump.unwrap_or_default()).contains(&token), "{key}");
    }
    assert_eq!(afternoon.callbacks(1).await[0]["status"], "succeeded");
}

/// The process and all that descend from it.
fn of_session(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok());
            if parent.is_some_and(|parent| found.contains(&parent)) {
                found.insert(id);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

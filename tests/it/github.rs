//! Requests, waits and revocations of tokens, and failures of GitHub.

use std::time::Duration;

use serde_json::{Value, json};
use world::{Reach, Script, repository_id};

use crate::harness::{Harness, Worker};

const MINT: &str = "/app/installations";
const LOOK_UP: &str = "/repos/acme/voting-app/installation";

impl Harness {
    /// The number of API requests whose path starts with this.
    pub(crate) fn n_asked(&self, path: &str) -> usize {
        self.github.calls().iter().filter(|call| call.path.starts_with(path)).count()
    }

    /// A harness on which every build succeeds.
    fn good() -> (Self, String) {
        let harness = Self::start();
        let (_, sha) = harness.voting_app();
        harness.builder.script_for_the_rest(Script::success(&["vote"]));
        (harness, sha)
    }

    async fn push(&self, native: Value) {
        self.redis.push("default", "BuildJob", json!([native])).await;
    }

    /// A worker with more settings in its section `[github]`.
    fn worker_with_github(&self, more: &str) -> Worker {
        let config = self.config("");
        let text = std::fs::read_to_string(&config).unwrap().replace("github = { ", &format!("github = {{ {more}, "));
        std::fs::write(&config, text).unwrap();
        self.worker_with(&config, &[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_revoked_after_the_checkout() {
    let (harness, sha) = Harness::good();
    harness.push(harness.native(&sha)).await;
    let worker = harness.worker("");
    harness.callbacks(1).await;
    harness.until("the token is revoked", async || harness.github.tokens().all()[0].1.is_revoked).await;

    // The same after a failure: this commit does not exist.
    harness.push(harness.native(&"0".repeat(40))).await;
    assert_eq!(harness.callbacks(2).await[1]["reason"], "commit_not_found");
    let tokens = harness.github.tokens();
    harness.until("both tokens are revoked", async || tokens.all().iter().all(|(_, grant)| grant.is_revoked)).await;
    assert_eq!(tokens.all().len(), 2);
    drop(worker);

    let mut worker = harness.worker_with_github("revoke = false");
    harness.push(harness.native(&sha)).await;
    harness.callbacks(3).await;
    // A worker revokes the tokens of its jobs before it ends.
    worker.terminate().await;
    assert_eq!(tokens.all().iter().filter(|(_, grant)| !grant.is_revoked).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_revokes_its_tokens_before_it_ends() {
    let (harness, sha) = Harness::good();
    harness.github.faults().delay("/installation/token", Duration::from_millis(500));
    let mut worker = harness.worker("");
    harness.push(harness.native(&sha)).await;
    harness.callbacks(1).await;
    worker.signal("TERM");
    assert_eq!(worker.ended().await, Some(0));
    assert!(harness.github.tokens().all()[0].1.is_revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_git_host_does_not_know_yet_is_retried() {
    for status in [401, 404] {
        let (harness, sha) = Harness::good();
        let headers = [("www-authenticate", "Basic realm=\"GitHub\"")];
        harness.git.faults().fail_next("/acme", 1, status, &headers, "Repository not found.");
        harness.push(harness.native(&sha)).await;
        let _worker = harness.worker("");
        let report = harness.callbacks(1).await.remove(0);
        assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{status}: {report:#}");
        assert_eq!(harness.n_asked(MINT), 1, "the same token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_minted_again() {
    let (harness, sha) = Harness::good();
    harness.git.faults().delay("/acme", Duration::from_millis(700));
    harness.push(harness.native(&sha)).await;
    let _worker = harness.worker("");
    let tokens = harness.github.tokens();
    harness.until("a token is minted", async || !tokens.all().is_empty()).await;
    tokens.revoke(&tokens.all()[0].0);
    harness.git.faults().clear();
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
    assert_eq!(harness.n_asked(MINT), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_rate_limit_delays_jobs_without_requests() {
    let (harness, sha) = Harness::good();
    let message = r#"{"message":"You have exceeded a secondary rate limit."}"#;
    harness.github.faults().fail_next(MINT, 1, 403, &[("retry-after", "120")], message);
    let mut native = harness.native(&sha);
    native["installation_id"] = json!(7_000_001);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    let _worker = harness.worker("");
    harness.push(native.clone()).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(
        (&report["moment"], &report["reason"]),
        (&json!("retrying"), &json!("github_unavailable")),
        "{report:#}"
    );
    assert!(report["message"].as_str().unwrap().contains("limits the request rate for another 120 s"), "{report:#}");
    let now_s = jiff::Timestamp::now().as_second() as f64;
    let (_, at) = harness.redis.sorted_set("retry").await.remove(0);
    assert!((110.0..140.0).contains(&(at - now_s)), "again in {} s", at - now_s);

    harness.push(native).await;
    assert_eq!(harness.callbacks(2).await[1]["moment"], "retrying");
    assert_eq!(harness.n_asked(""), 1, "the worker sends GitHub no more requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_waits_for_a_short_rate_limit() {
    let (harness, sha) = Harness::good();
    harness.github.faults().fail_next(MINT, 1, 429, &[("retry-after", "1")], "{}");
    harness.push(harness.native(&sha)).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_costs_one_refusal() {
    for offset_s in [-3600, 3600] {
        let (harness, sha) = Harness::good();
        harness.github.set_clock_offset_s(offset_s);
        let mut native = harness.native(&sha);
        native["installation_id"] = json!(7_000_001);
        let worker = harness.worker("");
        for n in 1..=2 {
            harness.push(native.clone()).await;
            assert_eq!(harness.callbacks(n).await[n - 1]["attempt"], 1);
        }
        assert_eq!(harness.n_asked(MINT), 3, "refused once");
        assert!(worker.log().contains("clock_skew"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_looked_up_once_and_again_after_its_removal() {
    let (harness, sha) = Harness::good();
    let _worker = harness.worker("");
    for n in 1..=2 {
        harness.push(harness.native(&sha)).await;
        harness.callbacks(n).await;
    }
    assert_eq!((harness.n_asked(LOOK_UP), harness.n_asked(MINT)), (1, 2));

    harness.github.uninstall(7_000_001);
    harness.github.install_as(7_000_099, "acme", Reach::Only(vec!["acme/voting-app".into()]));
    for n in 3..=4 {
        harness.push(harness.native(&sha)).await;
        assert_eq!(harness.callbacks(n).await[n - 1]["status"], "succeeded");
    }
    assert_eq!((harness.n_asked(LOOK_UP), harness.n_asked(MINT)), (2, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_repository_is_built_under_its_old_name() {
    let harness = Harness::start();
    let sha = harness.git.repository("acme/polls").commit(&[("vote/Dockerfile", "FROM base\n")]);
    harness.builder.script(Script::success(&["vote"]));
    harness.github.uninstall(7_000_001);
    let id = harness.github.install("acme", &["polls"]);
    harness.github.moved("acme/voting-app", "acme/polls");
    let mut native = harness.native(&sha);
    native["installation_id"] = json!(id);
    harness.push(native).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(
        (&report["status"], &report["repository"]),
        (&json!("succeeded"), &json!("acme/voting-app")),
        "{report:#}"
    );
    let mirror = format!("state/mirrors/branch/127.0.0.1:{}/{}", harness.git.port(), repository_id("acme/polls"));
    assert!(harness.home.path().join(&mirror).exists(), "{mirror}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_moved_to_another_account_is_not_built_for_the_old_one() {
    let harness = Harness::start();
    let sha = harness.git.repository("evil/voting-app").commit(&[("vote/Dockerfile", "FROM base\n")]);
    harness.github.uninstall(7_000_001);
    harness.github.install("evil", &["voting-app"]);
    harness.github.moved("acme/voting-app", "evil/voting-app");
    harness.push(harness.native(&sha)).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["reason"], "repository_not_found", "{report:#}");
    assert!(report["message"].as_str().unwrap().contains("it was renamed to evil/voting-app"), "{report:#}");
    assert_eq!(harness.git.n_fetches(), 0);
    let tokens = harness.github.tokens();
    harness.until("the token is revoked", async || tokens.all().iter().all(|(_, grant)| grant.is_revoked)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_only_a_fork_has_is_not_built_for_a_branch() {
    let (harness, tip) = Harness::good();
    let original = harness.git.repository("acme/voting-app");
    let fork = harness.git.repository("eve/voting-app");
    fork.fork(&original);
    let foreign = fork.commit(&[("vote/Dockerfile", "FROM base\nRUN steal\n")]);
    let newer = original.commit(&[("vote/Dockerfile", "FROM base\n# newer\n")]);
    let who = ["user.name=Ada", "user.email=ada@example.test", "advice.nestedTag=false"].map(|value| ["-c", value]);
    let who = who.as_flattened();
    original.git(&[who, &["tag", "-a", "v1#1", "-m", "one", &tip]].concat());
    original.git(&[who, &["tag", "-a", "of-a-tag", "-m", "two", "v1#1"]].concat());
    assert_eq!(original.git(&["cat-file", "-t", &foreign]), "commit", "the original has the commits of its forks");
    let unrelated = original.commit_with("pages", &[world::File::new("vote/Dockerfile", "FROM base\n")]);

    let _worker = harness.worker("");
    let refused = Some("commit_not_found");
    let table = [
        (&foreign, json!("refs/heads/main"), "branch", refused),
        (&foreign, json!("refs/heads/main"), "protected", refused),
        (&foreign, json!("refs/tags/v1#1"), "branch", refused),
        (&unrelated, json!("refs/heads/main"), "branch", refused),
        (&tip, json!("refs/heads/gone"), "branch", refused),
        (&newer, json!("refs/tags/v1#1"), "branch", refused),
        // Rails is responsible for these: it says that a fork built it, or gives no ref.
        (&foreign, json!("refs/heads/main"), "fork", None),
        (&foreign, Value::Null, "branch", None),
        (&newer, json!("refs/heads/main"), "protected", None),
        (&tip, json!("refs/heads/main"), "branch", None),
        (&tip, json!("refs/tags/v1#1"), "branch", None),
        (&tip, json!("refs/tags/of-a-tag"), "branch", None),
    ];
    for (n, (sha, reference, trust, _)) in table.iter().enumerate() {
        let mut native = harness.native(sha);
        (native["build_id"], native["ref"], native["trust"]) = (json!(n), reference.clone(), json!(trust));
        harness.push(native).await;
    }
    for report in harness.callbacks(table.len()).await {
        let n = usize::try_from(report["build_id"].as_u64().unwrap()).unwrap();
        let (sha, reference, trust, expected) = &table[n];
        assert_eq!(report["reason"].as_str(), *expected, "{sha} as {trust} of {reference}: {report:#}");
        if expected.is_some() {
            let words = format!("is not on {} of acme/voting-app", reference.as_str().unwrap());
            assert!(report["message"].as_str().unwrap().contains(&words), "{report:#}");
        }
    }
    let n_allowed = table.iter().filter(|(.., expected)| expected.is_none()).count();
    assert_eq!(harness.builder.runs().len(), n_allowed, "no build runs for a refused commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_matches_only_its_exact_name_whatever_else_github_resolves() {
    let (harness, tip) = Harness::good();
    let original = harness.git.repository("acme/voting-app");
    let fork = harness.git.repository("eve/voting-app");
    fork.fork(&original);
    let foreign = fork.commit(&[("vote/Dockerfile", "FROM base\nRUN steal\n")]);
    for (name, sha) in [
        ("refs/pull/7/head", &foreign),
        ("refs/heads/pull/7/head", &tip),
        ("refs/tags/heads/release", &foreign),
        ("refs/heads/heads/release", &foreign),
        ("refs/heads/both", &tip),
        ("refs/tags/both", &foreign),
        ("refs/heads/odd#%2e%2e&é", &tip),
        ("refs/heads/%2e%2e/tags/both", &tip),
    ] {
        original.git(&["update-ref", name, sha]);
    }
    let refused = Some("commit_not_found");
    let table = [
        (&foreign, "refs/heads/release", refused),
        (&foreign, "refs/heads/pull/7/head", refused),
        (&tip, "refs/heads/pull/7/head", None),
        (&foreign, "refs/heads/both", refused),
        (&tip, "refs/heads/both", None),
        (&tip, "refs/heads/odd#%2e%2e&é", None),
        (&tip, "refs/heads/odd?", Some("invalid_arguments")),
        (&foreign, "refs/heads/%2e%2e/tags/both", refused),
        (&tip, "refs/heads/%2e%2e/tags/both", None),
        // On its own tag, the commit is what the tag's author pushed.
        (&foreign, "refs/tags/both", None),
    ];
    let _worker = harness.worker("");
    for (n, (sha, reference, expected)) in table.iter().enumerate() {
        let mut native = harness.native(sha);
        (native["build_id"], native["ref"], native["trust"]) = (json!(n), json!(reference), json!("protected"));
        harness.push(native).await;
        let reports = harness.callbacks(n + 1).await;
        let report = reports.iter().find(|report| report["build_id"] == n).unwrap();
        assert_eq!(report["reason"].as_str(), *expected, "{sha} on {reference}: {report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ref_in_any_other_form_makes_the_build_a_forks_and_the_report_says_so() {
    let (harness, tip) = Harness::good();
    let original = harness.git.repository("acme/voting-app");
    let fork = harness.git.repository("eve/voting-app");
    fork.fork(&original);
    let foreign = fork.commit(&[("vote/Dockerfile", "FROM base\nRUN steal\n")]);
    original.git(&["update-ref", "refs/pull/7/head", &foreign]);
    let references = ["pull/7/head", "refs/pull/7/head", "main", "heads/main", "HEAD", "eve:main", &*foreign, &*tip];
    let _worker = harness.worker("");
    for (n, reference) in references.iter().enumerate() {
        let mut native = harness.native(&foreign);
        (native["ref"], native["trust"]) = (json!(reference), json!("protected"));
        native["application"]["images"][0]["secrets"] = json!([{"id": "npm"}]);
        native["application"]["images"][0]["cache_to"] = json!(["type=registry,ref=registry.example/acme/cache"]);
        harness.push(native).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!((&report["status"], &report["ref"]), (&json!("succeeded"), &json!(reference)), "{report:#}");
        let notices = report["notices"].to_string();
        assert!(notices.contains("built as a fork's: ") && notices.contains("refs/heads/"), "{report:#}");
        let run = harness.builder.runs().remove(n);
        let definition: Value = serde_json::from_str(&run.text).unwrap();
        let vote = &definition["target"]["vote"];
        assert!(vote.get("secret").is_none() && vote.get("cache-to").is_none(), "{reference}: {vote:#}");
        assert_eq!(vote["args"]["BUILDKIT_CACHE_MOUNT_NS"], "acme/voting-app/fork");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_whose_last_push_github_does_not_know_yet_is_requested_again() {
    let (harness, tip) = Harness::good();
    harness.git.repository("acme/voting-app").commit(&[("vote/Dockerfile", "FROM base\n# newer\n")]);
    let compare = "/repos/acme/voting-app/compare";
    harness.github.faults().fail_next(compare, 1, 200, &[], r#"{"status": "ahead"}"#);
    // A server may not know the token yet either.
    harness.github.faults().fail_next(compare, 1, 401, &[], r#"{"message": "Bad credentials"}"#);
    let mut native = harness.native(&tip);
    native["ref"] = json!("refs/heads/main");
    harness.push(native).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
    assert_eq!(harness.n_asked(compare), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_key_is_read_without_a_restart_in_either_form() {
    let (harness, sha) = Harness::good();
    let path = harness.home.path().join("app.pem");
    let app = harness.github.app();
    std::fs::write(&path, "nonsense").unwrap();
    let _worker = harness.worker("");
    harness.push(harness.native(&sha)).await;
    harness.until("the key is refused", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    // The second form has line ends as in an environment variable.
    let forms = [app.private_key_pkcs1_pem(), app.private_key_pem().replace('\n', "\\n")];
    for (n, pem) in forms.into_iter().enumerate() {
        std::fs::write(&path, pem).unwrap();
        harness.push(harness.native(&sha)).await;
        assert_eq!(harness.callbacks(n + 1).await[n]["status"], "succeeded");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_github_denies_is_told_at_once_and_costs_no_other_its_build() {
    let (harness, sha) = Harness::good();
    harness.github.install_as(7_000_050, "good", Reach::Under(harness.git.root().to_owned()));
    let other = harness.git.repository("good/app").commit(&[("vote/Dockerfile", "FROM base\n")]);
    let _worker = harness.worker("");
    let refused = |report: &Value, words: &str| {
        assert_eq!(
            (&report["status"], &report["reason"]),
            (&json!("failed"), &json!("repository_denied")),
            "{report:#}"
        );
        assert!(report["message"].as_str().unwrap().contains(words), "{report:#}");
    };
    harness.github.suspend(7_000_001, true);
    harness.push(harness.native(&sha)).await;
    refused(&harness.callbacks(1).await[0], "suspended");
    harness.github.suspend(7_000_001, false);
    let listed = r#"{"message":"Although you appear to have the correct authorization credentials, the `acme` organization has an IP allow list enabled"}"#;
    harness.github.faults().fail_next(MINT, 1, 403, &[], listed);
    harness.push(harness.native(&sha)).await;
    refused(&harness.callbacks(2).await[1], "IP allow list");
    harness.github.faults().fail_next(MINT, 1, 451, &[], r#"{"message":"Repository access blocked"}"#);
    harness.push(harness.native(&sha)).await;
    refused(&harness.callbacks(3).await[2], "451 Unavailable For Legal Reasons: Repository access blocked");
    assert!(harness.redis.sorted_set("retry").await.is_empty());

    let mut native = harness.native(&other);
    native["repository"] = json!("good/app");
    harness.push(native).await;
    assert_eq!(harness.callbacks(4).await[3]["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_whose_name_begins_with_a_dot_is_built() {
    let (harness, _) = Harness::good();
    harness.github.install("acme", &[".github"]);
    let sha = harness.git.repository("acme/.github").commit(&[("vote/Dockerfile", "FROM base\n")]);
    let mut native = harness.native(&sha);
    native["repository"] = json!("acme/.github");
    harness.push(native).await;
    let _worker = harness.worker("");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["status"], &report["repository"]), (&json!("succeeded"), &json!("acme/.github")), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_cannot_be_reached_is_named_with_the_cause_and_what_to_check() {
    let (harness, sha) = Harness::good();
    let nobody = format!("http://127.0.0.1:{}", world::free_port());
    let config = harness.config("");
    let text = std::fs::read_to_string(&config).unwrap().replace(&harness.github.url(), &nobody);
    std::fs::write(&config, text).unwrap();
    let mut native = harness.native(&sha);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    harness.push(native).await;
    let _worker = harness.worker_with(&config, &[]);
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!(report["reason"], "github_unavailable", "{report:#}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains(&format!("{nobody}/repos/acme/voting-app/installation cannot be reached")), "{message}");
    assert!(message.contains("Connection refused") && message.contains("check the port"), "{message}");
}

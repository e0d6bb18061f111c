//! Submodules: the worker fetches them where the operator allows it, each with the rights that the job has to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use world::{File, Repository, Script};

use crate::harness::{CALLBACKS, Harness};

const ALLOWED: &str = "source.submodules = [\"acme/*\"]";

/// A harness with the repositories `acme/app`, `acme/lib` and `acme/deep`.
struct Yard {
    harness: Harness,
}

impl Yard {
    fn open() -> Self {
        let harness = Harness::start();
        harness.github.install("acme", &["app", "lib", "deep"]);
        Self { harness }
    }

    /// A commit of a repository with one file, `lib.txt`, that contains its name.
    fn lib(&self, name: &str) -> (Repository, String) {
        let repository = self.harness.git.repository(name);
        let sha = repository.commit(&[("lib.txt", name)]);
        (repository, sha)
    }

    /// A commit of a repository with a submodule in `vote/lib`.
    fn with_submodule(&self, name: &str, url: &str, sha: &str) -> String {
        // The name contains a dot, and the path follows the URL.
        let modules = format!("[submodule \"some.lib\"]\n\turl = {url}\n\tpath = vote/lib\n");
        self.harness.git.repository(name).commit_with(
            "main",
            &[
                File::new("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
                File::new(".gitmodules", modules),
                File::submodule("vote/lib", sha),
            ],
        )
    }

    /// Builds a commit of `acme/app`. Returns the report, and each file of the context with its content.
    async fn build(&self, config: &str, sha: &str, more: Value) -> (Value, BTreeMap<String, String>) {
        let Self { harness } = self;
        harness.builder.script(Script::success(&["vote"]).held());
        let _worker = harness.worker(config);
        let mut native = harness.native(sha);
        native["repository"] = json!("acme/app");
        native.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (n_before, n_runs) = (harness.redis.queue(CALLBACKS).await.len(), harness.builder.runs().len());
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let has_ended = async || harness.redis.queue(CALLBACKS).await.len() > n_before;
        let has_begun = || harness.builder.runs().len() > n_runs;
        harness.until("the bake runs or the job ends", async || has_begun() || has_ended().await).await;
        let mut files = BTreeMap::new();
        for directory in harness.job_directories() {
            read(&directory.join("tree/app/vote"), "", &mut files);
        }
        // A release that no run takes would let the next one end while its files are read.
        if has_begun() {
            harness.builder.release();
        }
        (harness.callbacks(n_before + 1).await.pop().unwrap(), files)
    }

    /// The tokens in the requests for a repository.
    fn tokens_of(&self, name: &str) -> Vec<Option<String>> {
        let requests = self.harness.git.requests().into_iter();
        requests
            .filter(|request| request.path.starts_with(&format!("/{name}.git/")))
            .map(|request| request.token)
            .collect()
    }
}

fn read(directory: &Path, above: &str, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = format!("{above}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            read(&entry.path(), &format!("{name}/"), files);
        } else {
            // The previous job's directory may still be there.
            files.extend(std::fs::read_to_string(entry.path()).ok().map(|text| (name, text)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_of_the_same_owner_is_fetched_with_its_own_token() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let sha = yard.with_submodule("acme/app", "../lib.git", &lib);
    let (report, files) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(files["lib/lib.txt"], "acme/lib", "{files:?}");
    assert!(!files.contains_key("lib/.git"), "{files:?}");

    let grants: BTreeMap<_, _> = yard.harness.github.tokens().all().into_iter().collect();
    for name in ["acme/app", "acme/lib"] {
        for token in yard.tokens_of(name) {
            let grant = &grants[&token.expect("a token")];
            assert_eq!(grant.reach.full_names(), [name]);
            assert!(grant.is_revoked, "the token is revoked");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_stay_empty_unless_the_operator_allows_them_and_the_report_says_so() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let sha = yard.with_submodule("acme/app", "../lib.git", &lib);
    let (report, files) = yard.build("source.submodules = [\"other/*\"]", &sha, json!({})).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(report["notices"], json!(["vote/lib is a submodule and stays empty"]));
    assert_eq!(files.keys().collect::<Vec<_>>(), ["Dockerfile"]);
    assert_eq!(yard.tokens_of("acme/lib"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_submodule_of_another_owner_is_fetched_without_a_token_and_a_private_one_is_not() {
    let yard = Yard::open();
    let (public, shown) = yard.lib("other/public");
    public.publish();
    let (_, hidden) = yard.lib("other/private");
    // The App is also installed there, for another customer.
    yard.harness.github.install("other", &["public", "private"]);
    // The server that answers for it may not know the token yet.
    let message = r#"{"message": "Bad credentials"}"#;
    yard.harness.github.faults().fail_next("/repos/other/public", 1, 401, &[], message);

    let host = yard.harness.git.url();
    let sha = yard.with_submodule("acme/app", &format!("{host}/other/public"), &shown);
    let (report, files) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
    assert_eq!(files["lib/lib.txt"], "other/public");
    assert!(yard.tokens_of("other/public").iter().all(Option::is_none));
    let sha = yard.with_submodule("acme/app", &format!("{host}/other/private"), &hidden);
    let (report, _) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!(report["reason"], "repository_not_found", "{report:#}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("vote/lib") && message.contains("other/private"), "{message}");
    assert_eq!(yard.tokens_of("other/private"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forks_build_gets_no_token_for_a_submodule() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let sha = yard.with_submodule("acme/app", "../lib.git", &lib);
    let (report, _) = yard.build(ALLOWED, &sha, json!({"trust": "fork"})).await;
    assert_eq!(report["reason"], "repository_not_found", "{report:#}");
    assert_eq!(yard.harness.github.tokens().all().len(), 1, "only the token of the fork's own commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_in_submodules_are_filled_up_to_a_depth() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let deep = yard.with_submodule("acme/deep", "../lib", &lib);
    let sha = yard.with_submodule("acme/app", "../deep", &deep);
    let (report, files) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(files["lib/vote/lib/lib.txt"], "acme/lib", "{files:?}");
    let mut inner = deep;
    for _ in 0..4 {
        inner = yard.with_submodule("acme/deep", "../deep", &inner);
    }
    let sha = yard.with_submodule("acme/app", "../deep", &inner);
    let (report, _) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!(report["reason"], "source_refused", "{report:#}");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("vote/lib/vote/lib/vote/lib/vote/lib/vote/lib: submodules are nested"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_submodule_outside_the_git_host_is_refused_by_name_without_a_request() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let elsewhere = world::GitHost::open();
    elsewhere.repository("acme/lib").commit(&[("lib.txt", "another host's")]);
    let urls = [
        format!("{}/acme/lib.git", elsewhere.url()),
        "file:///etc".into(),
        "ext::sh -c touch% pwned".into(),
        "--upload-pack=touch pwned".into(),
        "../../../../etc".into(),
    ];
    for url in urls {
        let sha = yard.with_submodule("acme/app", &url, &lib);
        let (report, _) = yard.build(ALLOWED, &sha, json!({})).await;
        assert_eq!(report["reason"], "source_refused", "{url}: {report:#}");
        assert!(report["message"].as_str().unwrap().contains("vote/lib"), "{url}: {report:#}");
    }
    assert_eq!(elsewhere.requests().len(), 0);
    assert_eq!(yard.tokens_of("acme/lib"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitmodules_that_is_a_link_or_that_git_cannot_read_is_refused_by_name() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let repository = yard.harness.git.repository("acme/app");
    let modules = "[submodule \"lib\"]\n\tpath = vote/lib\n\turl = ../lib\n";
    let [link, broken] =
        [File::symlink(".gitmodules", "real"), File::new(".gitmodules", "[submodule \"lib\n")].map(|file| {
            let files = [
                File::new("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
                File::new("real", modules),
                File::submodule("vote/lib", &lib),
                file,
            ];
            repository.commit_with("main", &files)
        });
    for (sha, message) in [(link, "invalid path"), (broken, "has no URL in .gitmodules")] {
        let (report, _) = yard.build(ALLOWED, &sha, json!({})).await;
        assert_eq!(report["reason"], "source_refused", "{report:#}");
        assert!(report["message"].as_str().unwrap().contains(message), "{report:#}");
    }
    assert_eq!(yard.tokens_of("acme/lib"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitmodules_costs_nothing_where_submodules_stay_empty() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let repository = yard.harness.git.repository("acme/app");
    let section = |n: usize, url: &str| format!("[submodule \"lib{n}\"]\n\tpath = vote/lib{n}\n\turl = {url}\n");
    // Each file includes the next one ten times, nine levels deep.
    let includes = |n: usize| File::new(&format!("m{n}"), format!("[include]\n\tpath = m{}\n", n + 1).repeat(10));
    let many: String = (0..4000).map(|n| section(n, "../lib")).collect();
    let table = [
        vec![
            File::new(".gitmodules", section(0, &format!("../{}", "x".repeat(5 << 20)))),
            File::submodule("vote/lib0", &lib),
        ],
        [
            vec![File::new(".gitmodules", "[include]\n\tpath = m0\n"), File::submodule("vote/lib0", &lib)],
            (0..8).map(includes).collect(),
            vec![File::new("m8", section(0, "../lib"))],
        ]
        .concat(),
        vec![File::new(".gitmodules", "[include]\n\tpath = /etc/passwd\n"), File::submodule("vote/lib0", &lib)],
        [
            vec![File::new(".gitmodules", many)],
            (0..1000).map(|n| File::submodule(&format!("vote/lib{n}"), &lib)).collect(),
        ]
        .concat(),
    ];
    for (n, mut files) in table.into_iter().enumerate() {
        files.push(File::new("vote/Dockerfile", "FROM base\nCOPY . /srv\n"));
        let sha = repository.commit_with(&format!("branch{n}"), &files);
        let (report, _) = yard.build("source.timeout = \"8s\"", &sha, json!({})).await;
        assert_eq!(report["status"], "succeeded", "{n}: {report:#}");
        let (report, _) = yard.build(ALLOWED, &sha, json!({})).await;
        assert_eq!(report["reason"], "source_refused", "{n}: {}", report["reason"]);
        let message = report["message"].as_str().unwrap();
        assert!(message.len() < 500 && message.contains("submodule"), "{n}: {message}");
    }
    assert_eq!(yard.tokens_of("acme/lib"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_two_urls_for_one_path_counts_as_in_git() {
    let yard = Yard::open();
    let (_, lib) = yard.lib("acme/lib");
    let repository = yard.harness.git.repository("acme/app");
    let section = |name: &str, url: &str| format!("[submodule \"{name}\"]\n\tpath = vote/lib\n\turl = {url}\n");
    let decoys: String = (0..20).map(|n| section(&format!("decoy{n}"), "../deep")).collect();
    let files = [
        File::new("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
        File::new(".gitmodules", format!("{decoys}{}", section("a", "../lib"))),
        File::submodule("vote/lib", &lib),
    ];
    let sha = repository.commit_with("main", &files);
    let (report, files) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(files["lib/lib.txt"], "acme/lib");
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_share_the_limits_of_their_build() {
    let yard = Yard::open();
    let lib = yard.harness.git.repository("acme/lib").commit_with("main", &[File::new("lib.bin", vec![b'x'; 90_000])]);
    let repository = yard.harness.git.repository("acme/app");
    let of = |n_submodules: usize| {
        let section = |n| format!("[submodule \"lib{n}\"]\n\tpath = vote/lib{n}\n\turl = ../lib\n");
        let mut files = vec![
            File::new("vote/Dockerfile", "FROM base\nCOPY . /srv\n"),
            File::new(".gitmodules", (0..n_submodules).map(section).collect::<String>()),
        ];
        files.extend((0..n_submodules).map(|n| File::submodule(&format!("vote/lib{n}"), &lib)));
        repository.commit_with(&format!("of{n_submodules}"), &files)
    };
    for (limit, words) in [
        ("max_tree_bytes = 200000", "larger than 200000 bytes"),
        ("max_entries = 8", "more than 8 files and directories"),
    ] {
        let config = format!("{ALLOWED}\nsource.{limit}");
        // Three entries, one for each submodule, and one inside.
        let (report, _) = yard.build(&config, &of(2), json!({})).await;
        assert_eq!(report["status"], "succeeded", "{report:#}");
        let (report, _) = yard.build(&config, &of(3), json!({})).await;
        assert_eq!(report["reason"], "source_refused", "{report:#}");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("vote/lib2") && message.contains(words), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_near_its_expiry_is_minted_again_before_a_public_submodule_is_requested() {
    let yard = Yard::open();
    let (public, shown) = yard.lib("other/public");
    public.publish();
    yard.harness.github.set_token_lifetime(Duration::from_secs(60));
    let host = yard.harness.git.url();
    let sha = yard.with_submodule("acme/app", &format!("{host}/other/public"), &shown);
    let (report, _) = yard.build(ALLOWED, &sha, json!({})).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    // One token for the job, one for the fetch, and one for the request.
    assert_eq!(yard.harness.n_asked("/app/installations"), 3);
}

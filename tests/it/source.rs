//! Repositories of many customers at once, each with its own token. No token may appear anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use world::{File, GitRequest, Pack, Script, repository_id};

use crate::harness::{Harness, Worker};

#[tokio::test(flavor = "multi_thread")]
async fn each_of_32_repositories_at_once_sees_only_its_own_token() {
    let harness = Harness::start();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    harness.git.faults().delay("/", Duration::from_millis(20));
    for n in 0..32 {
        let native = harness.native_of(&format!("acme{n}/app"));
        harness.redis.push("default", "BuildJob", json!([native])).await;
    }
    let _worker = harness.worker_with(&harness.config("clones = 8"), &["-c", "32"]);
    for report in harness.callbacks(32).await {
        assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{report:#}");
    }

    let tokens: BTreeMap<String, Vec<String>> =
        harness.github.tokens().all().into_iter().map(|(token, grant)| (token, grant.reach.full_names())).collect();
    assert_eq!(tokens.len(), 32);
    let mut seen = BTreeSet::new();
    for request in harness.git.requests() {
        let token = request.token.expect("every request has a token");
        let [repository] = tokens[&token].as_slice() else { panic!("a token for {:?}", tokens[&token]) };
        assert_eq!(request.path, format!("/{repository}.git/git-upload-pack"), "with the token of {repository}");
        assert!(seen.insert(repository.clone()), "a commit takes one request");
    }
    assert_eq!(seen.len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_a_pack_is_a_failure_of_the_git_host() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    let _worker = harness.worker("jobs.poll_interval = \"1h\"");
    let result = "application/x-git-upload-pack-result";
    let answers = [
        (503, "text/plain", "overloaded\nnow", "503 Service Unavailable: overloaded"),
        (503, "text/html", "<b>overloaded</b>", "answered 503 Service Unavailable"),
        (200, "text/html", "0000", "something that is not git's"),
        (200, result, "zzzz", "invalid packet"),
        (200, result, "0004", "invalid packet"),
        (200, result, "0040cut", "ends early"),
        (200, result, "0000", "sent no pack"),
        (200, result, "", "must speak git's protocol 2"),
        (200, result, "000dpackfile\n000e\u{7}the disk\n", "invalid part of a pack"),
        (200, result, "0016ERR in maintenance", "in maintenance"),
        (200, result, "000dpackfile\n000e\u{3}the disk\n", "the disk"),
    ];
    for (n, (status, content_type, body, words)) in answers.into_iter().enumerate() {
        harness.git.faults().fail_next("/acme", 1, status, &[("content-type", content_type)], body);
        let mut native = harness.native(&sha);
        native["callback"]["on"] = json!(["retrying"]);
        harness.redis.push("default", "BuildJob", json!([native])).await;
        let report = harness.callbacks(n + 1).await.remove(n);
        assert_eq!((&report["moment"], &report["reason"]), (&json!("retrying"), &json!("git_unavailable")));
        assert!(report["message"].as_str().unwrap().contains(words), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_built_as_its_commit_and_an_id_of_no_commit_is_not_found_and_costs_the_mirror_nothing() {
    let harness = Harness::start();
    let (repository, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.test"];
    repository.git(&[&who[..], &["tag", "-a", "v1", "-m", "one", &sha]].concat());
    let of = |name: &str| repository.git(&["rev-parse", name]).trim().to_owned();
    let (tree, blob) = (of(&format!("{sha}^{{tree}}")), of(&format!("{sha}:vote/Dockerfile")));
    for (name, target) in [("of-tag", "v1"), ("of-tree", &tree), ("of-blob", &blob)] {
        repository.git(&[&who[..], &["-c", "advice.nestedTag=false", "tag", "-a", name, "-m", "one", target]].concat());
    }
    let others = [
        (tree, "is the id of a tree, not of a commit"),
        (blob, "is the id of a blob, not of a commit"),
        (of("of-tree"), "is a tag of a tree, not of a commit"),
        (of("of-blob"), "is a tag of a blob, not of a commit"),
    ];
    let _worker = harness.worker("");
    let build = async |n: usize, sha: &str| {
        harness.redis.push("default", "BuildJob", json!([harness.native(sha)])).await;
        harness.callbacks(n + 1).await.remove(n)
    };
    assert_eq!(build(0, &sha).await["status"], "succeeded");
    for (n, (id, words)) in others.iter().enumerate() {
        let report = build(n + 1, id).await;
        assert_eq!(
            (&report["status"], &report["reason"]),
            (&json!("failed"), &json!("commit_not_found")),
            "{report:#}"
        );
        assert!(report["message"].as_str().unwrap().contains(words), "{report:#}");
    }
    let n_fetches = harness.git.n_fetches();
    assert_eq!(build(5, &sha).await["status"], "succeeded");
    assert_eq!(harness.git.n_fetches(), n_fetches, "the mirror still has the commit");
    for (n, (name, n_more)) in [("v1", 1), ("v1", 0), ("of-tag", 1)].into_iter().enumerate() {
        let n_fetches = harness.git.n_fetches();
        let report = build(6 + n, &of(name)).await;
        assert_eq!((&report["status"], &report["sha"]), (&json!("succeeded"), &json!(of(name))), "{report:#}");
        assert_eq!(harness.git.n_fetches(), n_fetches + n_more, "{name}");
        let definition: Value = serde_json::from_str(&harness.builder.runs().pop().unwrap().text).unwrap();
        let label = &definition["target"]["vote"]["labels"]["org.opencontainers.image.revision"];
        assert_eq!(*label, json!(sha), "{definition:#}");
    }
    let mut native = harness.native(&of("v1"));
    native["ref"] = json!("refs/tags/v1");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    assert_eq!(harness.callbacks(10).await.remove(9)["status"], "succeeded");
    native["ref"] = json!("refs/heads/main");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    assert_eq!(harness.callbacks(11).await.remove(10)["status"], "succeeded");
    let newer = repository.commit(&[("vote/Dockerfile", "FROM base\n# newer\n")]);
    assert_eq!(build(11, &newer).await["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn during_a_fetch_the_token_is_in_no_argument_environment_or_file() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    harness.git.faults().delay("/acme", Duration::from_millis(400));
    let worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let tokens = harness.github.tokens();
    harness.until("the git host gets a request", async || !harness.git.requests().is_empty()).await;
    let (token, _) = tokens.all().remove(0);
    let processes = worker.processes();
    assert!(processes.len() >= 2, "the worker and its child: {processes:?}");
    for process in processes {
        for name in ["cmdline", "environ"] {
            let text = std::fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&text).contains(&token), "{name} of {process}");
        }
    }
    let found =
        std::process::Command::new("grep").args(["-r", "-l", &token]).arg(harness.home.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "a file contains the token");
    let mut redis = harness.redis.connection().await;
    // Redis would otherwise compress the dump.
    redis::cmd("CONFIG").arg(&["SET", "rdbcompression", "no"]).exec_async(&mut redis).await.unwrap();
    for key in harness.redis.keys("*").await {
        let dump: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(&mut redis).await.unwrap();
        assert!(!String::from_utf8_lossy(&dump.unwrap_or_default()).contains(&token), "{key}");
    }
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
}

/// A repository whose pack takes a while.
fn large(harness: &Harness) -> String {
    let mut files = noise();
    files.push(File::new("vote/Dockerfile", "FROM base\n"));
    harness.git.repository("acme/voting-app").commit_with("main", &files)
}

/// The number of folders of [`many_files`].
const N_FOLDERS: usize = 200;

/// Files whose checkout takes a while.
fn many_files() -> Vec<File> {
    let file = |n: usize| File::new(&format!("vote/{}/{n}", n % N_FOLDERS), format!("file {n}\n"));
    (0..10_000).map(file).chain([File::new("vote/Dockerfile", "FROM base\n")]).collect()
}

/// A few megabytes that do not compress.
fn noise() -> Vec<File> {
    let noise = |seed: u8| -> Vec<u8> {
        let mut state = u64::from(seed) + 1;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(200_000).collect()
    };
    (0..40).map(|n| File::new(&format!("noise/{n}"), noise(n))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_stalls_ends_at_once_when_its_worker_does() {
    let harness = Harness::start();
    let sha = large(&harness);
    harness.builder.script(Script::success(&["vote"]));
    harness.git.set_pack(Pack::StallAfter(1_000_000));
    let mut worker = harness.worker("");
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let is_sending = |request: &GitRequest| request.path.ends_with("/git-upload-pack") && request.status == 200;
    harness.until("the pack arrives", async || harness.git.requests().iter().any(is_sending)).await;
    let child = worker.source_children().remove(0);
    worker.signal("TERM");
    world::wait_for("the log message", || !worker.logged("worker_stopping").is_empty()).await;
    worker.signal("TERM");
    world::wait_for("the child to end", || !Path::new(&format!("/proc/{child}")).exists()).await;
    assert_eq!(worker.ended().await, Some(0));
    assert!(worker.logged("stop_ignored").is_empty(), "{}", worker.log());
    assert!(harness.redis.queue("default").await[0].contains(&jid) && harness.job_directories().is_empty());

    harness.git.set_pack(Pack::Whole);
    let _worker = harness.worker("");
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    assert_eq!(temporary_packs(&harness), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn children_killed_at_any_moment_leave_a_mirror_that_heals() {
    let harness = Harness::start();
    let mut files = noise();
    files.extend(many_files());
    let sha = harness.git.repository("acme/voting-app").commit_with("main", &files);
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    // Failed jobs stay in the retry set.
    let worker = harness.worker("jobs.poll_interval = \"1h\"");
    for n_bytes in [0, 1, 100, 10_000, 1_000_000, 4_000_000, 7_000_000] {
        harness.git.set_pack(Pack::StallAfter(n_bytes));
        let n_before = n_packs_sent(&harness);
        kill_child_when(&harness, &worker, &sha, || {
            let is_here = |pack: &PathBuf| pack.metadata().is_ok_and(|metadata| metadata.len() > n_bytes / 2);
            n_packs_sent(&harness) > n_before && (n_bytes < 1_000_000 || temporary_packs(&harness).iter().any(is_here))
        })
        .await;
    }
    harness.git.set_pack(Pack::Whole);
    kill_child_when(&harness, &worker, &sha, || is_checking_out(&harness)).await;
    harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    assert_eq!(harness.callbacks(1).await[0]["status"], "succeeded");
    assert_eq!(temporary_packs(&harness), Vec::<PathBuf>::new());
    check(&mirror(&harness));
}

fn n_packs_sent(harness: &Harness) -> usize {
    let is_sending = |request: &&GitRequest| request.path.ends_with("/git-upload-pack") && request.status == 200;
    harness.git.requests().iter().filter(is_sending).count()
}

/// Enqueues a build, kills its child when it `is_half_done`, and waits until the job is in the retry set.
async fn kill_child_when(harness: &Harness, worker: &Worker, sha: &str, is_half_done: impl Fn() -> bool) {
    let n_failed = async || harness.redis.sorted_set("retry").await.len();
    let n_before = n_failed().await;
    harness.redis.push("default", "BuildJob", json!([harness.native(sha)])).await;
    let child = stopped_child(harness, worker, is_half_done).await;
    send("KILL", child);
    harness.until("the job is in the retry set", async || n_failed().await > n_before).await;
}

/// Waits until a child `is_half_done` and stops it.
async fn stopped_child(harness: &Harness, worker: &Worker, is_half_done: impl Fn() -> bool) -> u32 {
    harness.until("a child runs", async || !worker.source_children().is_empty()).await;
    let child = worker.source_children()[0];
    // Stops the child for each check, because it could finish before it is killed.
    harness
        .until("the child is half done", async || {
            send("STOP", child);
            is_half_done() || {
                send("CONT", child);
                false
            }
        })
        .await;
    child
}

fn send(signal: &str, process: u32) {
    let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status().unwrap();
    assert!(sent.success(), "{signal}");
}

/// Whether a child has written less than half of [`many_files`].
fn is_checking_out(harness: &Harness) -> bool {
    let folder = harness.job_directories().first().map(|directory| directory.join("source/tree/vote"));
    let n_there = folder.and_then(|folder| folder.read_dir().ok()).map_or(0, Iterator::count);
    (1..N_FOLDERS / 2).contains(&n_there)
}

/// Starts a fetch that stalls in the middle of its pack. Returns the worker and the job's jid.
async fn half_fetched(harness: &Harness) -> (Worker, String) {
    let sha = large(harness);
    harness.git.set_pack(Pack::StallAfter(1_000_000));
    let worker = harness.worker("");
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    let is_large = |pack: &PathBuf| pack.metadata().is_ok_and(|metadata| metadata.len() > 500_000);
    harness.until("half of the pack arrives", async || temporary_packs(harness).iter().any(is_large)).await;
    (worker, jid)
}

/// Waits for the removal of the job's directory, and checks that no file is larger than 100 kB.
async fn leaves_no_pack(harness: &Harness) {
    harness.until("the job's directory is removed", async || harness.job_directories().is_empty()).await;
    let state = harness.home.path().join("state");
    let found = std::process::Command::new("find").arg(state).args(["-type", "f", "-size", "+100k"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert_eq!(temporary_packs(harness), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_whose_child_is_killed_leaves_no_pack_even_without_another_fetch() {
    let harness = Harness::start();
    let (worker, _) = half_fetched(&harness).await;
    let child = worker.source_children().remove(0);
    assert!(std::process::Command::new("kill").args(["-9", &child.to_string()]).status().unwrap().success());
    harness.until("the job is in the retry set", async || harness.redis.sorted_set("retry").await.len() == 1).await;
    leaves_no_pack(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_fetch_leaves_no_pack_even_without_another_fetch() {
    let harness = Harness::start();
    let (_worker, jid) = half_fetched(&harness).await;
    let mut redis = harness.redis.connection().await;
    redis::cmd("HSET").arg(&[&format!("it-{jid}"), "cancelled", "1"]).exec_async(&mut redis).await.unwrap();
    assert_eq!(harness.callbacks(1).await[0]["status"], "cancelled");
    leaves_no_pack(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_whose_worker_is_killed_leaves_no_pack_even_without_another_fetch() {
    let harness = Harness::start();
    let (mut worker, _) = half_fetched(&harness).await;
    worker.signal("KILL");
    worker.ended().await;
    let mut redis = harness.redis.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
    let _next = harness.worker("");
    leaves_no_pack(&harness).await;
}

/// Starts a worker, kills it when its child `is_half_done`, and lets the next worker run the job.
async fn kill_when(harness: &Harness, sha: &str, is_half_done: impl Fn() -> bool) {
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let mut worker = harness.worker("lease.ttl = \"1s\"");
    let jid = harness.redis.push("default", "BuildJob", json!([harness.native(sha)])).await;
    let child = stopped_child(harness, &worker, &is_half_done).await;
    assert_eq!(harness.job_directories().len(), 1);
    send("CONT", child);
    worker.signal("KILL");
    world::wait_for("the child to end", || !Path::new(&format!("/proc/{child}")).exists()).await;
    assert!(is_half_done(), "the child continued without its worker");
    worker.ended().await;

    harness.git.set_pack(Pack::Whole);
    let _worker = harness.worker("lease.ttl = \"1s\"");
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["jid"], &report["status"]), (&json!(jid), &json!("succeeded")), "{report:#}");
    harness.idle().await;
    assert_eq!(harness.builder.runs().len(), 1);
    assert_eq!(harness.job_directories(), Vec::<PathBuf>::new());
    assert_eq!(temporary_packs(harness), Vec::<PathBuf>::new());
    check(&mirror(harness));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_during_a_fetch_takes_its_child_with_it_and_leaves_no_damage() {
    let harness = Harness::start();
    let sha = large(&harness);
    harness.git.set_pack(Pack::StallAfter(1_000_000));
    kill_when(&harness, &sha, || !temporary_packs(&harness).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_during_a_checkout_takes_its_child_with_it_and_leaves_no_damage() {
    let harness = Harness::start();
    let sha = harness.git.repository("acme/voting-app").commit_with("main", &many_files());
    kill_when(&harness, &sha, || is_checking_out(&harness)).await;
}

fn mirror(harness: &Harness) -> PathBuf {
    let host = format!("127.0.0.1:{}", harness.git.port());
    let path = Path::new("state/mirrors/branch").join(host).join(repository_id("acme/voting-app").to_string());
    harness.home.path().join(path).join("mirror")
}

/// Git's verdict about a mirror's packs, as part of a repository with the mirror's commits.
fn check(mirror: &Path) {
    let repository = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).current_dir(&repository).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "--quiet", "--bare"]);
    std::fs::copy(mirror.join("commits"), repository.path().join("shallow")).unwrap();
    let packs = repository.path().join("objects/pack");
    std::fs::remove_dir(&packs).unwrap();
    std::os::unix::fs::symlink(mirror.join("pack"), &packs).unwrap();
    for commit in std::fs::read_to_string(mirror.join("commits")).unwrap().lines() {
        git(&["update-ref", &format!("refs/jobs/{commit}"), commit]);
    }
    git(&["fsck", "--strict"]);
}

fn temporary_packs(harness: &Harness) -> Vec<PathBuf> {
    let found = std::process::Command::new("find")
        .arg(harness.home.path().join("state"))
        .args(["-name", "pack_git2_*", "-o", "-name", "*.lock", "-path", "*/mirrors/*"])
        .output();
    String::from_utf8(found.unwrap().stdout).unwrap().lines().map(PathBuf::from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_job_succeeds_after_any_damage_to_a_mirror() {
    let harness = Harness::start();
    let (repository, first) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let _worker = harness.worker("");
    let mirror = mirror(&harness);
    let mut n_built = 0;
    let mut build = async |sha: &str, what: &str| {
        harness.redis.push("default", "BuildJob", json!([harness.native(sha)])).await;
        n_built += 1;
        let report = harness.callbacks(n_built).await.pop().unwrap();
        assert_eq!((&report["status"], &report["attempt"]), (&json!("succeeded"), &json!(1)), "{what}: {report:#}");
    };
    build(&first, "new").await;

    let packs = || files_with(&mirror.join("pack"), "pack");
    type Damage<'a> = Box<dyn Fn() + 'a>;
    let damages: [(&str, Damage<'_>); 9] = [
        ("a truncated pack", Box::new(|| packs().iter().for_each(|pack| truncate(pack)))),
        (
            "no index of a pack",
            Box::new(|| {
                files_with(&mirror.join("pack"), "idx").iter().for_each(|path| std::fs::remove_file(path).unwrap())
            }),
        ),
        ("no pack", Box::new(|| packs().iter().for_each(|path| std::fs::remove_file(path).unwrap()))),
        ("an unknown file", Box::new(|| std::fs::write(mirror.join("config"), "[core]\n").unwrap())),
        ("a missing list of commits", Box::new(|| std::fs::remove_file(mirror.join("commits")).unwrap())),
        ("an invalid list of commits", Box::new(|| std::fs::write(mirror.join("commits"), "nonsense\n").unwrap())),
        (
            "a false list of commits",
            Box::new(|| std::fs::write(mirror.join("commits"), format!("{}\n", "7".repeat(40))).unwrap()),
        ),
        ("one lock under two names", Box::new(|| link(&mirror.join("lock"), &mirror.join("readers")))),
        ("a pack under two names", Box::new(|| packs().iter().for_each(|pack| link(pack, &pack.with_extension("x"))))),
    ];
    for (n, (what, damage)) in damages.iter().enumerate() {
        damage();
        let next = repository.commit(&[("vote/Dockerfile", &format!("FROM base\n# {n}\n"))]);
        build(&next, what).await;
        build(&first, what).await;
    }

    // After a rewrite of the history, only the mirror has the old commits.
    repository.git(&["update-ref", "-d", "refs/heads/main"]);
    let other = repository.commit(&[("vote/Dockerfile", "FROM base\n# anew\n")]);
    build(&other, "a rewritten history").await;
}

fn files_with(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn link(file: &Path, name: &Path) {
    let _ = std::fs::remove_file(name);
    std::fs::hard_link(file, name).unwrap();
}

/// Cuts a file in half. Packs are read-only, but root can write to them.
fn truncate(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    let file = file.or_else(|_| {
        std::process::Command::new("chmod").arg("u+w").arg(path).status()?;
        std::fs::OpenOptions::new().write(true).open(path)
    });
    let file = file.unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_for_one_repository_do_not_hold_up_another() {
    let harness = Harness::start();
    let (repository, _) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    harness.git.faults().delay("/acme", Duration::from_millis(800));
    for n in 0..3 {
        let sha = repository.commit(&[("vote/Dockerfile", &format!("FROM base\n# {n}\n"))]);
        harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
    }
    let native = harness.native_of("other/app");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("clones = 2");
    let order: Vec<_> = harness.callbacks(4).await.iter().map(|report| report["repository"].clone()).collect();
    assert_eq!(order[0], "other/app", "{order:?}");
}

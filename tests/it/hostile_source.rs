//! Repositories with trees that harm a checkout. Git's own tools refuse to make most of them, so the tests write the
//! objects directly.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use git2::{ObjectType, Oid, Repository};
use serde_json::{Value, json};
use world::{File, Pack, Script};

use crate::harness::Harness;

/// Writes objects that git would refuse to make into the bare repository.
struct Forge(Repository);

const FILE: &str = "100644";
const LINK: &str = "120000";
const DIRECTORY: &str = "40000";
const SUBMODULE: &str = "160000";

impl Forge {
    fn blob(&self, content: &str) -> Oid {
        self.0.blob(content.as_bytes()).unwrap()
    }

    /// A tree of exactly these entries, in this order.
    fn tree(&self, entries: &[(&str, &[u8], Oid)]) -> Oid {
        let mut bytes = Vec::new();
        for (mode, name, id) in entries {
            bytes.extend([mode.as_bytes(), b" ", *name, b"\0", id.as_bytes()].concat());
        }
        self.0.odb().unwrap().write(ObjectType::Tree, &bytes).unwrap()
    }

    /// A tree with a Dockerfile that builds, followed by these entries.
    fn tree_with(&self, entries: &[(&str, &[u8], Oid)]) -> Oid {
        let context = self.tree(&[(FILE, b"Dockerfile", self.blob("FROM base\n"))]);
        let mut all = entries.to_vec();
        all.push((DIRECTORY, b"vote", context));
        // Git's order, because git could not find the entries otherwise.
        all.sort_by_key(|(_, name, _)| name.to_vec());
        self.tree(&all)
    }

    /// Commits the tree and returns the sha.
    fn commit(&self, tree: Oid) -> String {
        let who = "Eve Example <eve@example.test> 1700000000 +0000";
        let text = format!("tree {tree}\nauthor {who}\ncommitter {who}\n\nhurt\n");
        let id = self.0.odb().unwrap().write(ObjectType::Commit, text.as_bytes()).unwrap();
        self.0.reference(&format!("refs/heads/{id}"), id, true, "").unwrap();
        id.to_string()
    }
}

struct Trap {
    harness: Harness,
    forge: Forge,
}

impl Trap {
    fn set() -> Self {
        let harness = Harness::start();
        let forge = Forge(Repository::open_bare(&harness.git.repository("acme/voting-app").dir).unwrap());
        harness.builder.script_for_the_rest(Script::success(&["vote"]));
        std::fs::create_dir(harness.home.path().join("outside")).unwrap();
        Self { harness, forge }
    }

    fn outside(&self) -> std::path::PathBuf {
        self.harness.home.path().join("outside")
    }

    /// The reports of builds of these trees, in order.
    async fn reports(&self, trees: &[Oid]) -> Vec<Value> {
        let _worker = self.harness.worker("");
        let mut reports = Vec::new();
        for tree in trees {
            let native = self.harness.native(&self.forge.commit(*tree));
            self.harness.redis.push("default", "BuildJob", json!([native])).await;
            reports.push(self.harness.callbacks(reports.len() + 1).await.pop().unwrap());
        }
        self.harness.idle().await;
        assert!(is_empty(&self.outside()), "the checkout wrote outside the tree");
        assert!(self.harness.job_directories().is_empty());
        reports
    }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_out_of_the_tree_or_into_git_are_refused() {
    let trap = Trap::set();
    let forge = &trap.forge;
    let payload = forge.blob("[core]\n\tfsmonitor = touch /tmp/hurt\n");
    let inside = forge.tree(&[(FILE, b"config", payload)]);
    let outside = forge.blob(trap.outside().to_str().unwrap());
    let names: [&[u8]; 12] = [
        b".git",
        b".GIT",
        b".Git",
        b"git~1",
        b"GIT~1",
        b".git ",
        b".git.",
        b".git . .",
        b".git::$INDEX_ALLOCATION",
        b"..",
        b".",
        b"a/b",
    ];
    let mut trees: Vec<Oid> = names.iter().map(|name| forge.tree_with(&[(DIRECTORY, *name, inside)])).collect();
    let gone = Oid::from_str("0123456789012345678901234567890123456789").unwrap();
    for (mode, id) in [(FILE, payload), (LINK, outside), (SUBMODULE, gone)] {
        trees.push(forge.tree_with(&[(mode, b".git", id)]));
    }
    trees.push(forge.tree_with(&[(DIRECTORY, b"deep", forge.tree(&[(DIRECTORY, b".git", inside)]))]));
    trees.push(forge.tree_with(&[(FILE, b"../hurt", payload)]));
    // First a link, then a directory with the same name: a file in the directory would go through the link.
    trees.push(forge.tree_with(&[(LINK, b"a", outside), (DIRECTORY, b"a", inside)]));
    trees.push(forge.tree_with(&[(DIRECTORY, b"a", inside), (LINK, b"a", outside)]));
    trees.push(forge.tree_with(&[(LINK, b"a", outside), (FILE, b"a/b", payload)]));

    for (n, report) in trap.reports(&trees).await.into_iter().enumerate() {
        assert_eq!(
            (&report["status"], &report["reason"]),
            (&json!("failed"), &json!("source_refused")),
            "{n}: {report:#}"
        );
    }
    assert!(trap.harness.builder.runs().is_empty(), "buildx receives none of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_packs_that_are_large_trees_are_refused_before_a_file_is_written() {
    let trap = Trap::set();
    let forge = &trap.forge;
    let ten = |id, mode| -> Vec<(&str, Vec<u8>, Oid)> { (0..10).map(|n| (mode, vec![b'0' + n], id)).collect() };
    let of_ten = |id, mode| {
        let entries = ten(id, mode);
        forge.tree(&entries.iter().map(|(mode, name, id)| (*mode, name.as_slice(), *id)).collect::<Vec<_>>())
    };
    let mut bomb = of_ten(forge.blob("x"), FILE);
    for _ in 0..9 {
        bomb = of_ten(bomb, DIRECTORY);
    }
    let mut deep = forge.tree(&[(FILE, b"x", forge.blob("x"))]);
    for _ in 0..300 {
        deep = forge.tree(&[(DIRECTORY, b"d", deep)]);
    }
    let mut long = forge.tree(&[(FILE, b"x", forge.blob("x"))]);
    for _ in 0..20 {
        long = forge.tree(&[(DIRECTORY, &[b'l'; 200], long)]);
    }
    let name = forge.tree(&[(FILE, &[b'n'; 256], forge.blob("x"))]);
    let trees = [bomb, deep, long, name].map(|tree| forge.tree_with(&[(DIRECTORY, b"a", tree)]));
    let reports = trap.reports(&trees).await;
    let words = ["more than 500000 files", "nested more than", "path is longer than", "is longer than 255 bytes"];
    for (report, words) in reports.iter().zip(words) {
        assert_eq!(report["reason"], "source_refused", "{report:#}");
        assert!(report["message"].as_str().unwrap().contains(words), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_git_reads_and_libgit2_does_not_is_refused_without_a_retry() {
    let trap = Trap::set();
    let forge = &trap.forge;
    // Git ignores the higher bits.
    let odd = forge.tree(&[("1100644", b"odd", forge.blob("x"))]);
    let reports = trap.reports(&[forge.tree_with(&[(DIRECTORY, b"a", odd)]), odd]).await;
    for report in reports {
        assert_eq!(report["reason"], "source_refused", "{report:#}");
        let message = report["message"].as_str().unwrap();
        assert!(message.contains("cannot be read"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_names_and_modules_that_lead_elsewhere_are_only_files() {
    let trap = Trap::set();
    let forge = &trap.forge;
    let file = forge.blob("x");
    let canary = trap.outside().join("canary");
    let modules = forge.blob(&format!(
        "[submodule \"../../../outside\"]\n\tpath = a\n\turl = file://{outside}\n\
         [submodule \"b\"]\n\tpath = b\n\turl = ext::touch {canary}\n\
         [submodule \"c\"]\n\tpath = c\n\turl = --upload-pack=touch {canary}\n",
        outside = trap.outside().display(),
        canary = canary.display(),
    ));
    let gone = Oid::from_str("0123456789012345678901234567890123456789").unwrap();
    let trees = [
        forge.tree_with(&[(FILE, b"README", file), (FILE, b"readme", file), (FILE, b"ReadMe", file)]),
        forge.tree_with(&[
            (FILE, b"--upload-pack=x", file),
            (FILE, b"a\nb", file),
            (FILE, b"\xff\xfe", file),
            // A file system that ignores zero-width characters reads this as `.git`. Here it is an ordinary name.
            (FILE, ".g\u{200c}it".as_bytes(), file),
            (FILE, b"back\\slash", file),
            (FILE, b"CON", file),
            (LINK, b"link", forge.blob("/etc/passwd")),
        ]),
        forge.tree_with(&[
            (FILE, b".gitmodules", modules),
            (SUBMODULE, b"a", gone),
            (SUBMODULE, b"b", gone),
            (SUBMODULE, b"c", gone),
        ]),
    ];
    let n_fetches = trees.len();
    for report in trap.reports(&trees).await {
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
    assert_eq!(trap.harness.git.n_fetches(), n_fetches, "the worker fetches no submodule");
}

/// Counts connections to another host at the same port. At another port, the sandbox alone would stop them.
fn visits(port: u16) -> Arc<AtomicUsize> {
    let elsewhere = TcpListener::bind((ELSEWHERE, port)).unwrap();
    let n_visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&n_visits);
    std::thread::spawn(move || elsewhere.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::Relaxed)));
    n_visits
}

const ELSEWHERE: &str = "127.0.0.2";

#[tokio::test(flavor = "multi_thread")]
async fn a_token_does_not_follow_a_redirect_to_another_host() {
    let path = "/acme/voting-app.git/git-upload-pack";
    let trap = Trap::set();
    let harness = &trap.harness;
    let n_visits = visits(harness.git.port());
    let location = format!("http://{ELSEWHERE}:{}{path}", harness.git.port());
    harness.git.faults().fail_next(path, 1, 302, &[("location", &location)], "");
    let mut native = harness.native(&trap.forge.commit(trap.forge.tree_with(&[])));
    native["callback"]["on"] = json!(["retrying", "finished"]);
    let _worker = harness.worker("");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["moment"], &report["reason"]), (&json!("retrying"), &json!("git_unavailable")), "{report:#}");
    assert_eq!(n_visits.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_not_fetched_from_the_address_in_a_repository() {
    let trap = Trap::set();
    let (forge, port) = (&trap.forge, trap.harness.git.port());
    let n_visits = visits(port);
    let elsewhere =
        format!("[lfs]\n\turl = http://{ELSEWHERE}:{port}/lfs\n[remote \"origin\"]\n\tlfsurl = file:///etc\n");
    let pointer = "version https://git-lfs.github.com/spec/v1\n\
        oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
    let tree = forge.tree_with(&[
        (FILE, b".gitattributes", forge.blob("* filter=lfs diff=lfs merge=lfs -text\n")),
        (FILE, b".lfsconfig", forge.blob(&elsewhere)),
        (FILE, b"large.bin", forge.blob(pointer)),
    ]);
    let report = trap.reports(&[tree]).await.remove(0);
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(n_visits.load(Ordering::Relaxed), 0);
}

/// Builds a commit that exhausts its child's time or memory, then one of another repository. Both end at the first
/// attempt.
async fn refusal(trap: &Trap, sha: &str, settings: &str) -> String {
    let harness = &trap.harness;
    let mut native = harness.native(sha);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    // One child at a time, so the healthy build waits for the other.
    let _worker = harness.worker(&format!("clones = 1\n{settings}"));
    harness.redis.push("default", "BuildJob", json!([native])).await;
    harness.until("the worker fetches", async || !harness.git.requests().is_empty()).await;
    let healthy = harness.native_of("other/app");
    harness.redis.push("default", "BuildJob", json!([healthy])).await;
    let reports = harness.callbacks(2).await;
    let of = |name: &str| reports.iter().find(|report| report["repository"] == name).unwrap();
    assert_eq!(of("other/app")["status"], "succeeded");
    let report = of("acme/voting-app");
    assert_eq!((&report["moment"], &report["reason"]), (&json!("finished"), &json!("source_refused")), "{report:#}");
    report["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gitattributes_that_exhausts_processor_time_is_a_failure_of_the_commit() {
    let trap = Trap::set();
    let forge = &trap.forge;
    let patterns: String = (0..20).map(|n| format!("*a*a*a*a*a*a*a*ab{n} eol=lf\n")).collect();
    let names: Vec<Vec<u8>> = (0..50).map(|n| format!("{}{n:02}", "a".repeat(120)).into_bytes()).collect();
    let file = forge.blob("x\n");
    let mut entries: Vec<(&str, &[u8], Oid)> = names.iter().map(|name| (FILE, name.as_slice(), file)).collect();
    entries.push((FILE, b".gitattributes", forge.blob(&patterns)));
    let sha = forge.commit(forge.tree_with(&entries));
    let message = refusal(&trap, &sha, "source.timeout = \"60s\"").await;
    assert!(message.contains("processor time") && message.contains(".gitattributes"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_stored_as_deltas_of_each_other_are_a_failure_of_the_commit() {
    let trap = Trap::set();
    let repository = trap.harness.git.repository("acme/voting-app");
    let mut content = vec![b'x'; 4 << 20];
    let mut files = vec![File::new("vote/Dockerfile", "FROM base\n")];
    for n in 0..64 {
        content[n * 60_000] = b'y';
        files.push(File::new(&format!("large/{n:02}"), content.clone()));
    }
    let sha = repository.commit_with("main", &files);
    repository.pack_in_a_chain();
    // A fetch may take 1 s of processor time. A fast processor needs 2 s for this one.
    let message = refusal(&trap, &sha, "source.timeout = \"20s\"").await;
    assert!(message.contains("processor time"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_exceeds_its_memory_limit_is_refused() {
    let trap = Trap::set();
    let repository = trap.harness.git.repository("acme/voting-app");
    let files = [File::new("vote/Dockerfile", "FROM base\n"), File::new("large", vec![b'x'; 120 << 20])];
    let sha = repository.commit_with("main", &files);
    let message = refusal(&trap, &sha, "sandbox.max_data_bytes = 100663296").await;
    assert!(message.contains("memory"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_remote_is_an_infrastructure_failure() {
    let trap = Trap::set();
    let harness = &trap.harness;
    let noise: Vec<u8> = (0..2_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let files = [File::new("vote/Dockerfile", "FROM base\n"), File::new("noise", noise)];
    let sha = harness.git.repository("acme/voting-app").commit_with("main", &files);
    harness.git.set_pack(Pack::StallAfter(100_000));
    let mut native = harness.native(&sha);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    let _worker = harness.worker("source.timeout = \"3s\"");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let report = harness.callbacks(1).await.remove(0);
    assert_eq!((&report["moment"], &report["reason"]), (&json!("retrying"), &json!("git_unavailable")), "{report:#}");
}

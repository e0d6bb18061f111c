//! Spellings of one meaning, printed by the real buildx and then validated. They get the same verdict.
//!
//! buildx prints a definition before policy validates it, so its treatment of a spelling is part of the verdict.
//! `src/bake/policy/tests/spellings.rs` has a property test of the rules alone. These tests build nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};
use sidebake::bake::{Bake, BakeRequest, define_application};
use sidebake::job::{BuildJob, Recipe};
use sidebake::settings::Settings;
use sidebake::state::StateDirectory;

/// The verdict on a definition: the targets to build, or none.
type Verdict = Option<Value>;

/// A worktree, and the policy of the default settings.
struct Checker {
    bake: Bake,
    state: StateDirectory,
    tree: PathBuf,
    _home: tempfile::TempDir,
}

impl Checker {
    fn open() -> Self {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        std::fs::create_dir_all(tree.join("app")).unwrap();
        std::fs::write(tree.join("app/Dockerfile"), "FROM scratch\n").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("out")).unwrap();
        let state = StateDirectory::open(&home.path().join("state"), "spelling").unwrap();
        let mut settings = Settings::default();
        settings.buildx.binary = world::buildx().path.clone();
        Self { bake: Bake::new(&settings), state, tree, _home: home }
    }

    /// The verdict on a job with these fields. One of them selects the definition.
    async fn verdict(&self, fields: &Value) -> Verdict {
        let mut native = json!({"repository": "acme/app", "sha": "0".repeat(40), "push": false});
        native.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let build = BuildJob::parse(&native).ok()?.build;
        let request = BakeRequest { build: &build, worktree: &self.tree, commit: None };
        let directory = self.state.job_directory().unwrap();
        let private = directory.subdirectory("print").unwrap();
        for name in ["buildx", "tmp"] {
            std::fs::create_dir(private.join(name)).unwrap();
        }
        // With a name that buildx does not treat as compose.
        let file = private.join("definition.json");
        let file = match &build.recipe {
            Recipe::Application(template) => {
                std::fs::write(&file, define_application(template)).unwrap();
                file
            }
            Recipe::Inline(definition) => {
                std::fs::write(&file, definition).unwrap();
                file
            }
            Recipe::Files(files) => self.tree.join(&files.paths[0]),
        };
        let mut buildx = Command::new(&world::buildx().path);
        buildx.env_clear().envs(&self.bake.print_child(&request, &private).environment).current_dir(&self.tree);
        buildx.args(["bake", "--print", "--progress", "quiet", "--file"]).arg(file).args(&build.targets);
        let printed = buildx.output().unwrap();
        assert!(printed.status.success(), "{fields}: {}", String::from_utf8_lossy(&printed.stderr));
        let judged = self.bake.validate(&printed.stdout, &request, &directory).await;
        directory.remove().await;
        let targets = judged.ok()?.targets;
        Some(targets.into_iter().map(|(name, target)| (name, Value::Object(target))).collect::<Map<_, _>>().into())
    }

    /// The verdict on a target in HCL, in each of these texts.
    async fn of_hcl(&self, fields: &str) -> Verdict {
        self.of_file("bake", "docker-bake.hcl", &format!("target \"default\" {{\n  context = \"app\"\n{fields}\n}}\n"))
            .await
    }

    async fn of_compose(&self, fields: &str) -> Verdict {
        let text = format!("services:\n  default:\n    build:\n      context: ./app\n{fields}\n");
        self.of_file("compose", "compose.yaml", &text).await
    }

    async fn of_file(&self, field: &str, name: &str, text: &str) -> Verdict {
        std::fs::write(self.tree.join(name), text).unwrap();
        self.verdict(&json!({field: name})).await
    }

    async fn of_json(&self, fields: Value) -> Verdict {
        self.verdict(&json!({"definition": {"target": {"default": with_context(fields)}}})).await
    }

    async fn of_template(&self, fields: Value) -> Verdict {
        let mut image = with_context(fields);
        image["name"] = json!("default");
        self.verdict(&json!({"application": {"images": [image]}})).await
    }
}

fn with_context(fields: Value) -> Value {
    let mut target = json!({"context": "app"});
    target.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    target
}

/// Checks that all are allowed and equal, or that all are refused.
fn agree(meaning: &str, is_allowed: bool, verdicts: &[Verdict]) {
    for (n, verdict) in verdicts.iter().enumerate() {
        assert_eq!(verdict.is_some(), is_allowed, "{meaning}, spelling {n}: {verdict:#?}");
        assert_eq!(verdict, &verdicts[0], "{meaning}, spelling {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_gets_the_same_verdict_in_every_form_of_a_definition() {
    let checker = Checker::open();
    let foreign = "generator=evil/image";
    let verdicts = [
        checker.of_json(json!({"attest": [format!("type=sbom,{foreign}")]})).await,
        checker.of_json(json!({"attest": [{"type": "SBOM", "generator": "evil/image"}]})).await,
        checker.of_json(json!({"attest": [format!("\"type=sbom\",\"{foreign}\"")]})).await,
        checker.of_json(json!({"args": {"BUILDKIT_ATTEST_Sbom": foreign}})).await,
        checker.of_json(json!({"args": {"${upper(\"buildkit_attest_sbom\")}": foreign}})).await,
        checker.of_json(json!({"args": {"BUILDKIT_ATTEST_SBOM": "${format(\"generator=%s\", \"evil/image\")}"}})).await,
        checker.of_template(json!({"args": {"BUILDKIT_ATTEST_SBOM": foreign}})).await,
        checker.of_json(json!({"args": {"BUIL\u{0044}\u{212a}IT_ATTEST_SBOM": foreign}})).await,
        checker.of_template(json!({"sbom": foreign})).await,
        checker.of_hcl(&format!("  attest = [\"type=sbom,{foreign}\"]")).await,
        checker.of_hcl("  attest = [{ type = \"sbom\", generator = \"evil/image\" }]").await,
        checker.of_hcl(&format!("  args = {{ BUILDKIT_ATTEST_SBOM = \"{foreign}\" }}")).await,
        checker.of_compose(&format!("      sbom: {foreign}")).await,
        checker.of_compose(&format!("      args: {{BUILDKIT_ATTEST_SBOM: {foreign}}}")).await,
        checker.of_compose(&format!("      args: [BUILDKIT_ATTEST_SBOM={foreign}]")).await,
    ];
    agree("an SBOM by a foreign image", false, &verdicts);
    // bake would normalize this name. A template's text reaches BuildKit as it was written, and BuildKit reads another name.
    let written = checker.of_template(json!({"args": {"BUILD\u{212a}IT_ATTEST_SBOM": foreign}})).await.unwrap();
    assert_eq!(written["default"]["args"]["BUILD\u{212a}IT_ATTEST_SBOM"], foreign);

    let verdicts = [
        checker.of_json(json!({"attest": ["type=provenance,mode=max"]})).await,
        checker.of_json(json!({"attest": [{"type": "provenance", "mode": "max"}]})).await,
        checker.of_json(json!({"args": {"BUILDKIT_ATTEST_PROVENANCE": "mode=max"}})).await,
        checker.of_template(json!({"provenance": "mode=max"})).await,
        checker.of_template(json!({"args": {"BUILDKIT_ATTEST_Provenance": "\"mode=max\""}})).await,
        checker
            .verdict(&json!({"provenance": "mode=max", "definition": {"target": {"default": {"context": "app"}}}}))
            .await,
    ];
    agree("all provenance", true, &verdicts);

    let mut verdicts = vec![checker.of_hcl("").await];
    for value in ["false", "\"0\"", "true", "\"T\""] {
        verdicts.push(checker.of_compose(&format!("      provenance: {value}\n      sbom: {value}")).await);
    }
    agree("what a repository's file says of attestations", true, &verdicts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_gets_the_same_verdict_as_field_and_as_argument() {
    let checker = Checker::open();
    let inline = |value: Value| json!({"args": {"BUILDKIT_INLINE_CACHE": value}});
    let verdicts = [
        checker.of_json(json!({"cache-to": ["type=inline"]})).await,
        checker.of_json(json!({"cache-to": [{"type": "inline"}]})).await,
        checker.of_json(inline(json!("1"))).await,
        checker.of_json(inline(json!(1))).await,
        checker.of_json(inline(json!(true))).await,
        checker.of_json(inline(json!("T"))).await,
        checker.of_template(json!({"cache_to": ["type=inline"]})).await,
        checker.of_template(inline(json!("TRUE"))).await,
    ];
    agree("a cache in the image", true, &verdicts);
    let verdicts = [
        checker.of_json(json!({})).await,
        checker.of_json(inline(json!("0"))).await,
        checker.of_json(inline(json!(false))).await,
        checker.of_json(inline(Value::Null)).await,
        checker.of_json(inline(json!("tRUE"))).await,
        checker.of_hcl("  args = { BUILDKIT_INLINE_CACHE = 1 }").await,
        checker.of_compose("      args: {BUILDKIT_INLINE_CACHE: 1}").await,
        checker.of_compose("      cache_to: [type=inline]").await,
    ];
    agree("no cache in the image", true, &verdicts);
    let two = |one: &str, other: &str| {
        let cache = |place: &str| json!({"context": "app", "cache-to": [place]});
        json!({"definition": {"target": {"a": cache(one), "b": cache(other)}}, "targets": ["a", "b"]})
    };
    let mut verdicts = Vec::new();
    for one in
        ["acme/cache", "docker.io/acme/cache", "type=registry,ref=acme/cache:latest", "TYPE=registry,REF=acme/cache"]
    {
        for other in
            ["type=registry,ref=index.docker.io/acme/cache", "\"type=registry\",\"ref=docker.io/acme/cache:latest\""]
        {
            verdicts.push(checker.verdict(&two(one, other)).await);
        }
    }
    agree("two caches in one place", false, &verdicts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_judged_by_where_it_leads() {
    let checker = Checker::open();
    let mut verdicts = Vec::new();
    for path in ["app", "./app", "app/", "app/.", ".//app", "app/../app", "cwd://app", "cwd://./app//"] {
        verdicts.push(checker.of_json(json!({"context": path})).await);
        verdicts.push(checker.of_template(json!({"context": path})).await);
    }
    agree("a context inside", true, &verdicts);
    let mut verdicts = Vec::new();
    for path in ["..", "./..", "app/../..", "cwd://..", "/etc", "//etc/", "cwd:///etc", "out", "out/.", "app/../out"] {
        verdicts.push(checker.of_json(json!({"context": path})).await);
        verdicts.push(checker.of_template(json!({"contexts": {"x": path}})).await);
        verdicts.push(checker.of_hcl(&format!("  contexts = {{ x = \"{path}\" }}")).await);
        verdicts.push(checker.of_compose(&format!("      additional_contexts: {{x: \"{path}\"}}")).await);
    }
    agree("a context outside", false, &verdicts);
    let verdicts = [
        checker.of_json(json!({"dockerfile": "cwd://app/Dockerfile"})).await,
        checker.of_json(json!({"dockerfile": "cwd://./app//Dockerfile"})).await,
        checker.of_hcl("  dockerfile = \"cwd://app/../app/Dockerfile\"").await,
    ];
    agree("a Dockerfile from the working directory", true, &verdicts);
    assert!(is_there(&verdicts[0]), "{verdicts:#?}");
}

/// Whether the Dockerfile of a target exists where its definition says.
fn is_there(verdict: &Verdict) -> bool {
    let dockerfile = verdict.as_ref().and_then(|targets| targets["default"]["dockerfile"].as_str());
    dockerfile.is_some_and(|path| Path::new(path).is_absolute() && Path::new(path).is_file())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_builders_network_is_refused_by_every_way_to_it() {
    let checker = Checker::open();
    let verdicts = [
        checker.of_json(json!({"network": "host"})).await,
        checker.of_json(json!({"network": "HOST"})).await,
        checker.of_json(json!({"network": " host"})).await,
        checker.of_json(json!({"network": "${lower(\"HOST\")}"})).await,
        checker.of_json(json!({"entitlements": ["network.host"]})).await,
        checker.of_template(json!({"network": "host"})).await,
        checker.of_hcl("  network = \"host\"").await,
        checker.of_compose("      network: host").await,
    ];
    agree("the builder's network", false, &verdicts);
    let verdicts = [
        checker.of_json(json!({})).await,
        checker.of_json(json!({"network": null, "no-cache": null, "entitlements": []})).await,
        checker.of_template(json!({"network": null})).await,
        checker.of_hcl("").await,
    ];
    agree("the default network", true, &verdicts);
}

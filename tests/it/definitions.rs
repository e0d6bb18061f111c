//! Definitions that projects write, resolved by `sidebake build` and by `docker buildx bake` itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};
use world::Script;

use crate::harness::{Harness, sidebake, text};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/definitions");

/// The fields that both must resolve alike.
const FIELDS: [&str; 7] = ["args", "context", "contexts", "dockerfile", "dockerfile-inline", "labels", "platforms"];

/// A row of the table.
struct Row {
    fixture: String,
    arguments: Vec<String>,
    result: String,
}

fn rows() -> Vec<Row> {
    let table = std::fs::read_to_string(Path::new(FIXTURES).join("README.md")).unwrap();
    let lines = table.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [fixture, _, arguments, result] = cells[..] else { panic!("four columns: {line}") };
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        Row { fixture: fixture.into(), arguments, result: result.into() }
    };
    lines.map(row).collect()
}

/// A copy of a fixture, with the directories and Dockerfiles that its definition names.
struct Project {
    home: tempfile::TempDir,
    tree: PathBuf,
}

impl Project {
    fn open(fixture: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let tree = home.path().join("tree");
        let copied =
            Command::new("cp").args(["-rP"]).arg(Path::new(FIXTURES).join(fixture)).arg(&tree).status().unwrap();
        assert!(copied.success());
        Self { home, tree }
    }

    /// What buildx itself resolves, as a person runs it in the tree.
    fn plain(&self, arguments: &[String]) -> Result<Targets, String> {
        let mut buildx = Command::new(&world::buildx().path);
        buildx.env_clear().env("PWD", &self.tree).env("HOME", self.home.path()).env("BUILDX_CONFIG", self.home.path());
        buildx.args(["bake", "--print", "--progress", "quiet"]).current_dir(&self.tree);
        let mut targets = Vec::new();
        for pair in arguments.chunks(2) {
            let [flag, value] = pair else { panic!("a flag and its value: {arguments:?}") };
            match &**flag {
                "--target" => targets.push(value),
                // buildx 0.29 has no `--var`.
                "--var" => drop(buildx.envs(value.split_once('='))),
                _ => drop(buildx.args(pair)),
            }
        }
        let output = buildx.args(targets).output().unwrap();
        match output.status.success() {
            true => Ok(targets_of(&output.stdout)),
            false => Err(text(&output)),
        }
    }

    /// Makes what a definition reads.
    fn fill(&self, targets: &Targets) {
        let local = |path: &str| {
            let path = path.strip_prefix("cwd://").unwrap_or(path);
            let is_local = !path.contains(':') && path != "..";
            is_local.then(|| self.tree.join(path))
        };
        for target in targets.values() {
            let context = local(target["context"].as_str().unwrap());
            let named = target.get("contexts").and_then(Value::as_object).into_iter().flat_map(Map::values);
            let contexts = named.filter_map(Value::as_str).filter_map(local).chain(context.clone());
            contexts.for_each(|context| std::fs::create_dir_all(context).unwrap());
            let (Some(context), Some(dockerfile)) = (context, target["dockerfile"].as_str()) else { continue };
            let file = match dockerfile.strip_prefix("cwd://") {
                Some(from_here) => self.tree.join(from_here),
                None => context.join(dockerfile),
            };
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "FROM scratch\n").unwrap();
        }
    }

    /// What sidebake resolves.
    fn ours(&self, arguments: &[String]) -> Result<Targets, String> {
        let output = print(&self.tree).args(arguments).output().unwrap();
        let text = text(&output);
        assert!(!text.contains("variable is not set"), "{text}");
        match output.status.success() {
            true => Ok(targets_of(&output.stdout)),
            false => Err(text),
        }
    }

    /// The compared fields of all targets, with paths from the root of the tree.
    fn compared(&self, targets: &Targets) -> BTreeMap<String, Map<String, Value>> {
        let tree = self.tree.display().to_string();
        let shown = |(field, value): (&String, &Value)| {
            let mut value = value.clone();
            visit(&mut value, &mut |text| {
                *text = text.replace("$${", "${").replace("%%{", "%{");
                if field.starts_with("context") {
                    let path = text.trim_start_matches("cwd://").trim_start_matches("./").trim_end_matches('/');
                    let path = path.strip_prefix(&tree).unwrap_or(path).trim_start_matches('/');
                    *text = if path.is_empty() { ".".into() } else { path.to_owned() };
                }
            });
            if let (Some(args), "args") = (value.as_object_mut(), &**field) {
                args.remove("BUILDKIT_CACHE_MOUNT_NS");
            }
            (field.clone(), value)
        };
        let target = |fields: &Map<String, Value>| {
            let fields = fields.iter().filter(|(field, _)| FIELDS.contains(&field.as_str()) || *field == "target");
            fields.map(shown).filter(|(_, value)| *value != json!({})).collect()
        };
        targets.iter().map(|(name, fields)| (name.clone(), target(fields))).collect()
    }
}

/// `sidebake build --print` of a tree, with the real docker-buildx.
fn print(tree: &Path) -> Command {
    let mut command = sidebake();
    command.args(["build", "--print"]).arg(tree).env("SIDEBAKE__BUILDX__BINARY", &world::buildx().path);
    command
}

type Targets = BTreeMap<String, Map<String, Value>>;

fn targets_of(printed: &[u8]) -> Targets {
    let mut printed: Value = serde_json::from_slice(printed).unwrap();
    serde_json::from_value(printed["target"].take()).unwrap()
}

fn visit(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(values) => values.iter_mut().for_each(|value| visit(value, change)),
        Value::Object(fields) => fields.values_mut().for_each(|value| visit(value, change)),
        _ => {}
    }
}

/// What is wrong with a row, if anything.
fn judge(row: &Row) -> Result<(), String> {
    let project = Project::open(&row.fixture);
    let plain = project.plain(&row.arguments);
    if let Ok(targets) = &plain {
        project.fill(targets);
    }
    let ours = project.ours(&row.arguments);
    let differing = match (&plain, &ours) {
        (Ok(plain), Ok(ours)) => {
            let (plain, ours) = (project.compared(plain), project.compared(ours));
            if plain.keys().ne(ours.keys()) {
                return Err(format!("other targets: {:?}, {:?}", plain.keys(), ours.keys()));
            }
            let fields = FIELDS.into_iter().chain(["target"]);
            let differs = |field: &&str| plain.keys().any(|name| plain[name].get(*field) != ours[name].get(*field));
            let fields: Vec<&str> = fields.filter(differs).collect();
            Ok((fields.join(", "), format!("plain {plain:#?}\nours {ours:#?}")))
        }
        (_, Err(message)) => Err(message),
        (Err(message), Ok(_)) => return Err(format!("only buildx refuses it: {message}")),
    };
    match (differing, row.result.split_once(' ')) {
        (Ok((fields, _)), None) if row.result == "same" && fields.is_empty() => Ok(()),
        (Ok((fields, _)), Some(("differs", allowed)))
            if allowed.split_once(": ").is_some_and(|(field, _)| field == fields) =>
        {
            Ok(())
        }
        (Ok((fields, both)), _) => Err(format!("differs in {fields:?}: {both}")),
        (Err(message), Some((reason, expected))) => {
            let reason = reason.trim_end_matches(':');
            let mut lines = message.lines();
            let is_expected = lines.any(|line| line.starts_with(&format!("{reason}: ")) && line.contains(expected));
            if is_expected { Ok(()) } else { Err(message.clone()) }
        }
        (Err(message), None) => Err(message.clone()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_a_definition_does_not_have_are_refused_and_unused_ones_reported() {
    let harness = Harness::start();
    let target = json!({"context": "."});
    let definition = json!({
        "group": {"default": {"targets": ["api"]}},
        "target": {"api": target, "web": target, "docs": {"context": ".", "output": ["type=cacheonly"]}}
    });
    let files = [("docker-bake.json", definition.to_string()), ("Dockerfile", "FROM base".to_owned())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let sha = harness.git.repository("acme/voting-app").commit(&files);
    let build = async |targets: Value, tags: Value| {
        let mut native = harness.native(&sha);
        native.as_object_mut().unwrap().remove("application");
        (native["bake"], native["targets"], native["tags"]) = (json!("docker-bake.json"), targets, tags);
        native["build_id"] = json!("b");
        let n_before = harness.callback_jobs(0).await.len();
        harness.redis.push("default", "BuildJob", json!([native])).await;
        harness.callbacks(n_before + 1).await.pop().unwrap()
    };
    let _worker = harness.worker("");

    let report = build(json!(["apo"]), json!({})).await;
    assert_eq!(report["reason"], "invalid_arguments", "{report:#}");
    let expected = "targets: no target or group \"apo\"; known: default, api, web, docs";
    assert!(report["message"].as_str().unwrap().ends_with(expected), "{report:#}");

    let report = build(json!(["api"]), json!({"api": ["r.example/api:1"], "ap": ["r.example/ap:1"]})).await;
    assert_eq!(report["reason"], "invalid_arguments", "{report:#}");
    let expected = "tags.ap: no target of this name; known: api, web, docs";
    assert!(report["message"].as_str().unwrap().ends_with(expected), "{report:#}");

    harness.builder.script(Script::success(&["api", "docs"]));
    let tags = json!({"api": ["r.example/api:1"], "web": ["r.example/web:1"], "docs": ["r.example/docs:1"]});
    let report = build(json!(["api", "docs"]), tags).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let expected = [
        "target.docs.tags: not used: no image of this target leaves the builder",
        "tags.web: not used: the job does not build this target",
    ];
    assert_eq!(report["notices"], json!(expected), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compose_file_in_a_directory_is_read_there_with_secrets_that_no_repository_has() {
    let mut harness = Harness::start();
    harness.settings = format!("buildx.binary = \"{}\"", world::buildx().path.display());
    // Nothing listens there, so a build that got so far takes all its time.
    harness.builders = "builders.default = { driver = \"remote\", endpoint = \"tcp://127.0.0.1:9\" }".into();
    let secrets = harness.home.path().join("granted");
    std::fs::create_dir(&secrets).unwrap();
    ["npm", "pip", "gem", "aws"].iter().for_each(|name| std::fs::write(secrets.join(name), "hunter2").unwrap());
    let compose = "services:\n  web.app:\n    build:\n      context: ${PWD}/../web\n      secrets: [npm, pip, gem, aws]\n\
                   secrets:\n  npm: {file: ../private/npm}\n  aws: {file: ~/.aws/token}\n  pip: {file: \"${PWD}/pip\"}\n  gem: {environment: GEM}\n";
    let repository = harness.git.repository("acme/voting-app");
    let sha = repository.commit(&[("deploy/compose.yml", compose), ("web/Dockerfile", "FROM base\n")]);
    let mut native = harness.native(&sha);
    native.as_object_mut().unwrap().remove("application");
    (native["compose"], native["targets"]) = (json!("deploy/compose.yml"), json!(["web.app"]));
    native["tags"] = json!({"web.app": ["registry.example/web:1"]});
    native["timeout_s"] = json!(1);
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker(&format!("accounts.secrets = \"{}/{{name}}\"", secrets.display()));

    let report = harness.callbacks(1).await.remove(0);

    assert_eq!(report["reason"], "timed_out", "{report:#}");
    let notices: Vec<&str> = report["notices"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let replaced = |n: usize, name: &str| format!("target.web_app.secret[{n}]: replaced by the worker's secret {name}");
    assert_eq!(notices, [replaced(0, "npm"), replaced(1, "pip"), replaced(2, "gem"), replaced(3, "aws")], "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_of_the_platform_brings_no_warnings_of_compose() {
    let harness = Harness::start();
    let (_, sha) = harness.voting_app();
    harness.builder.script(Script::success(&["vote"]));
    let mut native = harness.native(&sha);
    native["application"]["images"][0]["dockerfile_inline"] = json!("FROM x\nRUN export PATH=$PATH:/opt $${f} $f\n");
    harness.redis.push("default", "BuildJob", json!([native])).await;
    let _worker = harness.worker("");
    harness.callbacks(1).await;
    let run = harness.builder.runs().remove(0);
    let file = run.argv.iter().skip_while(|argument| *argument != "--file").nth(1).expect("a file");

    // What buildx itself says of this text under this name.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(Path::new(file).file_name().unwrap());
    std::fs::write(&file, &run.text).unwrap();
    let mut buildx = Command::new(&world::buildx().path);
    buildx.env_clear().env("HOME", folder.path()).current_dir(folder.path());
    let output = buildx.args(["bake", "--print", "--progress", "quiet", "vote", "--file"]).arg(&file).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
}

#[test]
fn files_that_only_compose_reads_are_named() {
    let tree = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("compose.yaml", "services: {web: {build: .}}"),
        ("compose.override.yaml", "services: {web: {build: {target: debug}}}"),
        ("Dockerfile", "FROM scratch\n"),
    ] {
        std::fs::write(tree.path().join(name), text).unwrap();
    }
    let output = print(tree.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let expected = "compose.override.yaml is not read: docker buildx bake does not read it either";
    assert!(text(&output).contains(expected) && !text(&output).contains("debug"), "{}", text(&output));
}

#[test]
fn sidebake_resolves_what_projects_write_as_buildx_does() {
    let rows = rows();
    assert!(rows.len() >= 60);
    let mut fixtures: Vec<String> = std::fs::read_dir(FIXTURES)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name != "README.md")
        .collect();
    fixtures.sort();
    assert_eq!(fixtures, rows.iter().map(|row| row.fixture.clone()).collect::<Vec<_>>());

    let next = std::sync::atomic::AtomicUsize::new(0);
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    if let Err(message) = judge(row) {
                        wrong.lock().unwrap().push(format!("{} ({}): {message}", row.fixture, row.result));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

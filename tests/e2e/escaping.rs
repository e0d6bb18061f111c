//! Text in a definition stays text, even when bake could evaluate it. The text comes from the platform's template or
//! from a file of the tree. It passes through the validated definition and the real `docker-buildx bake --print`.
//!
//! Each case is a definition of many targets with generated names and values. The expected result is what the generator
//! produced. The actual result is what buildx reads from the output of `sidebake build --print`. `PROPTEST_RNG_SEED`
//! selects other cases.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Map, Value, json};

use crate::harness::{Harness, text};

/// Fields of a target by name, as in `--print` when no field needs escapes.
type Target = Map<String, Value>;

/// Text that bake, JSON, CSV, shells or Dockerfiles could interpret.
const FRAGMENTS: &[&str] = &[
    "${",
    "%{",
    "$${",
    "%%{",
    "$$${",
    "%%%{",
    "$",
    "%",
    "{",
    "}",
    "~}",
    "${~",
    "%{~",
    "${upper(\"x\")}",
    "${homedir()}",
    "%{if true}",
    "%{endif}",
    "${HOME}",
    "$HOME",
    "$$",
    "%%",
    "\"",
    "'",
    "`",
    "\\",
    "\\n",
    "\\u0024{",
    "\n",
    "\r\n",
    "\t",
    " ",
    "<<EOT\n",
    "<<-\"EOF\"\n",
    "\nEOT\n",
    "~",
    "=",
    ",",
    ":",
    ";",
    "#",
    "//",
    "/*",
    "*/",
    "{{",
    "}}",
    "[",
    "]",
    "(",
    ")",
    "null",
    "true",
    "0",
    "é",
    "ß",
    "🐳",
    "\u{2028}",
    "\u{feff}",
    "\u{7f}",
    "\u{1}",
    "a",
    "key",
    "value",
];

fn nasty() -> impl Strategy<Value = String> {
    let short = vec(select(FRAGMENTS), 1..7).prop_map(|fragments| fragments.concat());
    let long = (select(FRAGMENTS), 1_000..4_000_usize).prop_map(|(fragment, n)| fragment.repeat(n));
    prop_oneof![60 => short, 1 => long]
}

/// Policy accepts only references of images, which need no escapes.
fn reference() -> impl Strategy<Value = String> {
    "r\\.example/[a-z]{1,9}:[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}"
}

/// The same without characters that names of arguments and contexts cannot have.
fn nasty_name() -> impl Strategy<Value = String> {
    nasty().prop_map(|text| text.replace(|c: char| c == '=' || c.is_control(), "-"))
}

fn texts() -> impl Strategy<Value = Value> {
    btree_map(nasty(), prop_oneof![9 => nasty(), 1 => Just(String::new())], 0..4).prop_map(|texts| json!(texts))
}

fn list(of: impl Strategy<Value = String>) -> impl Strategy<Value = Value> {
    btree_set(of, 0..3).prop_map(|texts| json!(texts))
}

/// A target with fields that the platform's template also has.
fn target() -> impl Strategy<Value = Target> {
    let contexts = btree_map(nasty_name(), reference().prop_map(|image| format!("docker-image://{image}")), 0..3);
    let caches = |name: &'static str| {
        let entries = btree_set(reference(), 0..2);
        entries.prop_map(move |places| {
            (name, places.iter().map(|place| json!({"type": "registry", "ref": place})).collect::<Value>())
        })
    };
    let args = btree_map(nasty_name(), prop_oneof![9 => nasty(), 1 => Just(String::new())], 0..4);
    // Policy accepts only names and addresses, which need no escapes.
    let hosts = btree_map("[a-z][a-z0-9.-]{0,9}", "10\\.0\\.0\\.[1-9]", 0..3).prop_map(|hosts| json!(hosts));
    let maps = (args.prop_map(|args| json!(args)), texts(), hosts, contexts);
    let lists = (list(reference()), list(nasty()), caches("cache-from"), caches("cache-to"));
    (maps, lists, nasty(), proptest::option::of(nasty())).prop_map(|(maps, lists, target, inline)| {
        let (args, labels, hosts, contexts) = maps;
        let (tags, filter, from, to) = lists;
        let fields = [
            ("args", args),
            ("labels", labels),
            ("extra-hosts", hosts),
            ("contexts", json!(contexts)),
            ("tags", tags),
            ("no-cache-filter", filter),
            from,
            to,
            ("target", json!(target)),
            ("dockerfile-inline", json!(inline)),
        ];
        fields.into_iter().filter(|(_, value)| !is_empty(value)).map(|(name, value)| (name.to_owned(), value)).collect()
    })
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value == &json!({}) || value == &json!([])
}

fn check(n_cases: u32, test: impl Fn(Vec<Target>) -> Result<(), String>) {
    let config = Config { failure_persistence: None, cases: n_cases, max_shrink_iters: 40, ..Config::default() };
    let rng_seed = if config.rng_seed == RngSeed::Random { RngSeed::Fixed(12) } else { config.rng_seed };
    let mut runner = TestRunner::new(Config { rng_seed, ..config });
    runner.run(&vec(target(), 15..20), |targets| test(targets).map_err(TestCaseError::fail)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn buildx_reads_a_templates_text_unchanged() {
    let harness = Harness::open();
    let tree = tree(&harness);
    let template = harness.home.path().join("template.json");
    let holds = |targets: Vec<Target>| {
        let targets = named(without_shared_caches(targets));
        let images: Vec<Value> = targets.iter().map(|(name, target)| image(name, target)).collect();
        std::fs::write(&template, json!({"images": images}).to_string()).unwrap();
        let output =
            harness.run(&["build", tree.to_str().unwrap(), "--print", "--template", template.to_str().unwrap()], "");
        is_understood(&harness, &tree, &output, targets)
    };
    check(3, holds);
    // Without fields that buildx writes in another form, because then buildx does not resolve the template first.
    check(3, |targets| {
        let keep = |(name, _): &(String, Value)| !["contexts", "cache-from", "cache-to"].contains(&name.as_str());
        holds(targets.into_iter().map(|target| target.into_iter().filter(keep).collect()).collect())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn buildx_reads_a_files_text_unchanged() {
    let harness = Harness::open();
    let tree = tree(&harness);
    check(3, |targets| {
        let mut targets = named(without_shared_caches(targets));
        for target in targets.values_mut() {
            // The template does not have these fields. Text generated for one of them works for another.
            let label = target.get("target").cloned().unwrap_or_default();
            target.insert("annotations".into(), json!([format!("key={}", label.as_str().unwrap())]));
            target.insert("description".into(), label);
        }
        let definition = json!({
            "group": {"default": {"targets": targets.keys().collect::<Vec<_>>()}},
            "target": targets.iter().map(|(name, target)| (name.clone(), escaped(&json!(target)))).collect::<Value>(),
        });
        std::fs::write(tree.join("docker-bake.json"), definition.to_string()).unwrap();
        let output = harness.run(&["build", tree.to_str().unwrap(), "--print"], "");
        is_understood(&harness, &tree, &output, targets)
    });
}

/// A tree with a Dockerfile.
fn tree(harness: &Harness) -> std::path::PathBuf {
    let tree = harness.home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("Dockerfile"), "FROM scratch\n").unwrap();
    tree
}

fn named(targets: Vec<Target>) -> BTreeMap<String, Target> {
    targets.into_iter().enumerate().map(|(n, target)| (format!("t{n}"), target)).collect()
}

/// Two targets must not write their cache to the same location.
fn without_shared_caches(mut targets: Vec<Target>) -> Vec<Target> {
    let mut taken = BTreeSet::new();
    for target in &mut targets {
        let places = target.get("cache-to").map(Value::to_string);
        if places.is_some_and(|places| !taken.insert(places)) {
            target.remove("cache-to");
        }
    }
    targets
}

/// An image of the template.
fn image(name: &str, target: &Target) -> Value {
    let options = |cache: &Value| format!("type=registry,ref={}", cache["ref"].as_str().unwrap());
    let in_template = |(field, value): (&String, &Value)| {
        let value = match field.as_str() {
            "cache-from" | "cache-to" => value.as_array().unwrap().iter().map(options).collect(),
            _ => value.clone(),
        };
        (field.replace('-', "_"), value)
    };
    let mut image: Map<String, Value> = target.iter().map(in_template).collect();
    image.insert("name".into(), json!(name));
    image.into()
}

/// Whether buildx alone reads the generated values from the output of `sidebake build --print`.
fn is_understood(
    harness: &Harness,
    tree: &Path,
    output: &std::process::Output,
    targets: BTreeMap<String, Target>,
) -> Result<(), String> {
    if !output.status.success() {
        return Err(text(output));
    }
    let mut buildx = harness.bare_buildx(tree);
    buildx.args(["bake", "--print", "--progress", "quiet", "--file", "-"]).args(targets.keys());
    let mut buildx = buildx.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    buildx.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    let printed = buildx.wait_with_output().unwrap();
    if !printed.status.success() {
        return Err(text(&printed));
    }
    let printed: Value = serde_json::from_slice(&printed.stdout).unwrap();
    for (name, mut expected) in targets {
        expected.insert("context".into(), json!(tree));
        expected.insert("dockerfile".into(), json!("Dockerfile"));
        let arguments = expected.entry("args").or_insert_with(|| json!({}));
        arguments["BUILDKIT_CACHE_MOUNT_NS"] = json!("local/tree/protected");
        // Before 0.31, buildx has no policies.
        if world::buildx().version >= (0, 31) {
            let disabled = json!({"Files": null, "Reset": false, "Disabled": true, "Strict": null, "LogLevel": null});
            expected.insert("policy".into(), json!([disabled]));
        }
        let found = plain(&printed["target"][&name]);
        for field in expected.keys().chain(found.keys()) {
            if expected.get(field) != found.get(field) {
                let [expected, found] = [&expected, &found].map(|target| target.get(field));
                return Err(format!("{field}: expected {expected:?}, found {found:?}"));
            }
        }
    }
    Ok(())
}

/// The meaning of a field in `--print`, which escapes values of some fields and no keys.
fn plain(target: &Value) -> Target {
    let is_escaped =
        |field: &str| ["args", "labels", "annotations", "dockerfile-inline", "extra-hosts"].contains(&field);
    let fields = target.as_object().unwrap().iter();
    let plain = |text: &str| text.replace("$${", "${").replace("%%{", "%{");
    fields
        .map(|(name, value)| (name.clone(), if is_escaped(name) { each_value(value, &plain) } else { value.clone() }))
        .collect()
}

/// The form that the author of a bake file in JSON has to write.
fn escaped(value: &Value) -> Value {
    let escape = |text: &str| {
        let text = text.replace("${", "$${").replace("%{", "%%{");
        // HCL drops a byte order mark at the start of a text, unless an expression produces it.
        text.strip_prefix('\u{feff}').map_or(text.clone(), |rest| format!("${{\"\\ufeff\"}}{rest}"))
    };
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (escape(name), escaped(value))).collect(),
        Value::Array(values) => values.iter().map(escaped).collect(),
        value => each_value(value, &escape),
    }
}

fn each_value(value: &Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(text).into(),
        Value::Array(values) => values.iter().map(|value| each_value(value, change)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), each_value(value, change))).collect(),
        other => other.clone(),
    }
}

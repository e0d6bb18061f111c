//! Hostile definitions: what they name, evaluate and access. A control run shows that each harm is real.

use serde_json::{Map, Value, json};

use crate::canary_port::CanaryPort;
use crate::harness::{Harness, text};
use crate::registry;

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_an_expression_loads_no_foreign_frontend() {
    let harness = Harness::open();
    let canary_port = CanaryPort::hanging_up();
    let frontend = format!("127.0.0.1:{}/evil/frontend:1", canary_port.port);
    let sha = harness.commit("evil", &[("app/Dockerfile", &harness.dockerfile("COPY . /srv"))]);

    // The control: passes the `--print` output for the name below to buildx again.
    let tree = harness.check_out("evil");
    let args = json!({"${upper(\"buildkit_syntax\")}": frontend});
    harness.bare_bake(
        &tree,
        &json!({"target": {"default": {"context": "./app", "args": args, "output": ["type=cacheonly"]}}}),
    );
    assert!(canary_port.n_connections() > 0, "the trap does not work here: no request for the frontend");
    let n_connections_before = canary_port.n_connections();

    let _worker = harness.worker("");
    let app = json!({
        "context": "./app",
        "tags": [harness.reference("app", &sha)],
        "args": {"$${upper(\"buildkit_syntax\")}": frontend},
        "labels": {"$${upper(\"key\")}": "$${homedir()} %%{if}", "${upper(\"once\")}": "${upper(\"only\")}"},
    });
    let report = harness.build(harness.inline("evil", &sha, json!({"target": {"app": app}}), "app")).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(canary_port.n_connections(), n_connections_before, "buildx evaluated the name after validation");
    let labels = registry::config(&harness.reference("app", &sha)).await["config"]["Labels"].take();
    assert_eq!(labels["${upper(\"key\")}"], "${homedir()} %{if}", "{labels:#}");
    assert_eq!(labels["ONCE"], "ONLY", "buildx evaluates a definition's own expressions once: {labels:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_templates_values_arrive_literally_in_the_image() {
    let harness = Harness::open();
    let values = [
        ("DOLLAR", "${X} $${X} $$${X} $X $$"),
        ("PERCENT", "%{if true}x%{endif} %%{if} 100%"),
        ("CALL", "${upper(\"x\")}"),
        ("QUOTES", "say \"hi\", 'hey' and `ho`; \\n is \\ and n"),
        ("LINES", "first\n second\n\n"),
        ("LETTERS", "naïve 東京 🦀"),
        ("EMPTY", ""),
    ];
    let instructions: String = values
        .iter()
        .map(|(name, _)| format!("ARG {name}\nRUN mkdir -p /srv && printf '%s|' \"${name}\" > /srv/{name}\n"))
        .collect();
    // One directory has that name; the other has its evaluation as name.
    let (app, decoy) = ("a${upper(\"x\")}", "aX");
    let sha = harness.commit(
        "shop",
        &[
            (&format!("{app}/Dockerfile"), &harness.dockerfile(&format!("{instructions}COPY whose /srv/whose"))),
            (&format!("{app}/whose"), "ours\n"),
            (&format!("{decoy}/Dockerfile"), &harness.dockerfile("COPY whose /srv/whose")),
            (&format!("{decoy}/whose"), "the decoy's\n"),
        ],
    );
    let args: Map<String, Value> = values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let labels = json!({"${upper(\"key\")}": "${homedir()} %{if} \"x\"\n"});
    let reference = harness.reference("app", &sha);
    let image =
        json!({"name": "app", "context": format!("./{app}"), "args": args, "labels": labels, "tags": [reference]});
    let _worker = harness.worker("");

    let report = harness.build(harness.native("shop", &sha, &[image])).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    for (name, value) in values {
        let found = registry::file(&reference, &format!("srv/{name}")).await;
        assert_eq!(found, Some(format!("{value}|")), "{name}");
    }
    assert_eq!(registry::file(&reference, "srv/whose").await.as_deref(), Some("ours\n"));
    let config = registry::config(&reference).await;
    assert_eq!(config["config"]["Labels"]["${upper(\"key\")}"], "${homedir()} %{if} \"x\"\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_built_definition_contains_no_byte_of_this_machine() {
    let harness = Harness::open();
    let tree = harness.home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("Dockerfile"), "FROM scratch\n").unwrap();
    std::fs::write(tree.join("other.yaml"), "services: {}\n").unwrap();
    let buildx = world::buildx().path.to_str().unwrap();
    let files = [
        "/usr/lib/os-release",
        "/etc/os-release",
        "/usr/lib/../lib/os-release",
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/x86_64-linux-gnu/libc.so.6",
        buildx,
        "/etc/ld.so.cache",
        "/etc/passwd",
        "/etc/hostname",
        "/proc/self/environ",
        "/proc/self/cmdline",
        "/proc/self/maps",
        "/proc/self/exe",
        "/proc/version",
        "/proc/self/fd/0",
        "/dev/stdin",
        "/dev/urandom",
        "/dev/zero",
        "/sys/kernel/notes",
    ];
    let environment =
        "services: {a: {build: {context: ., args: [PRETTY_NAME, ID, HOSTNAME, PATH, HOME]}, env_file: FILE}}";
    let definitions = [
        environment,
        "include: [FILE]",
        "include: [{path: other.yaml, env_file: FILE}]",
        "services: {a: {extends: {file: FILE, service: a}}}",
    ];
    let release = std::fs::read_to_string("/usr/lib/os-release").unwrap();
    let name = release.lines().find_map(|line| line.strip_prefix("ID=")).unwrap();
    for file in files {
        let link = tree.join("link");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(file, &link).unwrap();
        for (definition, path) in definitions.iter().flat_map(|definition| [(definition, file), (definition, "./link")])
        {
            std::fs::write(tree.join("compose.yaml"), definition.replace("FILE", path)).unwrap();
            let said = text(&harness.run(&["build", "--print", tree.to_str().unwrap()], ""));
            // The text of the definition itself does not count.
            let heard = said.replace(file, "").replace(&*harness.home.path().to_string_lossy(), "");
            let is_told = [name, "ELF", "x7f", "glibc", "root:", "GOMAXPROCS", "Linux version"];
            assert!(is_told.iter().all(|byte| !heard.contains(byte)), "{definition} of {file} by {path}: {said}");
        }
    }
}

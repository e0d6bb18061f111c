//! Definitions of an enemy: what they name, evaluate and reach for. Judged by the harm, which a control run shows to be real.

use std::path::Path;

use serde_json::{Map, Value, json};
use world::File;

use crate::bell::Bell;
use crate::house::{House, text};
use crate::registry;

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_an_expression_is_a_name_and_loads_no_foreign_frontend() {
    let house = House::open();
    let bell = Bell::hanging_up();
    let frontend = format!("127.0.0.1:{}/evil/frontend:1", bell.port);
    let sha = house.commit("evil", &[("app/Dockerfile", &house.dockerfile("COPY . /srv"))]);

    // The control: what `--print` makes of the name below, given to buildx once more.
    let tree = house.check_out("evil");
    let args = json!({"${upper(\"buildkit_syntax\")}": frontend});
    house.bare_bake(
        &tree,
        &json!({"target": {"default": {"context": "./app", "args": args, "output": ["type=cacheonly"]}}}),
    );
    assert!(bell.rung() > 0, "the trap does not work here: nobody asked for the frontend");
    let rung_before = bell.rung();

    let _worker = house.worker("");
    let app = json!({
        "context": "./app",
        "tags": [house.reference("app", &sha)],
        "args": {"$${upper(\"buildkit_syntax\")}": frontend},
        "labels": {"$${upper(\"key\")}": "$${homedir()} %%{if}", "${upper(\"once\")}": "${upper(\"only\")}"},
    });
    let report = house.build(house.inline("evil", &sha, json!({"target": {"app": app}}), "app")).await;

    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(bell.rung(), rung_before, "the name was evaluated after it had been policed");
    let labels = registry::config(&house.reference("app", &sha)).await["config"]["Labels"].take();
    assert_eq!(labels["${upper(\"key\")}"], "${homedir()} %{if}", "{labels:#}");
    assert_eq!(labels["ONCE"], "ONLY", "a definition's own expressions are evaluated, once: {labels:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_templates_values_arrive_literally_in_the_image() {
    let house = House::open();
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
    // Beside the directory of that name is the one that its evaluation would lead to.
    let (app, decoy) = ("a${upper(\"x\")}", "aX");
    let sha = house.commit(
        "shop",
        &[
            (&format!("{app}/Dockerfile"), &house.dockerfile(&format!("{instructions}COPY whose /srv/whose"))),
            (&format!("{app}/whose"), "ours\n"),
            (&format!("{decoy}/Dockerfile"), &house.dockerfile("COPY whose /srv/whose")),
            (&format!("{decoy}/whose"), "the decoy's\n"),
        ],
    );
    let args: Map<String, Value> = values.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let labels = json!({"${upper(\"key\")}": "${homedir()} %{if} \"x\"\n"});
    let reference = house.reference("app", &sha);
    let image =
        json!({"name": "app", "context": format!("./{app}"), "args": args, "labels": labels, "tags": [reference]});
    let _worker = house.worker("");

    let report = house.build(house.native("shop", &sha, &[image])).await;

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
async fn what_reaches_for_the_host_is_refused_with_its_path() {
    let house = House::open();
    let bell = Bell::hanging_up();
    let loot = house.home.path().join("loot");
    let dockerfile = house.dockerfile("COPY . /srv");
    let sha = house.commit_with(
        "evil",
        &[
            File::new("app/Dockerfile", dockerfile.as_str()),
            File::symlink("etc", "/etc"),
            File::symlink("up", "../.."),
            File::symlink("app/Linked", "/etc/passwd"),
        ],
    );

    // The control: in the mode that a worker needs, buildx writes wherever a definition says.
    let tree = house.check_out("evil");
    let output = json!([format!("type=local,dest={}", loot.display())]);
    house.bare_bake(&tree, &json!({"target": {"default": {"context": "./app", "output": output}}}));
    assert!(loot.join("srv/Dockerfile").exists(), "the trap does not work here");
    std::fs::remove_dir_all(&loot).unwrap();

    let _worker = house.worker("");
    let mut wrong = Vec::new();
    for (field, value, words) in reaching_for_the_host(&house, &loot, &bell) {
        let mut app = json!({"context": "./app", "tags": [house.reference("app", &sha)]});
        app[field] = value.clone();
        let report = house.build(house.inline("evil", &sha, json!({"target": {"app": app}}), "app")).await;
        let is_users = ["policy_refused", "definition_invalid"].iter().any(|reason| report["reason"] == *reason);
        if !is_users || !report["message"].as_str().unwrap().contains(words) {
            wrong.push(format!("{field} {value}: {}: {}", report["reason"], report["message"]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    assert_eq!(registry::digest(&house.reference("app", &sha)).await, None);
    assert_eq!(bell.rung(), 0, "something was fetched");
    let found = std::fs::read_dir(house.home.path()).unwrap().flatten().map(|entry| entry.file_name());
    assert!(!found.into_iter().any(|name| name.to_string_lossy().starts_with("loot")), "something was written");
    house.nothing_is_left().await;
}

/// A field of a target, its value, and what the refusal must say.
fn reaching_for_the_host(house: &House, loot: &Path, bell: &Bell) -> Vec<(&'static str, Value, &'static str)> {
    let (secret, dest) = (house.home.path().join("app.pem"), loot.display().to_string());
    // Below the root, `..` is the root.
    let passwd = format!("{}etc/passwd", "../".repeat(20));
    vec![
        ("secret", json!([format!("id=x,src={}", secret.display())]), "target.app.secret"),
        ("secret", json!([{"id": "x", "src": "/etc/passwd"}]), "target.app.secret"),
        ("secret", json!([{"id": "x", "env": "PATH"}]), "target.app.secret"),
        // buildx reads the key while it prints, and meets the sandbox.
        ("ssh", json!([{"id": "x", "paths": [secret]}]), "permission denied"),
        ("context", json!("../.."), "target.app.context"),
        ("context", json!("/etc"), "target.app.context"),
        ("context", json!("etc"), "target.app.context"),
        ("context", json!("up"), "target.app.context"),
        ("context", json!("https://example.com/evil.git"), "target.app.context"),
        ("contexts", json!({"host": "/etc"}), "target.app.contexts.host"),
        ("contexts", json!({"host": "up/.."}), "target.app.contexts.host"),
        ("contexts", json!({"host": "oci-layout:///var"}), "target.app.contexts.host"),
        ("dockerfile", json!(passwd), "target.app.dockerfile"),
        ("dockerfile", json!("../../../../nowhere/Dockerfile"), "target.app.dockerfile"),
        ("dockerfile", json!(format!("http://127.0.0.1:{}/Dockerfile", bell.port)), "target.app.dockerfile"),
        ("dockerfile", json!("cwd://../../../../app.pem"), "target.app.dockerfile"),
        ("dockerfile", json!("-"), "not allowed"),
        ("dockerfile", json!("Linked"), "target.app.dockerfile"),
        ("output", json!([format!("type=local,dest={dest}")]), "target.app.output[0]"),
        // And it opens these for writing.
        ("output", json!([format!("type=tar,dest={dest}.tar")]), "permission denied"),
        ("output", json!([format!("type=oci,dest={dest}.oci")]), "permission denied"),
        ("cache-to", json!([format!("type=local,dest={dest}")]), "target.app.cache-to[0]"),
        ("cache-from", json!(["type=local,src=/etc"]), "target.app.cache-from[0]"),
        ("network", json!("host"), "target.app."),
        ("entitlements", json!(["security.insecure"]), "target.app.entitlements"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compose_file_reads_nothing_outside_of_its_tree() {
    let house = House::open();
    let outside = house.home.path().join("outside.yml");
    std::fs::write(
        &outside,
        "services:\n  stolen:\n    image: s3cret\n    build:\n      context: /\nS3CRET=s3cret: [\n",
    )
    .unwrap();
    let outside = outside.display();
    let tree = house.home.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("Dockerfile"), house.dockerfile("ARG LOOT\nRUN echo \"$LOOT\" > /loot")).unwrap();
    let image = house.reference("web", "1");
    let service = |more: &str| {
        format!(
            "services:\n  web:\n    image: {image}\n    build: {{context: ., args: {{LOOT: \"${{LOOT}}\"}}}}\n{more}"
        )
    };

    for hostile in [
        service(&format!("    env_file: {outside}\n")),
        service(&format!("    extends: {{file: {outside}, service: stolen}}\n")),
        service(&format!("include: [{outside}]\n")),
        service(&format!("secrets: {{s: {{file: {outside}}}}}\n")).replace("context: .,", "context: ., secrets: [s],"),
    ] {
        std::fs::write(tree.join("compose.yaml"), &hostile).unwrap();
        let output = house.run(&["build", tree.to_str().unwrap(), "--push"]);
        assert_eq!(output.status.code(), Some(1), "{hostile}: {}", text(&output));
        assert!(!text(&output).contains("s3cret"), "{hostile}: {}", text(&output));
        assert_eq!(registry::digest(&image).await, None);
    }

    std::fs::write(tree.join("compose.yaml"), service("")).unwrap();
    let output = house.run_with(&["build", tree.to_str().unwrap(), "--push"], &[("LOOT", "s3cret")]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(registry::file(&image, "loot").await.as_deref(), Some("\n"), "a variable of the environment came in");
}

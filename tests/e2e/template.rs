//! The fields of the platform's Application Template: the definition that each produces, and its effect on the image.

use serde_json::{Value, json};

use crate::harness::{Harness, target, text};
use crate::registry;

/// Fields of an image, and the field that buildx receives.
fn table() -> Vec<(Value, Value)> {
    let provenance = |options: Value| json!({"attest": [options]});
    vec![
        (json!({}), json!({})),
        (json!({"context": "./app"}), json!({"context": "/app"})),
        (json!({"context": "app", "dockerfile": "../Special"}), json!({"context": "/app", "dockerfile": "../Special"})),
        (json!({"dockerfile_inline": "FROM scratch\n"}), json!({"dockerfile-inline": "FROM scratch\n"})),
        (json!({"target": "tool"}), json!({"target": "tool"})),
        (json!({"args": {"K": "", "L": "${v}"}}), json!({"args": {"K": "", "L": "${v}"}})),
        (json!({"labels": {"a.b/c": "d"}}), json!({"labels": {"a.b/c": "d"}})),
        (json!({"tags": ["r.example/b:1", "r.example/a:1"]}), json!({"tags": ["r.example/b:1", "r.example/a:1"]})),
        (json!({"platforms": ["linux/arm64", "linux/amd64"]}), json!({"platforms": ["linux/arm64", "linux/amd64"]})),
        (json!({"network": "none"}), json!({"network": "none"})),
        (json!({"extra_hosts": {"db.internal": "10.0.0.7"}}), json!({"extra-hosts": {"db.internal": "10.0.0.7"}})),
        (json!({"no_cache_filter": ["b", "a"]}), json!({"no-cache-filter": ["b", "a"]})),
        (json!({"provenance": true}), provenance(json!({"type": "provenance"}))),
        (json!({"provenance": false}), json!({})),
        (
            json!({"provenance": "mode=max,version=v1"}),
            provenance(json!({"type": "provenance", "mode": "max", "version": "v1"})),
        ),
        (json!({"sbom": true}), provenance(json!({"type": "sbom"}))),
        (json!({"sbom": false}), json!({})),
        (json!({"secrets": [{"id": "npm", "from": "npm-token"}]}), json!({"secret": [{"id": "npm", "src": "/0"}]})),
    ]
}

/// Fields that buildx writes in another form than the template.
fn table_in_other_forms() -> Vec<(Value, Value)> {
    let cache = |place: &str| json!({"type": "registry", "ref": place});
    vec![
        (
            json!({"contexts": {"tools": "./app", "base": "docker-image://r.example/base", "other": "target:i1"}}),
            json!({"contexts": {"tools": "/app", "base": "docker-image://r.example/base", "other": "target:i1"}}),
        ),
        (json!({"shm_size": "128m"}), json!({"shm-size": "128m"})),
        (json!({"ulimits": ["nofile=1024:2048", "core=0"]}), json!({"ulimits": ["nofile=1024:2048", "core=0"]})),
        (json!({"cache_from": ["type=registry,ref=r.example/a"]}), json!({"cache-from": [cache("r.example/a")]})),
        (json!({"cache_to": ["type=registry,ref=r.example/b"]}), json!({"cache-to": [cache("r.example/b")]})),
        (json!({"cache_to": ["type=inline"]}), json!({"cache-to": [{"type": "inline"}]})),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_field_is_in_the_definition_whether_buildx_resolves_it_or_only_agrees() {
    let harness = Harness::open();
    let tree = harness.home.path().join("tree");
    std::fs::create_dir_all(tree.join("app")).unwrap();
    for dockerfile in ["Dockerfile", "Special", "app/Dockerfile"] {
        std::fs::write(tree.join(dockerfile), "FROM scratch\n").unwrap();
    }
    let secrets = harness.home.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("npm-token"), "x").unwrap();
    let pattern = format!("{}/{{name}}", secrets.display());
    let template = harness.home.path().join("template.json");
    let (tree, template) = (tree.to_str().unwrap(), template.to_str().unwrap());
    let print = |more: &[&str]| {
        let arguments = [&["build", tree, "--print", "--template", template], more].concat();
        let output = harness.home.run(&arguments, &harness.config(""), &[("SIDEBAKE__ACCOUNTS__SECRETS", &pattern)]);
        assert!(output.status.success(), "{}", text(&output));
        let mut definition: Value = serde_json::from_slice(&output.stdout).unwrap();
        // The directory of this build differs from that of the next.
        if let Some(file) = definition.pointer_mut("/target/i17/secret/0/src") {
            *file = json!(file.as_str().unwrap().rsplit_once("/secrets").unwrap().1);
        }
        definition
    };
    for table in [table(), table_in_other_forms()] {
        let images = table.iter().enumerate().map(|(n, (fields, _))| {
            let mut image = fields.clone();
            image["name"] = json!(format!("i{n}"));
            image
        });
        std::fs::write(template, json!({"images": images.collect::<Value>()}).to_string()).unwrap();
        let definition = print(&[]);
        for (n, (fields, expected)) in table.iter().enumerate() {
            let expected = full(expected, tree);
            assert_eq!(without_escapes(&definition["target"][format!("i{n}")]), expected, "{fields}");
        }
        // With selected targets, buildx finds them.
        let names: Vec<String> = (0..table.len()).map(|n| format!("--target=i{n}")).collect();
        let resolved = print(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(definition, resolved);
    }
}

/// The whole target, with the fields that every target has.
fn full(expected: &Value, tree: &str) -> Value {
    let mut full = json!({"context": "", "dockerfile": "Dockerfile", "args": {}});
    for (field, value) in expected.as_object().unwrap() {
        full[field] = value.clone();
    }
    full["context"] = json!(format!("{tree}{}", full["context"].as_str().unwrap()));
    if let Some(tools) = full.pointer_mut("/contexts/tools") {
        *tools = json!(format!("{tree}{}", tools.as_str().unwrap()));
    }
    full["args"]["BUILDKIT_CACHE_MOUNT_NS"] = json!("local/tree/protected");
    // Before 0.31, buildx has no policies.
    if world::buildx().version >= (0, 31) {
        full["policy"] = json!([{"disabled": true}]);
    }
    full
}

/// A target without escapes; only this text in the table needs them.
fn without_escapes(target: &Value) -> Value {
    serde_json::from_str(&target.to_string().replace("$${v}", "${v}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_see_the_values_of_the_fields() {
    let harness = Harness::open();
    let sha = harness.commit("shop", &[("tools/tool.txt", "hammer\n"), ("web/page.html", "cats\n")]);
    let _worker = harness.worker("");
    let dockerfile = format!(
        "FROM base AS stamp\nENV NONCE={}\nRUN cat /proc/uptime > /stamp\n\
         FROM base\nENV NONCE={}\nCOPY --from=tools tool.txt /srv/\nCOPY page.html /srv/\n\
         RUN ulimit -n > /srv/files && ulimit -Hn >> /srv/files\n\
         RUN grep files.internal /etc/hosts > /srv/hosts\n\
         RUN df -k /dev/shm | tail -n 1 | awk '{{print $2}}' > /srv/shm\n\
         RUN grep -c : /proc/net/dev > /srv/interfaces\n\
         COPY --from=stamp /stamp /srv/stamp\n",
        harness.nonce, harness.nonce
    );
    let reference = harness.reference("web", "1");
    let mut image = json!({
        "name": "web", "context": "web", "dockerfile_inline": dockerfile, "tags": [reference],
        "contexts": {"tools": "./tools", "base": format!("docker-image://{}", harness.engine.base_image)},
        "network": "none", "shm_size": "96m", "ulimits": ["nofile=777:1234"],
        "extra_hosts": {"files.internal": "10.9.8.7"}, "no_cache_filter": ["stamp"], "provenance": "mode=max", "sbom": false,
    });
    let report = harness.build(harness.native("shop", &sha, std::slice::from_ref(&image))).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let file = async |name: &str| registry::file(&reference, &format!("srv/{name}")).await.unwrap_or_default();
    assert_eq!((&*file("tool.txt").await, &*file("page.html").await), ("hammer\n", "cats\n"));
    assert_eq!((&*file("files").await, &*file("shm").await), ("777\n1234\n", "98304\n"));
    assert_eq!(file("hosts").await.split_whitespace().collect::<Vec<_>>(), ["10.9.8.7", "files.internal"]);
    assert_eq!(file("interfaces").await, "1\n", "the step sees more than the loopback");
    let predicate = registry::attestation(&reference).await.expect("its provenance")["predicate"].take();
    assert!(predicate.to_string().contains("\"buildConfig\""), "of mode max: {predicate:#}");

    let first = file("stamp").await;
    image["provenance"] = json!(false);
    let report = harness.build(harness.native("shop", &sha, &[image])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_ne!(file("stamp").await, first, "the stage comes from the cache");
    let target = target(&report, "web");
    // For the stage's step and the copy from it.
    let n_run = target["steps_total"].as_u64().unwrap() - target["steps_cached"].as_u64().unwrap();
    assert_eq!(n_run, 2, "{report:#}");
    assert_eq!(registry::attestation(&reference).await, None);
}

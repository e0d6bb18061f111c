//! `sidebake build`: builds a local tree by its own definition.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{Harness, text};
use crate::registry;

/// Writes files into a new directory of the harness.
fn tree(harness: &Harness, files: &[(&str, &str)]) -> String {
    let root = harness.home.path().join("tree");
    for (path, text) in files {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    root.to_str().unwrap().to_owned()
}

/// The output of a container of an image in the engine's own store.
fn run_image(harness: &Harness, reference: &str, command: &[&str]) -> String {
    let mut docker = Command::new("docker");
    docker.args(["-H", &harness.engine.docker_host, "run", "--rm", "--network", "none", reference]).args(command);
    let output = docker.output().unwrap();
    assert!(output.status.success(), "{reference}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn build_makes_the_services_of_a_compose_file_and_pushes_them_on_request() {
    let harness = Harness::open();
    let (web, api) = (harness.reference("web", "1"), harness.reference("api", "1"));
    let compose = format!(
        "services:\n  web:\n    build: ./web\n    image: {web}\n  api:\n    image: {api}\n    profiles: [full]\n    \
         build:\n      context: ./api\n      dockerfile: ../docker/api.Dockerfile\n      args:\n        GREETING: \"good $$day\"\n  \
         redis:\n    image: redis:7\n"
    );
    let api_dockerfile =
        harness.dockerfile("ARG GREETING\nRUN mkdir /srv && echo \"$GREETING\" > /srv/greeting\nCOPY . /srv");
    let tree = tree(
        &harness,
        &[
            ("docker-compose.yml", &compose),
            ("web/Dockerfile", &harness.dockerfile("COPY . /srv")),
            ("web/page.html", "<h1>cats</h1>\n"),
            // Outside its context, as in many repositories.
            ("docker/api.Dockerfile", &api_dockerfile),
            ("api/api.txt", "api\n"),
        ],
    );

    let output = harness.run(&["build", &tree], "");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(registry::digest(&web).await, None, "pushed without a request");
    assert_eq!(run_image(&harness, &web, &["cat", "/srv/page.html"]), "<h1>cats</h1>\n");

    let output = harness.run(&["build", &tree, "--push"], "");
    assert!(output.status.success(), "{}", text(&output));
    let (web_digest, api_digest) = (registry::digest(&web).await.unwrap(), registry::digest(&api).await.unwrap());
    for words in ["web", "api", "succeeded", &web_digest[..19], &api_digest[..19]] {
        assert!(text(&output).contains(words), "no {words} in {}", text(&output));
    }
    assert_eq!(registry::file(&web, "srv/page.html").await.as_deref(), Some("<h1>cats</h1>\n"));
    assert_eq!(registry::file(&api, "srv/api.txt").await.as_deref(), Some("api\n"));
    assert_eq!(registry::file(&api, "srv/greeting").await.as_deref(), Some("good $day\n"));
    assert!(harness.children().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn build_accepts_a_bake_file_with_any_hcl() {
    let harness = Harness::open();
    let reference = |name: &str| harness.reference(name, "1");
    let bake = format!(
        r#"
variable "PREFIX" {{ default = "{prefix}" }}
variable "HOME" {{ default = "nobody's" }}
function "tag" {{
  params = [name]
  result = "${{PREFIX}}/${{name}}:1"
}}
group "default" {{ targets = ["app", "tool"] }}
target "_common" {{ args = {{ "WHOSE" = HOME, "LITERAL" = "$${{WHOSE}}" }} }}
target "base" {{ context = "./base" }}
target "app" {{
  inherits = ["_common"]
  name = "app-${{flavour}}"
  matrix = {{ flavour = ["cats", "dogs"] }}
  context = "./app"
  contexts = {{ common = "target:base" }}
  args = {{ FLAVOUR = flavour }}
  tags = [tag("app-${{flavour}}")]
}}
target "tool" {{
  context = "./app"
  dockerfile-inline = <<EOT
FROM {base}
COPY app.txt /srv/
EOT
  tags = [tag("tool")]
}}
"#,
        prefix = reference("x").rsplit_once("/x").unwrap().0,
        base = harness.engine.base_image,
    );
    let app = "FROM common\nARG FLAVOUR\nARG WHOSE\nARG LITERAL\nRUN echo \"$FLAVOUR $WHOSE $LITERAL\" > /srv/args\nCOPY app.txt /srv/\n";
    let tree = tree(
        &harness,
        &[
            ("docker-bake.hcl", &bake),
            ("base/Dockerfile", &harness.dockerfile("COPY base.txt /srv/")),
            ("base/base.txt", "base\n"),
            ("app/Dockerfile", app),
            ("app/app.txt", "app\n"),
        ],
    );

    let output = harness.run(&["build", &tree, "--push"], "");

    assert!(output.status.success(), "{}", text(&output));
    for flavour in ["cats", "dogs"] {
        let app = reference(&format!("app-{flavour}"));
        assert_eq!(
            registry::file(&app, "srv/base.txt").await.as_deref(),
            Some("base\n"),
            "builds on its linked target"
        );
        let args = registry::file(&app, "srv/args").await;
        assert_eq!(args, Some(format!("{flavour} nobody's ${{WHOSE}}\n")), "no value comes from the environment");
        assert!(text(&output).contains(&registry::digest(&app).await.unwrap()[..19]), "{}", text(&output));
    }
    assert_eq!(registry::file(&reference("tool"), "srv/app.txt").await.as_deref(), Some("app\n"));
    assert!(Path::new(&tree).join("docker-bake.hcl").exists(), "the command leaves the tree unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn build_accepts_a_template_and_a_url_and_reports_a_failure() {
    let harness = Harness::open();
    let open = world::GitHost::open();
    let dockerfile = harness.dockerfile("COPY . /srv\nRUN exit 7");
    open.repository("acme/shop")
        .commit(&[("fine/Dockerfile", &harness.dockerfile("COPY . /srv")), ("broken/Dockerfile", &dockerfile)]);
    let template = harness.home.path().join("template.json");
    let images = ["fine", "broken"].map(|name| harness.image(name, "1"));
    std::fs::write(&template, json!({"images": images}).to_string()).unwrap();
    let url = format!("{}/acme/shop.git", open.url());

    let output =
        harness.run(&["build", &url, "--template", template.to_str().unwrap(), "--push", "--target", "broken"], "");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    for words in ["step_failed", "broken", "RUN exit 7", "exited with 7"] {
        assert!(text(&output).contains(words), "no {words} in {}", text(&output));
    }
    let output =
        harness.run(&["build", &url, "--template", template.to_str().unwrap(), "--push", "--target", "fine"], "");
    assert!(output.status.success(), "{}", text(&output));
    assert!(registry::digest(&harness.reference("fine", "1")).await.is_some());
    assert_eq!(registry::digest(&harness.reference("broken", "1")).await, None);
}

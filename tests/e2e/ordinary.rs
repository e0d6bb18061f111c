//! Twelve definitions in the styles of public projects, `tests/fixtures/ordinary`. They build unchanged, and the images
//! equal those of bare buildx.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Harness, target, text};
use crate::registry;

/// The base images of the fixtures; the engine has its own.
const BASE_IMAGE: &str = "registry.example/base:1";

/// One definition, and the job that builds it.
struct Ordinary {
    directory: &'static str,
    file: &'static str,
    targets: &'static [&'static str],
    variables: &'static [(&'static str, &'static str)],
    /// The targets whose images the build pushes.
    images: &'static [&'static str],
}

const ALL: [Ordinary; 12] = [
    Ordinary {
        directory: "voting",
        file: "docker-compose.yml",
        targets: &["vote", "result", "worker"],
        variables: &[],
        images: &["result", "vote", "worker"],
    },
    Ordinary {
        directory: "selfhosted",
        file: "docker-compose.yml",
        targets: &[],
        variables: &[],
        images: &["cleanup", "cron", "web"],
    },
    Ordinary {
        directory: "social",
        file: "docker-compose.yml",
        targets: &[],
        variables: &[],
        images: &["sidekiq", "streaming", "web"],
    },
    Ordinary {
        directory: "web",
        file: "compose.yaml",
        targets: &[],
        variables: &[("SERVER_NAME", "shop.example")],
        images: &["mailer", "php", "pwa"],
    },
    Ordinary { directory: "inline", file: "compose.yml", targets: &[], variables: &[], images: &["backup", "proxy"] },
    Ordinary {
        directory: "services",
        file: "docker-compose.yml",
        targets: &["ads", "cart", "web_admin", "web_shop"],
        variables: &[("BUILD_NUMBER", "7")],
        images: &["ads", "cart", "web_admin", "web_shop"],
    },
    Ordinary { directory: "addons", file: "compose.yaml", targets: &[], variables: &[], images: &["addon", "aws"] },
    Ordinary {
        directory: "monorepo",
        file: "deploy/docker/docker-compose.yml",
        targets: &["api", "jobs"],
        variables: &[("TAG", "1.4")],
        images: &["api", "jobs"],
    },
    Ordinary {
        directory: "cli",
        file: "docker-bake.hcl",
        targets: &["default", "release"],
        variables: &[("VERSION", "1.4")],
        images: &["image"],
    },
    Ordinary {
        directory: "images",
        file: "docker-bake.hcl",
        targets: &[],
        variables: &[("BUILD_ID", "7")],
        images: &["php-8-2-cli", "php-8-2-fpm", "php-8-3-cli", "php-8-3-fpm", "tool-jq", "tool-yq"],
    },
    Ordinary {
        directory: "shop",
        file: "build/docker-bake.json",
        targets: &[],
        variables: &[("TAG", "1.4")],
        images: &["app-api", "app-scheduler", "web"],
    },
    Ordinary {
        directory: "platform",
        file: "bake/images.hcl",
        targets: &[],
        variables: &[("SERVICES", "gateway,billing")],
        images: &["certificates", "svc-billing", "svc-gateway"],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_files_build_unchanged_into_the_images_of_bare_buildx() {
    let harness = Harness::open();
    let tags = harness.reference("{target}", "{sha}");
    // bare buildx sets no labels.
    let _worker = harness.worker(&format!("bake.labels = false\n[accounts]\ntags = [\"{tags}\"]\n"));
    let (base, mut jobs) = (base_image(&harness), Vec::new());
    for ordinary in &ALL {
        let sha = commit(&harness, ordinary, &base);
        let jid = harness.redis.push("default", "BuildJob", json!([ordinary.job(&harness, &sha)])).await;
        jobs.push((ordinary, sha, jid));
    }
    let (mut n_same, n_images) = (0, ALL.iter().map(|ordinary| ordinary.images.len()).sum::<usize>());
    for (ordinary, sha, jid) in jobs {
        let report = harness.report(&jid).await;

        let name = ordinary.directory;
        assert_eq!(report["status"], "succeeded", "{name}: {report:#}\n{}", harness.logs());
        assert_eq!(pushed(&report), ordinary.images, "{name}: {report:#}");
        only_references_were_replaced(&report);
        ordinary.bake_bare(&harness, &sha);
        for image in ordinary.images {
            let (ours, bare) = (harness.reference(image, &sha), harness.reference(&format!("bare/{image}"), &sha));
            assert_eq!(
                target(&report, image)["digest"].as_str(),
                registry::digest(&ours).await.as_deref(),
                "{name}: {image}"
            );
            // A manifest's digest covers the digests of the configuration and of all layers. bare buildx finds the
            // steps in the cache. BuildKit sometimes runs one of them again, and then its files have other times.
            let digests = [registry::image_digest(&ours).await, registry::image_digest(&bare).await];
            n_same += usize::from(digests[0].is_some() && digests[0] == digests[1]);
            let [ours, bare] = [without_times(&ours).await, without_times(&bare).await];
            assert_eq!(ours, bare, "{name}: {image}");
        }
    }
    assert!(n_same > n_images / 2, "{n_same} of {n_images} images are identical");
    harness.nothing_is_left().await;
}

/// The configuration of an image without its times, and without the digests of layers that contain times.
async fn without_times(reference: &str) -> Value {
    let mut config = registry::config(reference).await;
    config.as_object_mut().unwrap().remove("created");
    for step in config["history"].as_array_mut().into_iter().flatten() {
        step.as_object_mut().unwrap().remove("created");
    }
    config["rootfs"]["diff_ids"] = json!(config["rootfs"]["diff_ids"].as_array().map(Vec::len));
    config
}

impl Ordinary {
    fn job(&self, harness: &Harness, sha: &str) -> Value {
        let mut native = harness.native(self.directory, sha, &[]);
        native.as_object_mut().unwrap().remove("application");
        let is_compose =
            Path::new(self.file).extension().is_some_and(|extension| extension == "yml" || extension == "yaml");
        native[if is_compose { "compose" } else { "bake" }] = json!(self.file);
        native["targets"] = json!(self.targets);
        native["variables"] = self.variables.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        native
    }

    /// Builds the same checkout with the real buildx alone. The command line replaces what a worker decides: names,
    /// caches, that buildx pushes images, and that it attests nothing.
    fn bake_bare(&self, harness: &Harness, sha: &str) {
        let tree = harness.check_out(self.directory);
        let file = tree.join(self.file);
        // As users call `docker buildx bake`: a compose file in its directory, a bake file from the root.
        let directory = if self.file.ends_with("ml") { file.parent().unwrap() } else { &tree };
        let mut buildx = harness.bare_buildx(directory);
        buildx.env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1");
        buildx.args(["bake", "--progress", "plain", "--allow", "fs=*", "--file"]).arg(&file).args(self.targets);
        buildx.args(["--set", "*.cache-from=", "--set", "*.cache-to="]).envs(self.variables.iter().copied());
        for image in self.images {
            let reference = harness.reference(&format!("bare/{image}"), sha);
            buildx.args([
                "--set",
                &format!("{image}.tags={reference}"),
                "--set",
                &format!("{image}.output=type=registry"),
            ]);
        }
        let output = buildx.output().unwrap();
        assert!(output.status.success(), "{}: {}", self.directory, text(&output));
    }
}

/// A base image for this test only. On a base image of earlier runs, BuildKit knows several results of a step, each
/// with its own times, and uses any of them.
fn base_image(harness: &Harness) -> String {
    let reference = harness.reference("base", "1");
    let directory = harness.home.path().join("base");
    std::fs::create_dir(&directory).unwrap();
    let target = json!({"dockerfile-inline": harness.dockerfile(""), "tags": [reference], "output": ["type=registry"]});
    let output = harness.bare_bake(&directory, &json!({"target": {"default": target}}));
    assert!(output.status.success(), "{}", text(&output));
    reference
}

/// Commits a fixture, and replaces its base image.
fn commit(harness: &Harness, ordinary: &Ordinary, base: &str) -> String {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/ordinary", ordinary.directory].iter().collect();
    let files = files(&root).into_iter().map(|path| {
        let text = std::fs::read_to_string(root.join(&path)).unwrap();
        (path, text.replace(BASE_IMAGE, base))
    });
    let files: Vec<(String, String)> = files.collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    harness.commit(ordinary.directory, &files)
}

/// All files below a directory, as relative paths.
fn files(directory: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            files.extend(self::files(&entry.path()).iter().map(|below| format!("{name}/{below}")));
        } else {
            files.push(name);
        }
    }
    files
}

/// The targets that produced an image.
fn pushed(report: &Value) -> Vec<&str> {
    let targets = report["targets"].as_array().unwrap().iter();
    let pushed = targets.filter(|target| target["tags"].as_array().is_some_and(|tags| !tags.is_empty()));
    pushed.map(|target| target["name"].as_str().unwrap()).collect()
}

fn only_references_were_replaced(report: &Value) {
    for notice in report["notices"].as_array().unwrap() {
        let path = notice.as_str().unwrap().split(':').next().unwrap();
        let field = path.rsplit('.').next().unwrap();
        assert!(["tags", "cache-from", "cache-to", "output"].contains(&field), "{notice}");
    }
}

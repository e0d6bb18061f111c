//! Whether a file that a `.dockerignore` may exclude is an input of the build: BuildKit's answer and sidebake's.

use serde_json::{Value, json};
use world::File;

use crate::harness::Harness;
use crate::registry;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";

/// The content of the file, and a path in the context.
const TABLE: &[(&str, &str)] = &[
    ("models", "models/deep/x.bin"),
    ("/models/", "models/x.bin"),
    ("odels", "models/x.bin"),
    ("**/*.bin", "models/x.bin"),
    ("*.bin", "models/x.bin"),
    ("**odels", "models/x.bin"),
    ("m[a-o]dels/?.bin", "models/x.bin"),
    ("m[^a-o]dels", "models/x.bin"),
    ("models/[[^]*.bin", "models/^x.bin"),
    ("models\n!models/x.bin", "models/x.bin"),
    ("models\n!models/*.bin", "models/deep/x.bin"),
    ("*\n!Dockerfile\n!models/x.bin\nmodels", "models/x.bin"),
    ("**/*.bin\n!models", "models/x.bin"),
    ("!models\n*\n!Dockerfile", "models/x.bin"),
    (" # models\n#models", "models/x.bin"),
    ("\u{feff}models\r\n", "models/x.bin"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_pointer_stops_a_build_where_buildkit_would_have_put_it_into_the_image() {
    let harness = Harness::open();
    let dockerfile = showing(&harness);
    let (mut files, mut images) = (Vec::new(), Vec::new());
    for (n, (ignore, path)) in TABLE.iter().enumerate() {
        files.extend([
            File::new(&format!("c{n}/Dockerfile"), dockerfile.as_str()),
            File::new(&format!("c{n}/.dockerignore"), *ignore),
            File::new(&format!("c{n}/{path}"), POINTER),
        ]);
        images.push((format!("c{n}"), "Dockerfile"));
    }
    is_judged_as_by_buildkit(&harness, &files, &images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dockerignore_of_a_dockerfile_is_read_from_the_path_that_buildx_uses() {
    let harness = Harness::open();
    let dockerfile = showing(&harness);
    let (mut files, mut images) = (Vec::new(), Vec::new());
    // Folded, the path is Dockerfile. Followed, it is a/Dockerfile.
    for (n, (folded, followed)) in [("models", "#"), ("#", "models")].into_iter().enumerate() {
        files.extend([
            File::new(&format!("c{n}/Dockerfile"), dockerfile.as_str()),
            File::new(&format!("c{n}/Dockerfile.dockerignore"), folded),
            File::new(&format!("c{n}/a/Dockerfile"), dockerfile.as_str()),
            File::new(&format!("c{n}/a/Dockerfile.dockerignore"), followed),
            File::new(&format!("c{n}/a/b/x"), "x"),
            File::symlink(&format!("c{n}/deep"), "a/b"),
            File::new(&format!("c{n}/models/x.bin"), POINTER),
        ]);
        images.push((format!("c{n}"), "deep/../Dockerfile"));
    }
    is_judged_as_by_buildkit(&harness, &files, &images).await;
}

/// A Dockerfile that prints the files that it receives.
fn showing(harness: &Harness) -> String {
    harness.dockerfile("COPY . /context\nRUN cd /context && find * -name '*.bin' > /found")
}

/// Builds images of contexts and their Dockerfiles twice. In the first build pointers are plain files, and BuildKit
/// shows which ones it receives.
async fn is_judged_as_by_buildkit(harness: &Harness, files: &[File], images: &[(String, &str)]) {
    let sha = harness.commit_with("ignored", files);
    let _worker = harness.worker("");
    let image = |(name, dockerfile): &(String, &str), sha: &str| json!({"name": name, "context": name, "dockerfile": dockerfile, "tags": [harness.reference(name, sha)]});
    let all: Vec<Value> = images.iter().map(|one| image(one, &sha)).collect();
    let report = harness.build(harness.native("ignored", &sha, &all)).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");

    let lfs = harness.commit("ignored", &[(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")]);
    for one in images {
        let found = registry::file(&harness.reference(&one.0, &sha), "found").await.unwrap();
        let report = harness.build(harness.native("ignored", &lfs, &[image(one, &lfs)])).await;
        let expected = if found.is_empty() { Value::Null } else { json!("source_refused") };
        assert_eq!(report["reason"], expected, "of {} BuildKit sends {found:?}: {report:#}", one.0);
    }
}

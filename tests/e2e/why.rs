//! Why a step was not cached: planted causes, one target each, on a real BuildKit.

use std::process::Command;

use serde_json::{Value, json};
use world::File;

use crate::harness::{Harness, target, text};

/// A target before and after its cause.
struct Case {
    name: &'static str,
    /// Its Dockerfile after the FROM, or with it.
    before: &'static str,
    after: &'static str,
    /// Files that change, besides the Dockerfile.
    changed: &'static [(&'static str, &'static str)],
    /// More fields of the image, before and after.
    fields: [&'static str; 2],
    cause: &'static str,
    line: u64,
    /// The end of the sentence.
    words: &'static str,
}

const CASE: Case = Case {
    name: "",
    before: "",
    after: "",
    changed: &[],
    fields: ["{}", "{}"],
    cause: "instruction_changed",
    line: 2,
    words: "the instruction is new or changed",
};

fn same(name: &'static str, dockerfile: &'static str) -> Case {
    Case { name, before: dockerfile, after: dockerfile, ..CASE }
}

fn cases() -> Vec<Case> {
    vec![
        Case { name: "run", before: "RUN true $N", after: "RUN true $N 2", ..CASE },
        Case {
            name: "inserted",
            before: "RUN true $N\nRUN id",
            after: "RUN true $N\nRUN true\nRUN id",
            line: 3,
            ..CASE
        },
        Case {
            name: "removed",
            before: "RUN true $N\nRUN true\nRUN id",
            after: "RUN true $N\nRUN id",
            line: 3,
            words: "other instructions come before it than in the last build",
            ..CASE
        },
        Case {
            name: "environment",
            before: "ENV A=1\nLABEL a=b\nRUN true $N",
            after: "ENV A=2\nLABEL a=c\nRUN true $N",
            line: 4,
            words: "`ENV A` (line 2) before it is new or changed",
            ..CASE
        },
        Case {
            name: "default",
            before: "ARG A=1\nRUN true $N",
            after: "ARG A=2\nRUN true $N",
            line: 3,
            words: "`ARG A` (line 2) before it is new or changed",
            ..CASE
        },
        Case { name: "body", before: "RUN <<EOF\ntrue $N\nEOF", after: "RUN <<EOF\ntrue $N 2\nEOF", ..CASE },
        Case {
            name: "shell",
            before: "COPY a.txt /\nRUN true $N",
            after: "COPY a.txt /\nSHELL [\"/bin/sh\", \"-e\", \"-c\"]\nRUN true $N",
            line: 4,
            words: "`SHELL` (line 3) before it is new or changed",
            ..CASE
        },
        Case {
            fields: [r#"{"args": {"A": "1"}}"#, r#"{"args": {"A": "2"}}"#],
            line: 3,
            words: "the build argument `A` changed",
            cause: "argument_changed",
            ..CASE
        }
        .of("argument", "ARG A\nRUN true $N"),
        Case {
            fields: [r#"{"args": {"A": "a.txt"}}"#, r#"{"args": {"A": "b.txt"}}"#],
            line: 3,
            words: "the build argument `A` changed",
            cause: "argument_changed",
            ..CASE
        }
        .of("copied-argument", "ARG A\nCOPY $A /\nRUN true $N"),
        Case {
            fields: [r#"{"args": {"TAG": "1"}}"#, r#"{"args": {"TAG": "2"}}"#],
            line: 3,
            words: "the build argument `TAG` changed",
            cause: "argument_changed",
            ..CASE
        }
        .of("global", "ARG TAG\nFROM OWN:$TAG\nRUN true $N"),
        Case { cause: "base_changed", words: "has another digest", ..CASE }.of("base", "FROM OWN:moving\nRUN true $N"),
        Case {
            name: "from",
            before: "FROM OWN:1\nRUN true $N",
            after: "FROM OWN:2\nRUN true $N",
            words: "`FROM` (line 1) before it is new or changed",
            ..CASE
        },
        Case {
            changed: &[("a.txt", "2"), ("b.txt", "2")],
            words: ": `file/a.txt` changed",
            cause: "files_changed",
            line: 3,
            ..CASE
        }
        .of("file", "RUN true $N\nCOPY a.txt /"),
        Case {
            changed: &[("a.md", "2"), ("b.txt", "2"), ("c.txt", "2"), ("d/e", "2")],
            words: ": `many/b.txt` and 2 more files changed",
            cause: "files_changed",
            line: 3,
            ..CASE
        }
        .of("many", "RUN true $N\nCOPY . /x"),
        Case {
            changed: &[("d/e", "2"), ("b.txt", "2")],
            words: ": `pattern/b.txt` changed",
            cause: "files_changed",
            line: 3,
            ..CASE
        }
        .of("pattern", "RUN true $N\nCOPY *.txt /x/"),
        Case {
            changed: &[("d/e", "2"), ("b.txt", "2")],
            words: ": `mount/d/e` changed",
            line: 2,
            cause: "files_changed",
            ..CASE
        }
        .of("mount", "RUN --mount=type=bind,source=d,target=/x true $N"),
        Case { changed: &[("a.txt", "2")], words: ": `stages/a.txt` changed", line: 2, cause: "files_changed", ..CASE }
            .of(
                "stages",
                "FROM BASE AS build\nCOPY a.txt /\nRUN true $N\nFROM BASE\nCOPY --from=build /a.txt /\nRUN id",
            ),
        Case {
            name: "itself",
            before: "RUN true $N\nCOPY . /x\nLABEL a=b",
            after: "RUN true $N\nCOPY . /x\nLABEL a=c",
            words: ": `itself/Dockerfile` changed",
            cause: "files_changed",
            line: 3,
            ..CASE
        },
        Case { changed: &[("a.txt", "")], words: ": `gone/a.txt` changed", line: 3, cause: "files_changed", ..CASE }
            .of("gone", "RUN true $N\nCOPY . /x"),
        Case {
            fields: ["{}", r#"{"no_cache_filter": ["build"]}"#],
            cause: "no_cache",
            line: 2,
            words: "the build was asked not to take it from the cache",
            ..CASE
        }
        .of("uncached", "FROM BASE AS build\nRUN true $N\nFROM BASE\nCOPY --from=build /bin/sh /x"),
        // Nothing to explain.
        Case { cause: "", ..same("cached", "RUN true $N\nCOPY a.txt /\nLABEL a=b") },
    ]
}

impl Case {
    fn of(self, name: &'static str, dockerfile: &'static str) -> Self {
        Self { name, before: dockerfile, after: dockerfile, ..self }
    }
}

/// The content of a file that no other target and no earlier run has.
fn own_text(harness: &Harness, name: &str, text: &str) -> String {
    format!("{} {name} {text}", harness.nonce)
}

struct Planted {
    harness: Harness,
}

impl Planted {
    /// A Dockerfile whose steps no other target shares.
    fn dockerfile(&self, name: &str, text: &str) -> String {
        let Harness { engine, nonce, .. } = &self.harness;
        let own = format!("{}/{nonce}/own:", engine.registry);
        let text =
            text.replace("$N", &format!("{nonce} {name}")).replace("OWN:", &own).replace("BASE", &engine.base_image);
        let from = if text.contains("FROM ") { String::new() } else { format!("FROM {}\n", engine.base_image) };
        format!("{from}{text}\n")
    }

    fn image(&self, case: &Case, sha: &str, fields: &str) -> Value {
        let mut image = self.harness.image(case.name, sha);
        let fields: Value = serde_json::from_str(fields).unwrap();
        image.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        image
    }

    /// Pushes base images of these tags, with this text in them.
    async fn push_bases(&self, text: &str, tags: &[&str]) {
        let dockerfile = format!("FROM {}\nCOPY text /own\n", self.harness.engine.base_image);
        let text = own_text(&self.harness, "base", text);
        let sha = self.harness.commit("bases", &[("Dockerfile", &dockerfile), ("text", &text)]);
        let tags: Vec<String> = tags.iter().map(|tag| self.harness.reference("own", tag)).collect();
        let report =
            self.harness.build(self.harness.native("bases", &sha, &[json!({"name": "own", "tags": tags})])).await;
        assert_eq!(report["status"], "succeeded", "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_planted_cause_is_named() {
    let planted = Planted { harness: Harness::open() };
    let harness = &planted.harness;
    let _worker = harness.worker("");
    planted.push_bases("1", &["1", "moving"]).await;
    planted.push_bases("2", &["2"]).await;
    let cases = cases();
    let mut files = Vec::new();
    for Case { name, before, .. } in &cases {
        files.push(File::new(&format!("{name}/Dockerfile"), planted.dockerfile(name, before)));
        files.push(File::new(&format!("{name}/.dockerignore"), "*.md\n"));
        for file in ["a.md", "a.txt", "b.txt", "c.txt", "d/e"] {
            files.push(File::new(&format!("{name}/{file}"), own_text(harness, name, "1")));
        }
    }
    let sha = harness.commit_with("planted", &files);
    let images: Vec<Value> = cases.iter().map(|case| planted.image(case, &sha, case.fields[0])).collect();
    let first = harness.build(harness.native("planted", &sha, &images)).await;
    assert_eq!(first["status"], "succeeded", "{first:#}");
    for case in &cases {
        assert_eq!(target(&first, case.name)["why_not_cached"]["cause"], "first_build", "{first:#}");
    }

    planted.push_bases("3", &["moving"]).await;
    let mut files = Vec::new();
    for Case { name, after, changed, .. } in &cases {
        files.push(File::new(&format!("{name}/Dockerfile"), planted.dockerfile(name, after)));
        files.extend(changed.iter().map(|(path, text)| match *text {
            "" => File::removed(&format!("{name}/{path}")),
            text => File::new(&format!("{name}/{path}"), own_text(harness, name, text)),
        }));
    }
    let sha = harness.commit_with("planted", &files);
    let images: Vec<Value> = cases.iter().map(|case| planted.image(case, &sha, case.fields[1])).collect();
    let second = harness.build(harness.native("planted", &sha, &images)).await;
    assert_eq!(second["status"], "succeeded", "{second:#}");
    let mut wrong = Vec::new();
    for Case { name, cause, line, words, .. } in &cases {
        let why = &target(&second, name)["why_not_cached"];
        let is_right = match *cause {
            "" => why.is_null(),
            cause => why["cause"] == cause && why["line"] == *line && why["message"].as_str().unwrap().ends_with(words),
        };
        if !is_right {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", harness.logs());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_told_from_what_changed() {
    let planted = Planted { harness: Harness::open() };
    let harness = &planted.harness;
    let _worker = harness.worker("");
    let build = async |sha: &str| {
        let report = harness.build(harness.native("app", sha, &[harness.image("app", sha)])).await;
        target(&report, "app")["why_not_cached"].clone()
    };
    let failing = planted.dockerfile("app", "RUN true $N\nRUN false # $N");
    let sha = harness.commit("app", &[("app/Dockerfile", &failing)]);
    assert_eq!(build(&sha).await["cause"], "first_build");
    let again = build(&sha).await;
    assert_eq!(
        (&again["cause"], &again["line"], &again["number"], &again["total"]),
        (&json!("not_finished"), &json!(3), &json!(3), &json!(3))
    );
    let mended = planted.dockerfile("app", "RUN true $N\nRUN true # mended $N");
    let sha = harness.commit("app", &[("app/Dockerfile", &mended)]);
    let changed = build(&sha).await;
    assert_eq!((&changed["cause"], &changed["line"]), (&json!("instruction_changed"), &json!(3)), "{changed:#}");
    assert_eq!(build(&sha).await, Value::Null);
}

/// Removes an image and the results of its steps from the engine.
fn evict(harness: &Harness, image: &str, steps: &str) {
    let run = |program: &mut Command| {
        let output = program.env("DOCKER_HOST", &harness.engine.docker_host).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let buildx = |arguments: &[&str]| run(harness.bare_buildx(harness.home.path()).args(arguments));
    let results = || -> Vec<String> {
        let found = buildx(&["du", "--verbose", "--filter", &format!("description~=\"{steps}\"")]);
        found.lines().filter_map(|line| line.strip_prefix("ID:")).map(|id| id.trim().to_owned()).collect()
    };
    run(Command::new("docker").args(["image", "rm", image]));
    assert_eq!(results().len(), 2);
    for id in results() {
        buildx(&["prune", "--force", "--all", "--filter", &format!("id={id}")]);
    }
    assert!(results().is_empty());
}

/// BuildKit also forgets where results are that it keeps, so builds of other tests would lose their caches.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it must be the only test that uses the engine: tests/run runs it alone"]
async fn pruned_results_were_evicted_and_a_changed_step_was_not() {
    let planted = Planted { harness: Harness::open() };
    let harness = &planted.harness;
    let _worker = harness.worker("");
    let names = ["pruned", "changed"];
    let commit = |changed: &str| {
        let run = |text: &str| format!("RUN true $N{text}\nRUN echo $N > /own");
        let files = [("pruned/Dockerfile", "pruned", ""), ("changed/Dockerfile", "changed", changed)];
        let files = files.map(|(path, name, text)| (path, planted.dockerfile(name, &run(text))));
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (*path, text.as_str())).collect();
        harness.commit("app", &files)
    };
    let build = async |sha: &str| {
        let report = harness.build(harness.native("app", sha, &names.map(|name| harness.image(name, sha)))).await;
        assert_eq!(report["status"], "succeeded", "{report:#}");
        names.map(|name| target(&report, name)["why_not_cached"].clone())
    };
    let first = commit("");
    assert!(build(&first).await.iter().all(|why| why["cause"] == "first_build"));
    assert_eq!(build(&first).await, [Value::Null, Value::Null]);

    evict(harness, &harness.reference("pruned", &first), &format!("{} pruned", harness.nonce));
    let second = commit(" 2");
    let [pruned, changed] = build(&second).await;
    let words = "nothing that it depends on changed, and the builder no longer has its result";
    assert_eq!((&pruned["cause"], &pruned["line"]), (&json!("evicted"), &json!(2)), "{pruned:#}");
    assert!(pruned["message"].as_str().unwrap().ends_with(words), "{pruned:#}");
    assert_eq!((&changed["cause"], &changed["line"]), (&json!("instruction_changed"), &json!(2)), "{changed:#}");
    assert_eq!(build(&second).await, [Value::Null, Value::Null]);
}

//! How a build that compares times handles a changed file, with times of the checkout and with times of the content.
//!
//! Uses the real `make` of this machine, with a compiler that only copies. The image shows the result.

use std::process::Command;

use serde_json::json;
use world::File;

use crate::harness::Harness;
use crate::registry;

const MTIMES: &str = "[source]\nmtimes_for = { \"acme/content-*\" = \"content\" }\n\
                      mtimes_key = \"a key that all workers of the fleet have\"";

const MAKEFILE: &str = "/obj/app: /obj/a.o /obj/b.o\n\tcat $^ > $@\n\
                        /obj/%.o: %.c\n\tcp $< $@\n\techo $< >> /srv/compiled\n";

/// Empties the list of compiled files, then runs make.
const MAKE: &str = "cd /src && mkdir -p /srv /obj && : > /srv/compiled && tools/ld.so --library-path tools tools/make && \
                    cp /obj/app /srv/app";

/// `make`, the loader and its libraries, in the directory `tools`, because the base image has none of them.
fn tools() -> Vec<File> {
    let output = Command::new("sh").args(["-c", "command -v make && ldd \"$(command -v make)\""]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "make is not installed; building sidebake needs it too: {text}");
    // Such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`. The first line is only the path of make.
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    let tool = |path: &str| {
        let name = path.rsplit('/').next().unwrap();
        let name = if name.starts_with("ld-linux") { "ld.so" } else { name };
        File::executable(&format!("app/tools/{name}"), std::fs::read(path).unwrap())
    };
    paths.map(tool).collect()
}

/// Where the second build finds the compiled objects.
#[derive(Clone, Copy, Debug)]
enum Objects {
    /// Nowhere.
    Nowhere,
    /// In a cache mount.
    Mounted,
    /// In the base image of the build.
    Below,
}

/// Builds twice. In between, changes one of two files to content of the same size. Returns the content of both in the
/// second image, and the names of the files compiled for it.
async fn second_build(harness: &Harness, repository: &str, objects: Objects) -> (String, String) {
    let first_image = harness.reference(repository, "first");
    let id = format!("{}-{repository}", harness.nonce);
    let make = |base: &str| match objects {
        Objects::Mounted => format!("{base}\nCOPY . /src\nRUN --mount=type=cache,id={id},target=/obj {MAKE}\n"),
        Objects::Nowhere | Objects::Below => format!("{base}\nCOPY . /src\nRUN {MAKE}\n"),
    };
    let base = harness.dockerfile("");
    let mut files = tools();
    let texts = [
        ("app/Dockerfile", make(&base)),
        ("app/Makefile", MAKEFILE.into()),
        ("app/a.c", "old\n".into()),
        ("app/b.c", "same\n".into()),
    ];
    files.extend(texts.map(|(path, text)| File::new(path, text)));
    let sha = harness.commit_with(repository, &files);
    let image = json!({"name": "app", "context": "./app", "tags": [first_image]});
    let report = harness.build(harness.native(repository, &sha, &[image])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(registry::file(&first_image, "srv/app").await.as_deref(), Some("old\nsame\n"));

    let base = if matches!(objects, Objects::Below) { format!("FROM {first_image}") } else { base };
    let sha = harness.commit(repository, &[("app/a.c", "new\n"), ("app/Dockerfile", &make(&base))]);
    let report = harness.build(harness.native(repository, &sha, &[harness.image("app", &sha)])).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let made = registry::file(&harness.reference("app", &sha), "srv/app").await.unwrap();
    (made, registry::file(&harness.reference("app", &sha), "srv/compiled").await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn make_compiles_changed_files_with_times_of_the_checkout_wherever_its_objects_are() {
    let harness = Harness::open();
    let _worker = harness.worker(MTIMES);
    for objects in [Objects::Nowhere, Objects::Mounted, Objects::Below] {
        let repository = format!("checkout-{objects:?}").to_lowercase();
        let (made, compiled) = second_build(&harness, &repository, objects).await;
        assert_eq!(made, "new\nsame\n", "{objects:?}");
        // The checkout writes every file after any earlier compilation.
        assert_eq!(compiled, "a.c\nb.c\n", "{objects:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_of_content_are_for_builds_that_compile_everything() {
    let harness = Harness::open();
    let _worker = harness.worker(MTIMES);
    let (made, compiled) = second_build(&harness, "content-nowhere", Objects::Nowhere).await;
    assert_eq!((made.as_str(), compiled.as_str()), ("new\nsame\n", "a.c\nb.c\n"));
    // The control, and the reason why times of content are opt-in: objects of an earlier build look newer than any
    // file. When this fails, update what the documentation says about make.
    for objects in [Objects::Mounted, Objects::Below] {
        let repository = format!("content-{objects:?}").to_lowercase();
        let (made, compiled) = second_build(&harness, &repository, objects).await;
        assert_eq!((made.as_str(), compiled.as_str()), ("old\nsame\n", ""), "{objects:?}");
    }
}

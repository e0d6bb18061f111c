//! Excerpts of short and long outputs, and the cause in the output of many tools.

use proptest::prelude::*;

use super::earlier::{MAX_BLOCKS, MAX_EARLIER};
use super::*;

fn of(lines: impl IntoIterator<Item = impl AsRef<str>>) -> Excerpt {
    let mut excerpt = Excerpt::default();
    lines.into_iter().for_each(|line| excerpt.push(&line.as_ref().into()));
    excerpt
}

#[test]
fn a_short_output_is_shown_whole() {
    assert_eq!(of(["one", "", "three"]).text().as_deref(), Some("one\n\nthree"));
    assert_eq!(of(["", ""]).text(), None);
    assert_eq!(Excerpt::default().text(), None);
}

#[test]
fn a_long_output_keeps_its_end_and_earlier_errors_with_the_gaps_marked() {
    let noise = |n: usize| (0..n).map(|n| format!("copying file {n}"));
    let error = ["src/main.c:5:10: fatal error: pq.h: No such file or directory", "    5 | #include <pq.h>"];
    let output =
        noise(300).chain(error.map(str::to_owned)).chain(noise(500)).chain(["make: *** [all] Error 1".to_owned()]);
    let excerpt = of(output);
    let text = excerpt.text().expect("output");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["… (300 lines left out)", error[0], error[1]]);
    assert!(lines[4].ends_with(" lines left out)") && lines.len() == bounds::LOG_TAIL_LINES, "{text}");
    assert_eq!(lines.last(), Some(&"make: *** [all] Error 1"));
    assert_eq!(excerpt.cause(), Some(error[0]));
}

#[test]
fn the_cause_is_the_line_that_names_it() {
    for (cause, output) in [
        (
            "npm ERR! missing script: build",
            "npm ERR! missing script: build\nnpm ERR! A complete log of this run can be found in:\nnpm ERR!     /root/.npm/_logs/x.log",
        ),
        (
            "E: Unable to locate package libpq-devel",
            "Reading package lists...\nE: Unable to locate package libpq-devel",
        ),
        (
            "ModuleNotFoundError: No module named 'flask'",
            "Traceback (most recent call last):\n  File \"/app/x.py\", line 1, in <module>\n    import flask\nModuleNotFoundError: No module named 'flask'",
        ),
        (
            "error[E0432]: unresolved import `serde`",
            "   Compiling app v0.1.0\nerror[E0432]: unresolved import `serde`\n --> src/main.rs:1:5\nerror: aborting due to 1 previous error\nerror: could not compile `app`",
        ),
        ("./main.go:7:2: undefined: fmtt", "# example.com/app\n./main.go:7:2: undefined: fmtt"),
        ("/bin/sh: 1: yarn: not found", "/bin/sh: 1: yarn: not found"),
        ("please install libpq-dev", "checking for pg_config... no\nplease install libpq-dev"),
        (
            "[ERROR] /src/App.java:[5,9] cannot find symbol",
            "[INFO] Compiling\n[ERROR] /src/App.java:[5,9] cannot find symbol\n[ERROR] Failed to execute goal x: Compilation failure\n[ERROR] For more information about the errors, read",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement nosuch==9 (from versions: none)",
            "Collecting nosuch==9\nERROR: Could not find a version that satisfies the requirement nosuch==9 (from versions: none)\nERROR: No matching distribution found for nosuch==9",
        ),
        ("the license has run out", "starting\nthe license has run out\nCommand failed with exit code 3.\n"),
        (
            "ArgumentError: Missing `secret_key_base` for 'production' environment",
            "rake aborted!\nArgumentError: Missing `secret_key_base` for 'production' environment\n/app/config/environment.rb:5:in `<main>'",
        ),
    ] {
        assert_eq!(of(output.split('\n')).cause(), Some(cause), "{output}");
    }
    assert_eq!(Excerpt::default().cause(), None);
}

/// The outputs of real tools, each with the lines that name its cause; see `tests/fixtures/README.md`.
#[test]
fn the_cause_in_the_output_of_every_tool_is_named_and_shown() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/outputs");
    let (mut wrong, mut n_outputs) = (Vec::new(), 0);
    for file in std::fs::read_dir(directory).expect("the fixtures are there") {
        let path = file.expect("the fixtures can be listed").path();
        let file = std::fs::read_to_string(&path).expect("a text");
        let (causes, output): (Vec<&str>, Vec<&str>) = file.lines().partition(|line| line.starts_with("# cause: "));
        let causes: Vec<&str> = causes.iter().map(|line| line.trim_start_matches("# cause: ")).collect();
        let excerpt = of(output);
        n_outputs += 1;
        let is_named = excerpt.cause().is_some_and(|cause| causes.contains(&cause));
        let text = excerpt.text().unwrap_or_default();
        if !is_named || !causes.iter().any(|cause| text.contains(cause)) {
            wrong.push(format!("{}: {:?} instead of {causes:?}", path.display(), excerpt.cause()));
        }
    }
    assert!(n_outputs >= 40, "only {n_outputs} outputs");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_heading_is_explained_by_the_line_after_it() {
    for (cause, output) in [
        (
            "called `Option::unwrap()` on a `None` value",
            "thread 'main' panicked at build.rs:5:10:\ncalled `Option::unwrap()` on a `None` value\nnote: run with `RUST_BACKTRACE=1`",
        ),
        ("the license has run out", "checking\nError:\n\n   the license has run out\n\nbye"),
        ("error: linking failed:", "error: linking failed:\nsee the log"),
    ] {
        assert_eq!(of(output.split('\n')).cause(), Some(cause), "{output}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_output_fits(lines in prop::collection::vec("(error: )?[a-zé]{0,300}", 0..120)) {
        let excerpt = of(&lines);
        let text = excerpt.text().unwrap_or_default();
        prop_assert!(text.len() <= bounds::LOG_TAIL && text.lines().count() <= bounds::LOG_TAIL_LINES);
        let most_lines = bounds::LOG_TAIL_LINES + MAX_BLOCKS * (2 + MAX_FOLLOWING);
            prop_assert!(excerpt.size() <= bounds::LOG_TAIL + MAX_EARLIER + most_lines * LINE_COST);
    }

    #[test]
    fn the_counted_bytes_are_those_that_are_kept(lines in prop::collection::vec("(fatal: missing )?[a-z]{0,300}", 0..120), n in 0_usize..5) {
        let mut excerpt = of(&lines);
        (0..n).for_each(|_| excerpt.shrink());
        let earlier = excerpt.earlier.blocks.iter().flat_map(|block| &block.lines).map(String::as_str);
        let n_bytes: usize = excerpt.last.iter().chain(earlier).map(str::len).sum();
        prop_assert_eq!(excerpt.last.n_bytes() + excerpt.earlier.n_bytes, n_bytes);
    }
}

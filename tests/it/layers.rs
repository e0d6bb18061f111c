//! Checks the layers: values go down the pipeline, and no integration knows another.
//!
//! Reads the tokens of every file. Fails on a path or import of `crate::` that `ARCHITECTURE.md` does not allow, in any
//! form. Ignores code that exists only in tests.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use proc_macro2::token_stream::IntoIter;
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

const DOMAIN_TYPES: &[&str] = &[
    "attestation",
    "bounds",
    "cache",
    "dockerfile",
    "event",
    "field_error",
    "job",
    "json",
    "log_record",
    "metric",
    "name",
    "reason",
    "report",
    "secret",
    "settings",
    "shard",
    "platform",
    "version",
    "warmth",
    "text",
];
const INFRASTRUCTURE: &[&str] = &[
    "beneath",
    "body",
    "clock",
    "configuration",
    "connections",
    "environment",
    "hex",
    "network",
    "process",
    "redis",
    "sandbox",
    "secret_file",
    "state",
    "stop",
    "systemd",
];
const INTEGRATIONS: &[&str] = &[
    "sidekiq",
    "rails",
    "github",
    "source",
    "bake",
    "builder",
    "log_archive",
    "log_stream",
    "last_builds",
    "own_pod",
    "statsd",
    "traces",
];
const PIPELINE: &[&str] = &["cli", "health", "perform", "processor", "worker"];

/// What the builder may use of the bake: the type that it fills in, with its parts, and the child that dials a pod.
const OF_BAKE_FOR_BUILDER: &[&str] = &["bake::Location", "bake::Configuration", "bake::Run", "bake::dial_child"];

/// Which paths each module may use, besides its own and the domain types.
fn may_use(module: &str, path: &str) -> bool {
    let other = path.split("::").next().unwrap_or_default();
    let is = |kind: &[&str]| kind.contains(&module);
    let other_is = |kind: &[&str]| kind.contains(&other);
    if module == other || other_is(DOMAIN_TYPES) && !is(&["secret"]) {
        return true;
    }
    match module {
        // Integrations send events to the journal. The journal knows no integration.
        _ if is(DOMAIN_TYPES) => false,
        "sandbox" => ["beneath", "process"].contains(&other),
        "state" => other == "beneath",
        "configuration" | "network" => other == "environment",
        _ if is(INFRASTRUCTURE) => false,
        "journal" => false,
        "builder" => other_is(INFRASTRUCTURE) || OF_BAKE_FOR_BUILDER.contains(&path),
        _ if is(INTEGRATIONS) => other_is(INFRASTRUCTURE) || other == "journal",
        // Only the processor sees both queue and build.
        "perform" => {
            (other_is(INTEGRATIONS) && !["sidekiq", "rails"].contains(&other))
                || other_is(INFRASTRUCTURE)
                || other == "journal"
        }
        "processor" => other_is(INTEGRATIONS) || other_is(INFRASTRUCTURE) || ["perform", "journal"].contains(&other),
        "worker" => {
            other_is(INTEGRATIONS) || other_is(INFRASTRUCTURE) || ["health", "perform", "processor"].contains(&other)
        }
        "health" => other_is(INFRASTRUCTURE) || ["sidekiq", "builder"].contains(&other),
        "cli" => true,
        _ => false,
    }
}

#[test]
fn no_module_uses_a_forbidden_module() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut forbidden = BTreeSet::new();
    let mut n_edges = 0;
    for file in rust_files(&source) {
        let module = module_of(&source, &file);
        for path in paths_used(&std::fs::read_to_string(&file).unwrap()) {
            n_edges += 1;
            if !may_use(&module, &path) {
                forbidden.insert(format!("{module} → {path} in {}", file.display()));
            }
        }
    }
    assert!(n_edges > 100, "only {n_edges} edges were found: the parser is broken");
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

#[test]
fn an_import_is_found_in_any_form() {
    let text = r#"
        use crate::{job, report::{Report, Status}, bake::{self, child::Child as Process}};
        pub use crate::secret::*;
        #[cfg(test)]
        mod tests { use crate::only_in_tests; }
        fn f(x: &crate::stop::Stop) -> crate::bake::Outcome { tracing::info!(x = crate::clock::now()); g::<crate::text::Clip>() }
        #[cfg(test)]
        use crate::also_only_in_tests;
        pub(crate) mod inner { use super::super::not_a_module; fn h() { crate::source::fetch::<crate::name::X>(); } }
    "#;
    let expected = [
        "bake::Outcome",
        "bake::child",
        "bake::self",
        "clock::now",
        "job",
        "name::X",
        "report::Report",
        "report::Status",
        "secret::*",
        "source::fetch",
        "stop::Stop",
        "text::Clip",
    ];
    assert_eq!(paths_used(text).into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn every_file_says_what_it_owns() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in rust_files(&source) {
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("//! "), "{}", file.display());
    }
}

/// The Rust files in a folder and below.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The first component below `src`, without `.rs`.
fn module_of(source: &Path, file: &Path) -> String {
    let first = file.strip_prefix(source).unwrap().components().next().unwrap();
    let module = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
    let known = [DOMAIN_TYPES, INFRASTRUCTURE, INTEGRATIONS, PIPELINE, &["journal", "lib", "main"]].concat();
    assert!(known.contains(&module.as_str()), "{module} has no kind yet");
    module
}

/// The first two names of each path after `crate::`, outside tests.
fn paths_used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    look_through(text.parse::<TokenStream>().unwrap(), &mut used);
    used
}

/// Reads Rust's tokens, so that it finds every form of an import, and every argument of a macro.
fn look_through(tokens: TokenStream, used: &mut BTreeSet<String>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(mark) if mark.as_char() == '#' => {
                let attribute = tokens.peek().map(ToString::to_string).unwrap_or_default();
                if attribute.replace(' ', "") == "[cfg(test)]" {
                    skip_item(&mut tokens);
                }
            }
            // Not that of `pub(crate)`.
            TokenTree::Ident(ident) if ident == "crate" && skip_separator(&mut tokens) => {
                follow(&mut tokens, &[], used);
            }
            TokenTree::Group(group) => look_through(group.stream(), used),
            _ => {}
        }
    }
}

type Tokens = Peekable<IntoIter>;

/// Follows a path, and each path of an import group, as far as its second name.
fn follow(tokens: &mut Tokens, names: &[String], used: &mut BTreeSet<String>) {
    if names.len() == 2 {
        used.insert(names.join("::"));
        return;
    }
    match tokens.next() {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
            let mut branches = group.stream().into_iter().peekable();
            while branches.peek().is_some() {
                follow(&mut branches, names, used);
                branches.find(|token| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ','));
            }
        }
        Some(name) => {
            let names = [names, &[name.to_string()]].concat();
            if skip_separator(tokens) {
                follow(tokens, &names, used);
            } else {
                used.insert(names.join("::"));
            }
        }
        None => panic!("a path ends with ::"),
    }
}

/// Skips `::`, and returns whether it was there.
fn skip_separator(tokens: &mut Tokens) -> bool {
    let is_mark = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ':' && mark.spacing() == Spacing::Joint);
    let is_there = tokens.peek().is_some_and(is_mark);
    if is_there {
        tokens.nth(1);
    }
    is_there
}

/// Skips the item of an attribute, up to its block or semicolon.
fn skip_item(tokens: &mut impl Iterator<Item = TokenTree>) {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() == ';',
        _ => false,
    };
    tokens.find(is_end);
}

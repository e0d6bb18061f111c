//! Checks the layers: values go down the pipeline, and no integration knows another.
//!
//! Reads the tokens of every file. Fails on a path or import of `crate::` that `ARCHITECTURE.md` does not allow, in any
//! form. Ignores code that exists only in tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

const DOMAIN_TYPES: &[&str] = &[
    "attestation",
    "bounds",
    "event",
    "field_error",
    "job",
    "json",
    "name",
    "reason",
    "report",
    "secret",
    "settings",
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
    "process",
    "redis",
    "sandbox",
    "secret_file",
    "state",
    "stop",
    "systemd",
];
const INTEGRATIONS: &[&str] = &["sidekiq", "rails", "github", "source", "bake", "builder"];
const PIPELINE: &[&str] = &["cli", "health", "perform", "processor", "worker"];

/// Which modules each module may use, besides itself and the domain types.
fn may_use(module: &str, other: &str) -> bool {
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
        "configuration" => other == "environment",
        _ if is(INFRASTRUCTURE) => false,
        "journal" => false,
        // The bake declares the type that the builder passes to it.
        "builder" => other_is(INFRASTRUCTURE) || other == "bake",
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
        "health" => other_is(INFRASTRUCTURE),
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
        for other in modules_used(&std::fs::read_to_string(&file).unwrap()) {
            n_edges += 1;
            if !may_use(&module, &other) {
                forbidden.insert(format!("{module} → {other} in {}", file.display()));
            }
        }
    }
    assert!(n_edges > 100, "only {n_edges} edges were found: the parser is broken");
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

#[test]
fn an_import_is_found_in_any_form() {
    let text = r#"
        use crate::{job, report::{Report, Status}};
        pub use crate::secret::*;
        #[cfg(test)]
        mod tests { use crate::only_in_tests; }
        fn f() -> crate::bake::Outcome { tracing::info!(x = crate::clock::now()); g::<crate::text::Clip>() }
        #[cfg(test)]
        use crate::also_only_in_tests;
        pub(crate) mod inner { use super::super::not_a_module; fn h() { crate::source::fetch(); } }
    "#;
    let expected = ["bake", "clock", "job", "report", "secret", "source", "text"];
    assert_eq!(modules_used(text).into_iter().collect::<Vec<_>>(), expected);
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

/// The modules after each `crate::`, outside tests.
fn modules_used(text: &str) -> BTreeSet<String> {
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
            TokenTree::Ident(ident) if ident == "crate" => {
                let path: Vec<TokenTree> = (0..3).map_while(|_| tokens.next()).collect();
                match &path[..] {
                    [_, _, TokenTree::Ident(module)] => drop(used.insert(module.to_string())),
                    [_, _, TokenTree::Group(group)] => used.extend(firsts(group.stream())),
                    [_, _, other] => panic!("crate::{other} has no rule here"),
                    // `pub(crate)`, or the end of a group.
                    rest => look_through(rest.iter().cloned().collect(), used),
                }
            }
            TokenTree::Group(group) => look_through(group.stream(), used),
            _ => {}
        }
    }
}

/// The first name of each path in an import group.
fn firsts(tokens: TokenStream) -> Vec<String> {
    let mut is_first = true;
    let mut firsts = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if is_first => firsts.push(ident.to_string()),
            TokenTree::Punct(mark) if mark.as_char() == ',' => {
                is_first = true;
                continue;
            }
            _ => {}
        }
        is_first = false;
    }
    firsts
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

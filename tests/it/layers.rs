//! The rule of the house: values go down the line, and no station knows another.
//!
//! Reads the `crate::` paths of every file and fails on an edge that `ARCHITECTURE.md` does not allow.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const WORDS: &[&str] = &["bounds", "event", "job", "json", "reason", "report", "secret", "settings", "text"];
const TOOLS: &[&str] =
    &["beneath", "body", "clock", "connections", "process", "redis", "sandbox", "state", "stop", "systemd"];
const STATIONS: &[&str] = &["sidekiq", "rails", "github", "source", "bake", "builder"];
const LINE: &[&str] = &["cli", "health", "perform", "processor", "worker"];

/// What each room may use, besides itself and the words.
fn may_use(room: &str, other: &str) -> bool {
    let (room_is, other_is) = (|rooms: &[&str]| rooms.contains(&room), |rooms: &[&str]| rooms.contains(&other));
    if room == other || other_is(WORDS) && !room_is(&["secret"]) {
        return true;
    }
    match room {
        // A tool is of no particular trade. The journal is told by stations and knows none.
        _ if room_is(WORDS) => false,
        "sandbox" => ["beneath", "process"].contains(&other),
        "state" => other == "beneath",
        _ if room_is(TOOLS) => false,
        "journal" => false,
        // What the builder station hands to the bake is the bake's own word.
        "builder" => other_is(TOOLS) || other == "bake",
        _ if room_is(STATIONS) => other_is(TOOLS) || other == "journal",
        // Only the processor sees both queue and build.
        "perform" => {
            (other_is(STATIONS) && !["sidekiq", "rails"].contains(&other)) || other_is(TOOLS) || other == "journal"
        }
        "processor" => other_is(STATIONS) || other_is(TOOLS) || ["perform", "journal"].contains(&other),
        "worker" => other_is(STATIONS) || other_is(TOOLS) || ["health", "perform", "processor"].contains(&other),
        "health" => other_is(TOOLS),
        "cli" => true,
        _ => false,
    }
}

#[test]
fn no_room_uses_what_it_may_not() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut forbidden = BTreeSet::new();
    let mut n_edges = 0;
    for file in rust_files(&source) {
        let room = room_of(&source, &file);
        for other in rooms_used(&std::fs::read_to_string(&file).unwrap()) {
            n_edges += 1;
            if !may_use(&room, &other) {
                forbidden.insert(format!("{room} → {other} in {}", file.display()));
            }
        }
    }
    assert!(n_edges > 100, "only {n_edges} edges were found: the reading is broken");
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

#[test]
fn every_file_says_what_it_owns() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in rust_files(&source) {
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("//! "), "{}", file.display());
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The first component below `src`, without `.rs`.
fn room_of(source: &Path, file: &Path) -> String {
    let first = file.strip_prefix(source).unwrap().components().next().unwrap();
    let room = first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
    assert!(
        [WORDS, TOOLS, STATIONS, LINE, &["journal", "lib", "main"]].concat().contains(&room.as_str()),
        "{room} has no place in the house yet"
    );
    room
}

/// The rooms after each `crate::`, outside of tests and comments. Groups are on one line in this house.
fn rooms_used(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>())
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|room: &String| !room.is_empty())
        .collect()
}

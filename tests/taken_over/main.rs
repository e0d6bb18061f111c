//! Checks what taken-over children leave behind, and which wall protects the next build and the worker.
//!
//! A hostile pack may take over a source child, and a hostile builder may take over docker-buildx. Here a script replaces
//! the child, in the product's sandbox, and leaves harmful files. The test tries each attack four ways: on a careless
//! worker without the kernel's walls, to show the harm; on a careless worker behind the kernel's walls alone; on the
//! product's worker alone; and on the whole product. It compares the results with the second table of
//! `tests/e2e/hostile/walls.md`.
//!
//! This program is the worker and each of its children, because the product starts its own binary again.

#![allow(clippy::unwrap_used, reason = "a failed expectation must end the test")]
#![allow(clippy::disallowed_methods, reason = "tests run programs; the product has one module for that")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its interface is its table and its children's output")]
#![allow(missing_docs, unreachable_pub, reason = "a test binary has no public interface")]

mod attacks;
mod careless;
mod case;
mod product;
mod roles;
mod scripts;

use std::collections::BTreeSet;
use std::process::ExitCode;

use sidebake::{sandbox, source};

use attacks::{Attack, attacks};
use case::{Case, Range, Wall};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next().and_then(|first| first.into_string().ok()).unwrap_or_default();
    match first.as_str() {
        sandbox::LAUNCH => return roles::launch(arguments),
        source::VERB => return roles::source_child(arguments),
        "attack" => return roles::alone(arguments),
        "bake" | "dial-stdio" | "version" => return roles::buildx(&first),
        "remove" => return roles::remove_carelessly(arguments),
        "read" => return roles::read_carelessly(arguments),
        // An option of libtest, with which tools list all tests.
        "--list" => return ExitCode::SUCCESS,
        _ => {}
    }
    // Any other argument is a part of an attack's name, or an option of libtest.
    let part = if first.starts_with('-') { String::new() } else { first };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(try_all(&part))
}

async fn try_all(part: &str) -> ExitCode {
    let range = Range::new();
    let chosen: Vec<Attack> = attacks().into_iter().filter(|attack| attack.name.contains(part)).collect();
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for attack in &chosen {
        let (mut stops, mut is_harmless) = (Vec::new(), Vec::new());
        for wall in [Wall::None, Wall::Kernel, Wall::Worker, Wall::Both] {
            let has_harm = Case::set(&range, attack, wall).has_harm().await;
            is_harmless.push(!has_harm);
            stops.push(if has_harm { "" } else { "stops" });
        }
        if is_harmless[0] {
            wrong.push(format!("{}: the attack does no harm to a careless worker", attack.name));
        }
        if is_harmless[3] == attack.is_open {
            wrong.push(format!("{}: in the product: {}", attack.name, if is_harmless[3] { "no harm" } else { "harm" }));
        }
        let product = if attack.is_open { "" } else { "stops" };
        let (child, harm) = (attack.child.name(), attack.harm);
        rows.push(format!(
            "| `{}` | {child} | {} | {harm} | {} | {} | {product} |",
            attack.name, attack.aim, stops[1], stops[2]
        ));
    }
    let known = known(part);
    let seen: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
    if known != seen {
        wrong.push(format!("the table of tests/e2e/hostile/walls.md would be:\n{}", rows.join("\n")));
    }
    wrong.iter().for_each(|wrong| println!("{wrong}"));
    let (word, n_failed) = if wrong.is_empty() { ("ok", 0) } else { ("FAILED", wrong.len()) };
    println!("\ntest result: {word}. {} passed; {n_failed} failed; 0 ignored; 0 measured; 0 filtered out", rows.len());
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The rows of the table for attacks with `part` in their name.
fn known(part: &str) -> BTreeSet<&'static str> {
    let table = include_str!("../e2e/hostile/walls.md");
    let second = table.split("# What a child leaves behind").nth(1).unwrap_or_default();
    let name = |row: &str| row.split('`').nth(1).unwrap_or_default().to_owned();
    second.lines().filter(|line| line.starts_with("| `") && name(line).contains(part)).collect()
}

//! Definitions and repositories of an enemy, on the real buildx and BuildKit: first as a careless worker would run them,
//! so that the harm is seen; then behind each wall alone, and in the whole product. Judged by canaries, and not by what
//! anybody says.
//!
//! `walls.md` is the table of which wall stops what. It is compared with what happens, in both directions: a wall that
//! holds less than is written there is a hole, and one that holds more is not known well enough.

mod fixtures;
mod runs;
mod trap;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sidebake::configuration;
use sidebake::state::StateDirectory;
use tokio::sync::Semaphore;

use crate::harness::{CALLBACKS, Harness};
use fixtures::Fixture;
use runs::{Range, Wall};
use trap::{Harm, Trap};

/// At a time; the engine has more to do than we.
const N_AT_ONCE: usize = 4;

/// Of a definition that is no bomb, with seven others at the same time.
const MAX_PRINT_MS: u64 = 15_000;

/// What was seen of a fixture, and what was said.
type Seen = BTreeMap<Wall, (BTreeSet<Harm>, String)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn every_attack_does_harm_and_meets_the_walls_that_the_table_names() {
    let harness = Arc::new(Harness::open());
    // A processor's second is enough for any other definition.
    let config = harness.config(&format!("bake.print_timeout = \"1s\"\n{}", accounts(&harness)));
    let settings = configuration::load(&[config], None).unwrap();
    let state = StateDirectory::open(&harness.home.path().join("alone"), "alone").unwrap();
    let range = Arc::new(Range::new(harness.engine, &settings, state, home(&harness)));
    let turns = Arc::new(Semaphore::new(N_AT_ONCE));

    let mut running = Vec::new();
    for fixture in fixtures::all() {
        let (harness, range, turns) = (harness.clone(), range.clone(), turns.clone());
        running.push(tokio::spawn(async move {
            let mut seen = Seen::new();
            let walls: &[Wall] = match fixture.harm {
                Ok(_) => &[Wall::None, Wall::Policy, Wall::Environment, Wall::Kernel],
                // Walls before nothing prove nothing.
                Err(_) => &[Wall::None],
            };
            for wall in walls {
                let _turn = turns.acquire().await.unwrap();
                let trap = set(&harness, &fixture, &format!("{wall:?}"));
                seen.insert(*wall, range.run(&fixture, &trap, *wall).await);
            }
            (fixture, seen)
        }));
    }
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for one in running {
        let (fixture, seen) = one.await.unwrap();
        let (harms, said) = &seen[&Wall::None];
        match fixture.harm {
            Ok(harm) if !harms.contains(&harm) => {
                wrong.push(format!("{}: the trap does not work here: {harms:?}: {said}", fixture.name));
            }
            Err(why) if !harms.is_empty() => wrong.push(format!("{}: {harms:?}, though {why}", fixture.name)),
            _ => {}
        }
        let n_walls = seen.values().filter(|(harms, _)| harms.is_empty()).count();
        if fixture.harm.is_ok() && n_walls < if fixture.is_dangerous { 2 } else { 1 } {
            wrong.push(format!("{}: {n_walls} walls: {seen:#?}", fixture.name));
        }
        rows.push((row(&fixture, &seen), seen));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n-----\n"));
    compare(&rows);
}

/// Compares what was seen with the table; what is seen is shown where they differ.
fn compare(rows: &[(String, Seen)]) {
    // The second table is another test's.
    let table = include_str!("hostile/walls.md").split("# What a child leaves behind").next().unwrap_or_default();
    let known: BTreeSet<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    let seen: BTreeSet<&str> = rows.iter().map(|(row, _)| row.as_str()).collect();
    let all: Vec<&str> = rows.iter().map(|(row, _)| row.as_str()).collect();
    let new: Vec<_> = rows.iter().filter(|(row, _)| !known.contains(row.as_str())).collect();
    assert!(known == seen, "{new:#?}\n\nThe table would be:\n{}", all.join("\n"));
}

fn row(fixture: &Fixture, seen: &Seen) -> String {
    let stops = |wall| match seen.get(&wall) {
        Some((harms, _)) if harms.is_empty() => "stops",
        Some(_) => "",
        None => "–",
    };
    let harm = match fixture.harm {
        Ok(harm) => harm.name().to_owned(),
        Err(why) => format!("none: {why}"),
    };
    let [policy, environment, kernel] = [Wall::Policy, Wall::Environment, Wall::Kernel].map(stops);
    let when = if fixture.is_printed_only { "print" } else { "build" };
    format!("| `{}` | {} | {when} | {harm} | {policy} | {environment} | {kernel} |", fixture.name, fixture.aim)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_does_any_harm_to_a_worker() {
    let harness = Harness::open();
    let fixtures = fixtures::all();
    let ordinary = fixtures::ordinary();
    let accounts = accounts(&harness);
    let mut jobs = Vec::new();
    let mut variables = vec![("HOME".to_owned(), home(&harness))];
    for fixture in fixtures.iter().chain([&ordinary]) {
        let trap = set(&harness, fixture, "product");
        if let Some(neighbour) = fixture.neighbour(&trap) {
            let output = harness.bare_bake(Path::new("/"), &neighbour);
            assert!(output.status.success(), "{}: the neighbour: {output:?}", fixture.name);
        }
        let sha = harness.commit_with(&fixture.name.replace('_', "-"), &fixture.commit(&trap));
        let mut native = fixture.native(&sha, &fixture.name.replace('_', "-"));
        native["callback"] = json!({"class": "BuildFinishedJob", "queue": CALLBACKS, "on": ["retrying", "finished"]});
        variables.extend(
            trap.variables().into_iter().filter(|(name, _)| name != "SSH_AUTH_SOCK" || fixture.name == "ssh_agent"),
        );
        jobs.push((fixture, trap, native));
    }
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let _worker = harness.worker_with(&format!("bake.print_timeout = \"5s\"\n{accounts}"), &variables);
    let mut pushed = Vec::new();
    for (fixture, trap, native) in jobs {
        pushed.push((fixture, trap, harness.redis.push("default", "BuildJob", json!([native])).await));
    }

    harness
        .until("every attempt is over", async || {
            let reports = harness.reports().await;
            pushed.iter().all(|(_, _, jid)| reports.iter().any(|report| report["jid"] == *jid))
        })
        .await;

    let (reports, logs) = (harness.reports().await, harness.logs());
    let mut wrong = Vec::new();
    for (fixture, trap, jid) in &pushed {
        let report = reports.iter().find(|report| report["jid"] == *jid).unwrap();
        let said = format!("{report}\n{logs}");
        let mut harms = trap.harms(said.as_bytes(), &[&home(&harness)]).await;
        if report["timings"]["print_ms"].as_u64().unwrap_or(0) > MAX_PRINT_MS {
            harms.insert(Harm::Exhausted);
        }
        let is_as_expected = match fixture.name == ordinary.name {
            // So that it is known that steps are heard here.
            true => harms == BTreeSet::from([Harm::Told]) && report["status"] == "succeeded",
            false => harms.is_empty(),
        };
        if !is_as_expected {
            wrong.push(format!("{}: {harms:?}: {report}", fixture.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn set(harness: &Harness, fixture: &Fixture, run: &str) -> Trap {
    let nonce = format!("{}-{}-{run}", harness.nonce, fixture.name.replace('_', "-")).to_lowercase();
    Trap::set(harness.home.path().join("traps").join(&nonce), nonce, harness.engine)
}

/// HOME of whoever runs docker-buildx, and a secret of the account's: nobody should hear of either.
fn home(harness: &Harness) -> String {
    format!("/home/HOME-{}", harness.nonce)
}

/// The operator's part of the configuration.
fn accounts(harness: &Harness) -> String {
    let secrets = harness.home.path().join("secrets/acme");
    std::fs::create_dir_all(&secrets).unwrap();
    // It is granted, and goes nowhere all the same.
    std::fs::write(secrets.join("GIT_AUTH_TOKEN"), home(harness)).unwrap();
    std::fs::write(harness.home.path().join("acme.json"), trap::credentials(&home(harness))).unwrap();
    format!(
        "[accounts]\ntags = [\"{0}\"]\nsecrets = \"{1}/secrets/{{account}}/{{name}}\"\n\
         registries = \"{1}/{{account}}.json\"\n\
         [accounts.policy_for.pinned]\nfrontend = \"{2}/frontend:1\"\n\
         [accounts.policy_for.entitled]\nremote_contexts = [\"http://*\"]\n\
         entitlements = [\"network.host\", \"security.insecure\"]\n",
        harness.reference("{repository}", "{target}"),
        harness.home.path().display(),
        harness.engine.registry,
    )
}

//! Hostile definitions and repositories on the real buildx and BuildKit. A careless worker runs each one first, to show
//! the harm. Then each wall alone runs it, then the whole product. Canaries detect harm, whatever a build says.
//!
//! `walls.md` is the table of which wall stops which attack. The test compares it with the results in both directions.
//! A wall that stops less than the table says has a hole. A wall that stops more needs a new row.

mod fixtures;
mod runs;
mod trap;
mod versions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sidebake::configuration;
use sidebake::state::StateDirectory;
use tokio::sync::Semaphore;
use world::CALLBACKS;

use crate::harness::Harness;
use fixtures::Fixture;
use runs::{Range, Wall};
use trap::{Harm, Trap};
use versions::Versions;

/// The number of fixtures at a time, because the engine also has other work.
const N_AT_ONCE: usize = 4;

/// The time for a definition that is not a bomb, while seven others run.
const MAX_PRINT_MS: u64 = 15_000;

/// For each wall, the harm of a fixture and the output.
type Seen = BTreeMap<Wall, (BTreeSet<Harm>, String)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn every_attack_does_harm_and_is_stopped_by_the_walls_in_the_table() {
    let harness = Arc::new(Harness::open());
    // One second of processor time is enough for any other definition.
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
                // Without harm in a careless worker, the walls prove nothing.
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

/// The rows of the table, each with the name of its fixture and its versions of buildx.
fn table() -> Vec<(&'static str, &'static str, Versions)> {
    // Another test uses the second table.
    let table = include_str!("hostile/walls.md").split("# What a child leaves behind").next().unwrap_or_default();
    let row = |line: &'static str| {
        let mut fields = line.split(" | ");
        let (name, versions) = (fields.next().unwrap(), fields.nth(1).unwrap());
        (line, name, Versions::parse(versions).unwrap_or_else(|| panic!("no versions of buildx: {line}")))
    };
    table.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

#[test]
fn every_version_of_buildx_has_one_row_for_each_fixture() {
    let table = table();
    for (line, name, versions) in &table {
        let of_fixture = table.iter().filter(|(_, other, _)| other == name);
        let mut others: Vec<Versions> = of_fixture.map(|(_, _, versions)| *versions).collect();
        others.retain(|other| other != versions);
        assert_eq!(others, Vec::from_iter(versions.others()), "{line}");
    }
}

/// Compares the results with the rows of the table for this buildx, and prints the results that differ.
fn compare(rows: &[(String, Seen)]) {
    let known = table().into_iter().filter(|(_, _, versions)| versions.have(world::buildx().version));
    let known: BTreeSet<&str> = known.map(|(line, ..)| line).collect();
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
    format!(
        "| `{}` | {} | {} | {when} | {harm} | {policy} | {environment} | {kernel} |",
        fixture.name, fixture.aim, fixture.versions
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attack_harms_a_worker() {
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
    let _worker = harness.worker_with_variables(
        &harness.config(&format!("bake.print_timeout = \"5s\"\n{accounts}")),
        &[],
        &variables,
    );
    let mut pushed = Vec::new();
    for (fixture, trap, native) in jobs {
        pushed.push((fixture, trap, harness.redis.push("default", "BuildJob", json!([native])).await));
    }

    harness
        .until("every attempt ends", async || {
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
            // Shows that the trap detects the output of steps.
            true => harms == BTreeSet::from([Harm::Leaked]) && report["status"] == "succeeded",
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

/// The HOME of the process that runs docker-buildx, with a secret of the account. No build should see either.
fn home(harness: &Harness) -> String {
    format!("/home/HOME-{}", harness.nonce)
}

/// The operator's part of the configuration.
fn accounts(harness: &Harness) -> String {
    let secrets = harness.home.path().join("secrets/acme");
    std::fs::create_dir_all(&secrets).unwrap();
    // The configuration grants this secret, but no build receives it.
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

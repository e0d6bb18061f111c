//! Where waiting jobs stand: which begins next, and why others wait.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::contention::{contended, remove_older};
use super::fair::{self, Standing, Window};
use super::keys;
use super::tenant::{Candidate, Counter};
use super::turn::Contended;
use crate::redis::{Redis, RedisError};
use crate::settings::{Jobs, Tenants};

/// What each job is taken to cost, in seconds. The order of jobs that take equally long does not depend on it.
const CHARGE_S: f64 = 1.0;

/// Why a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// For its turn: it is the `n`th in line, from 1, when builds take equally long.
    Turn(usize),
    /// For a limit.
    Room {
        /// Which one.
        counter: String,
        /// Jobs that run under it.
        n_running: u32,
        /// How many may.
        limit: u32,
    },
    /// For nothing: a newer job of its branch ends it.
    Newer,
    /// For the queue, which is paused.
    Paused,
}

/// How jobs of a queue begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// None does.
    Paused,
    /// In the order of the queue.
    Order,
    /// As tenants share the slots.
    Shares,
}

impl Rule {
    /// The rule under these settings.
    pub fn of(is_paused: bool, jobs: &Jobs, tenants: &Tenants) -> Self {
        match contended(jobs, tenants) {
            _ if is_paused => Self::Paused,
            Contended::Never => Self::Order,
            Contended::WithoutRoom | Contended::Always => Self::Shares,
        }
    }
}

impl Wait {
    /// The place in line, from 1, if the job has one.
    pub fn place(&self) -> Option<usize> {
        if let Self::Turn(n) = self { Some(*n) } else { None }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turn(n) => write!(f, "{n}{} in line", ordinal(*n)),
            Self::Newer => f.write_str("a newer build of its branch replaces it"),
            Self::Paused => f.write_str("the queue is paused"),
            Self::Room { counter, n_running, limit } => {
                let whose = match counter.split_once(' ') {
                    Some(("newest", _)) => return f.write_str("another build of its branch comes first"),
                    Some(("twin", _)) => return f.write_str("a build with the same inputs comes first"),
                    Some(("tenant", name)) => name,
                    _ => counter,
                };
                if n_running < limit {
                    write!(f, "builds in front of it use up the {limit} allowed for {whose}")
                } else {
                    write!(f, "{n_running} running of {limit} allowed for {whose}")
                }
            }
        }
    }
}

fn ordinal(n: usize) -> &'static str {
    match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    }
}

/// What each of these jobs waits for, in their order. They are at the head of their queue, the oldest first, and each is another candidate.
pub fn waits(jobs: &[Arc<Candidate>], standing: &Standing, rule: Rule) -> Vec<Wait> {
    match rule {
        Rule::Paused => return vec![Wait::Paused; jobs.len()],
        Rule::Order => return (1..=jobs.len()).map(Wait::Turn).collect(),
        Rule::Shares => {}
    }
    let mut window = Window { near: jobs.to_vec(), far: Vec::new() };
    remove_older(&mut window);
    let left: HashSet<*const Candidate> = window.near.iter().map(Arc::as_ptr).collect();
    let chosen = fair::next(&window, standing, CHARGE_S, jobs.len());
    let places: HashMap<*const Candidate, usize> = chosen.iter().map(|job| Arc::as_ptr(job)).zip(1..).collect();
    let mut n_taken: HashMap<&str, u32> = HashMap::new();
    for counter in chosen.iter().flat_map(|job| &job.claim.counters) {
        *n_taken.entry(&counter.name).or_default() += 1;
    }
    let wait = |job: &Arc<Candidate>| match places.get(&Arc::as_ptr(job)) {
        Some(n) => Wait::Turn(*n),
        None if !left.contains(&Arc::as_ptr(job)) => Wait::Newer,
        None => full(&job.claim.counters, standing, &n_taken),
    };
    jobs.iter().map(wait).collect()
}

/// The limit that keeps a job from running: one that running jobs use up, else one that jobs in front of it will.
fn full(counters: &[Counter], standing: &Standing, n_taken: &HashMap<&str, u32>) -> Wait {
    let limited = counters.iter().filter_map(|counter| {
        let n_running = standing.running.get(&counter.name).copied().unwrap_or(0);
        let n_later = n_running + n_taken.get(counter.name.as_str()).copied().unwrap_or(0);
        Some((counter, n_running, n_later, counter.limit?))
    });
    let limited: Vec<_> = limited.collect();
    let now = limited.iter().find(|(_, n_running, _, limit)| n_running >= limit);
    let later = || limited.iter().find(|(_, _, n_later, limit)| n_later >= limit);
    let (counter, n_running, _, limit) =
        now.or_else(later).or(limited.first()).expect("only a limit keeps a job waiting");
    Wait::Room { counter: counter.name.clone(), n_running: *n_running, limit: *limit }
}

/// How the tenants of these jobs stand in Redis.
pub async fn standing(redis: &Redis, jobs: &[Arc<Candidate>]) -> Result<Standing, RedisError> {
    let tenants: BTreeSet<&str> = jobs.iter().map(|job| &*job.claim.tenant).collect();
    let counters: BTreeSet<&str> = jobs.iter().flat_map(|job| &job.claim.counters).map(|its| &*its.name).collect();
    let mut times = redis::cmd("HMGET");
    times.arg(keys::SHARES).arg(keys::CLOCK).arg(&tenants);
    let mut times: Vec<Option<f64>> = redis.query(&times).await?;
    let clock = times.remove(0).unwrap_or(0.0);
    let mut running: Vec<Option<i64>> = Vec::new();
    if !counters.is_empty() {
        let mut counts = redis::cmd("HMGET");
        counts.arg(keys::RUNNING).arg(&counters);
        running = redis.query(&counts).await?;
    }
    let times = tenants.into_iter().zip(times).filter_map(|(tenant, time)| Some((tenant.to_owned(), time?)));
    // Redis counts below zero only where it lost data.
    let running =
        counters.into_iter().zip(running).map(|(counter, n)| (counter.to_owned(), n.unwrap_or(0).max(0) as u32));
    Ok(Standing { clock, times: times.collect(), running: running.collect() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::settings::NamePattern;
    use crate::sidekiq::tenant;

    fn jobs(accounts: &[&str], tenants: &Tenants) -> Vec<Arc<Candidate>> {
        let jobs = Jobs { probe: true, ..Jobs::default() };
        let read = |(n, account): (usize, &&str)| {
            let args =
                serde_json::json!([{"outcome": "succeed", "account": account, "repository": format!("{account}/r")}]);
            let job = serde_json::json!({"class": "Sidebake::Probe", "jid": format!("{n}"), "args": args});
            Arc::new(tenant::read(&Arc::from(job.to_string().as_bytes()), &jobs, tenants))
        };
        accounts.iter().enumerate().map(read).collect()
    }

    fn shown(jobs: &[Arc<Candidate>], standing: &Standing) -> Vec<String> {
        waits(jobs, standing, Rule::Shares).iter().map(Wait::to_string).collect()
    }

    #[test]
    fn a_job_has_a_place_in_line_or_a_limit_that_it_waits_for() {
        let one = |name: &str, limit| BTreeMap::from([(NamePattern::new(name), limit)]);
        let tenants = Tenants { limits: one("a", 3), limits_per_repository: one("b", 1), ..Tenants::default() };
        let running = HashMap::from([("tenant a".to_owned(), 3), ("repository b/r".to_owned(), 0)]);
        let standing = Standing { running, ..Standing::default() };
        let jobs = jobs(&["a", "c", "c", "b", "b"], &tenants);
        assert_eq!(
            shown(&jobs, &standing),
            [
                "3 running of 3 allowed for a",
                "1st in line",
                "3rd in line",
                "2nd in line",
                "builds in front of it use up the 1 allowed for repository b/r"
            ]
        );
        assert_eq!(waits(&jobs, &standing, Rule::Paused)[1].to_string(), "the queue is paused");
        assert_eq!(waits(&jobs, &standing, Rule::Order)[4].to_string(), "5th in line");
    }

    #[test]
    fn the_same_text_twice_has_two_places() {
        let twice = [0, 1].map(|_| jobs(&["a"], &Tenants::default()).remove(0));
        assert_eq!(twice[0].text, twice[1].text);
        assert_eq!(shown(&twice, &Standing::default()), ["1st in line", "2nd in line"]);
    }

    #[test]
    fn places_are_ordinal_numbers() {
        let shown: Vec<String> = [1, 2, 3, 4, 11, 12, 13, 21, 111, 122].map(|n| Wait::Turn(n).to_string()).into();
        let expected = ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th", "122nd"];
        assert_eq!(shown, expected.map(|n| format!("{n} in line")));
    }
}

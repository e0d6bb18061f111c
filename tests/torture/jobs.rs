//! The jobs and the times of their pushes: healthy jobs, jobs that take their worker down, jobs with a refused result,
//! and strays.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use world::CALLBACKS;

use crate::story::Story;
use crate::strays::{self, Stray};

/// A callback queue that is not a list at first, so that Redis refuses results that need it.
pub const REFUSED: &str = "refused";

/// Jobs whose result Redis refuses for a while.
const N_REFUSED: usize = 2;
/// When they are pushed, and when their queue becomes a list, as fractions of the whole time.
const REFUSED_FROM: f64 = 0.02;
const REFUSED_UNTIL: f64 = 0.6;
/// When the last culprit is pushed.
const CULPRITS_UNTIL: f64 = 0.4;

/// Accounts of a shared story. The first one pushes most.
const ACCOUNTS: [&str; 7] = ["flood", "flood", "flood", "small", "other", BRANCHES, TWINS];
/// The account whose newer jobs end older ones of the same branch.
pub const BRANCHES: &str = "branches";
const N_BRANCHES: u32 = 7;
/// The account whose jobs come in groups with the same inputs.
const TWINS: &str = "twins";
/// One group follows another after so many jobs of all accounts.
const GROUP: usize = 200;
/// What accounts may run at once, by the settings of [`SHARED`].
pub const LIMITS: [(&str, usize); 4] = [("flood", 6), ("small", 2), ("other", 6), (BRANCHES, 6)];
/// The settings of the workers of a shared story.
pub const SHARED: &str = "tenants = { weights = { small = 3 }, limits = { \"*\" = 6, small = 2 }, supersede = { branches = \"running\" }, coalesce = true }\n";

/// One action on Redis.
pub enum Deed {
    Push {
        queue: &'static str,
        id: String,
        text: Vec<u8>,
    },
    /// From here on, the queue [`REFUSED`] is not a list.
    Refuse,
    /// From here on, it is a list.
    Accept,
}

/// All actions on the queues.
pub struct Plan {
    /// The earliest first, by the elapsed fraction of the whole time.
    pub deeds: Vec<(f64, Deed)>,
    /// jids of jobs that must end.
    pub healthy: BTreeSet<String>,
    /// jids of jobs that take their worker down on every run.
    pub culprits: BTreeSet<String>,
    /// jids of healthy jobs whose result Redis refuses for a while.
    pub refused: BTreeSet<String>,
    pub strays: Vec<Stray>,
    /// jids of the jobs of each branch, the oldest first.
    pub branches: BTreeMap<String, Vec<String>>,
    /// The group of each job that has twins, by jid.
    pub groups: BTreeMap<String, String>,
}

impl Plan {
    pub fn of(story: &Story) -> Self {
        let mut random = StdRng::seed_from_u64(story.seed);
        let mut plan = Self {
            deeds: Vec::new(),
            healthy: BTreeSet::new(),
            culprits: BTreeSet::new(),
            refused: BTreeSet::new(),
            strays: Vec::new(),
            branches: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        for n in 0..story.n_jobs {
            let jid = format!("{:08x}{n:016x}", story.seed);
            let queue = if random.random_bool(0.2) { "low" } else { "default" };
            let mut text = healthy(&mut random, &jid, queue, story.n_long);
            if story.settings == SHARED {
                plan.share(&mut random, n, &jid, &mut text);
            }
            plan.push(n as f64 / story.n_jobs as f64, queue, jid.clone(), text);
            plan.healthy.insert(jid);
        }
        for n in 0..story.n_culprits {
            let jid = format!("{:08x}c{n:015x}", story.seed);
            let at = CULPRITS_UNTIL * n as f64 / story.n_culprits as f64;
            // Longer than any run of the torture.
            plan.push(at, "default", jid.clone(), job(&jid, "default", "succeed", 3600.0, json!(true), CALLBACKS));
            plan.culprits.insert(jid);
        }
        if story.has_strays {
            plan.refuse(story);
            plan.stray(&mut random);
        }
        plan.deeds.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        plan
    }

    fn push(&mut self, at: f64, queue: &'static str, id: String, job: Value) {
        self.deeds.push((at, Deed::Push { queue, id, text: job.to_string().into_bytes() }));
    }

    /// Gives the job an account, and perhaps a branch, on which newer jobs end older ones.
    fn share(&mut self, random: &mut StdRng, n: usize, jid: &str, text: &mut Value) {
        let account = ACCOUNTS[random.random_range(0..ACCOUNTS.len())];
        text["args"][0]["account"] = json!(account);
        text["created_at"] = json!(1_700_000_000.0 + n as f64);
        if account == BRANCHES {
            let branch = format!("refs/heads/{}", random.random_range(0..N_BRANCHES));
            text["args"][0]["repository"] = json!("branches/app");
            text["args"][0]["ref"] = json!(branch);
            text["args"][0]["outcome"] = json!("succeed");
            self.branches.entry(branch).or_default().push(jid.to_owned());
        }
        if account == TWINS {
            let group = format!("group {}", n / GROUP);
            let own = json!({"outcome": "succeed", "sleep_s": 0.2, "account": account, "group": group,
                "callback": text["args"][0]["callback"]});
            text["args"][0] = own;
            self.groups.insert(jid.to_owned(), group);
        }
    }

    fn refuse(&mut self, story: &Story) {
        for n in 0..N_REFUSED {
            let jid = format!("{:08x}b{n:015x}", story.seed);
            self.push(REFUSED_FROM, "default", jid.clone(), job(&jid, "default", "succeed", 0.0, json!(true), REFUSED));
            self.healthy.insert(jid.clone());
            self.refused.insert(jid);
        }
        self.deeds.push((0.0, Deed::Refuse));
        self.deeds.push((REFUSED_UNTIL, Deed::Accept));
    }

    fn stray(&mut self, random: &mut StdRng) {
        self.strays = strays::all(random);
        for (n, stray) in self.strays.iter().enumerate() {
            let queue = if random.random_bool(0.2) { "low" } else { "default" };
            let at = random.random_range(0.0..1.0);
            self.deeds.push((at, Deed::Push { queue, id: format!("stray {n}"), text: stray.text.clone() }));
        }
    }
}

/// Most are short; some outlast every fault. Most succeed, some have a customer's mistake, and a few die.
fn healthy(random: &mut StdRng, jid: &str, queue: &str, n_long: u32) -> Value {
    let sleep_s: f64 = match random.random_range(0..100_u32) {
        n if n < n_long => random.random_range(8.0..14.0),
        n if n < n_long + 9 => random.random_range(0.5..2.0),
        _ => random.random_range(0.0..0.2),
    };
    let (outcome, retry) = match random.random_range(0..100) {
        0..3 => ("infrastructure", json!(0)),
        3..10 => ("user", json!(true)),
        _ => ("succeed", json!(true)),
    };
    job(jid, queue, outcome, sleep_s, retry, CALLBACKS)
}

fn job(jid: &str, queue: &str, outcome: &str, sleep_s: f64, retry: Value, callbacks: &str) -> Value {
    json!({
        "class": "Sidebake::Probe", "queue": queue, "jid": jid, "retry": retry, "created_at": 1.0, "enqueued_at": 1.0,
        "args": [{"outcome": outcome, "sleep_s": sleep_s, "message": "as asked",
            "callback": {"class": "Done", "queue": callbacks, "on": ["finished", "retrying"]}}],
    })
}

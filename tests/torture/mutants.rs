//! Custody without one of its parts. The product stays unchanged. The relay sends Redis another script under the name
//! of the real one, or changes a request.
//!
//! The turn numbers are not among them. The text of the job also reveals a late turn, so nothing would be lost without
//! the numbers. `tests/it/turn.rs` checks the comparison. The comparison of texts matters only where a token can be
//! filled twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use world::Redis;

use crate::Verdict;
use crate::audit::Ending;
use crate::faults::Kind;
use crate::jobs::SHARED;
use crate::relay::{Rewrite, is_command};
use crate::scripts::{NEWEST, RECOVER, RENEW, Scripts, TURN, load};
use crate::story::Story;

/// The lists run one after the other. The mutants of a list run in parallel.
const LANES: [&[Without]; 3] = [
    &[Without::Reconcile, Without::Order, Without::Newest],
    &[Without::Fence, Without::Resend, Without::Room],
    &[Without::Incarnation, Without::Text, Without::Presence],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// A settlement happens even when the worker does not own the entry.
    Fence,
    /// A settlement compares the token but not the text. Leases behave as in [`Self::Incarnation`], because otherwise
    /// no token is filled twice.
    Text,
    /// A late renewal creates the lease again, as in an early version. The settlement compares texts, so no job is
    /// lost.
    Incarnation,
    /// A resent turn fetches other jobs under the same tokens.
    Resend,
    /// The worker does not compare the in-flight hash with its running jobs.
    Reconcile,
    /// A script removes entries before it writes them elsewhere.
    Order,
    /// A turn takes a job whose limit another worker has reached meanwhile.
    Room,
    /// A turn takes a job although it is not in its list any more.
    Presence,
    /// Any job is recorded as the newest one of its branch.
    Newest,
}

/// A script, the text to replace, and the replacement.
type Change = (&'static str, &'static str, &'static str);

const OLD_LEASE: Change = (
    RENEW,
    "if not incarnation and ARGV[3] == '' then return '' end",
    "local old = 'torture:' .. KEYS[1]
    if incarnation then redis.call('SET', old, incarnation) end
    if not incarnation and ARGV[3] == '' and redis.call('EXISTS', old) == 1 then
        redis.call('SADD', KEYS[2], ARGV[1])
        redis.call('SET', KEYS[1], redis.call('GET', old) .. ' 0', 'PX', ARGV[2])
        return redis.call('GET', old)
    end
    if not incarnation and ARGV[3] == '' then return '' end",
);

impl Without {
    /// The replacements in scripts. Empty for the mutant that changes a request.
    fn changes(self) -> Vec<Change> {
        const FENCE: &str = "if not entry or text_of(entry) ~= settlement.text then return 0 end";
        match self {
            Self::Fence => vec![(TURN, FENCE, "entry = entry or 'default\\n' .. settlement.text")],
            Self::Text => vec![(TURN, FENCE, "if not entry then return 0 end"), OLD_LEASE],
            Self::Incarnation => vec![OLD_LEASE],
            Self::Resend => vec![(
                TURN,
                "local slots, is_paused = filled(tokens), paused()",
                "local slots, is_paused = {}, paused()
                for i = 1, #tokens do slots[i] = false end",
            )],
            Self::Reconcile => Vec::new(),
            Self::Order => vec![
                (
                    RECOVER,
                    "redis.call('RPUSH', list, text)\n    redis.call('HDEL', KEYS[4], ARGV[i])",
                    "redis.call('HDEL', KEYS[4], ARGV[i])\n    redis.call('RPUSH', list, text)",
                ),
                (
                    TURN,
                    "if #added > 0 then redis.call('HSET', inflight, unpack(added)) end\n  \
                     for list, n in pairs(n_popped) do redis.call('RPOP', list, digits(n)) end",
                    "for list, n in pairs(n_popped) do redis.call('RPOP', list, digits(n)) end\n  \
                     if #added > 0 then redis.call('HSET', inflight, unpack(added)) end",
                ),
            ],
            Self::Room => vec![(
                TURN,
                "if has_room(candidate.claim) then return candidate end",
                "if true then return candidate end",
            )],
            Self::Presence => vec![(
                TURN,
                "local is_in_list, is_copied = is_there(list, candidate.text)",
                "local is_in_list, is_copied = true, false",
            )],
            Self::Newest => vec![(
                NEWEST,
                "redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5])",
                "redis.call('SET', KEYS[1], '9' .. ARGV[4], 'EX', ARGV[5])",
            )],
        }
    }

    /// The faults that make the part necessary.
    fn kinds(self) -> Vec<Kind> {
        match self {
            Self::Fence | Self::Newest => vec![Kind::Freeze],
            // Cuts the worker off for longer than its lease.
            Self::Text | Self::Incarnation | Self::Reconcile => vec![Kind::HeldRenewal],
            Self::Resend | Self::Room | Self::Presence => vec![Kind::LostReplies],
            Self::Order => vec![Kind::RefusedCommand],
        }
    }

    /// Texts of the audit, one of which must appear.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Fence => &["settled twice"],
            Self::Text => &["jobs were settled twice", "jobs were never finished"],
            Self::Incarnation => &["tokens were used twice"],
            Self::Resend | Self::Order => &["jobs were never finished"],
            Self::Room => &["ran at once"],
            Self::Presence => &["settled twice"],
            Self::Newest => &["were superseded"],
            // The job keeps running, or its worker never learns of it.
            Self::Reconcile => &["on a worker that had lost it", "stuck: sidebake:inflight:"],
        }
    }

    /// A run that needs the part.
    fn story(self, seed: u64) -> Story {
        let whole = Story {
            duration: Duration::from_secs(20),
            n_jobs: 1500,
            n_long: 1,
            n_faults: 10,
            n_culprits: 0,
            has_strays: false,
            settings: if matches!(self, Self::Room | Self::Presence | Self::Newest) { SHARED } else { "" },
            seed,
            kinds: self.kinds(),
            commands: &["HSET", "RPUSH"],
            fsync: "everysec",
            mutant: Some(self),
        };
        match self {
            Self::Fence | Self::Order | Self::Room | Self::Presence | Self::Newest => whole,
            // More jobs than the workers have slots, and no choice among them, so that every turn gets one, even a late turn.
            Self::Text | Self::Incarnation => {
                Story { n_jobs: 700, n_long: 10, n_faults: 12, settings: "tenants.fair = false\n", ..whole }
            }
            // Long jobs, which several faults hit.
            Self::Resend => Story { n_faults: 60, ..whole },
            // A job that no worker kills must survive beside its second run. So jobs are long, and slots stay free for
            // recovered jobs.
            Self::Reconcile => Story { duration: Duration::from_secs(40), n_jobs: 150, n_long: 40, ..whole },
        }
    }

    /// Whether the worker does not reconcile. Reconciling could kill every lost job before its end, and then no
    /// settlement needs the fence.
    fn is_blind(self) -> bool {
        matches!(self, Self::Fence | Self::Reconcile)
    }

    pub async fn rewrite(self, redis: &Redis) -> Rewrite {
        let mut mutated: BTreeMap<&str, String> = BTreeMap::new();
        for (script, from, to) in self.changes() {
            let mutant = mutated.entry(script).or_insert_with(|| script.to_owned());
            assert_eq!(mutant.matches(from).count(), 1, "a script no longer has {from:?}");
            *mutant = mutant.replace(from, to);
        }
        let mut digests = BTreeMap::new();
        for (script, mutant) in mutated {
            digests.insert(load(redis, script).await.into_bytes(), load(redis, &mutant).await.into_bytes());
        }
        let scripts = Scripts::load(redis).await;
        Arc::new(move |request, is_custody| {
            if self.is_blind() && is_custody {
                scripts.blind(request);
            }
            if is_command(request, b"EVALSHA")
                && let Some(mutant) = digests.get(&request[1])
            {
                request[1].clone_from(mutant);
            }
        })
    }
}

/// The audit must notice each mutant, and the unchanged product must pass under the same faults. The runs mostly wait,
/// so several run at a time.
pub async fn run(seed: u64) -> Vec<(String, Verdict)> {
    let lanes = LANES.map(|lane| {
        tokio::spawn(async move {
            let mut verdicts = Vec::new();
            for mutant in lane {
                verdicts.push(try_out(*mutant, seed).await);
            }
            verdicts
        })
    });
    let mut verdicts = Vec::new();
    for lane in lanes {
        verdicts.extend(lane.await.unwrap());
    }
    verdicts
}

/// How many seeds to try for a mutant. Its failure needs a coincidence of faults, which a busy machine can miss.
const SEEDS: u64 = 4;

async fn try_out(mutant: Without, seed: u64) -> (String, Verdict) {
    let name = format!("without {mutant:?}, it is noticed");
    let mut unnoticed = Vec::new();
    for seed in seed..seed + SEEDS {
        match try_once(mutant, seed).await {
            Ok(()) => return (name, Ok(())),
            Err(sentence) => unnoticed.push(sentence),
        }
    }
    (name, Err(unnoticed))
}

async fn try_once(mutant: Without, seed: u64) -> Result<(), String> {
    let is_it = |sentence: &String| mutant.words().iter().any(|words| sentence.contains(words));
    let told = mutant.story(seed).tell(Ending::verdict).await;
    let mut counts = vec![format!("without {mutant:?}, seed {seed}")];
    counts.extend(told.counts);
    let sentences = told.verdict.err().unwrap_or_default();
    let verdict = match sentences.iter().find(|sentence| is_it(sentence)) {
        Some(noticed) => {
            counts.push(format!("noticed: {}", noticed.chars().take(200).collect::<String>()));
            Ok(())
        }
        None => {
            let seen = sentences.join("; ");
            Err(format!("seed {seed}: the audit reports none of {:?}: {seen:?}", mutant.words()))
        }
    };
    println!("  {}", counts.join("\n  "));
    verdict
}

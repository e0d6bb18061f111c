//! Custody with one of its parts taken away. The product is not touched: the relay sends Redis another script under the
//! name of the real one, or spoils a request.
//!
//! The numbers of turns are not among them: who takes a late turn finds out by the text of the job, so without them nothing
//! is lost here. `tests/it/turn.rs` sees that they are compared. Likewise a comparison of texts only matters where a token
//! can be filled twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use world::Redis;

use crate::Verdict;
use crate::audit::Ending;
use crate::faults::Kind;
use crate::relay::{Rewrite, is_command};
use crate::scripts::{RECOVER, RENEW, TURN, load};
use crate::story::Story;

/// Those that run one after the other, each list beside the others.
const LANES: [&[Without]; 3] =
    [&[Without::Reconcile, Without::Order], &[Without::Fence, Without::Resend], &[Without::Incarnation, Without::Text]];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// A settlement happens whether the entry is owned or not.
    Fence,
    /// A settlement compares the token and not the text; and leases as in [`Self::Incarnation`], without which no token is
    /// filled twice.
    Text,
    /// A renewal that arrives late makes the lease again, as it was long before. The texts are compared, so nothing is lost.
    Incarnation,
    /// A turn that is sent again fetches other jobs under the same tokens.
    Resend,
    /// The in-flight hash is not compared with what runs.
    Reconcile,
    /// Entries are removed before they are written elsewhere.
    Order,
}

/// A script, and what of it becomes what.
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
    /// What of the scripts becomes what; nothing for the one that is no change of a script.
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
        }
    }

    /// The faults that the part is there for.
    fn kinds(self) -> Vec<Kind> {
        match self {
            Self::Fence => vec![Kind::Freeze],
            // The worker is cut off for longer than its lease lasts.
            Self::Text | Self::Incarnation | Self::Reconcile => vec![Kind::HeldRenewal],
            Self::Resend => vec![Kind::LostReplies],
            Self::Order => vec![Kind::RefusedCommand],
        }
    }

    /// What the audit has to say of it, one of them.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Fence => &["settled twice"],
            Self::Text => &["jobs were settled twice", "jobs were never finished"],
            Self::Incarnation => &["tokens were used twice"],
            Self::Resend | Self::Order => &["jobs were never finished"],
            // It runs on, or its worker has never heard of it.
            Self::Reconcile => &["on a worker that had lost it", "stuck: sidebake:inflight:"],
        }
    }

    /// A run in which the part is needed.
    fn story(self, seed: u64) -> Story {
        let whole = Story {
            duration: Duration::from_secs(20),
            n_jobs: 1500,
            n_long: 1,
            n_faults: 10,
            n_culprits: 0,
            has_strays: false,
            seed,
            kinds: self.kinds(),
            commands: &["HSET", "RPUSH"],
            fsync: "everysec",
            mutant: Some(self),
        };
        match self {
            Self::Fence | Self::Order => whole,
            // More jobs than the workers have slots for, so that there is one for every turn, late ones too.
            Self::Text | Self::Incarnation => Story { n_jobs: 700, n_long: 10, n_faults: 12, ..whole },
            // Long jobs, that are hit again and again.
            Self::Resend => Story { n_faults: 60, ..whole },
            // What is not killed has to live on beside the other run, so jobs are long, and slots are free for those that
            // are recovered.
            Self::Reconcile => Story { duration: Duration::from_secs(40), n_jobs: 150, n_long: 40, ..whole },
        }
    }

    /// Whether nothing is reconciled. Who does may kill all that is lost before it ends, and then there is nothing to fence.
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
        Arc::new(move |request, is_custody| {
            if self.is_blind() && is_custody && is_command(request, b"HGETALL") {
                // A set: Redis refuses, and the connection stays.
                request[1] = b"queues".to_vec();
            }
            if is_command(request, b"EVALSHA")
                && let Some(mutant) = digests.get(&request[1])
            {
                request[1].clone_from(mutant);
            }
        })
    }
}

/// Each mutant has to be noticed, and what it is a mutant of must pass under the same faults. They mostly wait, so several run
/// at a time.
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

/// How many seeds a mutant may need. What has to go wrong is a coincidence of faults, which a busy machine can miss.
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
            Err(format!("seed {seed}: nothing was noticed of {:?}: {seen:?}", mutant.words()))
        }
    };
    println!("  {}", counts.join("\n  "));
    verdict
}

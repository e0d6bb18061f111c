//! Custody with one of its parts taken away. The product is not touched: the relay sends Redis another script under the
//! name of the real one, or spoils a request.
//!
//! The numbers of turns are not among them: whoever takes a late turn finds out by the text of the job, so without them
//! nothing is lost here. `tests/it/turn.rs` sees that they are compared.

use std::sync::Arc;
use std::time::Duration;

use world::Redis;

use crate::Verdict;
use crate::audit::Ending;
use crate::faults::Kind;
use crate::relay::{Rewrite, is_command};
use crate::scripts::{TURN, load};
use crate::story::Story;

/// Those that run one after the other, each list beside the others.
const LANES: [&[Without]; 2] = [&[Without::Fence, Without::Resend], &[Without::Reconcile]];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// A settlement happens whether the token is ours or not.
    Fence,
    /// A turn that is sent again fetches other jobs under the same tokens.
    Resend,
    /// Nobody compares the in-flight hash with what runs.
    Reconcile,
}

impl Without {
    /// What of `turn.lua` becomes what; nothing for the one that is no change of the script.
    fn change(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Fence => Some(("if not entry or text_of(entry) ~= settlement.text then return 0 end", "")),
            Self::Resend => Some(("if not slots[i] then free[#free + 1] = i end", "free[#free + 1] = i")),
            Self::Reconcile => None,
        }
    }

    /// The faults that the part is there for.
    fn kinds(self) -> Vec<Kind> {
        match self {
            Self::Fence => vec![Kind::Freeze],
            Self::Reconcile => vec![Kind::Freeze, Kind::LostReplies],
            Self::Resend => vec![Kind::LostReplies],
        }
    }

    /// What the audit has to say of it.
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Fence => &["settled twice"],
            Self::Resend => &["never finished"],
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
            fsync: "everysec",
            mutant: Some(self),
        };
        match self {
            Self::Fence => whole,
            Self::Resend => Story { n_faults: 60, ..whole },
            // What is not killed has to live on beside the other run, so jobs are long, and slots are free for those that
            // are recovered.
            Self::Reconcile => Story { duration: Duration::from_secs(45), n_jobs: 200, n_long: 40, ..whole },
        }
    }

    /// Whether nobody reconciles. Who does may kill all that is lost before it ends, and then there is nothing to fence.
    fn is_blind(self) -> bool {
        matches!(self, Self::Fence | Self::Reconcile)
    }

    pub async fn rewrite(self, redis: &Redis) -> Rewrite {
        let mut mutant = None;
        if let Some((from, to)) = self.change() {
            assert_eq!(TURN.matches(from).count(), 1, "turn.lua no longer has {from:?}");
            mutant = Some((load(redis, TURN).await, load(redis, &TURN.replace(from, to)).await));
        }
        Arc::new(move |request, is_custody| {
            if self.is_blind() && is_custody && is_command(request, b"HGETALL") {
                // A set: Redis refuses, and the connection stays.
                request[1] = b"queues".to_vec();
            }
            if let Some((real, mutant)) = &mutant
                && is_command(request, b"EVALSHA")
                && request[1] == real.as_bytes()
            {
                request[1] = mutant.clone().into_bytes();
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

async fn try_out(mutant: Without, seed: u64) -> (String, Verdict) {
    let is_it = |sentence: &String| mutant.words().iter().any(|words| sentence.contains(words));
    let told = mutant.story(seed).tell(Ending::verdict).await;
    let mut counts = vec![format!("without {mutant:?}")];
    counts.extend(told.counts);
    let verdict = match told.verdict {
        Err(sentences) if sentences.iter().any(|sentence| is_it(sentence)) => {
            let noticed = sentences.iter().find(|sentence| is_it(sentence)).map_or("", String::as_str);
            counts.push(format!("noticed: {}", noticed.chars().take(200).collect::<String>()));
            Ok(())
        }
        verdict => {
            let seen = verdict.err().unwrap_or_default().join("; ");
            Err(vec![format!("nobody noticed that anything is {:?}: {seen:?}", mutant.words())])
        }
    };
    println!("  {}", counts.join("\n  "));
    (format!("without {mutant:?}, it is noticed"), verdict)
}

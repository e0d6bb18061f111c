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
use crate::story::Story;

const TURN: &str = include_str!("../../src/sidekiq/turn.lua");

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
    const ALL: [Self; 3] = [Self::Fence, Self::Resend, Self::Reconcile];

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
            Self::Fence | Self::Reconcile => vec![Kind::Freeze],
            Self::Resend => vec![Kind::LostReplies],
        }
    }

    /// What the audit has to say of it.
    fn words(self) -> &'static str {
        match self {
            Self::Fence => "settled twice",
            Self::Resend => "never finished",
            Self::Reconcile => "on a worker that had lost it",
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

async fn load(redis: &Redis, script: &str) -> String {
    let mut connection = redis.connection().await;
    redis::cmd("SCRIPT").arg(&["LOAD", script]).query_async(&mut connection).await.unwrap()
}

/// Each mutant has to be noticed, and what it is a mutant of must pass under the same faults.
pub async fn run(seed: u64) -> Vec<(String, Verdict)> {
    let mut verdicts = Vec::new();
    for mutant in Without::ALL {
        let whole = Story {
            duration: Duration::from_secs(20),
            n_jobs: 1500,
            n_long: 1,
            n_faults: 10,
            seed,
            kinds: mutant.kinds(),
            fsync: "everysec",
            mutant: Some(mutant),
        };
        let story = match mutant {
            Without::Fence => whole,
            Without::Resend => Story { n_faults: 60, ..whole },
            // What is not killed has to live on beside the other run, so jobs are long, and slots are free for those that
            // are recovered.
            Without::Reconcile => Story { duration: Duration::from_secs(45), n_jobs: 200, n_long: 40, ..whole },
        };
        println!("  without {mutant:?}");
        let verdict = match story.tell(Ending::verdict).await {
            Err(sentences) if sentences.iter().any(|sentence| sentence.contains(mutant.words())) => {
                println!("  noticed: {}", sentences.join("; ").chars().take(300).collect::<String>());
                Ok(())
            }
            verdict => {
                let seen = verdict.err().unwrap_or_default().join("; ");
                Err(vec![format!("nobody noticed that anything is {}: {seen:?}", mutant.words())])
            }
        };
        verdicts.push((format!("without {mutant:?}, it is noticed"), verdict));
    }
    verdicts
}

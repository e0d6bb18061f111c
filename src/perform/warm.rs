//! Builds the base images of a build on a pod that has not built them yet, before the build itself ([`crate::warmth`]).

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Attempt, Integrations, while_watched};
use crate::bake::Goal;
use crate::builder::Session;
use crate::event::Phase;
use crate::job::Build;
use crate::state::JobDirectory;
use crate::warmth::{Warmth, WarmthQuestion, WarmthStep};

/// Asks the fleet. Without an answer, everything is cold.
pub type Warmths = dyn Fn(WarmthQuestion) -> Pin<Box<dyn Future<Output = Option<Vec<Warmth>>> + Send>> + Send + Sync;

/// The most base images of one build.
const MAX_BASES: usize = 20;

/// How long a build waits for its base images. A claim in Redis lasts as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a build looks whether another one has built its base images.
const LOOK: Duration = Duration::from_millis(250);

/// Builds the base images that are cold, and waits for those that another build builds. What fails here is left to the build itself.
pub(super) async fn warm(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &mut Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) {
    let bases: BTreeSet<String> = goal.definition.froms(goal.targets).into_iter().take(MAX_BASES).collect();
    let Some((pod, cold)) = session.cold(&bases).await else { return };
    let _phase = attempt.journal.begin(Phase::Warm);
    let deadline = Instant::now() + PATIENCE;
    let ask = async |step, bases: &[String]| {
        let question = WarmthQuestion { pod: pod.clone(), bases: bases.to_vec(), step };
        let answer = match attempt.warmths {
            Some(warmths) => warmths(question).await,
            None => None,
        };
        answer.unwrap_or_else(|| vec![Warmth::Cold; bases.len()])
    };
    let mut left = cold.clone();
    while !left.is_empty() && Instant::now() < deadline {
        let found = ask(WarmthStep::Begin, &left).await;
        let of = |warmth: Warmth| -> Vec<String> {
            left.iter().zip(&found).filter(|(_, found)| **found == warmth).map(|(base, _)| base.clone()).collect()
        };
        let (own, others) = (of(Warmth::Cold), of(Warmth::Warming));
        if !own.is_empty() {
            let stop = attempt.stop.token().child_token();
            let warmed = integrations.bake.warm(build, goal.definition, &own, &session.location, directory, &stop);
            let is_warm =
                while_watched(session, &stop, tokio::time::timeout_at(deadline, warmed)).await.unwrap_or(false);
            ask(if is_warm { WarmthStep::Done } else { WarmthStep::GiveUp }, &own).await;
            session.begins_again();
        }
        left = others;
        if !left.is_empty() {
            sleep(LOOK).await;
        }
    }
    session.is_warm(&pod, &cold);
}

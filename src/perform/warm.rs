//! Builds the base images of a build on a pod that has not built them yet, before the build itself ([`crate::warmth`]).

use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::solve::while_watched;
use super::{Attempt, Integrations};
use crate::bake::Goal;
use crate::builder::Session;
use crate::event::Phase;
use crate::hex;
use crate::job::Build;
use crate::process::RunLimits;
use crate::state::JobDirectory;
use crate::warmth::{BaseBuild, LONGEST, PATIENCE, Warmth, WarmthQuestion, WarmthStep};

/// Asks Redis. `None` when it does not answer.
pub type AskBases = dyn Fn(WarmthQuestion) -> Pin<Box<dyn Future<Output = Option<Warmth>> + Send>> + Send + Sync;

/// So many base images of one build are built in advance.
const MAX_BASES: usize = 20;

/// How often a build looks whether another one has built its base images.
const LOOK: Duration = Duration::from_millis(250);

/// Builds the base images that no build has built, one by one, and waits for those that another one is building. What fails here is
/// left to the build itself. Takes no longer than [`PATIENCE`], and ends when the build is stopped.
pub(super) async fn warm(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &mut Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) {
    let bases: BTreeSet<BaseBuild> = goal.definition.base_builds(goal.targets).into_iter().take(MAX_BASES).collect();
    let stopped = attempt.stop.token();
    let Some(Some((pod, mut left))) = stopped.run_until_cancelled(session.unbuilt(&bases)).await else { return };
    let _phase = attempt.journal.begin(Phase::Warm);
    let (deadline, claim) = (Instant::now() + PATIENCE, hex::random::<8>());
    let ask = async |base: &BaseBuild, step| {
        let Some(ask) = attempt.ask_bases else { return Some(Warmth::Cold) };
        let question = WarmthQuestion { pod: pod.clone(), base: base.to_string(), step, claim: claim.clone() };
        timeout_at(deadline, ask(question)).await.ok().flatten()
    };
    while !left.is_empty() {
        let mut others = BTreeSet::new();
        for base in left {
            if stopped.is_cancelled() || Instant::now() >= deadline {
                return;
            }
            match ask(&base, WarmthStep::Claim).await {
                None => return,
                Some(Warmth::Warming) => drop(others.insert(base)),
                Some(Warmth::Warm) => session.remember_built(&pod, base),
                Some(Warmth::Cold) => {
                    let stop = stopped.child_token();
                    let limits = RunLimits { timeout: Some(LONGEST), ..RunLimits::until(stop.clone()) };
                    let run =
                        integrations.bake.warm(build, goal.definition, &base, &session.location, directory, limits);
                    let is_built = while_watched(session, &stop, run).await;
                    session.begins_again();
                    ask(&base, if is_built { WarmthStep::Done } else { WarmthStep::GiveUp }).await;
                    if is_built {
                        session.remember_built(&pod, base);
                    }
                }
            }
        }
        left = others;
        if !left.is_empty() {
            stopped.run_until_cancelled(sleep(LOOK)).await;
        }
    }
}

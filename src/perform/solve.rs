//! Runs docker-buildx until a build has succeeded or failed: on which pods, how often, and what comes before and after.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::caching::{Caching, Run};
use super::{Attempt, Integrations, warm};
use crate::bake::{Definition, Goal, Outcome};
use crate::builder::{Loss, PlaceRequest, Session};
use crate::event::Event;
use crate::job::Build;
use crate::reason::{Cause, End};
use crate::source::Worktree;
use crate::state::JobDirectory;

/// How often a build is tried on another pod when its builder is lost, before it goes back to Sidekiq's retry set.
const N_OTHER_PODS: u32 = 3;

/// Solves until the build itself succeeds or fails. When the builder is lost, unfinished targets are tried on another pod.
pub(super) async fn solve(
    integrations: &Integrations,
    build: &Build,
    definition: &Definition,
    caching: Option<(&Caching, &Worktree)>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<(), End> {
    let mut targets = definition.names();
    let mut unfinished = targets.clone();
    let platforms = definition.platforms();
    integrations.bake.check_bases(build, definition, attempt.stop.token()).await?;
    let (mut said, mut ran) = (BTreeSet::new(), BTreeSet::new());
    let (mut lost, mut n_left) = (None::<Loss>, N_OTHER_PODS);
    let mut spent = Duration::ZERO;
    loop {
        let place = integrations.builders.place(PlaceRequest {
            loss: lost.as_ref(),
            fleet: attempt.fleet,
            platforms: &platforms,
            buildx: Some(integrations.bake.version().await?),
            ..PlaceRequest::new(build, &integrations.state, directory)
        });
        let mut session = attempt.unless_stopped(place).await??;
        attempt.journal.emit(Event::Placed(session.placement()));
        let emulated = session.emulated.iter().filter(|notice| said.insert((*notice).clone()));
        emulated.for_each(|notice| attempt.journal.emit(Event::Notice(notice.clone())));
        let goal = Goal { definition, targets: &targets };
        warm::warm(integrations, build, goal, &mut session, directory, attempt).await;
        // Asked as late as possible: the push of a moving tag cannot be undone.
        if let Some(fence) = attempt.fence
            && !fence().await
        {
            attempt.stop.because(Cause::Reclaimed);
            return Err(End::Stopped);
        }
        let started = Instant::now();
        let (outcome, loss) = solve_watched(integrations, build, goal, &session, directory, attempt, spent).await?;
        // What a lost pod has built is in no other pod's cache.
        match loss {
            Some(_) => ran.clear(),
            None => ran.extend(outcome.ran.iter().cloned()),
        }
        spent = if loss.is_some() { Duration::ZERO } else { spent + started.elapsed() };
        attempt.journal.emit(Event::Placed(session.placement()));
        if let Some((caching, worktree)) = caching {
            let (placement, has_pods) = (session.placement(), session.has_pods());
            let run = Run { definition, worktree, outcome: &outcome, placement, has_pods };
            caching.explain(run, attempt.journal).await;
        }
        // A target that was built before may have been built again, for one that is linked to it.
        unfinished = &(&unfinished | &targets) - &outcome.built;
        if outcome.end.is_none() && !unfinished.is_empty() {
            // Each such run has built at least one target. Those are in the registry, so nothing linked to them is built again.
            targets = unfinished.clone();
            continue;
        }
        if outcome.end.is_none() {
            export_caches(integrations, build, Goal { definition, targets: &ran }, &mut session, directory, attempt)
                .await;
            return Ok(());
        }
        let Some(loss) = loss.filter(|_| n_left > 0 && session.has_others()) else {
            return outcome.end.map_or(Ok(()), Err);
        };
        let rest = if unfinished.is_empty() {
            "all targets were already built"
        } else {
            "the other targets are built on another pod"
        };
        attempt.journal.emit(Event::Notice(format!("{}; {rest}", loss.notice)));
        if unfinished.is_empty() {
            return Ok(());
        }
        attempt.journal.emit(Event::PodLost { builder: session.placement().builder });
        targets = definition.with_linked(&unfinished);
        // A build that exhausts a pod's memory or disk must not exhaust all others'.
        n_left = if loss.is_used_up { 0 } else { n_left - 1 };
        lost = Some(loss.after(lost));
    }
}

/// Exports caches on the pod of the last run. A failure does not fail the build.
async fn export_caches(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &mut Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) {
    let stop = attempt.stop.token().child_token();
    session.begins_again();
    let (bake, journal) = (&integrations.bake, attempt.journal);
    let export = bake.export_caches(build, goal, &session.location, directory, journal, &stop);
    while_watched(session, &stop, export).await;
}

/// Waits for a run of docker-buildx, and stops it when the builder is lost.
pub(super) async fn while_watched<T>(
    session: &Session<'_>,
    stop: &CancellationToken,
    run: impl Future<Output = T>,
) -> T {
    tokio::pin!(run);
    tokio::select! {
        result = &mut run => result,
        _ = session.lost() => {
            stop.cancel();
            run.await
        }
    }
}

/// One run of docker-buildx, with its time limit and its builder watched: buildx itself may not notice that its pod is gone.
///
/// Neither the wait for a builder nor the time on a lost pod counts as the build's. `spent`: the time of earlier runs that counts.
async fn solve_watched(
    integrations: &Integrations,
    build: &Build,
    goal: Goal<'_>,
    session: &Session<'_>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
    spent: Duration,
) -> Result<(Outcome, Option<Loss>), End> {
    let stop = attempt.stop.token().child_token();
    let limit = integrations.bake.time_limit(build);
    let solve = integrations.bake.solve(build, goal, &session.location, directory, attempt.journal, &stop);
    tokio::pin!(solve);
    // Dropping the watch loses nothing. The solve is never dropped: its outcome has what it learned.
    let lost = tokio::select! {
        outcome = &mut solve => Err(outcome),
        loss = session.lost() => Ok(loss),
        () = sleep(limit.saturating_sub(spent)) => {
            attempt.stop.note(Cause::TimedOut { limit });
            stop.cancel();
            Err((&mut solve).await)
        }
    };
    let (mut outcome, lost) = match lost {
        Err(outcome) => (outcome?, None),
        Ok(loss) => {
            stop.cancel();
            (solve.await?, Some(loss))
        }
    };
    let loss = match (&outcome.end, lost) {
        (None, _) => return Ok((outcome, None)),
        _ if attempt.stop.cause().is_some() => None,
        // Killed by us. If it ended by itself at the same moment, its own error counts.
        (Some(End::Stopped), lost) => lost,
        (Some(End::Failed(failure)), _) => session.post_mortem(failure).await,
    };
    let end = loss.as_ref().map(|loss| loss.failure.clone().into()).or(outcome.end);
    outcome.end = end.map(|end: End| end.map(|failure| session.with_memory_limit(failure)));
    Ok((outcome, loss))
}

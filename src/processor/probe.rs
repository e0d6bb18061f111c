//! A probe job: goes through the whole runtime and builds nothing, for tests and benchmarks.

use std::time::Duration;

use serde::Deserialize;

use super::job::Job;
use super::{invalid, refuse_expired};
use crate::reason::{End, Failure, Reason};
use crate::redis::Redis;

/// The argument of a probe job.
#[derive(Deserialize)]
struct Probe {
    outcome: ProbeOutcome,
    #[serde(default)]
    sleep_s: f64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProbeOutcome {
    Succeed,
    User,
    Infrastructure,
    Panic,
}

/// Runs a probe. Ignores further fields and arguments.
pub(super) async fn probe(redis: &Redis, job: &Job) -> Result<(), End> {
    let payload = &job.payload;
    refuse_expired(payload)?;
    let args = payload.arguments().map_err(|error| Failure::new(Reason::InvalidArguments, error.to_string()))?;
    let probe = Probe::deserialize(args.value(0).map_err(invalid)?)
        .map_err(|error| Failure::new(Reason::InvalidArguments, format!("args[0]: {error}")))?;
    job.note_inputs(&args.value(0).map_err(invalid)?);
    if let Some(twin) = job.look_for_others(redis).await? {
        return job.end_as(&twin);
    }
    let sleep = Duration::try_from_secs_f64(probe.sleep_s).unwrap_or_default();
    let slept = async {
        // A timer of zero waits for the next whole millisecond.
        if !sleep.is_zero() {
            tokio::time::sleep(sleep).await;
        }
    };
    // A probe that was cancelled before it began does not run, however short it is.
    tokio::select! {
        biased;
        () = job.stopped() => return Err(End::Stopped),
        () = slept => {}
    }
    job.was_built();
    match probe.outcome {
        ProbeOutcome::Succeed => Ok(()),
        ProbeOutcome::User => Err(Failure::new(Reason::StepFailed, probe.message).into()),
        ProbeOutcome::Infrastructure => Err(Failure::new(Reason::BuilderUnavailable, probe.message).into()),
        ProbeOutcome::Panic => panic!("{}", probe.message),
    }
}

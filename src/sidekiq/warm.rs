//! Which base images a pod has built, for all workers.

use std::sync::LazyLock;
use std::time::Duration;

use super::keys;
use crate::event::millis;
use crate::redis::{Redis, RedisError, Script};
use crate::warmth::{CLAIM, Warmth, WarmthQuestion, WarmthStep};

static WARM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("warm.lua")));

/// How long a built base image is remembered. By then the pod has most likely been idle for a moment.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers a claim. It may be sent any number of times: a claim finds itself.
pub async fn ask(redis: &Redis, question: &WarmthQuestion) -> Result<Warmth, RedisError> {
    let WarmthQuestion { pod, base, step, claim } = question;
    let (name, lasts) = match step {
        WarmthStep::Claim => ("claim", CLAIM),
        WarmthStep::Done => ("done", REMEMBERED),
        WarmthStep::GiveUp => ("give up", CLAIM),
    };
    let mut script = WARM.key(keys::warm(pod, base));
    script.arg(claim).arg(name).arg(millis(lasts));
    let holder: String = redis.script(&script).await?;
    Ok(match &*holder {
        "warm" => Warmth::Warm,
        holder if holder == claim => Warmth::Cold,
        _ => Warmth::Warming,
    })
}

//! Which base images a pod has built, for all workers.

use std::time::Duration;

use super::keys;
use crate::redis::{Redis, RedisError};
use crate::warmth::{Warmth, WarmthQuestion, WarmthStep};

/// How long a claim lasts whose worker died.
const CLAIM: Duration = Duration::from_secs(60);

/// How long a built base image is remembered. A pod that is older has been idle once.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

const WARM: &str = "warm";

/// Answers for each base image of the question, and remembers what it says.
///
/// It may be sent any number of times: a claim of which the answer was lost ends by itself.
pub async fn ask(redis: &Redis, question: &WarmthQuestion) -> Result<Vec<Warmth>, RedisError> {
    let mut pipeline = redis::pipe();
    for base in &question.bases {
        let key = keys::warm(&question.pod, base);
        match question.step {
            WarmthStep::Begin => {
                pipeline.cmd("SET").arg(&key).arg("warming").arg("NX").arg("PX").arg(millis(CLAIM));
                pipeline.cmd("GET").arg(&key);
            }
            WarmthStep::Done => {
                pipeline.cmd("SET").arg(&key).arg(WARM).arg("PX").arg(millis(REMEMBERED)).ignore();
            }
            WarmthStep::GiveUp => {
                pipeline.cmd("DEL").arg(&key).ignore();
            }
        }
    }
    if question.step != WarmthStep::Begin {
        redis.pipeline::<()>(&pipeline).await?;
        return Ok(Vec::new());
    }
    let answers: Vec<Option<String>> = redis.pipeline(&pipeline).await?;
    let warmth = |answer: &[Option<String>]| match answer {
        [Some(_), _] => Warmth::Cold,
        [None, Some(known)] if known == WARM => Warmth::Warm,
        _ => Warmth::Warming,
    };
    Ok(answers.chunks(2).map(warmth).collect())
}

fn millis(duration: Duration) -> u64 {
    crate::event::millis(duration)
}

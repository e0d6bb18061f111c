//! Twins build once: of jobs with the same inputs that wait or run at once, one is built, and the others get its result.
//!
//! A counter with a limit of 1 (`counter`) keeps twins from running at once, so they wait in their queue, without a slot. When one
//! has ended with a result that another build would repeat, its settlement writes it to `sidebake:twin:<key>`, in the step that frees the
//! counter. A job that was enqueued before that end has the same result. When the one that runs is cancelled, fails for another reason
//! or loses its worker, there is no result, and the next one is built.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::keys;
use super::settlement::Effect;
use super::tenant::{self, Counter};
use crate::json;
use crate::redis::{Redis, RedisError};
use crate::report::SharedResult;

/// Fields of a request that do not change what is built.
const OTHERS: [&str; 5] = ["build_id", "callback", "priority", "supersede", "supersede_key"];

/// Names the inputs of a build.
pub fn key(tenant: &str, mut request: Value) -> String {
    if let Value::Object(fields) = &mut request {
        OTHERS.iter().for_each(|name| drop(fields.shift_remove(*name)));
    }
    request.sort_all_objects();
    tenant::key(tenant, &[&request.to_string()])
}

/// Lets one of a number of twins run at a time.
pub(super) fn counter(key: &str) -> Counter {
    Counter { name: format!("twin {key}"), limit: Some(1) }
}

/// When the last builds with these inputs ended, in microseconds, as far as their results are known.
pub(super) async fn ended(redis: &Redis, twins: &BTreeSet<&str>) -> Result<BTreeMap<String, u64>, RedisError> {
    if twins.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut read = redis::pipe();
    for twin in twins {
        read.cmd("HGET").arg(keys::twin(twin)).arg("ended_us");
    }
    let ended: Vec<Option<u64>> = redis.pipeline(&read).await?;
    Ok(twins.iter().zip(ended).filter_map(|(twin, ended)| Some(((*twin).to_owned(), ended?))).collect())
}

/// The result that a job with these inputs gets, which was enqueued at this time.
pub async fn result(redis: &Redis, twin: &str, queued_us: u64) -> Result<Option<SharedResult>, RedisError> {
    let read = redis::cmd("HMGET").arg(keys::twin(twin)).arg(&["ended_us", "result"]).to_owned();
    let (ended_us, result): (Option<u64>, Option<Vec<u8>>) = redis.query(&read).await?;
    let is_ours = ended_us.is_some_and(|ended_us| queued_us <= ended_us);
    Ok(result.filter(|_| is_ours).and_then(|result| json::read(&result).ok()))
}

/// Keeps a result for the twins of a job, as an effect of its settlement.
pub fn share(twin: &str, result: &SharedResult) -> Effect {
    let result = serde_json::to_string(result).expect("a result is plain data");
    Effect::Share { key: keys::twin(twin), result }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_order_of_fields_and_what_identifies_a_build_make_no_difference() {
        let one = json!({"repository": "a/b", "push": true, "build_id": 1, "callback": {"class": "Done"}, "tags": {"a": 1, "b": 2}});
        let same = json!({"tags": {"b": 2, "a": 1}, "build_id": 2, "push": true, "repository": "a/b", "priority": 7});
        assert_eq!(key("acme", one.clone()), key("acme", same));
        for (field, value) in
            [("push", json!(false)), ("sha", json!("x")), ("tags", json!({"a": 1})), ("ref", json!("r"))]
        {
            let mut other = one.clone();
            other[field] = value;
            assert_ne!(key("acme", one.clone()), key("acme", other), "{field}");
        }
        assert_ne!(key("acme", one.clone()), key("other", one));
    }
}

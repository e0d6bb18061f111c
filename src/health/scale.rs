//! `/scale`: how many workers and shards the waiting and running jobs need.
//!
//! JSON for KEDA and other programs; plain text for people and scripts that ask for `text/plain`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::ACCEPT;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Worker;
use super::page::{NotKnown, Page};
use crate::sidekiq::load::Load;

/// The answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Scale {
    /// Workers like this one that all these jobs need.
    wanted_workers: u64,
    /// Workers with the same queues.
    workers: u64,
    /// Their slots.
    slots: u64,
    /// Jobs that they run.
    running: u64,
    /// Jobs that wait for a slot, as far as the first ones of each queue tell.
    waiting: u64,
    /// Jobs that wait for something else: a limit of their account, an older build of their branch, a paused queue.
    blocked: u64,
    /// Shards that the builds of each builder need.
    wanted_shards: BTreeMap<String, u64>,
}

impl Scale {
    fn new(load: &Load, worker: &Worker) -> Self {
        let n_waiting: u64 = load.queues.values().map(|queue| queue.n_jobs).sum();
        let shards = worker.shard_builds.iter();
        Self {
            wanted_workers: load.wanted_workers(worker.n_slots()),
            workers: load.n_workers,
            slots: load.n_slots,
            running: load.n_running,
            waiting: load.n_ready(),
            blocked: n_waiting - load.n_ready(),
            wanted_shards: shards.map(|(name, n)| (name.clone(), load.wanted_shards(name, *n))).collect(),
        }
    }

    /// One number a line.
    fn text(&self) -> String {
        let Self { wanted_workers, workers, slots, running, waiting, blocked, wanted_shards } = self;
        let mut text = format!(
            "wanted_workers {wanted_workers}\nworkers {workers}\nslots {slots}\nrunning {running}\nwaiting {waiting}\nblocked {blocked}\n"
        );
        for (builder, n_shards) in wanted_shards {
            let _ = writeln!(text, "wanted_shards {builder} {n_shards}");
        }
        text
    }
}

/// Answers a request. 503 when Redis does not answer: an autoscaler then keeps what there is.
pub(super) async fn answer(State(state): State<Arc<(Worker, Page)>>, headers: HeaderMap) -> Response {
    let worker = &state.0;
    let load = match worker.load().await {
        Ok(load) => load,
        Err(NotKnown::NoAnswer) => return unavailable("Redis does not answer\n"),
        Err(NotKnown::Refused) => return unavailable("the load is not known now\n"),
    };
    let scale = Scale::new(&load, worker);
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts.starts_with("text/plain") { scale.text().into_response() } else { Json(scale).into_response() }
}

fn unavailable(why: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
}

impl Worker {
    /// All its slots.
    pub(super) fn n_slots(&self) -> u64 {
        self.capsules.iter().map(|(_, n_slots)| *n_slots as u64).sum()
    }
}

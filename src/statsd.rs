//! StatsD: what Sidekiq Pro's middleware reports of each job, with the tags of DogStatsD.
//!
//! Existing dashboards read these names, so there are no others. Packets are sent without waiting: an agent that is slow or gone
//! costs its metrics and no time.
//!
//! Follows the names and tags in Sidekiq's wiki, "Pro Metrics".

use std::net::UdpSocket;
use std::time::Duration;

use cadence::prelude::*;
use cadence::{BufferedUdpMetricSink, MetricError, StatsdClient};
use tokio_util::sync::CancellationToken;

use crate::settings;

/// Bytes of a packet that every network passes whole.
const PACKET: usize = 1432;

/// How often a packet is sent that is not full.
const PERIOD: Duration = Duration::from_secs(1);

/// The agent cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("statsd.address: {address}: {error}")]
pub struct StatsdError {
    address: String,
    error: MetricError,
}

/// The agent, if there is one.
#[derive(Debug)]
pub struct Statsd(Option<StatsdClient>);

impl Statsd {
    /// Looks up the agent's name.
    pub fn new(settings: &settings::Statsd) -> Result<Self, StatsdError> {
        let Some(address) = &settings.address else { return Ok(Self(None)) };
        let failed = |error| StatsdError { address: address.clone(), error };
        let socket = UdpSocket::bind(if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
        let socket = socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        let socket = socket.map_err(|error| failed(error.into()))?;
        let sink = BufferedUdpMetricSink::with_capacity(address.as_str(), socket, PACKET).map_err(failed)?;
        let client = StatsdClient::builder(&settings.namespace, sink).with_error_handler(|_| {});
        let tagged = settings.tags.iter().fold(client, |client, tag| match tag.split_once(':') {
            Some((name, value)) => client.with_tag(name, value),
            None => client.with_tag_value(tag),
        });
        Ok(Self(Some(tagged.build())))
    }

    /// Reports an attempt that ended.
    pub fn record(&self, class: &str, queue: &str, took: Duration, is_failed: bool) {
        let Some(client) = &self.0 else { return };
        let counted = ["jobs.count", if is_failed { "jobs.failure" } else { "jobs.success" }];
        for name in counted {
            client.count_with_tags(name, 1_u64).with_tag("worker", class).with_tag("queue", queue).send();
        }
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        client.time_with_tags("jobs.perform", millis).with_tag("worker", class).with_tag("queue", queue).send();
        client
            .distribution_with_tags("jobs.perform_dist", millis)
            .with_tag("worker", class)
            .with_tag("queue", queue)
            .send();
    }

    /// Sends packets that are not full, until `ended`.
    pub async fn run(&self, ended: &CancellationToken) {
        let Some(client) = &self.0 else { return };
        while ended.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let _ = client.flush();
        }
        let _ = client.flush();
    }
}

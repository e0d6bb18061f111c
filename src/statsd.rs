//! StatsD: what Sidekiq Pro's middleware reports of each job, with the tags of DogStatsD.
//!
//! Existing dashboards read these names. No other names are sent. Packets are sent without waiting: metrics are dropped while the agent
//! is not there.
//!
//! Follows the names and tags in Sidekiq's wiki, "Pro Metrics".

use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::OnceLock;
use std::time::Duration;

use cadence::prelude::*;
use cadence::{BufferedUdpMetricSink, MetricBuilder, StatsdClient};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::settings;

/// Bytes of a packet that every network passes whole.
const PACKET: usize = 1432;

/// How often a packet is sent that is not full.
const PERIOD: Duration = Duration::from_secs(1);

/// How soon the agent's name is looked up again.
const AGAIN: Duration = Duration::from_secs(30);

/// The agent, if there is one.
#[derive(Debug)]
pub struct Statsd {
    settings: settings::Statsd,
    /// Set when the agent's name was found.
    client: OnceLock<StatsdClient>,
}

impl Statsd {
    /// Sends nothing before [`Statsd::run`] has found the agent.
    pub fn new(settings: settings::Statsd) -> Self {
        Self { settings, client: OnceLock::new() }
    }

    /// Reports an attempt that ended.
    pub fn record(&self, class: &str, queue: &str, took: Duration, is_failed: bool) {
        let Some(client) = self.client.get() else { return };
        let outcome = if is_failed { "jobs.failure" } else { "jobs.success" };
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tagged(client.count_with_tags("jobs.count", 1_u64), class, queue).send();
        tagged(client.count_with_tags(outcome, 1_u64), class, queue).send();
        tagged(client.time_with_tags("jobs.perform", millis), class, queue).send();
        tagged(client.distribution_with_tags("jobs.perform_dist", millis), class, queue).send();
    }

    /// Finds the agent, then sends packets that are not full, until `ended`.
    pub async fn run(&self, ended: &CancellationToken) {
        let Some(address) = &self.settings.address else { return };
        ended.run_until_cancelled(self.find(address)).await;
        let Some(client) = self.client.get() else { return };
        while ended.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            let _ = client.flush();
        }
        let _ = client.flush();
    }

    async fn find(&self, address: &str) {
        let mut is_logged = false;
        loop {
            let settings = self.settings.clone();
            let of = address.to_owned();
            match spawn_blocking(move || client(&of, &settings)).await.expect("a lookup does not panic") {
                Ok(client) => {
                    let _ = self.client.set(client);
                    return;
                }
                Err(error) if !is_logged => {
                    is_logged = true;
                    tracing::warn!(event = "statsd_not_found", address, %error, "the StatsD agent was not found; looking again every 30 s");
                }
                Err(_) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn tagged<'m, 'c: 'm, T>(metric: MetricBuilder<'m, 'c, T>, class: &'m str, queue: &'m str) -> MetricBuilder<'m, 'c, T>
where
    T: cadence::Metric + From<String>,
{
    metric.with_tag("worker", class).with_tag("queue", queue)
}

/// Looks up the agent. Blocks.
fn client(address: &str, settings: &settings::Statsd) -> io::Result<StatsdClient> {
    let agent = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let socket = UdpSocket::bind(if agent.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_nonblocking(true)?;
    let sink = BufferedUdpMetricSink::with_capacity(agent, socket, PACKET).map_err(io::Error::other)?;
    let client = StatsdClient::builder(&settings.namespace, sink).with_error_handler(|_| {});
    let tagged = settings.tags.iter().fold(client, |client, tag| match tag.split_once(':') {
        Some((name, value)) => client.with_tag(name, value),
        None => client.with_tag_value(tag),
    });
    Ok(tagged.build())
}

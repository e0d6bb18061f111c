//! Traces: each attempt at a job as spans of OpenTelemetry, sent to a collector by OTLP over HTTP.
//!
//! An attempt is one span, below the span of Rails that enqueued the job when the job names it. Its children are the wait in the
//! queue, the phases of the build, the steps of BuildKit, and the callback, whose job carries the trace on to Rails. A step is a span
//! made from its events: docker-buildx runs in a sandbox, from which it reaches no collector.
//!
//! Follows W3C Trace Context and OpenTelemetry's conventions for messaging. Spans are dropped while the collector is slow or down;
//! builds never wait.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::clock::Epoch;
use crate::event::{Event, Phase};
use crate::journal::Listener;
use crate::network::{self, ClientError};
use crate::{bounds, settings, text};

/// How long the collector may take for one request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// Certificates or a proxy variable cannot be used.
    #[error(transparent)]
    Http(#[from] ClientError),
    /// The endpoint, or one of OpenTelemetry's variables, is not valid.
    #[error("traces.endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// The fields of a job that carry a trace: `traceparent` and `tracestate`.
pub type Carrier = HashMap<String, String>;

/// The collector, if there is one.
#[derive(Debug, Default)]
pub struct Traces(Option<Tracing>);

#[derive(Debug)]
struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// An attempt that begins.
#[derive(Debug)]
pub struct Begun<'a> {
    /// Its queue.
    pub queue: &'a str,
    /// Its job class.
    pub class: &'a str,
    /// Its jid.
    pub jid: &'a str,
    /// Counts from 1.
    pub attempt: u32,
    /// When it was enqueued.
    pub queued_at: Option<Epoch>,
    /// When it was fetched.
    pub began_at: Epoch,
    /// What the job carries.
    pub carrier: &'a Carrier,
}

/// The trace of one attempt.
#[derive(Debug)]
pub struct Trace {
    tracer: SdkTracer,
    spans: Mutex<Spans>,
}

#[derive(Debug)]
struct Spans {
    /// The attempt.
    attempt: Context,
    /// The phases that have begun and not ended. One may begin within another.
    open: Vec<(Phase, Context)>,
    n_steps: usize,
}

impl Traces {
    /// Sends to the collector of the settings. Needs a runtime.
    pub fn new(settings: &settings::Traces, ca_file: Option<&Path>, identity: &str) -> Result<Self, TracesError> {
        let Some(endpoint) = &settings.endpoint else { return Ok(Self(None)) };
        let client = network::client(ca_file, |client| client.timeout(PATIENCE))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client { client, runtime: Handle::current(), has_failed: AtomicBool::new(false) })
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .build()?;
        let resource = Resource::builder()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", identity.to_owned()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample))))
            .with_resource(resource)
            .build();
        Ok(Self(Some(Tracing { tracer: provider.tracer(env!("CARGO_PKG_NAME")), provider })))
    }

    /// Begins the trace of an attempt; `None` when nothing is sent.
    pub fn begin(&self, begun: &Begun<'_>) -> Option<Arc<Trace>> {
        let tracer = self.0.as_ref()?.tracer.clone();
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), begun.carrier);
        let attributes = [
            KeyValue::new("messaging.system", "sidekiq"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", begun.queue.to_owned()),
            KeyValue::new("messaging.message.id", begun.jid.to_owned()),
            KeyValue::new("sidebake.class", begun.class.to_owned()),
            KeyValue::new("sidebake.attempt", i64::from(begun.attempt)),
        ];
        let attempt = SpanBuilder::from_name(format!("process {}", begun.queue))
            .with_kind(SpanKind::Consumer)
            .with_start_time(time(begun.began_at))
            .with_attributes(attributes);
        let attempt = parent.with_span(tracer.build_with_context(attempt, &parent));
        if let Some(queued_at) = begun.queued_at {
            let queued = SpanBuilder::from_name("queued").with_start_time(time(queued_at));
            let queued = Context::new().with_span(tracer.build_with_context(queued, &attempt));
            queued.span().end_with_timestamp(time(begun.began_at));
        }
        Some(Arc::new(Trace { tracer, spans: Mutex::new(Spans { attempt, open: Vec::new(), n_steps: 0 }) }))
    }

    /// Whether anything is sent.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Sends what is left, as far as the time allows.
    pub async fn finish(&self, within: Duration) {
        let Some(Tracing { provider, .. }) = &self.0 else { return };
        let provider = provider.clone();
        let _ = spawn_blocking(move || provider.shutdown_with_timeout(within)).await;
    }
}

impl Trace {
    /// Begins the span of a callback that is pushed now, and returns what its job carries.
    pub fn callback(&self, class: &str, queue: &str) -> Carrier {
        let attributes = [
            KeyValue::new("messaging.system", "sidekiq"),
            KeyValue::new("messaging.operation.name", "send"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("sidebake.class", class.to_owned()),
            KeyValue::new("messaging.destination.name", queue.to_owned()),
        ];
        let span = SpanBuilder::from_name(format!("send {queue}"));
        let span = span.with_kind(SpanKind::Producer).with_attributes(attributes);
        let attempt = self.spans().attempt.clone();
        let callback = attempt.with_span(self.tracer.build_with_context(span, &attempt));
        callback.span().end();
        let mut carrier = Carrier::new();
        TraceContextPropagator::new().inject_context(&callback, &mut carrier);
        carrier.retain(|_, value| !value.is_empty());
        carrier
    }

    fn spans(&self) -> MutexGuard<'_, Spans> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spans {
    /// The span in which something happens now.
    fn present(&self) -> Context {
        self.open.last().map_or(&self.attempt, |(_, context)| context).clone()
    }
}

impl Listener for Trace {
    fn on_event(&self, event: &Event) {
        let mut spans = self.spans();
        match event {
            Event::PhaseStarted(phase) => {
                let parent = spans.present();
                let span = self.tracer.build_with_context(SpanBuilder::from_name(phase.name()), &parent);
                spans.open.push((*phase, parent.with_span(span)));
            }
            Event::PhaseEnded(phase, _) => {
                spans.open.extract_if(.., |(open, _)| open == phase).for_each(|(_, context)| context.span().end());
            }
            Event::StepEnded { step, is_cached, took, error } => {
                spans.n_steps += 1;
                if spans.n_steps > bounds::TRACED_STEPS {
                    return;
                }
                let began_at = time(Epoch::now()).checked_sub(*took).unwrap_or(UNIX_EPOCH);
                let span = SpanBuilder::from_name(step.title()).with_start_time(began_at);
                let span = span.with_attributes([KeyValue::new("sidebake.cached", *is_cached)]);
                let context = Context::new().with_span(self.tracer.build_with_context(span, &spans.present()));
                if let Some(error) = error {
                    context.span().set_status(Status::error(text::clip(error, bounds::MESSAGE).into_owned()));
                }
                context.span().end();
            }
            Event::Commit { account, repository, sha, .. } => {
                let span = spans.attempt.span();
                span.set_attribute(KeyValue::new("sidebake.account", account.clone()));
                span.set_attribute(KeyValue::new("vcs.repository.name", repository.clone()));
                span.set_attribute(KeyValue::new("vcs.ref.head.revision", sha.clone()));
            }
            Event::Placed(placement) => {
                let span = spans.attempt.span();
                span.set_attribute(KeyValue::new("sidebake.builder", placement.builder.clone()));
                if let Some(pod) = &placement.pod {
                    span.set_attribute(KeyValue::new("k8s.pod.name", pod.clone()));
                }
            }
            Event::PodLost { .. } => spans.attempt.span().add_event("pod lost", Vec::new()),
            Event::Ended { reason, message, .. } => {
                let span = spans.attempt.span();
                if let Some(reason) = reason {
                    span.set_attribute(KeyValue::new("error.type", reason.name()));
                    span.set_status(Status::error(message.clone().unwrap_or_default()));
                }
                let n_left_out = spans.n_steps.saturating_sub(bounds::TRACED_STEPS);
                if n_left_out > 0 {
                    span.set_attribute(KeyValue::new("sidebake.steps_left_out", n_left_out as i64));
                }
            }
            _ => {}
        }
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        self.open.drain(..).rev().for_each(|(_, context)| context.span().end());
        self.attempt.span().end();
    }
}

fn time(epoch: Epoch) -> SystemTime {
    UNIX_EPOCH + epoch.since(Epoch::default())
}

/// The worker's own HTTP client, with its proxies and certificates. Its requests run on the worker's runtime: spans are exported from a
/// thread without one.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
    has_failed: AtomicBool,
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (client, request) = (self.client.clone(), reqwest::Request::try_from(request)?);
        let sent = self.runtime.spawn(async move {
            let answer = client.execute(request).await?;
            // The exporter decides by status and headers whether to try again. The body is ignored.
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = answer.status();
            *response.headers_mut() = answer.headers().clone();
            Ok::<_, reqwest::Error>(response)
        });
        let answer = sent.await?.map_err(reqwest::Error::without_url);
        let error = match &answer {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(response.status().to_string()),
            Err(error) => Some(network::explain(error)),
        };
        let had_failed = self.has_failed.swap(error.is_some(), Ordering::Relaxed);
        if let Some(error) = error.filter(|_| !had_failed) {
            tracing::warn!(
                event = "traces_not_sent",
                error,
                "the collector does not take traces; builds go on without them"
            );
        }
        Ok(answer?)
    }
}

//! The trace of a real build, as a collector of OpenTelemetry's traces receives it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use world::wait_for_within;

use crate::harness::{Harness, PATIENCE};
use crate::peer::made;

/// A collector that prints what it receives, and ends with this value.
struct Collector {
    process: Child,
    output: PathBuf,
    endpoint: String,
}

/// A span, as it was received.
#[derive(Debug, Default)]
struct Span {
    trace: String,
    parent: String,
    id: String,
    name: String,
    kind: String,
    status: String,
    attributes: BTreeMap<String, String>,
}

impl Collector {
    async fn start(directory: &Path) -> Self {
        let (http, grpc, output) = (world::free_port(), world::free_port(), directory.join("collector"));
        let mut command = Command::new(made("rotel"));
        command.args([
            "start",
            "--exporter",
            "blackhole",
            "--debug-log",
            "traces",
            "--debug-log-verbosity",
            "detailed",
        ]);
        for (name, port) in [("--otlp-http-endpoint", http), ("--otlp-grpc-endpoint", grpc)] {
            command.arg(name).arg(format!("127.0.0.1:{port}"));
        }
        command.stdin(Stdio::null()).stdout(std::fs::File::create(&output).unwrap()).stderr(Stdio::null());
        let collector =
            Self { process: command.spawn().unwrap(), output, endpoint: format!("http://127.0.0.1:{http}") };
        let listens = || std::net::TcpStream::connect(format!("127.0.0.1:{http}")).is_ok();
        wait_for_within(PATIENCE, "the collector", listens).await;
        collector
    }

    fn spans(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for line in std::fs::read_to_string(&self.output).unwrap().lines().map(str::trim) {
            if line.starts_with("Span #") {
                spans.push(Span::default());
            }
            let Some(span) = spans.last_mut() else { continue };
            if let Some((name, value)) = line.strip_prefix("-> ").and_then(|line| line.split_once(": ")) {
                let value = value.split_once('(').map_or(value, |(_, value)| value.trim_end_matches(')'));
                span.attributes.insert(name.to_owned(), value.to_owned());
            } else if let Some((name, value)) = line.split_once(": ") {
                let field = match name.trim() {
                    "Trace ID" => &mut span.trace,
                    "Parent ID" => &mut span.parent,
                    "ID" => &mut span.id,
                    "Name" => &mut span.name,
                    "Kind" => &mut span.kind,
                    "Status code" => &mut span.status,
                    _ => continue,
                };
                value.clone_into(field);
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_one_trace_from_rails_to_its_steps_and_its_callback() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let harness = Harness::open();
    let collector = Collector::start(harness.home.path()).await;
    let dockerfile = harness.dockerfile("RUN echo one > /one\nRUN echo to stop; exit 3");
    let sha = harness.commit("traced", &[("web/Dockerfile", &dockerfile)]);
    let image = json!({"name": "web", "context": "./web", "tags": [harness.reference("web", "1")]});
    let worker = harness.worker(&format!("[traces]\nendpoint = \"{}\"", collector.endpoint));
    let request = world::build_request("acme/traced", &sha, &[image]);
    let now_ms = jiff::Timestamp::now().as_millisecond();
    let job = json!({
        "retry": true, "queue": "default", "class": "BuildJob", "args": [request], "jid": "0123456789abcdef01234567",
        "created_at": now_ms, "enqueued_at": now_ms, "traceparent": format!("00-{TRACE}-00f067aa0ba902b7-01"),
    });
    harness.redis.push_raw("default", job.to_string()).await;
    let callback = harness.callback_jobs(1).await.remove(0);

    let arrives = || collector.spans().iter().any(|span| span.name == "process default");
    wait_for_within(PATIENCE, "the trace", arrives).await;
    let spans = collector.spans();
    let of = |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:#?}"));
    assert!(spans.iter().all(|span| span.trace == TRACE), "{spans:#?}");
    let attempt = of("process default");
    assert_eq!((attempt.parent.as_str(), attempt.kind.as_str()), ("00f067aa0ba902b7", "SPAN_KIND_CONSUMER"));
    for (name, value) in [
        ("messaging.destination.name", "default"),
        ("messaging.message.id", "0123456789abcdef01234567"),
        ("sidebake.account", "acme"),
        ("vcs.ref.head.revision", &sha),
        ("error.type", "step_failed"),
    ] {
        assert_eq!(attempt.attributes.get(name).map(String::as_str), Some(value), "{name}: {attempt:#?}");
    }
    for phase in ["queued", "token", "fetch", "checkout", "bake"] {
        assert_eq!(of(phase).parent, attempt.id, "{phase}");
    }
    let step = |text: &str| spans.iter().find(|span| span.name.contains(text)).unwrap_or_else(|| panic!("{spans:#?}"));
    assert_eq!(step("RUN echo one").parent, of("bake").id);
    assert_eq!(step("exit 3").status, "STATUS_CODE_ERROR");
    let sent = spans.iter().find(|span| span.kind == "SPAN_KIND_PRODUCER").unwrap();
    assert_eq!(sent.parent, attempt.id);
    assert_eq!(callback["traceparent"], format!("00-{TRACE}-{}-01", sent.id), "{callback:#}");
    drop(worker);
}

//! The two connections to Rails: the resolver, which returns a build request by its id, and the job that reports the result.
//!
//! Owns the signature of the request and the form of the callback job. Knows nothing of builds.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::body::{self, BodyError, TooLong};
use crate::bounds;
use crate::clock::Epoch;
use crate::job::Callback;
use crate::job::arguments::RequestFrom;
use crate::network::{self, ClientError, Unreachable};
use crate::reason::{HasReason, Reason};
use crate::report::Report;
use crate::secret::Secret;
use crate::secret_file::{self, SecretError};
use crate::settings::{Resolve, Timestamps};
use crate::{hex, json};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Rails did not return a build request.
#[derive(Debug, thiserror::Error)]
pub enum RailsError {
    /// Rails answered that the build no longer exists.
    #[error("{url} answered {status}")]
    Gone {
        /// What was asked.
        url: String,
        /// 404 or 410.
        status: StatusCode,
    },
    /// Rails refuses our signature.
    #[error("{url} refused the signature: {status}")]
    Refused {
        /// What was asked.
        url: String,
        /// 401 or 403.
        status: StatusCode,
    },
    /// The shared secret cannot be read.
    #[error("the resolver's shared secret: {0}")]
    Secret(#[from] SecretError),
    /// Rails cannot be reached in time.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// An answer that is longer than allowed.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// The answer is not a build request: another status, or not JSON.
    #[error("{url} {what}")]
    Nonsense {
        /// What was asked.
        url: String,
        /// What it did, such as `answered 500`.
        what: String,
    },
}

impl HasReason for RailsError {
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Gone { .. } => Reason::Gone,
            Self::Refused { .. } | Self::Secret(_) => Reason::ResolverRefused,
            Self::Unreachable(_) | Self::TooLong(_) | Self::Nonsense { .. } => Reason::ResolverUnavailable,
        })
    }
}

/// Asks Rails for build requests.
#[derive(Clone, Debug)]
pub struct Resolver {
    http: reqwest::Client,
}

impl Resolver {
    /// A client that follows no redirects and waits 10 s for an answer.
    ///
    /// # Errors
    ///
    /// When `ca_file` cannot be used.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, ClientError> {
        // Rails may close an idle connection at the moment of the next request, which would count as a failed attempt.
        let http = network::client(ca_file, |client| client.timeout(TIMEOUT).pool_max_idle_per_host(0))?;
        Ok(Self { http })
    }

    /// The build request of a job: from its arguments, or from Rails.
    pub async fn build_request(&self, from: RequestFrom<'_>) -> Result<Value, RailsError> {
        match from {
            RequestFrom::Arguments(request) => Ok(request),
            RequestFrom::Rails { resolve, url } => self.ask(resolve, &url).await,
        }
    }

    /// The build request at `url`, at most 1 MiB. The request has a signature.
    async fn ask(&self, resolve: &Resolve, url: &str) -> Result<Value, RailsError> {
        let nonsense = |what: String| RailsError::Nonsense { url: url.to_owned(), what };
        let secret = secret(resolve)?;
        let target = reqwest::Url::parse(url).map_err(|error| nonsense(format!("is not a valid URL: {error}")))?;
        let date = http_date();
        let signature = signature(&secret, &target, &date);
        let request = self.http.get(target).header("date", &date).header("x-sidebake-signature", signature);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(Unreachable::new(url, &error.without_url()).with_refusal().await.into()),
        };
        match answer.status() {
            StatusCode::OK => {}
            status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                return Err(RailsError::Gone { url: url.into(), status });
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(RailsError::Refused { url: url.into(), status });
            }
            status => return Err(nonsense(format!("answered {status}"))),
        }
        let body = body::read(answer, url, bounds::RESOLVED).await.map_err(|error| match error {
            BodyError::TooLong(too_long) => RailsError::TooLong(too_long),
            BodyError::Broken(error) => Unreachable::new(url, &error.without_url()).into(),
        })?;
        json::read(&body).map_err(|error| nonsense(format!("did not answer with valid JSON: {error}")))
    }
}

fn secret(resolve: &Resolve) -> Result<Secret, RailsError> {
    let source = resolve.secret().expect("the settings are checked");
    Ok(secret_file::read(&source)?)
}

/// `v1=` and the hexadecimal HMAC-SHA256 of `GET`, path with query, and date, joined by newlines.
fn signature(secret: &Secret, url: &reqwest::Url, date: &str) -> String {
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes()).expect("a key of any length will do");
    mac.update(format!("GET\n{}{query}\n{date}", url.path()).as_bytes());
    format!("v1={}", hex::encode(mac.finalize().into_bytes()))
}

/// The current time as an HTTP `Date` (RFC 9110).
fn http_date() -> String {
    let now = Epoch::now().timestamp();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now).expect("the present is in range")
}

/// The Sidekiq job that notifies Rails of a moment, as text; `None` when the job does not ask for that moment.
///
/// Its jid derives from the text of the build's job and the moment, so a repeated job is recognizable. It always has `retry: true`:
/// without the field, a failure before the class is loaded would drop the job. `trace` returns the fields by which the trace goes
/// on, as OpenTelemetry's client for Sidekiq writes them.
pub fn callback_job(
    callback: &Callback,
    report: &Report,
    fetched_text: &[u8],
    now: Epoch,
    timestamps: Timestamps,
    trace: impl FnOnce() -> HashMap<String, String>,
) -> Option<String> {
    if !callback.wants(report.moment) {
        return None;
    }
    let report = if callback.active_job { report.to_json_as(with_symbol_marks) } else { report.to_json() };
    let jid = callback_jid(fetched_text, report["moment"].as_str().unwrap_or_default());
    let mut job = json!({
        "retry": true, "queue": callback.queue, "class": callback.class, "args": [report], "jid": jid,
        "created_at": now.json(timestamps), "enqueued_at": now.json(timestamps),
    });
    if callback.active_job {
        job["class"] = json!("ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper");
        job["wrapped"] = json!(callback.class);
        job["args"] = json!([active_job(callback, &jid, job["args"][0].take(), fetched_text, now)]);
    }
    for (name, value) in trace() {
        job[name] = json!(value);
    }
    Some(job.to_string())
}

/// Active Job's envelope of a report with its marks. All versions of Sidekiq accept the old name of the outer wrapper.
///
/// Locale and time zone are those of the build's job, where it has an envelope. Rails takes its own default for one that is absent. The
/// application may not have a locale that the worker picks. Then Rails never runs the job.
fn active_job(callback: &Callback, jid: &str, report: Value, fetched_text: &[u8], now: Epoch) -> Value {
    let mut envelope = json!({
        "job_class": callback.class, "job_id": uuid_of(jid), "provider_job_id": null, "queue_name": callback.queue,
        "priority": null, "arguments": [report], "executions": 0, "exception_executions": {},
        "enqueued_at": now.timestamp().to_string(), "scheduled_at": null,
    });
    let text = String::from_utf8_lossy(fetched_text);
    if json::pointer(&text, "/wrapped").is_some() {
        for name in ["locale", "timezone"] {
            let value = json::pointer(&text, &format!("/args/0/{name}"))
                .and_then(|raw| json::read::<String>(raw.as_bytes()).ok());
            if let Some(value) = value.filter(|value| value.len() <= bounds::NAME) {
                envelope[name] = json!(value);
            }
        }
    }
    envelope
}

/// Adds the marks that Active Job requires: the keys of each hash that were symbols. None of ours were.
fn with_symbol_marks(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut marked: serde_json::Map<_, _> =
                fields.into_iter().map(|(name, value)| (name, with_symbol_marks(value))).collect();
            marked.insert("_aj_symbol_keys".into(), json!([]));
            Value::Object(marked)
        }
        Value::Array(values) => values.into_iter().map(with_symbol_marks).collect(),
        scalar => scalar,
    }
}

/// The first 24 hexadecimal digits of the SHA-256 of the fetched text and the moment.
fn callback_jid(fetched_text: &[u8], moment: &str) -> String {
    let digest = Sha256::new().chain_update(fetched_text).chain_update(moment).finalize();
    hex::encode(&digest[..12])
}

/// A jid in the form of a UUID (RFC 9562, version 8: a custom rule).
fn uuid_of(jid: &str) -> String {
    let digits = hex::encode(Sha256::digest(jid));
    format!("{}-{}-8{}-a{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Moment;

    fn callback(active_job: bool) -> Callback {
        Callback { class: "BuildFinishedJob".into(), queue: "default".into(), on: vec![Moment::Finished], active_job }
    }

    fn text_of(callback: &Callback, report: &Report) -> Option<String> {
        callback_job(callback, report, b"text", Epoch::from_secs_f64(1.0), Timestamps::Milliseconds, HashMap::new)
    }

    #[test]
    fn the_signature_covers_method_path_query_and_date() {
        let url = reqwest::Url::parse("https://rails.example/builds/4711?x=1").expect("a URL");
        let signed = signature(&Secret::new("s3cret"), &url, "Tue, 24 Nov 2026 12:00:00 GMT");
        // printf 'GET\n/builds/4711?x=1\nTue, 24 Nov 2026 12:00:00 GMT' | openssl dgst -sha256 -hmac s3cret
        assert_eq!(signed, "v1=fc53b261764a721fd0abd0e26184cc50807bb0e6bf4d9e9ce4325aa7f5973df7");
    }

    #[test]
    fn a_callback_has_what_sidekiq_needs_and_the_same_jid_each_time() {
        let report = Report { jid: "abc".into(), ..Report::default() };
        let text = text_of(&callback(false), &report).expect("asked for");
        assert_eq!(Some(&text), text_of(&callback(false), &report).as_ref());
        let job: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(job["class"], "BuildFinishedJob");
        assert_eq!((&job["retry"], &job["created_at"]), (&json!(true), &json!(1000)));
        assert_eq!(job["args"][0]["jid"], "abc");
        assert_eq!(job["jid"].as_str().map(str::len), Some(24));
        assert_eq!(text_of(&callback(false), &Report { moment: Moment::Started, ..report }), None);
    }

    #[test]
    fn an_active_job_callback_is_wrapped() {
        let text = text_of(&callback(true), &Report::default()).expect("asked for");
        let job: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(job["class"], "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper");
        assert_eq!(
            (&job["wrapped"], &job["args"][0]["job_class"]),
            (&json!("BuildFinishedJob"), &json!("BuildFinishedJob"))
        );
        assert_eq!(job["args"][0]["arguments"][0]["_aj_symbol_keys"], json!([]));
        assert_eq!(job["args"][0].get("locale"), None, "Rails takes its own");

        let own = br#"{"wrapped":"BuildJob","args":[{"locale":"lt","timezone":"Europe/Vilnius","arguments":[]}]}"#;
        let at = Epoch::from_secs_f64(1.0);
        let text = callback_job(&callback(true), &Report::default(), own, at, Timestamps::Milliseconds, HashMap::new);
        let job: Value = serde_json::from_str(&text.expect("asked for")).expect("JSON");
        assert_eq!((&job["args"][0]["locale"], &job["args"][0]["timezone"]), (&json!("lt"), &json!("Europe/Vilnius")));
        assert_eq!(job["args"][0]["job_id"].as_str().map(str::len), Some(36));
    }

    #[test]
    fn a_report_is_bounded_with_the_marks_that_active_job_wants() {
        // 64 KiB are echoed at most; each of these objects gets a mark of 22 bytes.
        let echo = json!({"whole": vec![json!({}); 20_000]}).as_object().cloned().expect("an object");
        let report = Report { message: Some("x".repeat(2000)), echo, ..Report::default() };
        assert!(report.to_json().to_string().len() < bounds::REPORT);
        let text = text_of(&callback(true), &report).expect("asked for");
        let job: Value = serde_json::from_str(&text).expect("JSON");
        let argument = &job["args"][0]["arguments"][0];
        assert!(argument.to_string().len() <= bounds::REPORT, "{} bytes", argument.to_string().len());
        assert_eq!((&argument["whole"], &argument["moment"]), (&Value::Null, &json!("finished")));
    }
}

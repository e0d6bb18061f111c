//! A job's text: reads it, and edits it without encoding the rest again.
//!
//! Each field keeps its text, so unknown fields, big integers and the form of floats survive retries and death. What goes
//! back to Redis is in a form that Sidekiq can show (`shown`). Follows Sidekiq's job format (6.4 to 8.1) and Active Job's
//! envelope.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniz_oxide::deflate::compress_to_vec_zlib;
use serde_json::Value;

use super::fields::{Fields, is_integer};
use super::shown;
use crate::clock::Epoch;
use crate::job::arguments::Arguments;
use crate::reason::{Failure, Reason};
use crate::settings::Timestamps;
use crate::{bounds, hex, json};

/// A text that is not a job.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON.
    #[error("the job is not a JSON object: {0}")]
    NotJson(serde_json::Error),
    /// It is JSON, but not an object.
    #[error("the job is not a JSON object")]
    NotAnObject,
    /// It has too many fields: they would take many times the memory of their text.
    #[error("the job has more than {} fields", bounds::FIELDS)]
    TooManyFields,
    /// `class` is missing, or not a name that fits into a key, a log line and a page.
    #[error("the job has no class with a valid name")]
    NoClass,
    /// `args` is not an array.
    #[error("args: expected an array")]
    Args,
}

/// A job as Sidekiq writes it.
#[derive(Debug)]
pub struct Payload {
    fields: Fields,
    /// The text, without its envelope.
    original: Arc<[u8]>,
    /// Why Sidekiq cannot show it; empty until the first question.
    flaw: OnceLock<Option<String>>,
    /// The Ruby class of the job; for Active Job the wrapped class.
    pub class: String,
    /// The jid; empty when the job has none that fits into a key and a page.
    pub jid: String,
}

/// The `retry` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryRule {
    /// `false`: dropped at the first failure, without an entry in the dead set.
    Never,
    /// `true`, absent, or not an integer: as many times as the configuration says.
    Default,
    /// So many times.
    Times(u32),
}

/// The prefix of the names that Active Job adds to hashes, such as `_aj_symbol_keys`.
const MARKS: &str = "_aj_";

/// Fields that Ruby's client writes into every job, and would add to one without them.
const MADE_BY_CLIENTS: [&str; 6] = ["class", "args", "jid", "queue", "retry", "created_at"];

/// Fields that open-source Sidekiq (6.4 to 8.1) reads or writes. A lock, a batch or encryption has fields beside these.
const OF_SIDEKIQ: [&str; 24] = [
    "args",
    "backtrace",
    "cattr",
    "class",
    "created_at",
    "dead",
    "display_class",
    "enqueued_at",
    "error_backtrace",
    "error_class",
    "error_message",
    "failed_at",
    "jid",
    "locale",
    "log_level",
    "profile",
    "queue",
    "retried_at",
    "retry",
    "retry_count",
    "retry_for",
    "retry_queue",
    "tags",
    "wrapped",
];

/// The default level of Ruby's `Zlib::Deflate.deflate`.
const LEVEL: u8 = 6;

impl Payload {
    /// Reads a job's text, with or without an envelope. Replaces bytes that are not UTF-8, as Ruby's Web UI does.
    pub fn parse(text: &[u8]) -> Result<Self, PayloadError> {
        Self::of(shown::opened(text).into())
    }

    /// The same for a shared text, which is kept without a copy.
    pub fn parse_shared(text: &Arc<[u8]>) -> Result<Self, PayloadError> {
        Self::of(match shown::opened(text) {
            Cow::Borrowed(_) => Arc::clone(text),
            Cow::Owned(opened) => opened.into(),
        })
    }

    fn of(original: Arc<[u8]>) -> Result<Self, PayloadError> {
        let readable = String::from_utf8_lossy(&original);
        json::is_json(&readable).map_err(PayloadError::NotJson)?;
        let fields = Fields::of(&readable).ok_or_else(|| match readable.trim_start().starts_with('{') {
            true => PayloadError::TooManyFields,
            false => PayloadError::NotAnObject,
        })?;
        let class = fields.string("class").filter(|class| shown::is_name(class)).ok_or(PayloadError::NoClass)?;
        let jid = fields.string("jid").filter(|jid| shown::is_name(jid)).unwrap_or_default();
        let mut payload = Self { fields, original, flaw: OnceLock::new(), class, jid };
        if payload.is_active_job() {
            payload.class = payload.wrapped_class().ok_or(PayloadError::NoClass)?;
        }
        Ok(payload)
    }

    /// The arguments of the job class. For Active Job these are the inner `arguments`.
    pub fn arguments(&self) -> Result<Arguments, PayloadError> {
        let args = self.fields.raw("args").unwrap_or_default();
        let (args, marks) = match self.is_active_job() {
            true => (json::pointer(args, "/0/arguments").unwrap_or_default(), Some(MARKS)),
            false => (args, None),
        };
        if !args.starts_with('[') {
            return Err(PayloadError::Args);
        }
        Ok(Arguments::new(args, marks))
    }

    /// Why Sidekiq cannot show the job; `None` when it can. A job with a flaw is neither run nor retried.
    pub fn flaw(&self) -> Option<&str> {
        self.flaw.get_or_init(|| shown::flaw(&self.readable(), &self.fields, &self.class)).as_deref()
    }

    /// The `retry` field.
    pub fn retry_rule(&self) -> RetryRule {
        match self.fields.raw("retry") {
            Some("false") => RetryRule::Never,
            Some(text) if is_integer(text) => {
                // Ruby's integers have any size.
                let n = if text.starts_with('-') { 0 } else { text.parse().unwrap_or(u32::MAX) };
                RetryRule::Times(n)
            }
            _ => RetryRule::Default,
        }
    }

    /// How long after its first failure the job may be retried any number of times; from Sidekiq 7.1.3 on.
    pub fn retry_for(&self) -> Option<Duration> {
        let seconds: f64 = self.fields.read("retry_for")?;
        Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    }

    /// When the job expires; Sidekiq Pro's `expires_in`.
    pub fn expiry(&self) -> Option<Epoch> {
        self.fields.timestamp("expiry")
    }

    /// The form of the job's times: that of the first one it has.
    pub fn timestamps(&self) -> Option<Timestamps> {
        let mut times = ["created_at", "enqueued_at", "failed_at"].into_iter().filter_map(|name| self.fields.raw(name));
        times
            .find(|text| text.starts_with(|c: char| c == '-' || c.is_ascii_digit()))
            .map(|text| if is_integer(text) { Timestamps::Milliseconds } else { Timestamps::Seconds })
    }

    /// How often the job has failed before: 0 for a first attempt.
    pub fn n_failures(&self) -> u32 {
        let count = self.fields.read::<i64>("retry_count");
        count.map_or(0, |count| u32::try_from(count.saturating_add(1)).unwrap_or(0))
    }

    /// When the job failed for the first time.
    pub fn failed_at(&self) -> Option<Epoch> {
        self.fields.timestamp("failed_at")
    }

    /// When the job was enqueued, by the client's clock.
    pub fn enqueued_at(&self) -> Option<Epoch> {
        self.fields.timestamp("enqueued_at").or_else(|| self.fields.timestamp("created_at"))
    }

    /// The trace in which the job was enqueued, in the fields of W3C Trace Context: those that OpenTelemetry's client writes into the
    /// job, or Sentry's.
    pub fn trace(&self) -> HashMap<String, String> {
        let state = self.fields.string("tracestate").filter(|state| state.len() <= bounds::TRACE_STATE);
        let mut parent = self.fields.string("traceparent");
        if parent.is_none() {
            let sentry: HashMap<String, String> = self.fields.read("trace_propagation_headers").unwrap_or_default();
            let own = || sentry.get("sentry-trace").and_then(|header| traceparent(header));
            parent = sentry.get("traceparent").cloned().or_else(own);
        }
        let Some(parent) = parent.filter(|parent| is_traceparent(parent)) else { return HashMap::new() };
        let fields = [("traceparent", Some(parent)), ("tracestate", state)];
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// When Rails created the job, by the client's clock. A retry keeps it.
    pub fn created_at(&self) -> Option<Epoch> {
        self.fields.timestamp("created_at")
    }

    /// Whether an exhausted job moves to the dead set.
    pub fn may_die(&self) -> bool {
        self.fields.read::<bool>("dead") != Some(false)
    }

    /// The queue that the job names, if it is a valid name. The queue that it is fetched from takes precedence.
    pub fn queue(&self) -> Option<String> {
        self.fields.string("queue").filter(|queue| shown::is_name(queue))
    }

    /// The text of the job after a failed attempt from `queue`, as Sidekiq's `JobRetry` writes it. A job with a flaw is put into
    /// an envelope. `unless_known` is the form of the times of a job that has none.
    pub fn after_failure(&self, queue: &str, failure: &Failure, now: Epoch, unless_known: Timestamps) -> Vec<u8> {
        let form = self.timestamps().unwrap_or(unless_known);
        if self.flaw().is_some() {
            return shown::envelope(&self.original, &self.jid, queue, failure, now, form);
        }
        let mut fields = self.presentable();
        let queue = fields.string("retry_queue").unwrap_or_else(|| queue.to_owned());
        fields.set("queue", &queue);
        fields.set("error_message", &failure.detail);
        fields.set("error_class", &shown::error_class(failure));
        let time = now.json(form);
        if fields.raw("failed_at").is_none() {
            fields.set("failed_at", &time);
        }
        if fields.raw("retry_count").is_some() {
            fields.set("retried_at", &time);
            fields.set("retry_count", &self.n_failures());
        } else {
            fields.set("failed_at", &time);
            fields.set("retry_count", &0);
        }
        if let Some(n_lines) = self.backtrace() {
            fields.set("error_backtrace", &compress(&trace(failure, n_lines)));
        }
        fields.text().into_bytes()
    }

    /// The text of the job for its move from the retry set or the schedule to `queue`.
    pub fn enqueued(&self, queue: &str, now: Epoch, unless_known: Timestamps) -> Vec<u8> {
        let form = self.timestamps().unwrap_or(unless_known);
        if let Some(flaw) = self.flaw() {
            let failure = Failure::new(Reason::InvalidArguments, flaw);
            return shown::envelope(&self.original, &self.jid, queue, &failure, now, form);
        }
        let mut fields = self.presentable();
        fields.set("queue", &queue);
        fields.set("enqueued_at", &now.json(form));
        fields.text().into_bytes()
    }

    /// The text of a due job of another class, as Ruby's poller pushes it: only `enqueued_at` changes. `None` for a job to which Ruby
    /// would add more, and for one that sidebake cannot carry as it is.
    pub fn enqueued_for_ruby(&self, member: &[u8], now: Epoch) -> Option<Vec<u8>> {
        let is_as_written = *self.original == *member && str::from_utf8(member).is_ok();
        let is_complete = MADE_BY_CLIENTS.iter().all(|name| self.fields.raw(name).is_some()) && !self.jid.is_empty();
        // Ruby's client would put it back into the schedule.
        let has_time = self.fields.raw("at").is_some();
        if !is_as_written || !is_complete || has_time || self.flaw().is_some() || self.expected() != self.fields {
            return None;
        }
        let mut fields = self.fields.clone();
        fields.set("enqueued_at", &now.json(self.timestamps()?));
        Some(fields.text().into_bytes())
    }

    /// Whether every field is Sidekiq's own, so that no client middleware has left anything in the job.
    pub fn is_plain(&self) -> bool {
        self.fields.names().all(|name| OF_SIDEKIQ.contains(&name) || name.starts_with("cattr_"))
    }

    /// The text of the running job in a form that Sidekiq can show.
    pub(super) fn shown(&self, queue: &str, now: Epoch) -> String {
        let form = self.timestamps().unwrap_or(Timestamps::Milliseconds);
        if let Some(flaw) = self.flaw() {
            let failure = Failure::new(Reason::InvalidArguments, flaw);
            let envelope = shown::envelope(&self.original, &self.jid, queue, &failure, now, form);
            return String::from_utf8_lossy(&envelope).into_owned();
        }
        let fields = self.expected();
        if fields == self.fields { self.readable().into_owned() } else { fields.text() }
    }

    /// The fields, as Sidekiq expects them.
    fn expected(&self) -> Fields {
        let mut fields = self.fields.clone();
        shown::set_aside(&mut fields);
        // Without `wrapped`, Sidekiq shows the whole argument instead of the class, and unescaped.
        if self.is_active_job() && fields.string("wrapped").is_none() {
            fields.set("wrapped", &self.class);
        }
        fields
    }

    /// The same, with a jid, and with the original text if some of its bytes are not UTF-8.
    fn presentable(&self) -> Fields {
        let mut fields = self.expected();
        shown::keep_original(&mut fields, &self.original);
        if fields.raw("jid").is_none() {
            fields.set("jid", &hex::random::<12>());
        }
        fields
    }

    fn readable(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.original)
    }

    /// How many lines of an error's backtrace the job keeps; `None` when it keeps none.
    fn backtrace(&self) -> Option<usize> {
        match self.fields.read::<Value>("backtrace")? {
            Value::Null | Value::Bool(false) => None,
            Value::Number(number) => Some(usize::try_from(number.as_u64().unwrap_or(0)).unwrap_or(usize::MAX)),
            Value::String(text) => Some(text.parse().unwrap_or(0)),
            _ => Some(usize::MAX),
        }
    }

    fn is_active_job(&self) -> bool {
        self.fields.string("class").is_some_and(|class| shown::WRAPPERS.contains(&class.as_str()))
    }

    fn wrapped_class(&self) -> Option<String> {
        let inner = || json::read(json::pointer(self.fields.raw("args")?, "/0/job_class")?.as_bytes()).ok();
        self.fields.string("wrapped").or_else(inner).filter(|class| shown::is_name(class))
    }
}

/// The text of a running job in a form that Sidekiq's pages can show.
pub(super) fn running(text: &[u8], queue: &str, now: Epoch) -> String {
    match Payload::parse(text) {
        Ok(payload) => payload.shown(queue, now),
        Err(error) => {
            let failure = Failure::new(Reason::InvalidArguments, error.to_string());
            let envelope = shown::envelope(text, "", queue, &failure, now, Timestamps::Milliseconds);
            String::from_utf8_lossy(&envelope).into_owned()
        }
    }
}

/// The lines that Ruby fills with its stack: the reason with its sentence, then the detail of the failure.
///
/// Sidekiq's Web UI does not escape these lines, so this does.
fn trace(failure: &Failure, n_lines: usize) -> Vec<String> {
    let first = format!("{}: {}", failure.reason, failure.reason.sentence());
    std::iter::once(first.as_str()).chain(failure.detail.lines()).map(escape_markup).take(n_lines).collect()
}

fn escape_markup(line: &str) -> String {
    line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// As Sidekiq's `compress_backtrace`: Base64 of a zlib stream of a JSON array.
fn compress(lines: &[String]) -> String {
    let json = serde_json::to_vec(lines).expect("strings are JSON");
    BASE64_STANDARD.encode(compress_to_vec_zlib(&json, LEVEL))
}

/// Whether a text has the form of version 00 of a `traceparent`. What is in it is checked where it is used.
fn is_traceparent(text: &str) -> bool {
    text.len() == 55 && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

/// A header of Sentry, `TRACE-SPAN` or `TRACE-SPAN-SAMPLED`, as one of W3C Trace Context.
fn traceparent(sentry: &str) -> Option<String> {
    let mut parts = sentry.split('-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let sampled = if parts.next() == Some("0") { "00" } else { "01" };
    Some(format!("00-{trace}-{span}-{sampled}"))
}

#[cfg(test)]
mod tests {
    use miniz_oxide::inflate::decompress_to_vec_zlib;
    use serde_json::json;

    use super::*;
    use crate::reason::Reason;

    const NOW: f64 = 1_795_500_000.25;

    fn failed(text: &str) -> String {
        let failure = Failure::new(Reason::GitUnavailable, "connection reset");
        let payload = Payload::parse(text.as_bytes()).expect("a job");
        let after = payload.after_failure("builds", &failure, Epoch::from_secs_f64(NOW), Timestamps::Milliseconds);
        String::from_utf8(after).expect("UTF-8")
    }

    #[test]
    fn foreign_fields_are_kept_byte_for_byte() {
        let text = r#"{"class":"B","args":[1e400,1.10,123456789012345678901234567890,{"a":null}],"x":{"y":1.0},"jid":"j","created_at":1795491695123}"#;
        let after = failed(text);
        assert!(after.starts_with(text.trim_end_matches('}')), "{after}");
        assert!(after.ends_with(
            r#""queue":"builds","error_message":"connection reset","error_class":"Sidebake::GitUnavailable","failed_at":1795500000250,"retry_count":0}"#
        ));
    }

    #[test]
    fn times_are_written_back_in_the_form_that_was_found() {
        let old = failed(r#"{"class":"B","args":[],"jid":"j","created_at":1795491695.5234401}"#);
        assert!(old.contains(r#""failed_at":1795500000.25"#), "{old}");
        let again = failed(&old);
        assert!(again.contains(r#""retried_at":1795500000.25"#) && again.contains(r#""retry_count":1"#), "{again}");
    }

    #[test]
    fn a_job_without_times_gets_them_in_the_form_that_is_configured() {
        let payload = Payload::parse(br#"{"class":"B","args":[],"created_at":null}"#).expect("a job");
        let text = |form| payload.enqueued("q", Epoch::from_secs_f64(2.0), form);
        let enqueued = |form| String::from_utf8(text(form)).expect("UTF-8");
        assert!(enqueued(Timestamps::Seconds).contains(r#""enqueued_at":2.0"#));
        assert!(enqueued(Timestamps::Milliseconds).contains(r#""enqueued_at":2000"#));
    }

    #[test]
    fn an_integer_too_small_for_milliseconds_counts_as_seconds() {
        let expiry = |text: &str| {
            let job = format!(r#"{{"class":"B","expiry":{text}}}"#);
            Payload::parse(job.as_bytes()).expect("a job").expiry().map(Epoch::as_millis)
        };
        let forms = ["1795500000", "1795500000.0", "1795500000000"];
        assert_eq!(forms.map(expiry), [Some(1_795_500_000_000); 3]);
        // A value that is not a time neither expires a job nor ends its retries.
        assert_eq!(["null", "1e300", "-1", "1e400", "\"soon\""].map(expiry), [None; 5]);
    }

    #[test]
    fn a_backtrace_is_written_where_the_class_wants_one() {
        let lines = |wanted: &str| {
            let text = failed(&format!(r#"{{"class":"B","args":[],"backtrace":{wanted}}}"#));
            let encoded = Fields::of(&text).expect("a job").string("error_backtrace");
            encoded.map(|text| {
                let stream = BASE64_STANDARD.decode(text).expect("Base64");
                let json = decompress_to_vec_zlib(&stream).expect("a zlib stream");
                serde_json::from_slice::<Vec<String>>(&json).expect("JSON")
            })
        };
        let all = ["git_unavailable: The repository could not be fetched.".to_owned(), "connection reset".to_owned()];
        assert_eq!(lines("true"), Some(all.to_vec()));
        assert_eq!(lines("\"1\""), Some(all[..1].to_vec()));
        assert_eq!(lines("0"), Some(vec![]));
        assert_eq!([lines("false"), lines("null")], [None, None]);
    }

    #[test]
    fn a_backtrace_has_no_markup() {
        let failure = Failure::new(Reason::StepFailed, "<script>alert(1)</script> & more\n\u{1b}[1mbold");
        assert_eq!(trace(&failure, 9)[1..], ["&lt;script&gt;alert(1)&lt;/script&gt; &amp; more", "bold"]);
    }

    #[test]
    fn a_long_backtrace_is_compressed() {
        let lines = ["x".repeat(70_000), "é".to_owned()];
        let stream = BASE64_STANDARD.decode(compress(&lines)).expect("Base64");
        assert!(stream.len() < 1_000, "{} bytes", stream.len());
        let json = decompress_to_vec_zlib(&stream).expect("a zlib stream");
        assert_eq!(serde_json::from_slice::<Vec<String>>(&json).expect("JSON"), lines);
    }

    #[test]
    fn the_retry_queue_of_the_class_wins_and_a_retry_now_counts_again() {
        let after = failed(r#"{"class":"B","args":[],"retry_queue":"slow","queue":"x","retry_count":-1}"#);
        assert!(after.contains(r#""queue":"slow""#) && after.contains(r#""retry_count":0"#), "{after}");
    }

    #[test]
    fn retry_takes_every_form_that_ruby_accepts() {
        let rule = |text: &str| Payload::parse(text.as_bytes()).expect("a job").retry_rule();
        assert_eq!(rule(r#"{"class":"B"}"#), RetryRule::Default);
        assert_eq!(rule(r#"{"class":"B","retry":null}"#), RetryRule::Default);
        assert_eq!(rule(r#"{"class":"B","retry":"3"}"#), RetryRule::Default);
        assert_eq!(rule(r#"{"class":"B","retry":3.5}"#), RetryRule::Default);
        assert_eq!(rule(r#"{"class":"B","retry":false}"#), RetryRule::Never);
        assert_eq!(rule(r#"{"class":"B","retry":0}"#), RetryRule::Times(0));
        assert_eq!(rule(r#"{"class":"B","retry":-1}"#), RetryRule::Times(0));
        assert_eq!(rule(r#"{"class":"B","retry":123456789012345678901234567890}"#), RetryRule::Times(u32::MAX));
    }

    #[test]
    fn active_job_is_unwrapped_and_its_marks_are_taken_out() {
        let text = json!({
            "class": "Sidekiq::ActiveJob::Wrapper", "wrapped": "BuildJob", "jid": "j",
            "args": [{"job_class": "BuildJob", "arguments": [
                {"sha": "x", "_aj_symbol_keys": ["sha"], "application": {"images": [], "_aj_symbol_keys": []}}
            ]}]
        });
        let payload = Payload::parse(text.to_string().as_bytes()).expect("a job");
        assert_eq!(payload.class, "BuildJob");
        let argument = payload.arguments().expect("arguments").value(0);
        assert_eq!(argument, Ok(json!({"sha": "x", "application": {"images": []}})));
    }

    #[test]
    fn an_error_names_what_is_wrong_with_a_text_that_is_not_a_job() {
        let error = |text: &[u8]| Payload::parse(text).expect_err("refused").to_string();
        assert!(error(b"{").starts_with("the job is not a JSON object"));
        assert!(error(b"[1]").starts_with("the job is not a JSON object"));
        assert!(error(b"").starts_with("the job is not a JSON object"));
        assert_eq!(error(b"{}"), "the job has no class with a valid name");
        assert_eq!(error(br#"{"class":"\u0000"}"#), error(b"{}"));
        assert!(Payload::parse(b"{\"class\":\"B\",\"x\":\"\xff\"}").is_ok(), "bytes that are not UTF-8 are replaced");
    }
}

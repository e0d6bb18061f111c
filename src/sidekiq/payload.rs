//! A job's text, read and edited without re-encoding what is not ours.
//!
//! Every field is kept as the slice of text it came as, so unknown fields, big integers and the form of floats survive
//! retries and death. Follows Sidekiq's job format (6.4 to 8.1) and Active Job's envelope.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniz_oxide::deflate::compress_to_vec_zlib;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::clock::Epoch;
use crate::reason::Failure;
use crate::settings::Timestamps;

/// A text that is not a job.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON, or not an object.
    #[error("the job is not a JSON object: {0}")]
    NotAnObject(serde_json::Error),
    /// `class` is missing or not a string.
    #[error("the job has no class")]
    NoClass,
    /// `args` is not an array.
    #[error("args: expected an array")]
    Args,
}

/// A job as Sidekiq writes it.
#[derive(Clone, Debug)]
pub struct Payload {
    fields: Fields,
    /// The Ruby class whose job this is: the wrapped one for Active Job.
    pub class: String,
    /// Sidekiq's id; empty when the job has none.
    pub jid: String,
}

/// The `retry` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryRule {
    /// `false`: dropped at the first failure, and not put into the dead set.
    Never,
    /// `true`, absent, or anything that is not an integer: as often as the configuration says.
    Default,
    /// That many times.
    Times(u32),
}

/// The largest integer that is taken for seconds: as milliseconds it would be a day of 1973.
const MAX_SECONDS: f64 = 1e11;

/// As Ruby's `Zlib::Deflate.deflate` compresses without being told how much.
const LEVEL: u8 = 6;

impl Payload {
    /// Reads a job's text. Bytes that are not UTF-8 are replaced, as Ruby's Web UI does.
    pub fn parse(text: &[u8]) -> Result<Self, PayloadError> {
        let fields: Fields = serde_json::from_str(&String::from_utf8_lossy(text)).map_err(PayloadError::NotAnObject)?;
        let outer = fields.string("class").ok_or(PayloadError::NoClass)?;
        let mut payload = Self { class: outer, jid: fields.string("jid").unwrap_or_default(), fields };
        if payload.is_active_job() {
            payload.class = payload.wrapped_class().ok_or(PayloadError::NoClass)?;
        }
        Ok(payload)
    }

    /// The arguments that the job class sees.
    ///
    /// For Active Job these are the inner `arguments`, without the marks that Active Job leaves in hashes.
    pub fn args(&self) -> Result<Vec<Value>, PayloadError> {
        let args: Vec<Value> = self.fields.read("args").ok_or(PayloadError::Args)?;
        if !self.is_active_job() {
            return Ok(args);
        }
        match args.into_iter().next().and_then(|mut inner| inner.get_mut("arguments").map(Value::take)) {
            Some(Value::Array(arguments)) => Ok(arguments.into_iter().map(without_marks).collect()),
            _ => Err(PayloadError::Args),
        }
    }

    /// The `retry` field.
    pub fn retry_rule(&self) -> RetryRule {
        match self.fields.raw("retry").map(RawValue::get) {
            Some("false") => RetryRule::Never,
            Some(text) if is_integer(text) => {
                // Ruby's have any size.
                let n = if text.starts_with('-') { 0 } else { text.parse().unwrap_or(u32::MAX) };
                RetryRule::Times(n)
            }
            _ => RetryRule::Default,
        }
    }

    /// How long after its first failure the job may be retried, however often; from Sidekiq 7.1.3 on.
    pub fn retry_for(&self) -> Option<Duration> {
        let seconds: f64 = self.fields.read("retry_for")?;
        Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    }

    /// When the job is not wanted any more; Sidekiq Pro's `expires_in`.
    pub fn expiry(&self) -> Option<Epoch> {
        self.fields.timestamp("expiry")
    }

    /// The form in which the job has its times: that of the first one it has.
    pub fn timestamps(&self) -> Option<Timestamps> {
        let times = ["created_at", "enqueued_at", "failed_at"].into_iter().filter_map(|name| self.fields.raw(name));
        times
            .map(RawValue::get)
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

    /// When the job was put on its queue, by the clock of whoever did.
    pub fn enqueued_at(&self) -> Option<Epoch> {
        self.fields.timestamp("enqueued_at").or_else(|| self.fields.timestamp("created_at"))
    }

    /// Whether an exhausted job goes to the dead set.
    pub fn may_die(&self) -> bool {
        self.fields.read::<bool>("dead") != Some(false)
    }

    /// The queue the job names; the one it is fetched from wins.
    pub fn queue(&self) -> Option<String> {
        self.fields.string("queue")
    }

    /// The text of the job after a failed attempt on `queue`, as Sidekiq's `JobRetry` writes it. `unless_known` is the form
    /// of its times when it has none.
    pub fn after_failure(&self, queue: &str, failure: &Failure, now: Epoch, unless_known: Timestamps) -> String {
        let mut fields = self.fields.clone();
        let queue = self.fields.string("retry_queue").unwrap_or_else(|| queue.to_owned());
        fields.set("queue", &queue);
        fields.set("error_message", &failure.detail);
        fields.set("error_class", &error_class(failure));
        let time = now.json(self.timestamps().unwrap_or(unless_known));
        if fields.read::<i64>("retry_count").is_some() {
            fields.set("retried_at", &time);
            fields.set("retry_count", &self.n_failures());
        } else {
            fields.set("failed_at", &time);
            fields.set("retry_count", &0);
        }
        if let Some(n_lines) = self.backtrace() {
            fields.set("error_backtrace", &compress(&trace(failure, n_lines)));
        }
        fields.text()
    }

    /// The text of the job as it goes from the retry set or the schedule to its queue.
    pub fn enqueued(&self, now: Epoch, unless_known: Timestamps) -> String {
        let mut fields = self.fields.clone();
        if self.jid.is_empty() {
            fields.set("jid", &super::random_hex::<12>());
        }
        fields.set("enqueued_at", &now.json(self.timestamps().unwrap_or(unless_known)));
        fields.text()
    }

    /// How many lines of an error's backtrace are kept; `None` when the job does not want any.
    fn backtrace(&self) -> Option<usize> {
        match self.fields.read::<Value>("backtrace")? {
            Value::Null | Value::Bool(false) => None,
            Value::Number(number) => Some(usize::try_from(number.as_u64().unwrap_or(0)).unwrap_or(usize::MAX)),
            Value::String(text) => Some(text.parse().unwrap_or(0)),
            _ => Some(usize::MAX),
        }
    }

    fn is_active_job(&self) -> bool {
        matches!(
            self.fields.string("class").as_deref(),
            Some("ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper" | "Sidekiq::ActiveJob::Wrapper")
        )
    }

    fn wrapped_class(&self) -> Option<String> {
        let inner = || -> Option<String> {
            let args: Vec<Value> = self.fields.read("args")?;
            Some(args.first()?.get("job_class")?.as_str()?.to_owned())
        };
        self.fields.string("wrapped").or_else(inner)
    }
}

/// The error class that Sidekiq's Web UI shows. Public: people alert on it.
pub fn error_class(failure: &Failure) -> String {
    let camel: String = failure.reason.name().split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    format!("Sidebake::{camel}")
}

/// Active Job marks hashes with `_aj_symbol_keys` and the like, which are not the caller's.
fn without_marks(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let own = fields.into_iter().filter(|(name, _)| !name.starts_with("_aj_"));
            Value::Object(own.map(|(name, value)| (name, without_marks(value))).collect::<Map<_, _>>())
        }
        Value::Array(values) => values.into_iter().map(without_marks).collect(),
        scalar => scalar,
    }
}

/// Where Ruby has the lines of its stack: whose matter the failure is, then what exactly happened.
fn trace(failure: &Failure, n_lines: usize) -> Vec<String> {
    let first = format!("{}: {}", failure.reason, failure.reason.sentence());
    std::iter::once(first).chain(failure.detail.lines().map(str::to_owned)).take(n_lines).collect()
}

/// As Sidekiq's `compress_backtrace`: Base64 of a zlib stream of a JSON array.
fn compress(lines: &[String]) -> String {
    let json = serde_json::to_vec(lines).expect("strings are JSON");
    BASE64_STANDARD.encode(compress_to_vec_zlib(&json, LEVEL))
}

/// Whether a number's text has neither fraction nor exponent.
fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A JSON object whose fields keep their order and their text.
#[derive(Clone, Debug, Default)]
struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    /// The last field of that name, as JSON has it for duplicates.
    fn raw(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().rev().find(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    /// The field, when it is there and of that type.
    fn read<'a, T: Deserialize<'a>>(&'a self, name: &str) -> Option<T> {
        serde_json::from_str(self.raw(name)?.get()).ok()
    }

    fn string(&self, name: &str) -> Option<String> {
        self.read(name)
    }

    /// Sidekiq 8 takes an integer for milliseconds and a float for seconds.
    fn timestamp(&self, name: &str) -> Option<Epoch> {
        let number: f64 = self.read(name)?;
        let is_seconds = !is_integer(self.raw(name)?.get()) || number < MAX_SECONDS;
        Some(Epoch::from_secs_f64(if is_seconds { number } else { number / 1000.0 }))
    }

    fn set(&mut self, name: &str, value: &impl serde::Serialize) {
        let raw = serde_json::value::to_raw_value(value).expect("strings and numbers are JSON");
        self.set_raw(name, raw);
    }

    fn set_raw(&mut self, name: &str, value: Box<RawValue>) {
        match self.0.iter_mut().rev().find(|(field, _)| field == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    fn text(&self) -> String {
        let fields: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{}:{}", serde_json::to_string(name).expect("a string is JSON"), value.get()))
            .collect();
        format!("{{{}}}", fields.join(","))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;
        impl<'de> Visitor<'de> for Ordered {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Ordered)
    }
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
        payload.after_failure("builds", &failure, Epoch::from_secs_f64(NOW), Timestamps::Milliseconds)
    }

    #[test]
    fn what_is_not_ours_is_kept_to_the_byte() {
        let text = r#"{"class":"B","args":[1e400,1.10,123456789012345678901234567890,{"a":null}],"x":{"y":1.0},"jid":"j","created_at":1795491695123}"#;
        let after = failed(text);
        assert!(after.starts_with(text.trim_end_matches('}')), "{after}");
        assert!(after.ends_with(
            r#""queue":"builds","error_message":"connection reset","error_class":"Sidebake::GitUnavailable","failed_at":1795500000250,"retry_count":0}"#
        ));
    }

    #[test]
    fn times_are_written_back_in_the_form_that_was_found() {
        let old = failed(r#"{"class":"B","created_at":1795491695.5234401}"#);
        assert!(old.contains(r#""failed_at":1795500000.25"#), "{old}");
        let again = failed(&old);
        assert!(again.contains(r#""retried_at":1795500000.25"#) && again.contains(r#""retry_count":1"#), "{again}");
    }

    #[test]
    fn a_job_without_times_gets_them_in_the_form_that_is_configured() {
        let payload = Payload::parse(br#"{"class":"B","created_at":null}"#).expect("a job");
        let enqueued = |form| payload.enqueued(Epoch::from_secs_f64(2.0), form);
        assert!(enqueued(Timestamps::Seconds).contains(r#""enqueued_at":2.0"#));
        assert!(enqueued(Timestamps::Milliseconds).contains(r#""enqueued_at":2000"#));
    }

    #[test]
    fn an_integer_that_can_only_be_seconds_is() {
        let expiry = |text: &str| {
            let job = format!(r#"{{"class":"B","expiry":{text}}}"#);
            Payload::parse(job.as_bytes()).expect("a job").expiry().map(Epoch::as_millis)
        };
        let forms = ["1795500000", "1795500000.0", "1795500000000"];
        assert_eq!(forms.map(expiry), [Some(1_795_500_000_000); 3]);
        assert_eq!(expiry("null"), None);
    }

    #[test]
    fn a_backtrace_is_written_where_the_class_wants_one() {
        let lines = |wanted: &str| {
            let text = failed(&format!(r#"{{"class":"B","backtrace":{wanted}}}"#));
            let encoded: Option<String> = Fields::read(&serde_json::from_str(&text).expect("a job"), "error_backtrace");
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
    fn a_long_backtrace_is_compressed() {
        let lines = ["x".repeat(70_000), "é".to_owned()];
        let stream = BASE64_STANDARD.decode(compress(&lines)).expect("Base64");
        assert!(stream.len() < 1_000, "{} bytes", stream.len());
        let json = decompress_to_vec_zlib(&stream).expect("a zlib stream");
        assert_eq!(serde_json::from_slice::<Vec<String>>(&json).expect("JSON"), lines);
    }

    #[test]
    fn the_retry_queue_of_the_class_wins_and_a_retry_now_counts_again() {
        let after = failed(r#"{"class":"B","retry_queue":"slow","queue":"x","retry_count":-1}"#);
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
        assert_eq!(payload.args().expect("args"), [json!({"sha": "x", "application": {"images": []}})]);
    }

    #[test]
    fn texts_that_are_no_job_say_what_is_wrong() {
        let error = |text: &[u8]| Payload::parse(text).expect_err("refused").to_string();
        assert!(error(b"{").starts_with("the job is not a JSON object"));
        assert!(error(b"[1]").starts_with("the job is not a JSON object"));
        assert!(error(b"").starts_with("the job is not a JSON object"));
        assert_eq!(error(b"{}"), "the job has no class");
        assert!(Payload::parse(b"{\"class\":\"B\",\"x\":\"\xff\"}").is_ok(), "bytes that are not UTF-8 are replaced");
    }
}

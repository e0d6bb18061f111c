//! A job's text, read and edited without re-encoding what is not ours.
//!
//! Every field is kept as the slice of text it came as, so unknown fields, big integers and the form of floats survive
//! retries and death. Follows Sidekiq's job format (6.4 to 8.1) and Active Job's envelope.

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::clock::Epoch;
use crate::reason::Failure;

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

/// In which form a job has its timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// Integer milliseconds, Sidekiq 8.
    Millis,
    /// Float seconds, before.
    Seconds,
}

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
        match self.fields.read::<Value>("retry") {
            Some(Value::Bool(false)) => RetryRule::Never,
            Some(Value::Number(number)) => number
                .as_i64()
                .map_or(RetryRule::Default, |n| RetryRule::Times(u32::try_from(n.max(0)).unwrap_or(u32::MAX))),
            _ => RetryRule::Default,
        }
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

    /// The text of the job after a failed attempt on `queue`, as Sidekiq's `JobRetry` writes it.
    pub fn after_failure(&self, queue: &str, failure: &Failure, now: Epoch) -> String {
        let mut fields = self.fields.clone();
        let queue = self.fields.string("retry_queue").unwrap_or_else(|| queue.to_owned());
        fields.set("queue", &queue);
        fields.set("error_message", &truncate(&failure.detail, 10_000));
        fields.set("error_class", &error_class(failure));
        let time = self.fields.clock().write(now);
        if fields.read::<i64>("retry_count").is_some() {
            fields.set_raw("retried_at", time);
            fields.set("retry_count", &self.n_failures());
        } else {
            fields.set_raw("failed_at", time);
            fields.set("retry_count", &0);
        }
        fields.text()
    }

    /// The text of the job as it goes from the retry set or the schedule to its queue.
    pub fn enqueued(&self, now: Epoch) -> String {
        let mut fields = self.fields.clone();
        if self.jid.is_empty() {
            fields.set("jid", &super::random_hex::<12>());
        }
        fields.set_raw("enqueued_at", self.fields.clock().write(now));
        fields.text()
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

fn truncate(text: &str, max_chars: usize) -> String {
    text.chars().take(max_chars).collect()
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

impl Clock {
    fn write(self, time: Epoch) -> Box<RawValue> {
        let text = match self {
            Self::Millis => time.as_millis().to_string(),
            // Always with a fraction, or Sidekiq 8 takes it for milliseconds.
            Self::Seconds => format!("{:?}", time.as_secs_f64()),
        };
        RawValue::from_string(text).expect("a number is JSON")
    }
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
        let is_float = self.raw(name)?.get().contains(['.', 'e', 'E']);
        Some(Epoch::from_secs_f64(if is_float { number } else { number / 1000.0 }))
    }

    /// The form in which the job has its times: that of the first one it has.
    fn clock(&self) -> Clock {
        let first = ["created_at", "enqueued_at", "failed_at"].into_iter().find_map(|name| self.raw(name));
        match first {
            Some(text) if text.get().contains(['.', 'e', 'E']) => Clock::Seconds,
            _ => Clock::Millis,
        }
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
    use serde_json::json;

    use super::*;
    use crate::reason::Reason;

    const NOW: f64 = 1_795_500_000.25;

    fn failed(text: &str) -> String {
        let failure = Failure::new(Reason::GitUnavailable, "connection reset");
        let payload = Payload::parse(text.as_bytes()).expect("a job");
        payload.after_failure("builds", &failure, Epoch::from_secs_f64(NOW))
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

//! A report as JSON that every reader accepts: without control characters, and of bounded size.
//!
//! PostgreSQL refuses U+0000, browsers may obey U+202E, and a job of many megabytes blocks Redis. So every text is made plain, and the
//! longest are cut until the whole has at most [`bounds::REPORT`] bytes. Fields that programs read are not cut: names, digests
//! and statuses.

use serde_json::{Map, Value};

use super::Report;
use crate::{bounds, text};

/// Fields that programs read.
const EXACT: [&str; 12] = [
    "attempt",
    "moment",
    "status",
    "reason",
    "cause",
    "sha",
    "name",
    "digest",
    "image_digest",
    "tags",
    "timings",
    "log_url",
];

impl Report {
    /// The JSON object for Rails, of at most [`bounds::REPORT`] bytes.
    ///
    /// Every text is plain. The platform's own values (`build_id`, `jid`, echoed fields) only lose U+0000. When the whole is too long,
    /// texts for people are cut first, with a mark. Then the last tags are dropped. Then the platform's own texts are cut, and
    /// finally replaced by null. Names, digests and statuses stay.
    pub fn to_json(&self) -> Value {
        self.to_json_as(|json| json)
    }

    /// The same after `form`, which may make it longer: the result has at most [`bounds::REPORT`] bytes.
    pub fn to_json_as(&self, form: impl Fn(Value) -> Value) -> Value {
        self.to_json_within(bounds::REPORT, form)
    }

    /// The same with another bound. It is exceeded when the names, digests and statuses alone take more.
    pub fn to_json_within(&self, max_bytes: usize, form: impl Fn(Value) -> Value) -> Value {
        let mut json = serde_json::to_value(self).expect("a report is plain data");
        let is_own = |field: &str| matches!(field, "build_id" | "jid") || self.echo.contains_key(field);
        for (field, value) in json.as_object_mut().into_iter().flatten() {
            match is_own(field) {
                true => rewrite(value, &|text| text.replace('\0', "␀")),
                false => rewrite(value, &|text| text::plain(text).into_owned()),
            }
        }
        for cut in CUTS {
            let formed = form(json.clone());
            if formed.to_string().len() <= max_bytes {
                return formed;
            }
            cut.apply(&mut json, &is_own);
        }
        form(json)
    }
}

/// A way to shorten a report.
#[derive(Clone, Copy)]
enum Cut {
    /// Cuts texts for people to this length.
    Texts(usize),
    /// Drops why steps were not cached.
    NotCached,
    /// Keeps this many tags of each target.
    Tags(usize),
    /// Cuts the platform's own texts to this length.
    Own(usize),
    /// Replaces all long values of the platform by null.
    AllOwn,
}

/// The cuts, applied in order until the report fits.
const CUTS: [Cut; 15] = [
    Cut::Texts(bounds::ERROR),
    Cut::Texts(2048),
    Cut::Texts(1024),
    Cut::Texts(512),
    Cut::Texts(256),
    Cut::Texts(64),
    Cut::NotCached,
    Cut::Tags(10),
    Cut::Tags(1),
    Cut::Tags(0),
    Cut::Own(64 << 10),
    Cut::Own(4096),
    Cut::Own(512),
    Cut::Own(64),
    Cut::AllOwn,
];

impl Cut {
    fn apply(self, json: &mut Value, is_own: &impl Fn(&str) -> bool) {
        let fields = json.as_object_mut().into_iter().flatten();
        for (field, value) in fields {
            match (self, is_own(field)) {
                (Self::Texts(length), false) => cut_texts(field, value, length),
                (Self::NotCached, false) if field == "targets" => {
                    each(value).for_each(|target| _ = target.insert("why_not_cached".into(), Value::Null));
                }
                (Self::Tags(n), false) if field == "targets" => keep_tags(value, n),
                (Self::Own(length), true) => rewrite(value, &|text| text::clip(text, length).into_owned()),
                (Self::AllOwn, true) if value.to_string().len() > 128 => *value = Value::Null,
                _ => {}
            }
        }
    }
}

/// Cuts texts that no program reads, in a field and in the fields inside it.
fn cut_texts(field: &str, value: &mut Value, length: usize) {
    match value {
        _ if EXACT.contains(&field) => {}
        Value::String(text) => *text = text::elide(text, length).into_owned(),
        Value::Array(values) => values.iter_mut().for_each(|value| cut_texts("", value, length)),
        Value::Object(fields) => fields.iter_mut().for_each(|(field, value)| cut_texts(field, value, length)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn keep_tags(targets: &mut Value, n: usize) {
    each(targets).filter_map(|target| target.get_mut("tags")?.as_array_mut()).for_each(|tags| tags.truncate(n));
}

fn each(targets: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    targets.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Rewrites every text and every field name in a value.
fn rewrite(value: &mut Value, write: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = write(text),
        Value::Array(values) => values.iter_mut().for_each(|value| rewrite(value, write)),
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| rewrite(value, write));
            *fields =
                std::mem::take(fields).into_iter().map(|(name, value)| (write(&name), value)).collect::<Map<_, _>>();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::report::{Placement, Status, TargetReport};

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn fits(json: &Value) -> bool {
        json.to_string().len() <= bounds::REPORT
    }

    fn target(error: &str, tags: Vec<String>) -> TargetReport {
        TargetReport {
            name: "web".into(),
            status: Some(Status::Failed),
            digest: Some(DIGEST.into()),
            tags,
            error: Some(error.into()),
            ..TargetReport::default()
        }
    }

    #[test]
    fn a_report_of_long_texts_fits_and_keeps_what_programs_read() {
        let tags = vec!["registry.example/acme/web:1".to_owned()];
        let targets = vec![target(&"\"".repeat(640_000), tags.clone()); 10];
        let echo = json!({"note": "n\0te", "ids": [1, {"a\0": "\0"}]}).as_object().cloned().expect("an object");
        let notices = vec!["é".repeat(600); 50];
        let report = Report { targets, notices, echo, build_id: Some(json!(42)), ..Report::default() };
        let json = report.to_json();
        assert!(fits(&json));
        for target in json["targets"].as_array().expect("targets") {
            assert_eq!(
                (&target["digest"], &target["status"], &target["tags"]),
                (&json!(DIGEST), &json!("failed"), &json!(tags))
            );
            assert!(target["error"].as_str().is_some_and(|error| error.contains(" more bytes)")));
        }
        assert_eq!(
            (&json["build_id"], &json["note"], &json["ids"]),
            (&json!(42), &json!("n␀te"), &json!([1, {"a␀": "␀"}]))
        );
    }

    #[test]
    fn what_the_platform_echoes_is_cut_last_and_fits_too() {
        let echo = |value: Value| json!({"echoed": value}).as_object().cloned().expect("an object");
        let long = Report { echo: echo(json!("x".repeat(1 << 20))), build_id: Some(json!(7)), ..Report::default() };
        let json = long.to_json();
        let length = json["echoed"].as_str().map(str::len);
        assert!(fits(&json) && length.is_some_and(|length| length > 60 << 10 && length <= 64 << 10), "{length:?}");
        let many = Report { echo: echo(json!(vec![1; 1 << 20])), build_id: Some(json!(7)), ..Report::default() };
        let json = many.to_json();
        assert!(fits(&json));
        assert_eq!((&json["echoed"], &json["build_id"]), (&Value::Null, &json!(7)));
        let tags = (0..20_000).map(|n| format!("registry.example/acme/web:{n}")).collect();
        let json = Report { targets: vec![target("", tags)], ..Report::default() }.to_json();
        assert!(fits(&json));
        assert_eq!(json["targets"][0]["tags"].as_array().map(Vec::len), Some(10));
    }

    #[test]
    fn a_short_report_is_what_it_was() {
        let report = Report { targets: vec![target("it is\nso", vec!["a/b:1".into()])], ..Report::default() };
        assert_eq!(report.to_json(), serde_json::to_value(&report).expect("plain data"));
    }

    fn assert_plain(value: &Value) {
        match value {
            Value::String(shown) => assert_eq!(text::plain(shown), shown.as_str()),
            Value::Array(values) => values.iter().for_each(assert_plain),
            Value::Object(fields) => fields.values().for_each(assert_plain),
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn any_texts_become_plain_and_fit(text in any::<String>(), n in 1_usize..300) {
            let long = text.repeat(n);
            let some = || Some(text.clone());
            let placement = Placement { builder: text.clone(), shard: some(), pod: some(), why: long.clone() };
            let report = Report {
                message: Some(long.clone()),
                repository: Some(text.clone()),
                git_ref: Some(long.clone()),
                targets: vec![target(&long, vec![text.clone()]); 20],
                notices: vec![long; 50],
                placement: Some(placement),
                ..Report::default()
            };
            let json = report.to_json();
            prop_assert!(fits(&json));
            assert_plain(&json);
        }
    }
}

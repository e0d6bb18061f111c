//! Reads one JSON line of `--progress=rawjson`: BuildKit's `client.SolveStatus`.
//!
//! Reports are passed on while the line is read, and borrow from it: only one report is in memory at a time. Unused fields, such
//! as the whole Dockerfile in each warning, are skipped.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One thing that BuildKit reports.
pub(super) enum StreamReport<'a> {
    Vertex(VertexReport<'a>),
    Status(StatusReport<'a>),
    Log(LogReport<'a>),
    Warning(WarningReport<'a>),
}

/// A step or chore that is planned, has begun or has ended.
#[derive(Deserialize)]
pub(super) struct VertexReport<'a> {
    #[serde(borrow)]
    pub(super) digest: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    pub(super) started: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
    #[serde(default)]
    pub(super) cached: bool,
    #[serde(borrow, default)]
    pub(super) error: Cow<'a, str>,
}

/// The progress of a part of a vertex, such as a transfer.
#[derive(Deserialize)]
pub(super) struct StatusReport<'a> {
    #[serde(borrow, default)]
    pub(super) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) vertex: Cow<'a, str>,
    #[serde(default)]
    pub(super) current: i64,
    pub(super) started: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
}

/// Output of a step, in Base64. It ends anywhere, also inside a line or a character.
#[derive(Deserialize)]
pub(super) struct LogReport<'a> {
    #[serde(borrow)]
    pub(super) vertex: Cow<'a, str>,
    #[serde(default)]
    pub(super) stream: u32,
    #[serde(borrow, default)]
    pub(super) data: Cow<'a, str>,
}

/// A warning about a Dockerfile. Texts are in Base64.
#[derive(Deserialize)]
pub(super) struct WarningReport<'a> {
    #[serde(borrow, default)]
    pub(super) vertex: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) short: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) url: Cow<'a, str>,
    /// The lines that it is about. A frontend of the customer's choice writes them, so every part may be missing.
    #[serde(default)]
    range: Option<Vec<Option<Range>>>,
}

impl WarningReport<'_> {
    /// The first line that it is about, from 1.
    pub(super) fn line(&self) -> Option<u32> {
        let first = self.range.as_ref()?.first()?.as_ref()?;
        first.start.as_ref()?.line.and_then(|line| u32::try_from(line).ok()).filter(|line| *line > 0)
    }
}

/// Lines of a Dockerfile.
#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    start: Option<Position>,
}

/// A place in a Dockerfile.
#[derive(Deserialize)]
struct Position {
    #[serde(default)]
    line: Option<i64>,
}

/// Passes on all reports of a line.
///
/// # Errors
///
/// The line is not a status. Reports before the error were passed on.
pub(super) fn read(line: &[u8], take: &mut dyn FnMut(StreamReport<'_>)) -> serde_json::Result<()> {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    deserializer.deserialize_map(StatusVisitor(take))?;
    deserializer.end()
}

type Take<'t> = &'t mut dyn FnMut(StreamReport<'_>);

/// The whole line.
struct StatusVisitor<'t>(Take<'t>);

impl<'de> Visitor<'de> for StatusVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a status")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(field) = fields.next_key::<Field>()? {
            match field {
                Field::Other => drop(fields.next_value::<IgnoredAny>()?),
                field => fields.next_value_seed(Reports { field, take: &mut *self.0 })?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Field {
    Vertexes,
    Statuses,
    Logs,
    Warnings,
    #[serde(other)]
    Other,
}

/// A list of reports of one kind. Go writes an empty list as null.
struct Reports<'t> {
    field: Field,
    take: Take<'t>,
}

impl<'de> DeserializeSeed<'de> for Reports<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reports<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of reports")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut next = || -> Result<Option<StreamReport<'de>>, A::Error> {
            Ok(match self.field {
                Field::Vertexes => list.next_element()?.map(StreamReport::Vertex),
                Field::Statuses => list.next_element()?.map(StreamReport::Status),
                Field::Logs => list.next_element()?.map(StreamReport::Log),
                Field::Warnings => list.next_element()?.map(StreamReport::Warning),
                Field::Other => None,
            })
        };
        while let Some(report) = next()? {
            (self.take)(report);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> (Vec<String>, bool) {
        let mut said = Vec::new();
        let result = read(line.as_bytes(), &mut |report| {
            said.push(match report {
                StreamReport::Vertex(report) => format!("vertex {} {}", report.digest, report.name),
                StreamReport::Status(report) => format!("status {} {}", report.vertex, report.current),
                StreamReport::Log(report) => format!("log {} {}", report.vertex, report.data),
                StreamReport::Warning(report) => format!("warning {} {}", report.vertex, report.short),
            });
        });
        (said, result.is_ok())
    }

    #[test]
    fn reports_come_one_by_one_and_unused_fields_are_skipped() {
        let line = r#"{"vertexes":[{"digest":"a","inputs":["x"],"name":"x \u0026 y","progressGroup":{"id":"g"}},{"digest":"b"}],
            "statuses":[{"id":"i","vertex":"a","current":3}],"logs":null,"warnings":[{"vertex":"a","short":"eA==","detail":["eA=="],"range":null}],"new":{"a":[{}]}}"#;
        let reports = ["vertex a x & y", "vertex b ", "status a 3", "warning a eA=="];
        assert_eq!(said(line), (reports.map(str::to_owned).to_vec(), true));
        for range in ["null", "[]", "[null]", "[{}]", r#"[{"start":null}]"#, r#"[{"start":{"line":-1}}]"#] {
            let line = format!(r#"{{"warnings":[{{"range":{range}}}]}}"#);
            assert_eq!(said(&line), (vec!["warning  ".into()], true));
        }
        let line = r#"{"logs":[{"vertex":"a","stream":1,"data":"eA=="}]}"#;
        assert_eq!(said(line), (vec!["log a eA==".into()], true));
    }

    #[test]
    fn what_is_no_status_is_an_error() {
        for line in ["", "{", "[]", "{}x", r#"{"vertexes":{}}"#, r#"{"vertexes":[{}]}"#, r#"{"vertexes":[1]}"#] {
            assert!(!said(line).1, "{line}");
        }
        assert_eq!(said(r#"{"vertexes":[{"digest":"a"},{"digest":"#), (vec!["vertex a ".into()], false));
    }
}

//! What Sidekiq can show: this module alone decides whether an entry may go into a set, a queue or the list of running jobs.
//!
//! Sidekiq's API and Web UI (6.4, 7.3, 8.1) parse every entry of a page. One entry that they cannot read makes the whole page
//! fail, and they put many fields into the page unescaped.
//!
//! - A field of a type that they do not expect, or with markup that they do not escape, is *set aside*: it moves into
//!   `sidebake_set_aside`, as JSON text by its name.
//! - A text that is not a job, or that one of Ruby's JSON parsers refuses, goes into an *envelope*: a job of the class
//!   `Sidebake::Malformed` whose first argument is the text. The worker opens an envelope that
//!   comes back to a queue.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use serde_json::{Value, json};

use super::fields::{Fields, TIMES, is_integer};
use crate::clock::Epoch;
use crate::reason::Failure;
use crate::settings::{Queue, Timestamps};
use crate::{bounds, hex, json, text};

/// The class of an envelope. No worker runs it; it has no retries, so every Sidekiq puts it into the dead set.
pub const MALFORMED: &str = "Sidebake::Malformed";

/// The field for odd fields: an object of JSON texts by name.
const SET_ASIDE: &str = "sidebake_set_aside";

/// The field for the fetched text in Base64, when some of its bytes are not UTF-8.
const ORIGINAL: &str = "sidebake_original";

/// `max_nesting` of Ruby's JSON library, which counts the job's own object.
const MAX_NESTING: usize = 100;

/// Active Job's wrappers, which Sidekiq opens to show the job in them.
pub(super) const WRAPPERS: [&str; 2] =
    ["ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper", "Sidekiq::ActiveJob::Wrapper"];

/// Action Mailer's jobs, which Sidekiq shows as the mail's class and method.
const MAILS: [&str; 2] = ["ActionMailer::DeliveryJob", MAIL_DELIVERY];

/// The one of them whose arguments are in a hash.
const MAIL_DELIVERY: &str = "ActionMailer::MailDeliveryJob";

/// The prefix of the classes of Sidekiq's delayed extensions.
const DELAYED: &str = "Sidekiq::Extensions::Delayed";

/// Fields that the page of a job escapes or does not list. It lists all others unescaped. `class` is a valid name, and sidebake
/// writes `error_class`.
const NOT_LISTED: [&str; 6] = ["class", "args", "error_class", "error_message", "backtrace", "retry"];

/// Sidekiq's client, and so Ruby's poller, refuses a longer `retry_for`.
const MAX_RETRY_FOR: f64 = 1e9;

/// Whether the text of a value is of a type that Sidekiq expects.
type FieldTest = fn(&str) -> bool;

/// Fields that Sidekiq shows or checks, each with the test of its value.
const FIELD_TESTS: &[(&str, FieldTest)] = &[
    ("jid", is_named),
    ("queue", is_named),
    ("retry_queue", is_named),
    ("display_class", |text| is_null(text) || is_named(text)),
    ("bid", |text| is_null(text) || is_named(text)),
    ("wrapped", |text| is_null(text) || is_named(text)),
    // 7.3 puts each one into an attribute unescaped.
    ("tags", |text| is_null(text) || (text.starts_with('[') && !has(text, b"'"))),
    ("cattr", |text| is_null(text) || text.starts_with(['[', '{'])),
    ("created_at", |text| is_null(text) || is_time(text)),
    ("enqueued_at", |text| is_null(text) || is_time(text)),
    ("failed_at", is_time),
    ("retried_at", is_time),
    ("retry_count", |text| is_integer(text) && text.parse::<i64>().is_ok()),
    ("at", |text| number(text).is_some()),
    ("retry_for", |text| is_null(text) || number(text).is_some_and(|seconds| seconds <= MAX_RETRY_FOR)),
    ("error_backtrace", |text| is_null(text) || is_backtrace(text)),
    (SET_ASIDE, |text| json::read::<BTreeMap<String, String>>(text.as_bytes()).is_ok()),
];

fn is_null(text: &str) -> bool {
    text == "null"
}

/// Whether a text can be the name of a queue, a class or a job. Every name that Ruby allows passes.
pub(super) fn is_name(text: &str) -> bool {
    Queue::is_name(text)
}

/// Whether one of the ASCII characters is in a string of a JSON text, plain or as an escape.
fn has(text: &str, characters: &[u8]) -> bool {
    let (bytes, mut at) = (text.as_bytes(), 0);
    while let Some(&byte) = bytes.get(at) {
        let escaped = || u8::from_str_radix(text.get(at + 2..at + 6)?, 16).ok();
        let (character, length) = match (byte, bytes.get(at + 1)) {
            (b'\\', Some(b'u')) => (escaped().unwrap_or_default(), 6),
            (b'\\', _) => (0, 2),
            _ => (byte, 1),
        };
        if characters.contains(&character) {
            return true;
        }
        at += length;
    }
    false
}

/// The same JSON text without `<`, which only its strings can contain.
fn without_markup(text: &str) -> String {
    text.replace('<', "\\u003c")
}

fn is_named(text: &str) -> bool {
    json::read::<String>(text.as_bytes()).is_ok_and(|name| is_name(&name))
}

fn number(text: &str) -> Option<f64> {
    json::read(text.as_bytes()).ok()
}

fn is_time(text: &str) -> bool {
    number(text).is_some_and(|time| TIMES.contains(&time))
}

/// Whether the text is a backtrace as Sidekiq compresses it, without markup: Base64 of a zlib stream of a JSON array of strings.
/// The page shows them unescaped.
fn is_backtrace(text: &str) -> bool {
    let lines = || -> Option<Vec<String>> {
        let encoded: String = json::read(text.as_bytes()).ok()?;
        // Before Sidekiq 7.2, Base64 has line breaks.
        let stream = BASE64_STANDARD.decode(encoded.replace('\n', "")).ok()?;
        let lines = decompress_to_vec_zlib_with_limit(&stream, bounds::BACKTRACE).ok()?;
        json::read(&lines).ok()
    };
    lines().is_some_and(|lines| lines.iter().all(|line| !line.contains('<')))
}

/// Moves every field of an unexpected type or with markup into [`SET_ASIDE`], where it breaks no page. Nothing is lost.
pub(super) fn set_aside(fields: &mut Fields) {
    // Sidekiq replaces the last argument of an encrypted job by a note, so there has to be one.
    let has_args = json::items(fields.raw("args").unwrap_or_default()).next().is_some();
    let aside = fields.take(|name, text| is_odd(name, text) || (name == "encrypt" && !has_args));
    if aside.is_empty() {
        return;
    }
    let mut all: BTreeMap<String, String> = fields.read(SET_ASIDE).unwrap_or_default();
    for (name, text) in aside {
        let mut name = without_markup(&name);
        // A field of the same name may have been set aside before.
        while all.contains_key(&name) {
            name.push('+');
        }
        all.insert(name, without_markup(&text));
    }
    fields.set(SET_ASIDE, &all);
}

/// Whether a field has to be set aside.
fn is_odd(name: &str, text: &str) -> bool {
    let is_unexpected = FIELD_TESTS.iter().any(|(field, is_expected)| *field == name && !is_expected(text));
    is_unexpected || name.contains('<') || (!NOT_LISTED.contains(&name) && has(text, b"<"))
}

/// Keeps the original bytes of a text that shows U+FFFD for some of them.
pub(super) fn keep_original(fields: &mut Fields, original: &[u8]) {
    if str::from_utf8(original).is_err() {
        fields.set(ORIGINAL, &BASE64_STANDARD.encode(original));
    }
}

/// Why a job of this class cannot be shown even with fields set aside; `None` when it can.
///
/// Either one of Ruby's parsers refuses it, or its arguments are not valid. `JobRecord#display_class` and `#display_args` raise, or
/// show markup, where
///
/// - `args` is not an array;
/// - the class is one of Sidekiq's delayed extensions: 6.4 does `YAML.load(args[0])`. Nested YAML exhausts its stack, `!binary`
///   makes texts that no page can hold, and the page shows the names in it unescaped;
/// - `args[0]["arguments"]` of Active Job is not an array;
/// - the class or method of a mail, the first two of these, has markup;
/// - the fourth of these, the arguments of a mail, is not a hash. 7.3 and 8.1 first replace each hash that has only
///   `_aj_globalid` by a global id, which is not a hash. They show any other value.
pub(super) fn flaw(text: &str, fields: &Fields, class: &str) -> Option<String> {
    if let Some(oddity) = json::oddity(text, MAX_NESTING) {
        return Some(oddity.to_string());
    }
    let args = fields.raw("args").unwrap_or("null");
    if !args.starts_with('[') {
        return Some("args: expected an array".into());
    }
    let outer = fields.string("class").unwrap_or_default();
    if outer.starts_with(DELAYED) {
        return Some(format!("class: {DELAYED}…, whose arguments Sidekiq 6 reads as YAML to show them"));
    }
    if !WRAPPERS.contains(&outer.as_str()) {
        return None;
    }
    let Some(arguments) = json::pointer(args, "/0/arguments").filter(|arguments| arguments.starts_with('[')) else {
        return Some("args[0].arguments: expected an array, as Active Job writes it".into());
    };
    if !MAILS.contains(&class) {
        return None;
    }
    if !json::items(arguments).take(2).all(is_named) {
        return Some("args[0].arguments: expected a mailer's class and a method, as Action Mailer writes them".into());
    }
    let is_broken = class == MAIL_DELIVERY && !json::items(arguments).nth(3).is_some_and(is_hash);
    is_broken.then(|| "args[0].arguments[3]: expected an object, as Action Mailer writes it".into())
}

/// Whether an argument of Active Job is a hash to Sidekiq.
fn is_hash(argument: &str) -> bool {
    let mut names = json::fields(argument).map(|(name, _)| name);
    let is_global_id = names.next().as_deref() == Some("_aj_globalid") && names.next().is_none();
    argument.starts_with('{') && !is_global_id
}

/// Puts any text into an entry that every Sidekiq can show. Nothing of the text is lost.
///
/// The first argument is the text. For a text that is long or not UTF-8, the first argument is its readable beginning, and the
/// second is all of it in Base64. An envelope is not put into another one.
pub fn envelope(text: &[u8], jid: &str, queue: &str, failure: &Failure, now: Epoch, form: Timestamps) -> Vec<u8> {
    let original = opened(text);
    let readable = String::from_utf8_lossy(&original);
    let is_whole = readable.len() <= bounds::MALFORMED && str::from_utf8(&original).is_ok();
    let args = match is_whole {
        true => json!([readable]),
        false => json!([text::clip(&readable, bounds::MALFORMED), BASE64_STANDARD.encode(&original)]),
    };
    let jid = if jid.is_empty() { hex::random::<12>() } else { jid.to_owned() };
    let time = now.json(form);
    let job = json!({
        // Ruby reads this as one failure, the first and the last.
        "class": MALFORMED, "args": args, "jid": jid, "queue": queue, "retry": 0,
        "created_at": time, "enqueued_at": time, "failed_at": time, "retry_count": 0,
        "error_class": error_class(failure), "error_message": text::shown(&failure.detail, bounds::MESSAGE),
    });
    job.to_string().into_bytes()
}

/// The text in an envelope, or the text itself.
pub(super) fn opened(text: &[u8]) -> Cow<'_, [u8]> {
    let mut opened = Cow::Borrowed(text);
    while let Some(inner) = inner(&opened) {
        opened = Cow::Owned(inner);
    }
    opened
}

fn inner(text: &[u8]) -> Option<Vec<u8>> {
    // Most texts are not an envelope; this does not parse them.
    let text = str::from_utf8(text).ok().filter(|text| text.contains(MALFORMED) && json::is_json(text).is_ok())?;
    let fields = Fields::of(text).filter(|fields| fields.string("class").as_deref() == Some(MALFORMED))?;
    let args: Vec<Value> = fields.read("args")?;
    match &args[..] {
        [Value::String(text)] => Some(text.clone().into_bytes()),
        [Value::String(_), Value::String(encoded)] => BASE64_STANDARD.decode(encoded).ok(),
        _ => None,
    }
}

/// The error class that Sidekiq's Web UI shows. Public: people alert on it.
pub fn error_class(failure: &Failure) -> String {
    let camel: String = failure.reason.name().split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    format!("Sidebake::{camel}")
}

#[cfg(test)]
mod tests;

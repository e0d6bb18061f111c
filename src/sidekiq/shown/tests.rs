//! Any text can be shown, and nothing of it is lost. `tests/e2e/shown.rs` shows the entries to real Sidekiqs.

use proptest::prelude::*;

use super::*;
use crate::reason::Reason;
use crate::sidekiq::payload::{Payload, running};

const NOW: f64 = 1_795_500_000.25;

fn now() -> Epoch {
    Epoch::from_secs_f64(NOW)
}

fn refused() -> Failure {
    Failure::new(Reason::InvalidArguments, "no job\0 at all")
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

/// Asserts what the pages of every Sidekiq need.
fn assert_shown(entry: &[u8]) -> Fields {
    let text = str::from_utf8(entry).expect("UTF-8");
    json::is_json(text).expect("JSON");
    assert_eq!(json::oddity(text, 100), None, "{text}");
    let fields = Fields::of(text).expect("an object");
    for name in ["class", "queue", "jid", "error_class", "error_message"] {
        assert!(fields.string(name).is_some_and(|text| !text.is_empty() && !text.contains('\0')), "{name}: {text}");
    }
    assert!(fields.raw("args").is_some_and(|args| args.starts_with('[')), "{text}");
    for name in ["created_at", "enqueued_at", "failed_at", "retried_at"] {
        let time: Option<Value> = fields.read(name);
        assert!(time.is_none_or(|time| time.is_null() || time.as_f64().is_some()), "{name}: {text}");
    }
    let count: i64 = fields.read("retry_count").expect("a number");
    assert!(fields.raw(if count > 0 { "retried_at" } else { "failed_at" }).is_some(), "{text}");
    assert!(fields.raw("tags").is_none_or(|tags| tags == "null" || tags.starts_with('[')), "{text}");
    assert_no_markup(&fields);
    fields
}

/// Asserts that fields which a page shows unescaped have no markup.
fn assert_no_markup(fields: &Fields) {
    for name in ["class", "jid", "queue", "retry_queue", "display_class", "bid", "wrapped"] {
        assert!(fields.string(name).is_none_or(|text| !text.contains(['<', '>', '"', '\''])), "{name}: {fields:?}");
    }
    assert!(!has(fields.raw("tags").unwrap_or_default(), b"<'"), "{fields:?}");
    let is_active_job = fields.string("class").is_some_and(|class| WRAPPERS.contains(&class.as_str()));
    assert!(!is_active_job || fields.string("wrapped").is_some(), "the argument is shown: {fields:?}");
    let text = fields.text();
    for (name, value) in json::fields(&text).filter(|(name, _)| !NOT_LISTED.contains(&&**name)) {
        assert!(!name.contains('<') && !has(value, b"<"), "{name}: {value}");
    }
}

/// The entry of a failed text, as the processor makes it.
fn left_behind(text: &[u8]) -> Vec<u8> {
    match Payload::parse(text) {
        Ok(payload) => payload.after_failure("q", &refused(), now(), Timestamps::Seconds),
        Err(_) => envelope(text, "", "q", &refused(), now(), Timestamps::Seconds),
    }
}

/// Asserts that all of a text is in its entry: in the envelope, or each field unchanged or set aside.
fn assert_kept(text: &[u8], entry: &[u8]) {
    let fields = assert_shown(entry);
    if fields.string("class").as_deref() == Some(MALFORMED) {
        assert_eq!(opened(entry), opened(text));
        return;
    }
    if let Some(encoded) = fields.string(ORIGINAL).filter(|_| str::from_utf8(text).is_err()) {
        assert_eq!(BASE64_STANDARD.decode(encoded).expect("Base64"), text);
    }
    // Fields that a failure changes in Ruby, too.
    let of_failure =
        ["queue", "error_class", "error_message", "error_backtrace", "failed_at", "retried_at", "retry_count"];
    let aside: BTreeMap<String, String> = fields.read(SET_ASIDE).unwrap_or_default();
    let same = |one: &str, other: &str| without_markup(one) == without_markup(other);
    let readable = String::from_utf8_lossy(text);
    for (name, value) in json::fields(&readable) {
        let is_aside = || aside.values().any(|text| same(text, value));
        let is_merged = || {
            let before: BTreeMap<String, String> = serde_json::from_str(value).expect("it would be odd otherwise");
            before.iter().all(|(name, text)| aside.get(name) == Some(text))
        };
        let is_filled = name == "wrapped" && value == "null";
        let is_there = fields.raw(&name) == Some(value) || is_aside() || name == ORIGINAL || is_filled;
        let is_kept = is_there || of_failure.contains(&&*name) || (name == SET_ASIDE && is_merged());
        assert!(is_kept, "{name} of {readable} is not in {fields:?}");
    }
}

#[test]
fn a_text_that_is_not_a_job_is_in_its_envelope() {
    let long = "é".repeat(50_000);
    let texts =
        ["null", "42", "[1,2,3]", "\"x\"", "", "{", "{}", "\0", r#"{"class":42}"#, r#"{"class":"B","args":{}}"#, &long];
    for text in texts.map(str::as_bytes).into_iter().chain([&b"\xff\xfe"[..], &[0xff; 100_000]]) {
        assert_kept(text, &left_behind(text));
    }
    let entry: Value = serde_json::from_slice(&left_behind(b"[1,2,3]")).expect("JSON");
    let jid = entry["jid"].clone();
    let expected = json!({
        "class": "Sidebake::Malformed", "args": ["[1,2,3]"], "jid": jid, "queue": "q", "retry": 0,
        "created_at": NOW, "enqueued_at": NOW, "failed_at": NOW, "retry_count": 0,
        "error_class": "Sidebake::InvalidArguments", "error_message": "no job␀ at all",
    });
    assert_eq!(entry, expected);
}

#[test]
fn a_long_text_has_a_readable_beginning_and_all_of_it_in_base64() {
    let text = "é".repeat(50_000);
    let entry: Value = serde_json::from_slice(&left_behind(text.as_bytes())).expect("JSON");
    let shown = entry["args"][0].as_str().expect("a text");
    assert!(shown.len() <= bounds::MALFORMED && shown.ends_with("more bytes)"), "{}", shown.len());
    assert_eq!(BASE64_STANDARD.decode(entry["args"][1].as_str().expect("Base64")).expect("Base64"), text.as_bytes());
    let bytes: Value = serde_json::from_slice(&left_behind(b"a\xff")).expect("JSON");
    assert_eq!(bytes["args"], json!(["a\u{fffd}", "Yf8="]));
}

#[test]
fn an_envelope_is_opened_and_never_put_into_another_one() {
    let job = br#"{"class":"BuildJob","args":[1],"jid":"j"}"#;
    let once = envelope(job, "j", "q", &refused(), now(), Timestamps::Seconds);
    let twice = envelope(&once, "j", "q", &refused(), now(), Timestamps::Seconds);
    assert_eq!(once, twice);
    let payload = Payload::parse(&twice).expect("a job");
    assert_eq!((payload.class.as_str(), payload.jid.as_str()), ("BuildJob", "j"));
    // An envelope that someone wrote by hand is a job of an unknown class.
    let by_hand = br#"{"class":"Sidebake::Malformed","args":[]}"#;
    assert_eq!(opened(by_hand), &by_hand[..]);
    assert_shown(&left_behind(by_hand));
}

#[test]
fn a_job_that_one_of_rubys_parsers_refuses_has_a_flaw() {
    let flaw = |text: &str| Payload::parse(text.as_bytes()).expect("a job").flaw().map(str::to_owned);
    let job = |rest: &str| format!(r#"{{"class":"B","args":[1]{rest}}}"#);
    assert_eq!(flaw(&job("")), None);
    assert_eq!(flaw(&job(r#","x":"\ud83d\ude00 1e400","y":1e400"#)), None);
    assert_eq!(flaw(&job(&format!(r#","x":{}"#, nested(99)))), None);
    let deep = flaw(&job(&format!(r#","x":{}"#, nested(10_000)))).expect("a flaw");
    assert!(deep.starts_with("x[0][0]") && deep.ends_with("nested deeper than 100 levels"), "{deep}");
    assert_eq!(flaw(&job(r#","x":"\ud800""#)).as_deref(), Some("x: a string with half of a surrogate pair"));
    assert_eq!(flaw(&job(r#","\udc00":1"#)).as_deref(), Some("\\udc00: a string with half of a surrogate pair"));
    assert_eq!(flaw(&job(r#","x":{"a":1,"a":2}"#)).as_deref(), Some("x.a: duplicate field"));
    assert_eq!(flaw(&job(r#","class":"B""#)).as_deref(), Some("class: duplicate field"));
    for args in ["null", "{}", "\"x\"", "1"] {
        let text = format!(r#"{{"class":"B","args":{args}}}"#);
        assert_eq!(flaw(&text).as_deref(), Some("args: expected an array"), "{args}");
    }
    assert_eq!(flaw(r#"{"class":"B"}"#).as_deref(), Some("args: expected an array"));
}

#[test]
fn active_jobs_envelope_is_whole_or_a_flaw() {
    let flaw = |wrapped: &str, args: &str| {
        let text = format!(r#"{{"class":"{}","wrapped":"{wrapped}","args":{args}}}"#, WRAPPERS[1]);
        Payload::parse(text.as_bytes()).expect("a job").flaw().map(str::to_owned)
    };
    let whole = r#"[{"job_class":"B","arguments":[1]}]"#;
    assert_eq!(flaw("B", whole), None);
    assert_eq!(flaw("B", r#"[{"arguments":[{"_aj_globalid":"gid://app/User/1"},[{"_aj_globalid":[]}]]}]"#), None);
    for broken in ["[]", "[1]", "[null]", "[{}]", r#"[{"arguments":{}}]"#, r#"["x"]"#] {
        let expected = "args[0].arguments: expected an array, as Active Job writes it";
        assert_eq!(flaw("B", broken).as_deref(), Some(expected), "{broken}");
    }
}

#[test]
fn a_mail_has_a_class_a_method_and_arguments_or_a_flaw() {
    let flaw = |wrapped: &str, arguments: &str| {
        let class = WRAPPERS[0];
        let text = format!(
            r#"{{"class":"{class}",{wrapped}"args":[{{"job_class":"{MAIL_DELIVERY}","arguments":{arguments}}}]}}"#
        );
        Payload::parse(text.as_bytes()).expect("a job").flaw().map(str::to_owned)
    };
    let delivery = format!(r#""wrapped":"{MAIL_DELIVERY}","#);
    let old = r#""wrapped":"ActionMailer::DeliveryJob","#;
    for hash in [
        "{}",
        r#"{"args":[]}"#,
        r#"{"params":7,"args":"x"}"#,
        r#"{"_aj_globalid":1,"args":[]}"#,
        r#"{"_aj_serialized":"X"}"#,
        r#"{"args":{"_aj_globalid":"gid://app/User/1"}}"#,
    ] {
        assert_eq!(flaw(&delivery, &format!(r#"["M","m","deliver_now",{hash}]"#)), None, "{hash}");
    }
    // 7.3 and 8.1 replace the first by the object that it names.
    for other in [
        r#"{"_aj_globalid":"gid://app/User/1"}"#,
        r#"{ "_aj_globalid" : {} }"#,
        r#"{"_aj_\u0067lobalid":1}"#,
        "[]",
        "null",
        "1",
        "\"x\"",
    ] {
        let arguments = format!(r#"["M","m","deliver_now",{other}]"#);
        assert!(flaw(&delivery, &arguments).is_some(), "{other}");
        assert!(flaw("", &arguments).is_some(), "the class that is not named outside: {other}");
        assert_eq!(flaw(old, &arguments), None, "it has any arguments: {other}");
    }
    assert!(flaw(&delivery, r#"["M","m","deliver_now"]"#).is_some());
    assert_eq!(flaw(old, r#"["M"]"#), None);
    // Both are shown unchanged.
    for wrapped in [old, &delivery] {
        for names in [r#""<b>","m""#, r#""M","<b>""#, r#""M",{"a":"<b>"}"#, r#"["<b>"],"m""#] {
            assert!(flaw(wrapped, &format!(r#"[{names},"deliver_now",{{"args":[]}}]"#)).is_some(), "{names}");
        }
    }
}

#[test]
fn what_sidekiq_6_reads_as_yaml_is_in_an_envelope() {
    for class in ["DelayedMailer", "DelayedModel", "DelayedClass", "Delayed<"] {
        for yaml in [nested(10_000), r#"--- [!binary \"/+4=\", m, [1]]"#.into(), "- !ruby/class 'A'\\n- :b".into()] {
            let text = format!(r#"{{"class":"Sidekiq::Extensions::{class}","args":["{yaml}"],"jid":"j"}}"#);
            for entry in [left_behind(text.as_bytes()), running(text.as_bytes(), "q", now()).into_bytes()] {
                assert_eq!(assert_shown(&entry).string("class").as_deref(), Some(MALFORMED), "{class}");
                assert_eq!(opened(&entry), text.as_bytes());
            }
        }
    }
    assert_eq!(Payload::parse(br#"{"class":"Sidekiq::Delayed","args":["[["]}"#).expect("a job").flaw(), None);
}

#[test]
fn no_field_that_a_page_shows_unescaped_has_markup() {
    let markup = "<script>alert(1)</script>";
    let names = [
        "class",
        "jid",
        "queue",
        "retry_queue",
        "display_class",
        "bid",
        "wrapped",
        "cattr",
        "locale",
        "at",
        "x",
        "sidebake_set_aside",
        "zz<b>",
    ];
    let values = [json!(markup), json!([markup]), json!({markup: [1]}), json!({"a": {"b": markup}})];
    for (name, value) in names.iter().flat_map(|name| values.iter().map(move |value| (name, value))) {
        for value in [value.to_string(), value.to_string().replace('<', "\\u003C")] {
            let mut text = format!(r#"{{"n":1,"args":["{markup}"],"{name}":{value}"#);
            text.push_str(if *name == "class" { "}" } else { r#","class":"B"}"# });
            assert_kept(text.as_bytes(), &left_behind(text.as_bytes()));
            assert_no_markup(&Fields::of(&running(text.as_bytes(), "q", now())).expect("an object"));
            let Ok(payload) = Payload::parse(text.as_bytes()) else { continue };
            let queued = payload.enqueued("q", now(), Timestamps::Seconds);
            assert_no_markup(&Fields::of(str::from_utf8(&queued).expect("UTF-8")).expect("an object"));
        }
    }
    // A job without markup does not change; a lone `&` or quotation mark is not markup.
    let plain =
        r#"{"class":"B","args":["<b>"],"tags":["R&D","a\\u003cb"],"cattr":{"a":"it's \"x\" > y"},"queue":"R&D"}"#;
    assert_eq!(running(plain.as_bytes(), "q", now()), plain);
    let tags = r#"{"class":"B","args":[],"tags":["it's"]}"#;
    assert!(running(tags.as_bytes(), "q", now()).contains(SET_ASIDE), "7.3 has it in an attribute");
}

#[test]
fn an_argument_is_not_shown_instead_of_a_class() {
    for wrapped in ["", r#""wrapped":null,"#, r#""wrapped":7,"#] {
        let args = r#"[{"job_class":"B","arguments":["<b>"]}]"#;
        let text = format!(r#"{{"class":"{}",{wrapped}"args":{args}}}"#, WRAPPERS[0]);
        let entry = left_behind(text.as_bytes());
        assert_kept(text.as_bytes(), &entry);
        assert_eq!(assert_shown(&entry).string("wrapped").as_deref(), Some("B"));
    }
}

#[test]
fn a_foreign_backtrace_with_markup_is_set_aside() {
    let job = |lines: &[&str]| {
        let stream = miniz_oxide::deflate::compress_to_vec_zlib(json!(lines).to_string().as_bytes(), 6);
        format!(r#"{{"class":"B","args":[],"error_backtrace":"{}"}}"#, BASE64_STANDARD.encode(stream))
    };
    let plain = job(&["a.rb:1:in 'b'"]);
    assert_eq!(running(plain.as_bytes(), "q", now()), plain);
    assert!(running(job(&["a", "<script>"]).as_bytes(), "q", now()).contains(SET_ASIDE));
}

#[test]
fn a_job_of_very_many_odd_fields_is_shown_soon() {
    let fields: String = (0..300_000).map(|n| format!(r#","{n}":"<""#)).collect();
    let text = format!(r#"{{"class":"B","args":[]{fields}}}"#);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(running(text.as_bytes(), "q", now())));
    // Hours, if the time grows with the square of their number.
    let shown = receiver.recv_timeout(std::time::Duration::from_secs(90)).expect("the entry");
    assert!(shown.contains(MALFORMED), "{} bytes", shown.len());
}

#[test]
fn odd_fields_are_set_aside_and_stay_there() {
    let text = br#"{"class":"B","args":[],"jid":42,"tags":"x","cattr":7,"created_at":"now","at":null,"encrypt":true,"x":[1.10]}"#;
    let entry = left_behind(text);
    assert_kept(text, &entry);
    let fields = Fields::of(str::from_utf8(&entry).expect("UTF-8")).expect("an object");
    let aside = r#"{"at":"null","cattr":"7","created_at":"\"now\"","encrypt":"true","jid":"42","tags":"\"x\""}"#;
    assert_eq!(fields.raw(SET_ASIDE), Some(aside));
    assert_eq!(fields.raw("x"), Some("[1.10]"));
    let again = left_behind(&entry);
    let fields = Fields::of(str::from_utf8(&again).expect("UTF-8")).expect("an object");
    assert_eq!((fields.raw(SET_ASIDE), fields.raw("retry_count")), (Some(aside), Some("1")));
}

#[test]
fn a_running_job_that_sidekiq_can_show_is_not_changed() {
    let shown = |text: &[u8]| running(text, "q", now());
    let plain = r#"{ "class":"B", "args":[1e400] }"#;
    assert_eq!(shown(plain.as_bytes()), plain);
    assert_eq!(
        shown(br#"{"class":"B","args":[],"tags":1}"#),
        r#"{"class":"B","args":[],"sidebake_set_aside":{"tags":"1"}}"#
    );
    for malformed in [&b"null"[..], b"\xff", br#"{"class":"B","args":1}"#] {
        assert_shown(shown(malformed).as_bytes());
    }
}

/// JSON of any kind that this parser accepts, and some that it refuses.
fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        proptest::sample::select(vec![
            "null",
            "true",
            "-1",
            "1e400",
            "1.5",
            "\"\\ud800\"",
            "\"\\u0000\"",
            "\"<script>\"",
            "[\"'>\\u003cb\"]",
            "{\"a\":1,\"a\":2}"
        ])
        .prop_map(str::to_owned),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| json!(text).to_string()),
        (95_usize..105).prop_map(nested),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
            proptest::collection::vec(("[a-z]{1,3}", inner), 0..4).prop_map(|fields| {
                let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let names: Vec<&str> = FIELD_TESTS
        .iter()
        .map(|(name, _)| *name)
        .chain(["encrypt", "backtrace", "x", "<x>", "locale", ORIGINAL])
        .collect();
    let class = prop_oneof![
        4 => Just("\"B\"".to_owned()),
        1 => Just(format!("\"{}\"", WRAPPERS[0])),
        1 => Just(format!("\"{DELAYED}Model\"")),
        1 => any_value()
    ];
    let args = prop_oneof![2 => Just("[1]".to_owned()), 1 => any_value()];
    let fields = (proptest::sample::subsequence(names, 0..8), proptest::collection::vec(any_value(), 8));
    let job = (class, args, fields).prop_map(|(class, args, (names, values))| {
        let fields: String = names.iter().zip(values).map(|(name, value)| format!(",\"{name}\":{value}")).collect();
        format!("{{\"class\":{class},\"args\":{args}{fields}}}").into_bytes()
    });
    let job = job.boxed();
    prop_oneof![
        6 => job.clone(),
        1 => (job, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut job, at, byte)| {
            let at = at.index(job.len());
            job[at] = byte;
            job
        }),
        1 => any_value().prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest! {
    #[test]
    fn any_text_can_be_shown_and_is_kept(text in any_text()) {
        let entry = left_behind(&text);
        assert_kept(&text, &entry);
        assert_kept(&entry, &left_behind(&entry));
        json::is_json(&running(&text, "q", now())).expect("JSON");
        if let Ok(payload) = Payload::parse(&text) {
            let queued = payload.enqueued("q", now(), Timestamps::Milliseconds);
            prop_assert_eq!(json::oddity(str::from_utf8(&queued).expect("UTF-8"), 100), None);
            let again = Payload::parse(&queued).expect("a job");
            prop_assert_eq!(&again.class, &payload.class);
        }
    }
}

//! Arguments in each shape, valid and not.

use serde_json::json;

use super::*;
use crate::secret::Secret;

fn args(value: Value) -> Arguments {
    of_text(&value.to_string())
}

fn of_text(text: &str) -> Arguments {
    Arguments::new(text, None)
}

fn nested(depth: usize) -> String {
    format!("{}1{}", "[".repeat(depth), "]".repeat(depth))
}

#[test]
fn positional_arguments_are_mapped_with_constants_and_defaults() {
    let class = JobClass {
        arguments: Shape::Mapped,
        map: [("repository", "/0"), ("sha", "/1/commit"), ("push", "/1/push"), ("callback.queue", "/1/queue")]
            .map(|(field, pointer)| (field.into(), pointer.into()))
            .into(),
        constants: [("callback.class".into(), json!("Done"))].into(),
        defaults: [("push".into(), json!(true)), ("pull".into(), json!(true))].into(),
        echo: [("deploy".into(), "/1/deploy".into())].into(),
        ..JobClass::default()
    };
    let args = args(json!(["acme/app", {"commit": "c", "push": false, "queue": "q", "deploy": 7}]));
    let Ok(RequestFrom::Arguments(request)) = read(&class, &args) else { panic!("not in the arguments") };
    assert_eq!(
        request,
        json!({
            "pull": true, "push": false, "repository": "acme/app", "sha": "c",
            "callback": {"queue": "q", "class": "Done"}
        })
    );
    assert_eq!(Value::Object(echo(&class, &args)), json!({"deploy": 7}));
}

#[test]
fn an_id_becomes_the_resolvers_url_and_cannot_leave_its_place() {
    let resolve =
        Resolve { url: "https://rails/builds/{0}?of={1}".into(), secret: Some(Secret::new("s")), secret_file: None };
    let class = JobClass { arguments: Shape::Resolved(resolve), ..JobClass::default() };
    let made = read(&class, &args(json!([4711, "../a&b"])));
    let Ok(RequestFrom::Rails { url, .. }) = made else { panic!("no URL") };
    assert_eq!(url, "https://rails/builds/4711?of=..%2Fa%26b");
    let error = read(&class, &args(json!([[1], "x"]))).expect_err("refused");
    assert_eq!(error.to_string(), "args[0]: expected a string or an integer of at most 64 bits");
    let large = of_text("[123456789012345678901234567890, 1]");
    assert!(read(&class, &large).is_err(), "it would be 1.2345678901234568e29");
    let error = read(&class, &args(json!(["..", 1]))).expect_err("refused");
    assert_eq!(error.to_string(), "args[0]: \"..\" is not a valid id");
    let error = read(&class, &args(json!([1]))).expect_err("refused");
    assert_eq!(error.to_string(), "args: no argument for {1} in the resolver's URL");
}

#[test]
fn a_native_class_wants_one_object() {
    let class = JobClass::default();
    assert_eq!(
        read(&class, &args(json!([]))).expect_err("refused").to_string(),
        "args: expected one object, found 0 arguments"
    );
    assert_eq!(read(&class, &args(json!(["x"]))).expect_err("refused").to_string(), "args[0]: expected an object");
}

#[test]
fn the_callback_is_known_whatever_the_rest_is() {
    let callback = json!({"class": "Done", "queue": "q"});
    let class = JobClass::default();
    let many = format!("[{}0]", r#"{"":0},"#.repeat(20_000));
    for broken in
        [many, nested(100_000), "1e400".into(), r#""\ud800""#.into(), format!("\"{}\"", "x".repeat(3_000_000))]
    {
        let args = of_text(&format!(r#"[{{"definition": {broken}, "callback": {callback}, "build_id": 7}}]"#));
        assert_eq!(known(&class, &args), json!({"callback": callback, "build_id": 7}));
        assert!(read(&class, &args).is_err(), "{}", &broken[..6]);
    }
    assert_eq!(known(&class, &of_text(r#"[{"callback": 1e400}]"#)), json!({}));
    assert_eq!(known(&class, &of_text("[]")), json!({}));
}

#[test]
fn a_mapped_callback_is_known_as_well() {
    let class = JobClass {
        arguments: Shape::Mapped,
        map: [("definition", "/0"), ("callback.queue", "/1/queue"), ("build_id", "/1/id")]
            .map(|(field, pointer)| (field.into(), pointer.into()))
            .into(),
        constants: [("callback.class".into(), json!("Done"))].into(),
        ..JobClass::default()
    };
    let args = of_text(&format!(r#"[{}, {{"queue": "q", "id": 7, "x": 1e400}}]"#, nested(130)));
    assert_eq!(known(&class, &args), json!({"callback": {"queue": "q", "class": "Done"}, "build_id": 7}));
    assert_eq!(read(&class, &args).expect_err("refused").to_string(), "args[0]: nested deeper than 64 levels");
}

#[test]
fn what_cannot_be_read_hides_nothing_else_in_any_shape() {
    let mapped = |map: &[(&str, &str)]| JobClass {
        arguments: Shape::Mapped,
        map: map.iter().map(|(field, pointer)| ((*field).into(), (*pointer).into())).collect(),
        constants: [("callback.class".into(), json!("Done"))].into(),
        ..JobClass::default()
    };
    let apart = mapped(&[("callback.queue", "/1/q"), ("build_id", "/1/id")]);
    let whole = mapped(&[("callback", "/1"), ("build_id", "/0")]);
    let native = JobClass::default();
    let resolve = Resolve { url: "https://rails/{0}".into(), secret: Some(Secret::new("s")), secret_file: None };
    let resolved = JobClass { arguments: Shape::Resolved(resolve), ..JobClass::default() };
    let done = json!({"queue": "q", "class": "Done"});
    let table = [
        (&apart, r#"["x", {"q": "q", "id": 1e400}]"#, json!({"callback": done})),
        (&apart, r#"["x", {"q": "\ud800", "id": 7}]"#, json!({"callback": {"class": "Done"}, "build_id": 7})),
        (&apart, r#"["x"]"#, json!({"callback": {"class": "Done"}})),
        (&whole, r#"[7, {"queue": "q", "on": 1e400}]"#, json!({"callback": done, "build_id": 7})),
        (&whole, r#"[7, 1e400]"#, json!({"callback": {"class": "Done"}, "build_id": 7})),
        (&whole, r#"[7, "in the way"]"#, json!({"callback": {"class": "Done"}, "build_id": 7})),
        (
            &native,
            r#"[{"callback": {"queue": "q", "class": "Done", "on": 1e400}, "build_id": 7}]"#,
            json!({"callback": done, "build_id": 7}),
        ),
        (&native, r#"[{"callback": "\ud800", "build_id": 7}]"#, json!({"build_id": 7})),
        (&resolved, "[1e400, 7]", Value::Null),
    ];
    for (class, text, expected) in table {
        assert_eq!(known(class, &of_text(text)), expected, "{text}");
        // The same in Active Job's envelope, whose marks the caller has not written.
        let marked = text.replace("{\"q", r#"{"_aj_symbol_keys": [1e400], "q"#);
        let args = Arguments::new(&*marked, Some("_aj_"));
        assert_eq!(known(class, &args), expected, "{marked}");
    }
}

#[test]
fn arguments_have_a_size_that_is_said() {
    let class = JobClass::default();
    let args = args(json!([{"sha": "x".repeat(3_000_000)}]));
    let error = read(&class, &args).expect_err("refused").to_string();
    assert_eq!(error, "args: 3000010 bytes; at most 2621440 are allowed");
    // Bytes bound texts. A value of three bytes takes 72 in memory.
    let many = of_text(&format!(r#"[{{"definition": {{"target": [{}0]}}}}]"#, "{},".repeat(49_995)));
    let error = read(&class, &many).expect_err("refused").to_string();
    assert_eq!(error, "args: more than 50000 names and values");
}

#[test]
fn what_is_echoed_is_short_and_marks_are_not_the_callers() {
    let class = JobClass { echo: [("deploy".into(), "/0/deploy".into())].into(), ..JobClass::default() };
    let echo = |args: &str| echo(&class, &Arguments::new(args, Some("_aj_")));
    let expected = json!({"deploy": {"a": [{"b": 1}]}});
    assert_eq!(Value::Object(echo(r#"[{"deploy": {"_aj_x": [], "a": [{"_aj_y": 1, "b": 1}]}}]"#)), expected);
    for long in [format!("\"{}\"", "x".repeat(70_000)), nested(65), r#""\ud800""#.into()] {
        assert_eq!(Value::Object(echo(&format!(r#"[{{"deploy": {long}}}]"#))), json!({"deploy": null}));
    }
    let many = |n: usize| json!([{"deploy": vec![0; n]}]);
    assert_eq!(Value::Object(echo(&many(3_000).to_string())), json!({"deploy": null}));
    assert_eq!(Value::Object(echo(&many(1_999).to_string()))["deploy"][1_998], 0);
    let error = read(&class, &args(many(3_000))).expect_err("refused").to_string();
    assert_eq!(error, "args/0/deploy: more than 2000 names and values in the echoed field deploy");
    let long = args(json!([{"deploy": "x".repeat(70_000)}]));
    let error = read(&class, &long).expect_err("refused").to_string();
    assert_eq!(error, "args/0/deploy: 70002 bytes for the echoed field deploy; at most 65536 are allowed");
}

#[test]
fn a_number_that_would_become_another_one_is_echoed_as_its_text() {
    let class = JobClass { echo: [("deploy".into(), "/0".into())].into(), ..JobClass::default() };
    let echo = |text: &str| echo(&class, &of_text(&format!("[{text}]")))["deploy"].to_string();
    for same in ["0", "-1", "18446744073709551615", "-9223372036854775808", "1.5", "true", r#"{"a":[1,"x",null]}"#] {
        assert_eq!(echo(same), same);
    }
    for other in ["18446744073709551616", "-9223372036854775809", "123456789012345678901234567890", "1e400"] {
        assert_eq!(echo(other), format!("{other:?}"));
    }
    assert_eq!(echo(r#"{"ids":[99999999999999999999]}"#), r#"{"ids":["99999999999999999999"]}"#);
}

#[test]
fn an_id_that_makes_no_url_is_refused() {
    let resolve = Resolve { url: "https://rails/{0}".into(), secret: Some(Secret::new("s")), secret_file: None };
    let class = JobClass { arguments: Shape::Resolved(resolve), ..JobClass::default() };
    for id in ["x".repeat(2000), "a\0b".to_owned()] {
        let error = read(&class, &args(json!([id]))).expect_err("refused").to_string();
        assert_eq!(error, "args[0]: expected an id of at most 1024 bytes and without a NUL");
    }
}

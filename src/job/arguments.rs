//! From the arguments of a Sidekiq job to the native object: the three shapes that existing call sites have.
//!
//! *native*: the object is there. *mapped*: it is put together from any arguments by JSON Pointers (RFC 6901).
//! *resolved*: only the URL where Rails answers is made here; asking is `rails`' business.
//!
//! Arguments stay text until they are read: the callback of a job is found whatever the rest of it is.

use std::convert::Infallible;

use serde_json::{Map, Value};

use super::JobError;
use crate::bounds;
use crate::json;
use crate::settings::{JobClass, Resolve, Shape};

/// The fields that are known of any request: whom to notify, and of which build.
const KNOWN: [&str; 2] = ["callback", "build_id"];

/// The arguments of a job as their JSON text: an array, of which no item is read before it is asked for.
#[derive(Clone, Debug)]
pub struct Arguments {
    array: String,
    /// How names begin that the job's envelope leaves in objects, and that its caller did not write.
    marks: Option<&'static str>,
}

/// What the arguments amount to.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The native object.
    Native(Value),
    /// The URL of Rails' resolver, which has it.
    Resolve(String),
}

impl Default for Arguments {
    fn default() -> Self {
        Self::new("[]", None)
    }
}

impl Arguments {
    /// Takes the text of an array. Fields of objects whose names begin with `marks` are left out.
    pub fn new(array: impl Into<String>, marks: Option<&'static str>) -> Self {
        Self { array: array.into(), marks }
    }

    /// The text of each argument.
    fn texts(&self) -> impl Iterator<Item = &str> {
        json::items(&self.array)
    }

    /// Reads one argument; `Null` when there are fewer.
    ///
    /// # Errors
    ///
    /// Names the argument: a number that no double has, or more levels than can be read.
    pub fn value(&self, i: usize) -> Result<Value, JobError> {
        let Some(text) = self.texts().nth(i) else { return Ok(Value::Null) };
        self.read(text, || format!("args[{i}]"))
    }

    /// The value at a pointer into the array of arguments; `None` when there is nothing.
    fn find(&self, pointer: &str) -> Result<Option<Value>, JobError> {
        self.text_at(pointer).map(|text| self.read(text, || format!("args{pointer}"))).transpose()
    }

    fn text_at(&self, pointer: &str) -> Option<&str> {
        json::pointer(&self.array, pointer)
    }

    fn read(&self, text: &str, path: impl Fn() -> String) -> Result<Value, JobError> {
        let value: Value = json::read(text.as_bytes()).map_err(|error| JobError::new(path(), error.to_string()))?;
        Ok(self.unmarked(value))
    }

    fn unmarked(&self, value: Value) -> Value {
        match self.marks {
            Some(marks) => without(marks, value),
            None => value,
        }
    }

    /// What can be read at a pointer; of an object that cannot be read as a whole, the fields that can.
    fn readable(&self, pointer: &str) -> Option<Value> {
        let text = self.text_at(pointer)?;
        let read = |text: &str| self.read(text, String::new).ok();
        read(text).or_else(|| {
            let is_own = |name: &str| !self.marks.is_some_and(|marks| name.starts_with(marks));
            let own = json::fields(text).filter(|(name, _)| is_own(name));
            let fields = own.filter_map(|(name, value)| Some((name.into_owned(), read(value)?)));
            text.starts_with('{').then(|| fields.collect())
        })
    }

    /// Whether they may be read at all.
    fn check(&self) -> Result<(), JobError> {
        let size: usize = self.texts().map(str::len).sum();
        if size > bounds::ARGUMENTS {
            let message = format!("{size} bytes; at most {} are allowed", bounds::ARGUMENTS);
            return Err(JobError::new("args", message));
        }
        if json::has_more_values(self.array.as_bytes(), bounds::VALUES) {
            return Err(JobError::new("args", format!("more than {} names and values", bounds::VALUES)));
        }
        let too_deep = self.texts().position(|text| json::depth(text) > bounds::ARGUMENT_DEPTH);
        match too_deep {
            Some(i) => {
                let message = format!("nested deeper than {} levels", bounds::ARGUMENT_DEPTH);
                Err(JobError::new(format!("args[{i}]"), message))
            }
            None => Ok(()),
        }
    }
}

/// Without the fields whose names begin with `marks`. Whatever was read has few levels.
fn without(marks: &str, value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let own = fields.into_iter().filter(|(name, _)| !name.starts_with(marks));
            Value::Object(own.map(|(name, value)| (name, without(marks, value))).collect())
        }
        Value::Array(values) => values.into_iter().map(|value| without(marks, value)).collect(),
        scalar => scalar,
    }
}

/// Reads `args` in the way that the configuration gives for their class.
pub fn read(class: &JobClass, args: &Arguments) -> Result<Request, JobError> {
    args.check()?;
    check_echo(class, args)?;
    match class.arguments {
        Shape::Native => native(args),
        Shape::Mapped => mapped(class, args).map(Request::Native),
        Shape::Resolved => {
            let resolve = class.resolve.as_ref().ok_or_else(|| JobError::new(".", "the class has no resolver"))?;
            url(resolve, args).map(Request::Resolve)
        }
    }
}

/// What can be known of a request that may otherwise be invalid: the fields `callback` and `build_id` of its native object.
/// What cannot be read is left out, and hides nothing else.
pub fn known(class: &JobClass, args: &Arguments) -> Value {
    let is_known = |field: &str| KNOWN.contains(&root(field));
    match class.arguments {
        Shape::Native => {
            let found = |name: &str| Some((name.to_owned(), args.readable(&format!("/0/{name}"))?));
            Value::Object(KNOWN.into_iter().filter_map(found).collect())
        }
        Shape::Mapped => {
            let mut object = Value::Object(Map::new());
            for (field, source) in sources(class).filter(|(field, _)| is_known(field)) {
                let Ok(value) = source.value(|pointer| Ok::<_, Infallible>(args.readable(pointer)));
                if let Some(value) = value {
                    put_over(&mut object, field, &value);
                }
            }
            object
        }
        Shape::Resolved => Value::Null,
    }
}

/// The fields of the job that Rails wants back, unread; null in the place of one that is too long, too deep or no Unicode text.
pub fn echo(class: &JobClass, args: &Arguments) -> Map<String, Value> {
    let is_short = |text: &str| {
        text.len() <= bounds::ECHO
            && json::depth(text) <= bounds::ARGUMENT_DEPTH
            && !json::has_more_values(text.as_bytes(), bounds::ECHO_VALUES)
    };
    let found = |pointer: &String| {
        let text = args.text_at(pointer).filter(|text| is_short(text))?;
        echoed(text).map(|value| args.unmarked(value))
    };
    class.echo.iter().map(|(field, pointer)| (field.clone(), found(pointer).unwrap_or_default())).collect()
}

/// A value as it was written: a number that would become another one is its text.
fn echoed(text: &str) -> Option<Value> {
    Some(match text.as_bytes().first()? {
        b'{' => {
            let fields = json::fields(text).map(|(name, value)| Some((name.into_owned(), echoed(value)?)));
            Value::Object(fields.collect::<Option<_>>()?)
        }
        b'[' => Value::Array(json::items(text).map(echoed).collect::<Option<_>>()?),
        b'-' | b'0'..=b'9' => number(text),
        _ => json::read(text.as_bytes()).ok()?,
    })
}

/// A number that Ruby reads as the same one: an integer of 64 bits, or a float that a double can have. Any other is text.
fn number(text: &str) -> Value {
    let integer = text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from));
    let float = || json::read(text.as_bytes()).ok().filter(|_| text.contains(['.', 'e', 'E']));
    integer.ok().or_else(float).unwrap_or_else(|| text.into())
}

fn check_echo(class: &JobClass, args: &Arguments) -> Result<(), JobError> {
    for (field, pointer) in &class.echo {
        let Some(text) = args.text_at(pointer) else { continue };
        let size = text.len();
        if json::has_more_values(text.as_bytes(), bounds::ECHO_VALUES) {
            let message = format!("more than {} names and values in the echoed field {field}", bounds::ECHO_VALUES);
            return Err(JobError::new(format!("args{pointer}"), message));
        }
        if size > bounds::ECHO {
            let message = format!("{size} bytes for the echoed field {field}; at most {} are allowed", bounds::ECHO);
            return Err(JobError::new(format!("args{pointer}"), message));
        }
    }
    Ok(())
}

fn native(args: &Arguments) -> Result<Request, JobError> {
    match (args.texts().next(), args.texts().count()) {
        (Some(object), 1) if object.starts_with('{') => args.value(0).map(Request::Native),
        (_, 1) => Err(JobError::new("args[0]", "expected an object")),
        (_, n) => Err(JobError::new("args", format!("expected one object, found {n} arguments"))),
    }
}

/// Where the value of a field comes from.
enum Source<'a> {
    Configured(&'a Value),
    Pointer(&'a str),
}

impl Source<'_> {
    /// The value, if there is one: null in the arguments is none.
    fn value<E>(&self, find: impl FnOnce(&str) -> Result<Option<Value>, E>) -> Result<Option<Value>, E> {
        match self {
            Self::Configured(value) => Ok(Some((*value).clone())),
            Self::Pointer(pointer) => Ok(find(pointer)?.filter(|value| !value.is_null())),
        }
    }
}

/// The fields of a mapped class; a later one wins.
fn sources(class: &JobClass) -> impl Iterator<Item = (&str, Source<'_>)> {
    let configured = |(field, value)| (String::as_str(field), Source::Configured(value));
    let mapped = class.map.iter().map(|(field, pointer)| (field.as_str(), Source::Pointer(pointer)));
    class.defaults.iter().map(configured).chain(mapped).chain(class.constants.iter().map(configured))
}

fn mapped(class: &JobClass, args: &Arguments) -> Result<Value, JobError> {
    let mut object = Value::Object(Map::new());
    for (field, source) in sources(class) {
        if let Some(value) = source.value(|pointer| args.find(pointer))? {
            put(&mut object, field, value)?;
        }
    }
    Ok(object)
}

/// Sets `a.b.c`, making the objects on the way.
fn put(object: &mut Value, field: &str, value: Value) -> Result<(), JobError> {
    let mut place = object;
    for name in field.split('.') {
        let Value::Object(fields) = place else {
            return Err(JobError::new(field, "lies inside a field that is not an object"));
        };
        place = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
    }
    *place = value;
    Ok(())
}

/// The same, in the place of what is in the way.
fn put_over(object: &mut Value, field: &str, value: &Value) {
    if put(object, field, value.clone()).is_err() {
        object[root(field)] = Value::Object(Map::new());
        let _ = put(object, field, value.clone());
    }
}

/// `a` of `a.b.c`.
fn root(field: &str) -> &str {
    field.split('.').next().unwrap_or(field)
}

/// Fills `{0}`, `{1}`… with strings and integers, percent-encoded so that none can leave its place.
fn url(resolve: &Resolve, args: &Arguments) -> Result<String, JobError> {
    let mut url = resolve.url.clone();
    for i in 0..args.texts().count() {
        let mark = format!("{{{i}}}");
        if !url.contains(&mark) {
            continue;
        }
        let text = match args.value(i)? {
            Value::String(text) if text.len() > bounds::NAME || text.contains('\0') => {
                let message = format!("expected an id of at most {} bytes and without a NUL", bounds::NAME);
                return Err(JobError::new(format!("args[{i}]"), message));
            }
            Value::String(text) => text,
            // One of more than 64 bits is a float by now, and would be another id.
            Value::Number(number) if !number.is_f64() => number.to_string(),
            _ => return Err(JobError::new(format!("args[{i}]"), "expected a string or an integer of at most 64 bits")),
        };
        if matches!(text.as_str(), "." | "..") {
            return Err(JobError::new(format!("args[{i}]"), format!("{text:?} is not a valid id")));
        }
        url = url.replace(&mark, &encode(&text));
    }
    match url.find('{') {
        Some(at) => Err(JobError::new("args", format!("nothing for {} of the resolver's URL", &url[at..]))),
        None => Ok(url),
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            read(&class, &args),
            Ok(Request::Native(json!({
                "pull": true, "push": false, "repository": "acme/app", "sha": "c",
                "callback": {"queue": "q", "class": "Done"}
            })))
        );
        assert_eq!(Value::Object(echo(&class, &args)), json!({"deploy": 7}));
    }

    #[test]
    fn an_id_becomes_the_resolvers_url_and_cannot_leave_its_place() {
        let resolve = Resolve {
            url: "https://rails/builds/{0}?of={1}".into(),
            secret: Some(Secret::new("s")),
            secret_file: None,
        };
        let class = JobClass { arguments: Shape::Resolved, resolve: Some(resolve), ..JobClass::default() };
        let made = read(&class, &args(json!([4711, "../a&b"])));
        assert_eq!(made, Ok(Request::Resolve("https://rails/builds/4711?of=..%2Fa%26b".into())));
        let error = read(&class, &args(json!([[1], "x"]))).expect_err("refused");
        assert_eq!(error.to_string(), "args[0]: expected a string or an integer of at most 64 bits");
        let large = of_text("[123456789012345678901234567890, 1]");
        assert!(read(&class, &large).is_err(), "it would be 1.2345678901234568e29");
        let error = read(&class, &args(json!(["..", 1]))).expect_err("refused");
        assert_eq!(error.to_string(), "args[0]: \"..\" is not a valid id");
        let error = read(&class, &args(json!([1]))).expect_err("refused");
        assert_eq!(error.to_string(), "args: nothing for {1} of the resolver's URL");
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
        let resolved = JobClass { arguments: Shape::Resolved, ..JobClass::default() };
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
            // The same in Active Job's envelope, whose marks nobody has written.
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
        for same in ["0", "-1", "18446744073709551615", "-9223372036854775808", "1.5", "true", r#"{"a":[1,"x",null]}"#]
        {
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
        let class = JobClass { arguments: Shape::Resolved, resolve: Some(resolve), ..JobClass::default() };
        for id in ["x".repeat(2000), "a\0b".to_owned()] {
            let error = read(&class, &args(json!([id]))).expect_err("refused").to_string();
            assert_eq!(error, "args[0]: expected an id of at most 1024 bytes and without a NUL");
        }
    }
}

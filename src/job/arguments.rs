//! From the arguments of a Sidekiq job to the native object: the three shapes that existing call sites have.
//!
//! *native*: the object is there. *mapped*: it is put together from any arguments by JSON Pointers (RFC 6901).
//! *resolved*: only the URL where Rails answers is made here; asking is `rails`' business.

use serde_json::{Map, Value};

use super::JobError;
use crate::settings::{JobClass, Resolve, Shape};

/// What the arguments amount to.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// The native object.
    Native(Value),
    /// The URL of Rails' resolver, which has it.
    Resolve(String),
}

/// Reads `args` in the way that the configuration gives for their class.
pub fn read(class: &JobClass, args: &[Value]) -> Result<Request, JobError> {
    match class.arguments {
        Shape::Native => native(args),
        Shape::Mapped => mapped(class, args).map(Request::Native),
        Shape::Resolved => {
            let resolve = class.resolve.as_ref().ok_or_else(|| JobError::new(".", "the class has no resolver"))?;
            url(resolve, args).map(Request::Resolve)
        }
    }
}

/// The fields of the job that Rails wants back, unread.
pub fn echo(class: &JobClass, args: &[Value]) -> Map<String, Value> {
    let whole = Value::from(args.to_vec());
    let found = |pointer: &String| whole.pointer(pointer).cloned().unwrap_or(Value::Null);
    class.echo.iter().map(|(field, pointer)| (field.clone(), found(pointer))).collect()
}

fn native(args: &[Value]) -> Result<Request, JobError> {
    match args {
        [object @ Value::Object(_)] => Ok(Request::Native(object.clone())),
        [_] => Err(JobError::new("args[0]", "expected an object")),
        _ => Err(JobError::new("args", format!("expected one object, found {} arguments", args.len()))),
    }
}

fn mapped(class: &JobClass, args: &[Value]) -> Result<Value, JobError> {
    let whole = Value::from(args.to_vec());
    let mut object = Value::Object(Map::new());
    for (field, value) in &class.defaults {
        put(&mut object, field, value.clone())?;
    }
    for (field, pointer) in &class.map {
        match whole.pointer(pointer) {
            None | Some(Value::Null) => {}
            Some(value) => put(&mut object, field, value.clone())?,
        }
    }
    for (field, value) in &class.constants {
        put(&mut object, field, value.clone())?;
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

/// Fills `{0}`, `{1}`… with strings and integers, percent-encoded so that none can leave its place.
fn url(resolve: &Resolve, args: &[Value]) -> Result<String, JobError> {
    let mut url = resolve.url.clone();
    for (i, arg) in args.iter().enumerate() {
        let mark = format!("{{{i}}}");
        if !url.contains(&mark) {
            continue;
        }
        let text = match arg {
            Value::String(text) => text.clone(),
            // One of more than 64 bits is a float by now, and would be another id.
            Value::Number(number) if !number.is_f64() => number.to_string(),
            _ => return Err(JobError::new(format!("args[{i}]"), "expected a string or an integer of at most 64 bits")),
        };
        if matches!(text.as_str(), "." | "..") {
            return Err(JobError::new(format!("args[{i}]"), format!("{text:?} is no id")));
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

    fn args(value: Value) -> Vec<Value> {
        value.as_array().expect("an array").clone()
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
        let large = args(serde_json::from_str("[123456789012345678901234567890, 1]").expect("JSON"));
        assert!(read(&class, &large).is_err(), "it would be 1.2345678901234568e29");
        let error = read(&class, &args(json!(["..", 1]))).expect_err("refused");
        assert_eq!(error.to_string(), "args[0]: \"..\" is no id");
        let error = read(&class, &args(json!([1]))).expect_err("refused");
        assert_eq!(error.to_string(), "args: nothing for {1} of the resolver's URL");
    }

    #[test]
    fn a_native_class_wants_one_object() {
        let class = JobClass::default();
        assert_eq!(read(&class, &[]).expect_err("refused").to_string(), "args: expected one object, found 0 arguments");
        assert_eq!(read(&class, &[json!("x")]).expect_err("refused").to_string(), "args[0]: expected an object");
    }
}

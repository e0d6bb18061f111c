//! Reads the arguments of a Sidekiq job into a build request, in three shapes that existing call sites have.
//!
//! *native*: the argument is the build request. *mapped*: the request is assembled from any arguments by JSON Pointers (RFC 6901).
//! *resolved*: only the URL of Rails' resolver is made here; `rails` asks it.
//!
//! Arguments stay text until they are read, so a job's callback is found even when the rest is invalid.

use std::convert::Infallible;

use serde_json::{Map, Value};

use crate::bounds;
use crate::field_error::FieldError;
use crate::json;
use crate::settings::{JobClass, Resolve, Shape};

/// The fields that are read even of an invalid request: whom to notify, of which build.
const KNOWN: [&str; 2] = ["callback", "build_id"];

/// The arguments of a job as JSON text: an array. Items are parsed when they are needed.
#[derive(Clone, Debug)]
pub struct Arguments {
    array: String,
    /// The prefix of fields that Active Job adds to objects.
    marks: Option<&'static str>,
}

/// Where the build request is.
#[derive(Clone, Debug)]
pub enum RequestFrom<'a> {
    /// In the arguments.
    Arguments(Value),
    /// In Rails.
    Rails {
        /// The resolver of the job class.
        resolve: &'a Resolve,
        /// Its URL, filled with the arguments.
        url: String,
    },
}

impl Default for Arguments {
    fn default() -> Self {
        Self::new("[]", None)
    }
}

impl Arguments {
    /// Takes the text of an array. Ignores fields of objects whose names begin with `marks`.
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
    /// Names the argument: it contains a number that no double can hold, or is nested too deep.
    pub fn value(&self, i: usize) -> Result<Value, FieldError> {
        let Some(text) = self.texts().nth(i) else { return Ok(Value::Null) };
        self.read(text, || format!("args[{i}]"))
    }

    /// The value at a pointer into the arguments, if there is one.
    pub fn find(&self, pointer: &str) -> Result<Option<Value>, FieldError> {
        self.text_at(pointer).map(|text| self.read(text, || format!("args{pointer}"))).transpose()
    }

    fn text_at(&self, pointer: &str) -> Option<&str> {
        json::pointer(&self.array, pointer)
    }

    fn read(&self, text: &str, path: impl Fn() -> String) -> Result<Value, FieldError> {
        let value: Value = json::read(text.as_bytes()).map_err(|error| FieldError::new(path(), error.to_string()))?;
        Ok(self.unmarked(value))
    }

    fn unmarked(&self, value: Value) -> Value {
        match self.marks {
            Some(marks) => without(marks, value),
            None => value,
        }
    }

    /// The value at a pointer; of an object that cannot be read as a whole, its readable fields.
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

    /// Whether the arguments are within the limits.
    fn check(&self) -> Result<(), FieldError> {
        let size: usize = self.texts().map(str::len).sum();
        if size > bounds::ARGUMENTS {
            let message = format!("{size} bytes; at most {} are allowed", bounds::ARGUMENTS);
            return Err(FieldError::new("args", message));
        }
        if json::has_more_values(self.array.as_bytes(), bounds::VALUES) {
            return Err(FieldError::new("args", format!("more than {} names and values", bounds::VALUES)));
        }
        let too_deep = self.texts().position(|text| json::depth(text) > bounds::ARGUMENT_DEPTH);
        match too_deep {
            Some(i) => {
                let message = format!("nested deeper than {} levels", bounds::ARGUMENT_DEPTH);
                Err(FieldError::new(format!("args[{i}]"), message))
            }
            None => Ok(()),
        }
    }
}

/// The value without fields whose names begin with `marks`. Recursion is bounded: values that were read are not deep.
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

/// Reads `args` in the configured shape of their class.
pub fn read<'a>(class: &'a JobClass, args: &Arguments) -> Result<RequestFrom<'a>, FieldError> {
    args.check()?;
    check_echo(class, args)?;
    match &class.arguments {
        Shape::Native => native(args).map(RequestFrom::Arguments),
        Shape::Mapped => mapped(class, args).map(RequestFrom::Arguments),
        Shape::Resolved(resolve) => Ok(RequestFrom::Rails { resolve, url: url(resolve, args)? }),
    }
}

/// What is known of a request that may be invalid: its fields `callback` and `build_id`. Fields that cannot be read are left out.
pub fn known(class: &JobClass, args: &Arguments) -> Value {
    fields(class, args, &KNOWN)
}

/// These fields of a request that may be invalid. Fields that cannot be read are left out. Null where only Rails has the request.
pub fn fields(class: &JobClass, args: &Arguments, names: &[&str]) -> Value {
    let is_known = |field: &str| names.contains(&root(field));
    match &class.arguments {
        Shape::Native => {
            let found = |name: &&str| Some(((*name).to_owned(), args.readable(&format!("/0/{name}"))?));
            Value::Object(names.iter().filter_map(found).collect())
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
        Shape::Resolved(_) => Value::Null,
    }
}

/// The fields of the job that Rails wants returned, unread. Null for one that is too long, too deep or not valid Unicode.
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

/// A value as it was written. A number that would change when it is parsed becomes text.
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

/// A number that Ruby reads as the same: a 64-bit integer or a double. Any other becomes text.
fn number(text: &str) -> Value {
    let integer = text.parse::<i64>().map(Value::from).or_else(|_| text.parse::<u64>().map(Value::from));
    let float = || json::read(text.as_bytes()).ok().filter(|_| text.contains(['.', 'e', 'E']));
    integer.ok().or_else(float).unwrap_or_else(|| text.into())
}

fn check_echo(class: &JobClass, args: &Arguments) -> Result<(), FieldError> {
    for (field, pointer) in &class.echo {
        let Some(text) = args.text_at(pointer) else { continue };
        let size = text.len();
        if json::has_more_values(text.as_bytes(), bounds::ECHO_VALUES) {
            let message = format!("more than {} names and values in the echoed field {field}", bounds::ECHO_VALUES);
            return Err(FieldError::new(format!("args{pointer}"), message));
        }
        if size > bounds::ECHO {
            let message = format!("{size} bytes for the echoed field {field}; at most {} are allowed", bounds::ECHO);
            return Err(FieldError::new(format!("args{pointer}"), message));
        }
    }
    Ok(())
}

fn native(args: &Arguments) -> Result<Value, FieldError> {
    match (args.texts().next(), args.texts().count()) {
        (Some(object), 1) if object.starts_with('{') => args.value(0),
        (_, 1) => Err(FieldError::new("args[0]", "expected an object")),
        (_, n) => Err(FieldError::new("args", format!("expected one object, found {n} arguments"))),
    }
}

/// Where the value of a field comes from.
enum FieldValue<'a> {
    Configured(&'a Value),
    Pointer(&'a str),
}

impl FieldValue<'_> {
    /// The value, if there is one. Null in the arguments counts as none.
    fn value<E>(&self, find: impl FnOnce(&str) -> Result<Option<Value>, E>) -> Result<Option<Value>, E> {
        match self {
            Self::Configured(value) => Ok(Some((*value).clone())),
            Self::Pointer(pointer) => Ok(find(pointer)?.filter(|value| !value.is_null())),
        }
    }
}

/// The fields of a mapped class. Later ones override earlier ones.
fn sources(class: &JobClass) -> impl Iterator<Item = (&str, FieldValue<'_>)> {
    let configured = |(field, value)| (String::as_str(field), FieldValue::Configured(value));
    let mapped = class.map.iter().map(|(field, pointer)| (field.as_str(), FieldValue::Pointer(pointer)));
    class.defaults.iter().map(configured).chain(mapped).chain(class.constants.iter().map(configured))
}

fn mapped(class: &JobClass, args: &Arguments) -> Result<Value, FieldError> {
    let mut object = Value::Object(Map::new());
    for (field, source) in sources(class) {
        if let Some(value) = source.value(|pointer| args.find(pointer))? {
            put(&mut object, field, value)?;
        }
    }
    Ok(object)
}

/// Sets `a.b.c`, creating the objects in between.
fn put(object: &mut Value, field: &str, value: Value) -> Result<(), FieldError> {
    let mut current = object;
    for name in field.split('.') {
        let Value::Object(fields) = current else {
            return Err(FieldError::new(field, "is inside a field that is not an object"));
        };
        current = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
    }
    *current = value;
    Ok(())
}

/// The same, replacing whatever is in the way.
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

/// Fills `{0}`, `{1}`… with strings and integers, percent-encoded so that none can change the rest of the URL.
fn url(resolve: &Resolve, args: &Arguments) -> Result<String, FieldError> {
    let mut url = resolve.url.clone();
    for i in 0..args.texts().count() {
        let mark = format!("{{{i}}}");
        if !url.contains(&mark) {
            continue;
        }
        let text = match args.value(i)? {
            Value::String(text) if text.len() > bounds::NAME || text.contains('\0') => {
                let message = format!("expected an id of at most {} bytes and without a NUL", bounds::NAME);
                return Err(FieldError::new(format!("args[{i}]"), message));
            }
            Value::String(text) => text,
            // A larger number is a float by now, and would be another id.
            Value::Number(number) if !number.is_f64() => number.to_string(),
            _ => {
                return Err(FieldError::new(
                    format!("args[{i}]"),
                    "expected a string or an integer of at most 64 bits",
                ));
            }
        };
        if matches!(text.as_str(), "." | "..") {
            return Err(FieldError::new(format!("args[{i}]"), format!("{text:?} is not a valid id")));
        }
        url = url.replace(&mark, &encode(&text));
    }
    match url.find('{') {
        Some(at) => Err(FieldError::new("args", format!("no argument for {} in the resolver's URL", &url[at..]))),
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
mod tests;

//! How long the texts of a build request may be, and which characters none may contain.
//!
//! A text of a job becomes a variable, an argument, a path, a key or a request. Linux, PostgreSQL and HTTP have limits there. A text
//! beyond one is refused here by its path, before anything starts.

use serde_json::Value;

use crate::bounds;
use crate::field_error::FieldError;

/// Checks every text and name in the object.
///
/// # Errors
///
/// Names the path of the first text that is too long, contains a NUL, or is nested too deep.
pub(super) fn check(request: &Value) -> Result<(), FieldError> {
    RequestWalk { path: Vec::new() }.value(request)?;
    check_variables(request)?;
    for (path, pointer, max) in [
        ("targets", "/targets", bounds::TARGETS),
        ("application.images", "/application/images", bounds::TARGETS),
        ("compose", "/compose", bounds::DEFINITION_FILES),
        ("bake", "/bake", bounds::DEFINITION_FILES),
    ] {
        let n_items = request.pointer(pointer).and_then(Value::as_array).map_or(0, Vec::len);
        if n_items > max {
            return Err(FieldError::new(path, format!("{n_items} items; at most {max} are allowed")));
        }
    }
    Ok(())
}

/// Linux limits all variables and arguments of a program together.
fn check_variables(request: &Value) -> Result<(), FieldError> {
    let variables = request.get("variables").and_then(Value::as_object);
    let sizes =
        variables.into_iter().flatten().map(|(name, value)| name.len() + value.as_str().map_or(0, str::len) + 2);
    let size: usize = sizes.sum();
    if size > bounds::ENVIRONMENT {
        let message = format!("{size} bytes with their names; at most {} are allowed", bounds::ENVIRONMENT);
        return Err(FieldError::new("variables", message));
    }
    Ok(())
}

/// A step on the way to a value.
#[derive(Clone, Copy)]
enum Part<'a> {
    Field(&'a str),
    Item(usize),
}

struct RequestWalk<'a> {
    path: Vec<Part<'a>>,
}

impl<'a> RequestWalk<'a> {
    fn value(&mut self, value: &'a Value) -> Result<(), FieldError> {
        match value {
            Value::String(text) => self.text(text),
            // Checked before descending, so the stack is bounded too.
            Value::Array(_) | Value::Object(_) if self.path.len() >= bounds::ARGUMENT_DEPTH => {
                Err(self.refuse(format!("nested deeper than {} levels", bounds::ARGUMENT_DEPTH)))
            }
            Value::Array(items) => items.iter().enumerate().try_for_each(|(i, item)| self.step(Part::Item(i), item)),
            Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
                if name.contains('\0') {
                    return Err(self.refuse("a name in it contains a NUL"));
                }
                self.step(Part::Field(name), value)
            }),
            _ => Ok(()),
        }
    }

    fn step(&mut self, part: Part<'a>, value: &'a Value) -> Result<(), FieldError> {
        self.path.push(part);
        self.value(value)?;
        self.path.pop();
        Ok(())
    }

    fn text(&self, text: &str) -> Result<(), FieldError> {
        if text.contains('\0') {
            return Err(self.refuse("contains a NUL"));
        }
        if let [Part::Field("variables"), Part::Field(name)] = self.path[..]
            && name.len() + text.len() + 2 > bounds::VARIABLE
        {
            let size = bounds::VARIABLE;
            return Err(self.refuse(format!("longer with its name than the {size} bytes that Linux allows")));
        }
        let max = self.max_bytes();
        if text.len() > max {
            return Err(self.refuse(format!("{} bytes; at most {max} are allowed", text.len())));
        }
        Ok(())
    }

    /// The limit, by what the text becomes.
    fn max_bytes(&self) -> usize {
        use Part::{Field, Item};
        match self.path[..] {
            [Field("compose" | "bake")]
            | [Field("compose" | "bake"), Item(_)]
            | [Field("application"), Field("images"), Item(_), Field("context" | "dockerfile")]
            | [Field("application"), Field("images"), Item(_), Field("contexts"), Field(_)] => bounds::PATH,
            [Field("application"), Field("images"), Item(_), Field("name" | "tags" | "target" | "platforms"), ..] => {
                bounds::NAME
            }
            [Field("application" | "definition" | "variables"), ..] => bounds::STRING,
            // It appears in requests to GitHub, in Redis keys, or in the log.
            _ => bounds::NAME,
        }
    }

    fn refuse(&self, message: impl AsRef<str>) -> FieldError {
        let mut path = String::new();
        for part in &self.path {
            match part {
                Part::Item(i) => path.push_str(&format!("[{i}]")),
                Part::Field(name) if path.is_empty() => path.push_str(name),
                Part::Field(name) => path.push_str(&format!(".{name}")),
            }
        }
        FieldError::new(if path.is_empty() { ".".into() } else { path }, message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(native: &Value) -> String {
        check(native).expect_err("refused").to_string()
    }

    #[test]
    fn a_nul_is_refused_wherever_it_stands() {
        assert_eq!(refused(&json!({"variables": {"FOO": "a\0b"}})), "variables.FOO: contains a NUL");
        let tags = json!({"application": {"images": [{"tags": ["x"]}, {"tags": ["x", "y\0"]}]}});
        assert_eq!(refused(&tags), "application.images[1].tags[1]: contains a NUL");
        assert_eq!(
            refused(&json!({"definition": {"target": {"a\0": {}}}})),
            "definition.target: a name in it contains a NUL"
        );
        for field in ["compose", "ref", "builder", "build_id", "account", "anything"] {
            assert_eq!(refused(&json!({field: "\0"})), format!("{field}: contains a NUL"));
        }
        assert_eq!(check(&json!({"variables": {"FOO": "a\u{1}\n"}})), Ok(()));
    }

    #[test]
    fn a_text_is_as_long_as_what_it_becomes_allows() {
        let long = |n: usize| "x".repeat(n);
        assert_eq!(refused(&json!({"compose": long(4096)})), "compose: 4096 bytes; at most 4095 are allowed");
        let context = json!({"application": {"images": [{"context": long(5000)}]}});
        assert_eq!(refused(&context), "application.images[0].context: 5000 bytes; at most 4095 are allowed");
        assert_eq!(refused(&json!({"ref": long(3_000_000)})), "ref: 3000000 bytes; at most 1024 are allowed");
        let args = json!({"application": {"images": [{"args": {"FOO": long(3_000_000)}}]}});
        assert_eq!(refused(&args), "application.images[0].args.FOO: 3000000 bytes; at most 2097152 are allowed");
        assert_eq!(check(&json!({"application": {"images": [{"dockerfile_inline": long(1_000_000)}]}})), Ok(()));
        let many = json!({"targets": vec!["a"; 1001]});
        assert_eq!(refused(&many), "targets: 1001 items; at most 1000 are allowed");
        let images = json!({"application": {"images": vec![json!({}); 1001]}});
        assert_eq!(refused(&images), "application.images: 1001 items; at most 1000 are allowed");
    }

    #[test]
    fn variables_fit_into_an_environment_each_and_together() {
        let value = |n: usize| "x".repeat(n);
        // With its name, the sign between them and the NUL at the end.
        let fits = bounds::VARIABLE - "FOO".len() - 2;
        assert_eq!(check(&json!({"variables": {"FOO": value(fits)}})), Ok(()));
        let message = "variables.FOO: longer with its name than the 131072 bytes that Linux allows";
        assert_eq!(refused(&json!({"variables": {"FOO": value(fits + 1)}})), message);
        let five: serde_json::Map<_, _> = (0..5).map(|n| (format!("V{n}"), json!(value(110_000)))).collect();
        assert_eq!(
            refused(&json!({"variables": five})),
            "variables: 550020 bytes with their names; at most 524288 are allowed"
        );
    }

    #[test]
    fn depth_is_bounded_before_it_is_entered() {
        let nest = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(check(&json!({"definition": nest(63)})), Ok(()));
        let path = format!("definition{}", "[0]".repeat(63));
        assert_eq!(refused(&json!({"definition": nest(100)})), format!("{path}: nested deeper than 64 levels"));
    }
}

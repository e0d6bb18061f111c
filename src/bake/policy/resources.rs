//! Limits that a definition sets for its own steps; buildx before 0.35 does not know them.
//!
//! A limit only takes something away, except for shares of the processor: with more than usual, a step slows the builds
//! beside it. buildx reads the values only during the build, and quotes them in its error. So each is checked before.

use serde_json::Value;

use super::{Refusal, Rules};

/// The shares of a step without a limit.
const USUAL_SHARES: i64 = 1024;

impl Rules<'_> {
    pub(super) fn resources(&self, value: Value) -> Result<Value, Refusal> {
        let Value::Object(limits) = &value else { return Err(self.invalid("resources", "expected an object")) };
        for (name, limit) in limits.iter().filter(|(_, limit)| !limit.is_null()) {
            let field = format!("resources.{}", name.escape_debug());
            let is_text = |is_valid: fn(&str) -> bool| limit.as_str().is_some_and(is_valid);
            let (is_valid, expected) = match &**name {
                "memory" => (is_text(is_size), "a size, such as 512m"),
                "memory-swap" => (is_text(|text| text == "-1" || is_size(text)), "a size, such as 512m, or -1"),
                "cpuset-cpus" | "cpuset-mems" => (is_text(is_set), "a list of numbers, such as 0-2,4"),
                "cpu-period" | "cpu-quota" => (limit.is_i64(), "a number"),
                "cpu-shares" if limit.as_i64().is_some_and(|shares| shares > USUAL_SHARES) => {
                    let message = format!("at most {USUAL_SHARES} are allowed, the shares of a step without a limit");
                    return Err(self.refusal(&field, message));
                }
                "cpu-shares" => (limit.is_i64(), "a number"),
                _ => return Err(self.refusal(&field, "this field is not allowed")),
            };
            if !is_valid {
                return Err(self.invalid(&field, format!("expected {expected}")));
            }
        }
        Ok(value)
    }
}

/// Digits, with a unit or without: `48m`, `1.5 GiB`.
fn is_size(text: &str) -> bool {
    let end = text.rfind(|character: char| character.is_ascii_digit()).map_or(0, |at| at + 1);
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let is_unit = match unit.as_bytes() {
        [] | [b'b'] => true,
        [scale] | [scale, b'b'] | [scale, b'i', b'b'] => b"kmgtp".contains(scale),
        _ => false,
    };
    is_digits(whole) && is_digits(part) && is_unit
}

fn is_set(text: &str) -> bool {
    text.is_empty() || text.split(['-', ',']).all(is_digits)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

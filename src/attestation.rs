//! What BuildKit can attest of an image: how it was built (provenance) and what it contains (SBOM).
//!
//! Owns the two kinds, the forms of a request, and the options that a definition may set. Follows BuildKit's
//! `frontend/attestations` and buildx's `--attest`: comma-separated values (RFC 4180), booleans as in Go.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A kind of attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attestation {
    /// How an image was built.
    Provenance,
    /// What is in an image.
    Sbom,
}

/// Who sets an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A job or a definition.
    Definition,
    /// The configuration of the worker.
    Configuration,
}

/// Options of an attestation, such as `mode` = `max`.
pub type Options = BTreeMap<String, String>;

/// Whether an attestation is requested: `true`, `false`, or options such as `"mode=max"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Whether it is made.
    pub is_on: bool,
    /// With these options.
    pub options: Options,
}

impl Attestation {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Provenance, Self::Sbom];

    /// As in a job, and as BuildKit's `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provenance => "provenance",
            Self::Sbom => "sbom",
        }
    }

    /// The kind of this name. BuildKit ignores case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|attestation| attestation.name().eq_ignore_ascii_case(name.trim()))
    }

    /// The option that only the configuration may set: the builder's id, and the SBOM generator.
    pub fn reserved_option(self) -> &'static str {
        match self {
            Self::Provenance => "builder-id",
            Self::Sbom => "generator",
        }
    }

    /// Refuses an option that is unknown, reserved, or has an invalid value.
    fn check(self, option: &str, value: &str, by: By) -> Result<(), String> {
        if option == self.reserved_option() {
            return match by {
                By::Configuration if value.is_empty() => Err(format!("{option} is empty")),
                By::Configuration => Ok(()),
                By::Definition => Err(format!("{option} is set by bake.{} in the worker's configuration", self.name())),
            };
        }
        let is_known = match (self, option) {
            (Self::Provenance, "mode") => matches!(value, "min" | "max" | "full"),
            (Self::Provenance, "version") => matches!(value, "v0.2" | "v1"),
            (Self::Provenance, "reproducible" | "inline-only") => is_boolean(value),
            _ => return Err(format!("unknown option {option:?} of {}", self.name())),
        };
        if is_known { Ok(()) } else { Err(format!("unknown value {value:?} of the option {option}")) }
    }
}

impl Asked {
    /// On, without options.
    pub fn on() -> Self {
        Self { is_on: true, options: Options::new() }
    }

    /// Reads `true`, `false`, or options as for `--attest`, without the `type`.
    ///
    /// # Errors
    ///
    /// When it is neither a boolean nor a list of `name=value`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if is_boolean(text) {
            return Ok(Self { is_on: is_true(text), options: Options::new() });
        }
        let options = pairs(text).ok_or_else(|| format!("expected true, false or name=value,…, found {text:?}"))?;
        Self::from_options(options)
    }

    /// The same from options, which may include `disabled`.
    ///
    /// # Errors
    ///
    /// When `disabled` is not a boolean.
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut asked = Self::on();
        for (name, value) in options {
            match name.as_str() {
                "disabled" if is_boolean(&value) => asked.is_on = !is_true(&value),
                "disabled" => return Err(format!("expected a boolean for disabled, found {value:?}")),
                _ => drop(asked.options.insert(name, value)),
            }
        }
        Ok(asked)
    }

    /// Refuses options that this setter may not set. A disabled attestation's options have no effect.
    ///
    /// # Errors
    ///
    /// Names the option.
    pub fn check(&self, attestation: Attestation, by: By) -> Result<(), String> {
        if !self.is_on && by == By::Definition {
            return Ok(());
        }
        self.options.iter().try_for_each(|(option, value)| attestation.check(option, value, by))
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options: Vec<String> = self.options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        match self.is_on {
            false => f.write_str("off"),
            true if options.is_empty() => f.write_str("on"),
            true => f.write_str(&options.join(",")),
        }
    }
}

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AskedVisitor;
        impl Visitor<'_> for AskedVisitor {
            type Value = Asked;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or options such as \"mode=max\"")
            }
            fn visit_bool<E>(self, is_on: bool) -> Result<Asked, E> {
                Ok(Asked { is_on, options: Options::new() })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Asked, E> {
                Asked::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(AskedVisitor)
    }
}

/// The `name=value` fields of one line of comma-separated values. `None` when it is not such a line.
pub fn pairs(line: &str) -> Option<Vec<(String, String)>> {
    let pair = |field: &String| field.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.to_owned()));
    fields(line)?.iter().map(pair).collect()
}

/// The fields of one line of comma-separated values. A quoted field may contain commas and doubled quotes.
pub fn fields(line: &str) -> Option<Vec<String>> {
    let (mut fields, mut rest) = (Vec::new(), line);
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest.split_once(',').map_or((rest, None), |(field, after)| (field, Some(after)));
            if field.contains('"') {
                return None;
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Some(fields),
            }
            continue;
        };
        let (field, after) = until_quote(quoted)?;
        fields.push(field);
        match after.strip_prefix(',') {
            Some(after) => rest = after,
            None if after.is_empty() => return Some(fields),
            None => return None,
        }
    }
}

/// A quoted field up to its end, and the rest.
fn until_quote(text: &str) -> Option<(String, &str)> {
    let (mut field, mut rest) = (String::new(), text);
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Some((field, after)),
        }
    }
}

/// Whether Go's `strconv.ParseBool` reads a text as true, as BuildKit and buildx do.
pub fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// Whether `strconv.ParseBool` reads a text at all.
pub fn is_boolean(text: &str) -> bool {
    is_true(text) || matches!(text, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_values_are_split_as_gos_reader_splits_them() {
        for (line, expected) in [
            ("", Some(vec![""])),
            ("a=b,c", Some(vec!["a=b", "c"])),
            ("\"a=b,c\",d", Some(vec!["a=b,c", "d"])),
            ("\"say \"\"hi\"\"\"", Some(vec!["say \"hi\""])),
            ("a,", Some(vec!["a", ""])),
            ("a\"b", None),
            ("\"a\"b", None),
            ("\"a", None),
        ] {
            let expected = expected.map(|fields| fields.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(fields(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_asked_for_is_read_in_each_form() {
        let parse = |text: &str| Asked::parse(text).expect(text);
        for text in ["true", "1", "T"] {
            assert_eq!(parse(text), Asked::on());
        }
        assert_eq!(parse("False"), Asked::default());
        let max = Asked { is_on: true, options: [("mode".into(), "max".into())].into() };
        assert_eq!((parse("mode=max"), parse("\"mode=max\",disabled=false")), (max.clone(), max));
        assert!(!parse("mode=max,disabled=1").is_on);
        for wrong in ["max", "mode=max,x", "disabled=maybe", "\"mode=max"] {
            assert!(Asked::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_configuration_says_who_builds_and_who_looks_into_images() {
        use Attestation::{Provenance, Sbom};
        for (attestation, text, by_definition, by_configuration) in [
            (Provenance, "mode=max,version=v0.2,reproducible=1,inline-only=F", true, true),
            (Provenance, "builder-id=https://x", false, true),
            (Provenance, "builder-id=", false, false),
            (Provenance, "generator=x", false, false),
            (Provenance, "mode=huge", false, false),
            (Provenance, "filename=x", false, false),
            (Sbom, "generator=x/y", false, true),
            (Sbom, "SELECT_CATALOGERS=x", false, false),
            (Sbom, "Generator=x", false, false),
        ] {
            let asked = Asked::parse(text).expect("options");
            assert_eq!(asked.check(attestation, By::Definition).is_ok(), by_definition, "{text}");
            assert_eq!(asked.check(attestation, By::Configuration).is_ok(), by_configuration, "{text}");
        }
        let off = Asked::parse("generator=evil/image,disabled=true").expect("options");
        assert!(off.check(Sbom, By::Definition).is_ok(), "it has no effect");
    }
}

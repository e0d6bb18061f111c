//! The grammar of image references, as the registries' own library has it.
//!
//! Follows github.com/distribution/reference (`ReferenceRegexp`, `ParseNormalizedNamed`), which buildx and BuildKit use. One
//! rule is stricter: a host in upper case without a dot or a port is a user name that was written in upper case.

use std::borrow::Cow;
use std::fmt;

/// The registry of a reference without a host.
pub const DOCKER_HUB: &str = "docker.io";

/// The longest name without its host, in bytes.
const MAX_NAME: usize = 255;

/// The longest tag, in bytes.
const MAX_TAG: usize = 128;

/// A reference without a digest, with what is left out of it. It shows in the form that BuildKit uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference<'a> {
    /// The host, perhaps with a port.
    pub registry: &'a str,
    /// The name within the registry.
    pub repository: Cow<'a, str>,
    /// The tag.
    pub tag: &'a str,
}

impl<'a> Reference<'a> {
    /// Of a text that names an image.
    pub fn of(text: &'a str) -> Self {
        let (registry, (name, tag)) = (registry_of(text), name_and_tag(split(text).1));
        let is_official = registry == DOCKER_HUB && !name.contains('/');
        let repository = if is_official { format!("library/{name}").into() } else { name.into() };
        Self { registry, repository, tag: tag.unwrap_or("latest") }
    }
}

impl fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// The registry of a reference: its first part when that can be a host, else Docker Hub.
pub fn registry_of(text: &str) -> &str {
    match split(text).0 {
        None | Some("index.docker.io") => DOCKER_HUB,
        Some(host) => host,
    }
}

/// The host and the rest.
fn split(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if is_host_like(first) => (Some(first), rest),
        _ => (None, text),
    }
}

fn name_and_tag(rest: &str) -> (&str, Option<&str>) {
    rest.split_once(':').map_or((rest, None), |(name, tag)| (name, Some(tag)))
}

/// Refuses a reference that no image can be pushed to. The message quotes it.
pub fn check_tag(text: &str) -> Result<(), String> {
    match text.split_once('@') {
        Some((name, _)) if check(name).is_ok() => {
            Err(format!("{text:?} has a digest, which only the push can give; write {name:?}"))
        }
        _ => check(text),
    }
}

/// Refuses a text that names no image. A digest may stand at its end. The message quotes the text.
pub fn check_reference(text: &str) -> Result<(), String> {
    match text.split_once('@') {
        Some((name, digest)) if is_digest(digest) => check(name),
        Some(_) => Err(format!("{text:?} does not end in a digest such as @sha256:…")),
        None => check(text),
    }
}

fn check(text: &str) -> Result<(), String> {
    let (host, rest) = split(text);
    let (name, tag) = name_and_tag(rest);
    let is_user = |host: &str| !host.contains(['.', ':']);
    let is_upper = |text: &str| text.contains(|c: char| c.is_ascii_uppercase());
    if is_upper(name) || host.is_some_and(|host| is_user(host) && is_upper(host)) {
        let before_tag = text.len() - tag.map_or(0, |tag| tag.len() + 1);
        let lower = text[..before_tag].to_ascii_lowercase() + &text[before_tag..];
        return Err(format!("{text:?} has upper-case letters, which only a tag may have; write {lower:?}"));
    }
    if host.is_some_and(|host| !is_host(host)) {
        return Err(format!("{text:?} begins with an invalid host; expected HOST or HOST:PORT before the first /"));
    }
    if name.len() > MAX_NAME {
        return Err(format!("the name in {text:?} has {} bytes; at most {MAX_NAME} are allowed", name.len()));
    }
    let is_id = host.is_none() && name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id || !name.split('/').all(is_component) {
        let allowed = "lower-case letters and digits, with . _ or - between them, and / between parts";
        return Err(format!("{text:?} is not an image reference; a name has {allowed}"));
    }
    match tag {
        Some(tag) if !is_tag(tag) => {
            let allowed = "letters, digits, _ . and -, does not begin with . or -, and is at most 128 characters long";
            Err(format!("{text:?} has an invalid tag; a tag has {allowed}"))
        }
        _ => Ok(()),
    }
}

/// Whether the part before the first slash is a host and not a user name.
fn is_host_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            let is_address = !address.is_empty() && address.bytes().all(|b| b == b':' || b.is_ascii_hexdigit());
            (is_address, port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        None => {
            let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
            (name.split('.').all(is_label), port)
        }
    };
    host && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_label(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.chars().all(is_part) && !text.starts_with('-') && !text.ends_with('-')
}

/// Letters and digits, with one separator between them: `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    text.starts_with(is_letter) && text.ends_with(is_letter) && text.split(is_letter).all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= MAX_TAG && text.starts_with(is_word) && text.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

/// Whether a text is a digest: an algorithm and a hash of at least 32 hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    let Some((algorithm, hash)) = text.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let is_hash = hash.len() >= 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    algorithm.split(['-', '_', '+', '.']).all(is_part) && is_hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_accept_is_a_reference() {
        let long = format!("r.example/{}", "x".repeat(255));
        for text in [
            "x",
            "library/x",
            "acme/app:1",
            "acme/app:V1.0_x-Y",
            "R.Example/acme/app",
            "registry:5000/a/b/c:1",
            "localhost/x",
            "[::1]:5000/x",
            "[fe80::1]/x",
            "x__y/a.b-c---d",
            "0/1",
            &long,
        ] {
            assert_eq!((check_tag(text), check_reference(text)), (Ok(()), Ok(())), "{text}");
        }
        let pinned = format!("acme/app:1@sha256:{}", "0a".repeat(32));
        assert_eq!(check_reference(&pinned), Ok(()));
        assert!(check_tag(&pinned).expect_err("refused").ends_with("write \"acme/app:1\""));
    }

    #[test]
    fn a_reference_is_completed_as_in_buildkit() {
        for (text, expected) in [
            ("base", "docker.io/library/base:latest"),
            ("base:1", "docker.io/library/base:1"),
            ("docker.io/base", "docker.io/library/base:latest"),
            ("index.docker.io/acme/base", "docker.io/acme/base:latest"),
            ("acme/base:1", "docker.io/acme/base:1"),
            ("localhost/base", "localhost/base:latest"),
            ("r.example:5000/a/b:V1", "r.example:5000/a/b:V1"),
            ("[::1]:5000/base", "[::1]:5000/base:latest"),
            ("Acme/base", "Acme/base:latest"),
        ] {
            assert_eq!(Reference::of(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_registries_refuse_is_refused_with_the_value() {
        let id = "0a".repeat(32);
        let (long_name, long_tag) = ("x".repeat(256), format!("x:{}", "y".repeat(129)));
        for text in [
            "",
            " x",
            "x ",
            "x:",
            "x:-a",
            "x:a b",
            "x:a:b",
            "x:é",
            "é",
            "a//b",
            "/a",
            "a/",
            "x___y",
            "-a",
            "a-",
            "a._b",
            "r.example:5000x/y",
            "r.example:/y",
            "r..example/y",
            "-r.example/y",
            "[::1/y",
            "[]:5000/x",
            "[::1]x/y",
            "https://r.example/x",
            "x@sha256:0",
            "x@latest",
            &id,
            &long_name,
            &long_tag,
        ] {
            let message = check_reference(text).expect_err(text);
            assert!(message.contains(&format!("{text:?}")), "{message}");
            assert!(check_tag(text).is_err(), "{text}");
        }
    }

    #[test]
    fn upper_case_before_the_tag_is_refused_with_the_name_to_write() {
        for (text, lower) in [
            ("acme/App:V1", "acme/app:V1"),
            ("Acme/app", "acme/app"),
            ("App", "app"),
            ("r.example:5000/Acme/App:V1", "r.example:5000/acme/app:V1"),
        ] {
            let message = check_tag(text).expect_err(text);
            assert!(message.ends_with(&format!("write {lower:?}")), "{message}");
        }
    }
}

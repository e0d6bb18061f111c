//! What a registry answered, read from the error that containerd or BuildKit made of it.
//!
//! An HTTP status is read at its place after the URL, so no reference and none of the registry's own words imitates it. containerd
//! since 2.1 drops the status of a refused push when the registry explains itself: then the code of the explanation counts. Only an
//! error without both is searched for words, without references and URLs: a customer chooses those. Follows containerd 1.7 to
//! 2.3, `core/remotes/docker`, and BuildKit's `util/resolver`.

use std::time::Duration;

/// The longest wait that a registry's words can ask for.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// What became of a request to a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The image does not exist. Docker Hub says the same of a private one.
    Missing,
    /// 401, 403, or a refused token.
    Denied,
    /// Our own sandbox refused the port: it is not in `sandbox.registry_ports`.
    PortRefused,
    /// 429, and how long the registry's words ask to wait.
    TooMany(Duration),
    /// Another 4xx: the same request gets the same answer.
    Rejected,
    /// The host does not exist.
    NoHost,
    /// No valid HTTPS.
    Insecure,
    /// It failed, did not answer, or sent something else than was asked for.
    Away,
    /// What it serves is not an image that BuildKit can use.
    NotImage,
    /// The image is not made for the platform of the build.
    OtherPlatform,
}

impl Answer {
    /// Reads an error about a registry; `None` when it says nothing of one.
    pub(super) fn read(error: &str) -> Option<Self> {
        match status(error) {
            Some((status, words)) => Self::of_status(status, words),
            None => {
                explanation(error).map_or_else(|| Self::of_words(error), |(code, words)| Self::of_code(code, words))
            }
        }
    }

    fn of_status(status: u16, words: &str) -> Option<Self> {
        Some(match status {
            401 | 403 => Self::Denied,
            404 => Self::Missing,
            429 => Self::TooMany(retry_after(words)),
            // 407 comes from a proxy, and the proxy is the platform's.
            407 | 408 | 500.. => Self::Away,
            400..500 => Self::Rejected,
            // A redirect that leads nowhere.
            _ => Self::Away,
        })
    }

    /// A code that containerd does not know becomes `unknown`: an unknown repository or an immutable tag, but also a failure.
    fn of_code(code: &str, words: &str) -> Option<Self> {
        let said = words.to_ascii_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| said.contains(phrase));
        Some(match code {
            "unauthorized" => Self::Denied,
            "denied" if says(LIMITS) => Self::Rejected,
            "denied" => Self::Denied,
            "unsupported" => Self::Rejected,
            "toomanyrequests" => Self::TooMany(retry_after(words)),
            "unavailable" => Self::Away,
            _ if words.is_empty() || says(FAILURES) => Self::Away,
            _ => Self::Rejected,
        })
    }

    fn of_words(error: &str) -> Option<Self> {
        if let Some((_, answer)) = NOT_MISSING.iter().find(|(words, _)| error.contains(words)) {
            return Some(answer.clone());
        }
        let is_missing = error == "not found" || error.ends_with(": not found");
        if is_missing && !error.contains(" snapshot ") {
            return Some(Self::Missing);
        }
        let words: Vec<&str> = error.split_whitespace().filter(|word| !word.contains('/')).collect();
        let said = words.join(" ").to_ascii_lowercase();
        let known = WORDS.iter().find(|(words, _)| said.contains(words)).map(|(_, answer)| answer.clone());
        known.or_else(|| error.contains("failed to do request: ").then_some(Self::Away))
    }
}

/// What ends with `not found`, although the image may exist. A reference has no spaces, so it does not imitate them.
const NOT_MISSING: &[(&str, Answer)] = &[
    // Content that the registry's own manifest lists.
    ("could not fetch content ", Answer::Away),
    ("no match for platform in manifest", Answer::OtherPlatform),
    // The manifest is too large.
    (" byte manifest for ", Answer::Rejected),
    // BuildKit's configuration lists no mirror that may be asked.
    ("no pull hosts: ", Answer::Away),
    ("no push hosts: ", Answer::Away),
    ("no resolve hosts: ", Answer::Away),
    // The proxy that does not answer is the platform's.
    ("proxyconnect tcp: ", Answer::Away),
];

/// The codes of a registry's explanation that containerd knows, and the one that it writes for all others.
const CODES: &[&str] = &["denied", "toomanyrequests", "unauthorized", "unavailable", "unknown", "unsupported"];

/// How registries say that a limit or a rule forbids what the credentials allow. A tag has no spaces, so it does not imitate them.
const LIMITS: &[&str] = &[
    "quota has been exceeded",
    "quota exceeded",
    "exceed the configured",
    "exceeded the quota",
    "to overwrite",
    "be overwritten",
    "is immutable",
    "as immutable",
];

/// How registries say that they failed themselves.
const FAILURES: &[&str] =
    &["internal server error", "internal error", "unknown error", "unavailable", "try again", "timed out", "timeout"];

/// The code and the words of a registry's explanation of a refused push: `failed to push r.example/x:1: denied: no access`. The
/// reference has no spaces. Of several explanations the first counts.
fn explanation(error: &str) -> Option<(&str, &str)> {
    let (_, said) = error.strip_prefix("failed to push ")?.split_once(": ")?;
    let said = said.strip_prefix("errors: ").unwrap_or(said);
    let (code, words) = said.split_once(": ").unwrap_or((said, ""));
    CODES.contains(&code).then_some((code, words))
}

/// The registry that an error's URL names.
pub(super) fn host(error: &str) -> Option<&str> {
    let (_, rest) = ["https://", "http://"].iter().find_map(|scheme| error.split_once(scheme))?;
    rest.split('/').next().filter(|host| !host.contains([' ', '"', '@']))
}

/// How containerd begins to name a status. A method and a URL may follow, which have no space before a colon.
const BEFORE_STATUS: &[&str] =
    &["unexpected status from ", "unexpected status code ", "unexpected HEAD status code ", "unexpected status: "];

/// The first HTTP status, and the registry's words after it.
fn status(error: &str) -> Option<(u16, &str)> {
    let (at, begin) = BEFORE_STATUS.iter().filter_map(|begin| Some((error.find(begin)?, begin))).min()?;
    let after = &error[at + begin.len()..];
    let code = if begin.ends_with(": ") { after } else { after.split_once(": ")?.1 };
    let (digits, words) = code.split_at_checked(3)?;
    Some((digits.parse().ok()?, words))
}

/// Whether a registry refused the manifest of an image, and would again. It refuses an immutable tag so, with a status of its choice.
/// Without a status, an explanation may be about the manifest.
pub(super) fn refuses_manifest(error: &str) -> bool {
    if let Some((code, words)) = explanation(error).filter(|_| status(error).is_none()) {
        let answer = Answer::of_code(code, words);
        return code != "unauthorized" && matches!(answer, Some(Answer::Rejected | Answer::Denied));
    }
    let Some((status @ 400..500, _)) = status(error) else { return false };
    // The reference before it has no spaces.
    let put = error.split_once(" unexpected status from PUT request to ").and_then(|(_, rest)| rest.split(' ').next());
    let is_manifest =
        put.is_some_and(|url| url.contains("/manifests/")) || BEFORE_COMMIT.iter().any(|begin| error.contains(begin));
    is_manifest && ![401, 408, 429].contains(&status)
}

/// How containerd names the manifest of an image or an index that it could not push.
const BEFORE_COMMIT: [&str; 2] = ["failed commit on ref \"manifest-", "failed commit on ref \"index-"];

/// How long a registry's words ask to wait, such as `retry-after: 735.834µs, allowed: 44000/minute`.
fn retry_after(words: &str) -> Duration {
    let words = words.to_lowercase();
    let value =
        words.split_once("retry-after: ").map(|(_, rest)| rest.split([',', ' ', ';']).next().unwrap_or_default());
    value.and_then(duration).unwrap_or_default().min(MAX_WAIT)
}

/// Seconds, as in HTTP, or a duration in Go's form: `1m30.5s`.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let n_digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(n_digits);
        let (unit, in_seconds) = UNITS.iter().find(|(name, _)| unit.starts_with(name))?;
        seconds += number.parse::<f64>().ok()? * in_seconds;
        rest = &rest[n_digits + unit.len()..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// Go's units. A longer name comes first.
const UNITS: &[(&str, f64)] =
    &[("ns", 1e-9), ("µs", 1e-6), ("us", 1e-6), ("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];

/// Words of an error without a status, in lower case. The first one found counts.
const WORDS: &[(&str, Answer)] = &[
    ("pull access denied, repository does not exist", Answer::Missing),
    ("manifest unknown", Answer::Missing),
    ("push access denied", Answer::Denied),
    ("authorization failed", Answer::Denied),
    ("insufficient_scope", Answer::Denied),
    ("access denied", Answer::Denied),
    ("401 unauthorized", Answer::Denied),
    ("403 forbidden", Answer::Denied),
    ("no basic auth", Answer::Denied),
    ("missing username or secret", Answer::Denied),
    ("failed to find supported auth scheme", Answer::Denied),
    // A manifest of Docker's first form, and one of a chart or another artifact.
    ("is no longer supported since containerd", Answer::NotImage),
    ("manifest version 2, schema 1 has been removed", Answer::NotImage),
    ("invalid schema1 manifest", Answer::NotImage),
    ("encountered unknown type", Answer::NotImage),
    // The token server's own words.
    ("token: denied", Answer::Denied),
    ("token: unauthorized", Answer::Denied),
    ("connect: permission denied", Answer::PortRefused),
    ("429 too many requests", Answer::TooMany(Duration::ZERO)),
    ("toomanyrequests", Answer::TooMany(Duration::ZERO)),
    ("no such host", Answer::NoHost),
    ("x509: ", Answer::Insecure),
    ("server gave http response to https client", Answer::Insecure),
    ("first record does not look like a tls handshake", Answer::Insecure),
    ("500 internal", Answer::Away),
    ("502 bad", Answer::Away),
    ("503 service", Answer::Away),
    ("504 gateway", Answer::Away),
    ("connection refused", Answer::Away),
    ("connection reset", Answer::Away),
    ("broken pipe", Answer::Away),
    ("i/o timeout", Answer::Away),
    ("client.timeout exceeded", Answer::Away),
    ("no route to host", Answer::Away),
    ("network is unreachable", Answer::Away),
    ("server misbehaving", Answer::Away),
    ("tls handshake", Answer::Away),
    ("tls: ", Answer::Away),
    ("dial tcp", Answer::Away),
    // Content that ended early, or is not what the manifest lists.
    ("failed to read expected number of bytes", Answer::Away),
    ("unexpected commit digest", Answer::Away),
    ("unexpected digest received", Answer::Away),
    ("invalid content digest in response", Answer::Away),
    ("unsupported content-encoding algorithm", Answer::Away),
    ("failed size validation", Answer::Away),
    ("short read: ", Answer::Away),
    ("unexpected eof", Answer::Away),
    // A page of a portal or a proxy in place of a manifest or a token.
    ("unable to decode token response", Answer::Away),
    ("did not include a token in the response", Answer::Away),
    ("stopped after 10 redirects", Answer::Away),
    ("invalid character '", Answer::Away),
    ("which reports content size of zero", Answer::Away),
    ("unexpected media type", Answer::Away),
    ("not a valid digest", Answer::Away),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_at_its_place_whatever_the_reference_and_the_words_say() {
        let url = "http://r.example/v2/503/429-too-many-requests/manifests/403";
        for (status, answer) in [
            ("400 Bad Request", Answer::Rejected),
            ("401 Unauthorized", Answer::Denied),
            ("403 Forbidden", Answer::Denied),
            ("404 Not Found", Answer::Missing),
            ("405 Method Not Allowed", Answer::Rejected),
            ("407 Proxy Authentication Required", Answer::Away),
            ("408 Request Timeout", Answer::Away),
            ("412 Precondition Failed", Answer::Rejected),
            ("413 Request Entity Too Large", Answer::Rejected),
            ("415 Unsupported Media Type", Answer::Rejected),
            ("429 Too Many Requests", Answer::TooMany(Duration::ZERO)),
            ("500 Internal Server Error", Answer::Away),
            ("503 Service Unavailable", Answer::Away),
            ("507 Insufficient Storage", Answer::Away),
        ] {
            for words in
                ["", ": denied: 503 service, connection refused", " - Server message: x: 401 unauthorized: not found"]
            {
                for error in [
                    format!("unexpected status from PUT request to {url}: {status}{words}"),
                    format!(
                        "failed to copy: httpReadSeeker: failed open: unexpected status code {url}: {status}{words}"
                    ),
                    format!(
                        "failed to push r.example/x:1: failed commit on ref \"manifest-sha256:1\": unexpected status: {status}{words}"
                    ),
                    format!(
                        "unexpected status from HEAD request to {url}: {status}{words}\nunexpected status code x: 200"
                    ),
                ] {
                    assert_eq!(Answer::read(&error), Some(answer.clone()), "{error}");
                }
            }
        }
    }

    #[test]
    fn only_a_refused_manifest_may_be_in_the_registry_already() {
        let pushed = "failed to push r.example/x:1: ";
        let put = "unexpected status from PUT request to https://r.example/v2/x/manifests/1: ";
        let commit = "failed commit on ref \"manifest-sha256:1\": unexpected status: ";
        for (error, expected) in [
            (format!("{pushed}{put}400 Bad Request: tag invalid"), true),
            (format!("{pushed}failed commit on ref \"index-sha256:1\": {put}412 Precondition Failed"), true),
            (format!("{pushed}{commit}409 Conflict"), true),
            (format!("{pushed}{put}403 Forbidden"), true),
            (format!("{pushed}{put}401 Unauthorized"), false),
            (format!("{pushed}{put}429 Too Many Requests"), false),
            (format!("{pushed}{put}503 Service Unavailable"), false),
            (format!("{pushed}unexpected status from PUT request to https://r.example/v2/x/blobs/1: 400 Bad"), false),
            (format!("{pushed}unexpected status from POST request to https://r/v2/manifests/blobs/: 403 No"), false),
            (format!("{pushed}failed commit on ref \"layer-sha256:1\": unexpected status: 400 Bad Request"), false),
            (format!("{pushed}failed to do request: Put \"https://r/v2/x/manifests/1\": EOF"), false),
            (format!("{pushed}unknown: The image tag '1' cannot be overwritten because the tag is immutable."), true),
            (format!("{pushed}denied: not enough permissions to overwrite artifact"), true),
            (format!("{pushed}unauthorized: authentication required"), false),
            (format!("{pushed}unknown"), false),
            ("pulled: denied: x".into(), false),
        ] {
            assert_eq!(refuses_manifest(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_registrys_own_code_decides_where_the_status_of_a_push_is_lost() {
        for (said, answer) in [
            (
                "unknown: The repository with name 'shop/web' does not exist in the registry with id '1'",
                Answer::Rejected,
            ),
            (
                "unknown: The image tag '1' already exists and cannot be overwritten because the tag is immutable.",
                Answer::Rejected,
            ),
            ("unknown: repository does not allow updating assets: docker-hosted", Answer::Rejected),
            ("unknown: Failed to process request due to 'web:1' configured as immutable.", Answer::Rejected),
            ("unsupported: The repository is in read-only mode", Answer::Rejected),
            ("denied: Quota has been exceeded on namespace", Answer::Rejected),
            ("denied: adding 1.2 MiB, which will exceed the configured upper limit of 10.0 GiB.", Answer::Rejected),
            ("denied: not enough permissions to overwrite artifact", Answer::Rejected),
            ("denied: Your authorization token has expired. Reauthenticate and try again.", Answer::Denied),
            ("denied: permission_denied: The token provided does not match expected scopes.", Answer::Denied),
            ("denied: no access to quota/immutable:try-again", Answer::Denied),
            ("denied", Answer::Denied),
            ("unauthorized: authentication required", Answer::Denied),
            ("toomanyrequests: Rate exceeded", Answer::TooMany(Duration::ZERO)),
            ("toomanyrequests: retry-after: 7", Answer::TooMany(Duration::from_secs(7))),
            ("unavailable", Answer::Away),
            ("unknown", Answer::Away),
            ("unknown: unknown: Internal Server Error", Answer::Away),
            ("errors: denied: first; unsupported: second", Answer::Denied),
        ] {
            let error = format!("failed to push r.example:5000/denied/x:unknown: {said}");
            assert_eq!(Answer::read(&error), Some(answer), "{error}");
        }
        assert_eq!(Answer::read("failed to push r.example/x:1: odd: denied"), None);
    }

    #[test]
    fn a_registrys_words_say_how_long_to_wait() {
        let url = "https://r.example/v2/x/blobs/sha256:1";
        for (words, wait) in [
            (" - Server message: toomanyrequests: retry-after: 7, allowed: 1/minute", Duration::from_secs(7)),
            (
                " - Server message: toomanyrequests: Retry-After: 735.834µs, allowed: 44000/minute",
                Duration::from_nanos(735_834),
            ),
            (": retry-after: 1m30.5s", Duration::from_millis(90_500)),
            (": retry-after: 999999h", MAX_WAIT),
            (": retry-after: soon", Duration::ZERO),
            (": retry-after: 9e999s", Duration::ZERO),
            ("", Duration::ZERO),
        ] {
            let error = format!("unexpected status code {url}: 429 Too Many Requests{words}");
            assert_eq!(Answer::read(&error), Some(Answer::TooMany(wait)), "{error}");
        }
    }

    #[test]
    fn an_error_without_a_status_is_read_by_its_words() {
        for (error, answer) in [
            ("r.example/x:1: not found", Some(Answer::Missing)),
            (
                "failed to copy: httpReadSeeker: failed open: could not fetch content descriptor sha256:1 (text/html) from remote: not found",
                Some(Answer::Away),
            ),
            ("failed to read expected number of bytes: unexpected EOF", Some(Answer::Away)),
            (
                "failed commit on ref \"layer-sha256:7\": commit failed: unexpected commit digest sha256:0, expected sha256:7: failed precondition",
                Some(Answer::Away),
            ),
            ("could not fetch content sha256:1 from remote: (unknown)", Some(Answer::Away)),
            ("rejecting 9000000 byte manifest for r.example/x:1: not found", Some(Answer::Rejected)),
            ("no resolve hosts: not found", Some(Answer::Away)),
            (
                "failed to authorize: failed to handle basic auth because missing username or secret",
                Some(Answer::Denied),
            ),
            ("failed to find supported auth scheme: negotiate: not implemented", Some(Answer::Denied)),
            (
                "not implemented: media type \"application/vnd.docker.distribution.manifest.v1+prettyjws\" is no longer supported since containerd v2.0, please rebuild the image as \"application/vnd.oci.image.manifest.v1+json\"",
                Some(Answer::NotImage),
            ),
            (
                "support Docker Image manifest version 2, schema 1 has been removed. More information at https://docs.docker.com/",
                Some(Answer::NotImage),
            ),
            (
                "encountered unknown type application/vnd.cncf.helm.config.v1+json; children may not be fetched",
                Some(Answer::NotImage),
            ),
            ("invalid schema1 manifest", Some(Answer::NotImage)),
            ("no match for platform in manifest: not found", Some(Answer::OtherPlatform)),
            ("invalid character 'h' looking for beginning of value", Some(Answer::Away)),
            (
                "unable to fetch descriptor (sha256:e3) which reports content size of zero: invalid argument",
                Some(Answer::Away),
            ),
            (
                "failed to do request: Head \"https://r/v2\": proxyconnect tcp: dial tcp: lookup proxy: no such host",
                Some(Answer::Away),
            ),
            ("failed to do request: Head \"https://r/v2\": Proxy Authentication Required", Some(Answer::Away)),
            (
                "failed to fetch anonymous token: authorization server did not include a token in the response",
                Some(Answer::Away),
            ),
            ("unexpected digest received: got \"sha256:1\", expected \"sha256:2\"", Some(Answer::Away)),
            (
                "failed to do request: Head \"https://r/v2\": dial tcp: lookup r on 10.0.0.1:53: no such host",
                Some(Answer::NoHost),
            ),
            (
                "failed to do request: Head \"https://r/v2\": dial tcp 10.0.0.1:9: connect: connection refused",
                Some(Answer::Away),
            ),
            (
                "failed to do request: Head \"https://r/v2\": x509: certificate signed by unknown authority",
                Some(Answer::Insecure),
            ),
            (
                "failed to fetch anonymous token: dial tcp 10.0.0.1:99: connect: permission denied",
                Some(Answer::PortRefused),
            ),
            ("failed to prepare extraction snapshot \"x\": parent snapshot y does not exist: not found", None),
            ("failed to do request: Head \"https://r/v2\": context deadline exceeded", Some(Answer::Away)),
            ("context deadline exceeded", None),
        ] {
            assert_eq!(Answer::read(error), answer, "{error}");
        }
        assert_eq!(host("Head \"https://r.example:5000/v2/x\": EOF"), Some("r.example:5000"));
        assert_eq!(host("dial tcp"), None);
    }
}

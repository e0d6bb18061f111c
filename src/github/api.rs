//! GitHub's REST API: one request, signed by the App or with a token, and the meaning of its answer.
//!
//! Knows how long to wait after failures and rate limits, and corrects for a wrong clock. Follows GitHub's REST API, "Rate limits"
//! and "Generating a JSON Web Token for a GitHub App".

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::GithubError;
use super::key::{self, KeyError};
use crate::body::{self, BodyError};
use crate::bounds;
use crate::clock::Epoch;
use crate::json;
use crate::metric;
use crate::network::{self, ClientError, Proxies, Proxy, Unreachable};
use crate::secret::Secret;
use crate::secret_file;
use crate::settings;

/// Tries of one request, with pauses between them. Longer failures are left to the retry set.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// A shorter rate limit is waited for in the slot.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for a secondary rate limit that does not state its duration.
const UNSAID: Duration = Duration::from_secs(60);

/// The longest rate limit of GitHub's.
const MAX_WAIT: Duration = Duration::from_secs(60 * 60);

/// Smaller clock differences are ignored: GitHub's dates are whole seconds.
const SKEW_S: i64 = 5;

/// Who sends the request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bearer<'a> {
    /// The App.
    App,
    /// The holder of this token.
    Token(&'a Secret),
}

/// The default media type of the API.
const JSON: &str = "application/vnd.github+json";

/// The media type of a commit's id alone: the default would include all its changes.
const SHA: &str = "application/vnd.github.sha";

/// One request.
#[derive(Debug)]
pub(super) struct ApiRequest<'a> {
    method: Method,
    path: &'a str,
    bearer: Bearer<'a>,
    accept: &'static str,
    body: Option<Value>,
}

impl<'a> ApiRequest<'a> {
    /// Requests `path`, below the base URL.
    pub(super) fn get(path: &'a str, bearer: Bearer<'a>) -> Self {
        Self { method: Method::GET, path, bearer, accept: JSON, body: None }
    }

    /// Requests the id of the commit at `path`.
    pub(super) fn get_sha(path: &'a str, bearer: Bearer<'a>) -> Self {
        Self { accept: SHA, ..Self::get(path, bearer) }
    }

    pub(super) fn post(path: &'a str, bearer: Bearer<'a>, body: Value) -> Self {
        Self { method: Method::POST, body: Some(body), ..Self::get(path, bearer) }
    }

    pub(super) fn delete(path: &'a str, bearer: Bearer<'a>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path, bearer) }
    }
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct ApiAnswer {
    url: String,
    /// The proxy that passed it on.
    proxy: Option<String>,
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// The API at one base URL.
#[derive(Debug)]
pub(super) struct Api {
    settings: settings::Github,
    http: reqwest::Client,
    /// GitHub's clock minus ours, in seconds, as learned from an answer.
    skew_s: AtomicI64,
    /// Until when the App must not send requests.
    limited_until: Mutex<Option<Instant>>,
    pub(super) revocations: TaskTracker,
}

impl Api {
    pub(super) fn new(settings: settings::Github, ca_file: Option<&Path>) -> Result<Self, ClientError> {
        let http = network::client(ca_file, |client| client.timeout(settings.timeout))?;
        let (skew_s, limited_until) = (AtomicI64::new(0), Mutex::new(None));
        Ok(Self { settings, http, skew_s, limited_until, revocations: TaskTracker::new() })
    }

    /// Whether tokens are revoked.
    pub(super) fn revokes(&self) -> bool {
        self.settings.revoke
    }

    /// Whether the branch or tag that a job names is checked.
    pub(super) fn checks_refs(&self) -> bool {
        self.settings.check_ref
    }

    /// Sends one request, again after a transient failure. Requesting a token twice is harmless.
    ///
    /// # Errors
    ///
    /// `Limited` when GitHub demands a wait longer than a slot should be held. Other statuses are left to the caller.
    pub(super) async fn ask(&self, request: &ApiRequest<'_>) -> Result<ApiAnswer, GithubError> {
        let mut n_tries = 0;
        loop {
            n_tries += 1;
            let answer = self.send(request).await;
            let pause = match &answer {
                Ok(answer) => self.pause_after(answer, request.bearer, PAUSE * n_tries)?,
                Err(GithubError::Unreachable(_)) => Some(PAUSE * n_tries),
                Err(_) => None,
            };
            match pause {
                // Workers that were refused together should not retry together.
                Some(pause) if n_tries < TRIES => sleep(pause.mul_f64(1.0 + rand::random::<f64>() / 4.0)).await,
                _ => return answer,
            }
        }
    }

    /// Sends one request once, and reads the answer.
    pub(super) async fn send(&self, request: &ApiRequest<'_>) -> Result<ApiAnswer, GithubError> {
        let url = self.url(request.path);
        let credential = match request.bearer {
            Bearer::App => {
                self.check_limit(&url)?;
                self.jwt()?
            }
            Bearer::Token(token) => token.clone(),
        };
        let mut sent = self.http.request(request.method.clone(), &url).bearer_auth(credential.expose());
        sent = sent.header("accept", request.accept);
        if let Some(body) = &request.body {
            sent = sent.json(body);
        }
        let read = async {
            let answer = sent.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            Ok((status, headers, body::read(answer, &url, bounds::GITHUB).await?))
        };
        let read = read.await;
        count(request.bearer, read.as_ref().map(|(status, headers, _)| (*status, headers)).ok());
        match read {
            Ok((status, headers, body)) => match (status, Proxies::of_process().of(&url)) {
                (StatusCode::PROXY_AUTHENTICATION_REQUIRED, Some(proxy)) => {
                    Err(Unreachable::by_proxy(&url, proxy.clone(), status).into())
                }
                (_, proxy) => Ok(ApiAnswer { proxy: proxy.map(Proxy::name), url, status, headers, body }),
            },
            Err(BodyError::TooLong(too_long)) => Err(GithubError::TooLong(too_long)),
            Err(BodyError::Broken(error)) => {
                Err(Unreachable::new(url, &error.without_url()).with_refusal().await.into())
            }
        }
    }

    /// The path below the base when `location` is a URL of this API.
    pub(super) fn path_of<'a>(&self, location: &'a str) -> Option<&'a str> {
        // Without the slash, the rest could continue another host's name.
        location.strip_prefix(self.settings.api_url.trim_end_matches('/')).filter(|path| path.starts_with('/'))
    }

    /// How long to wait before the request is sent again; `None` when this answer is final.
    fn pause_after(
        &self,
        answer: &ApiAnswer,
        bearer: Bearer<'_>,
        pause: Duration,
    ) -> Result<Option<Duration>, GithubError> {
        let is_of_app = matches!(bearer, Bearer::App);
        match answer.limit(Epoch::now()) {
            Some(wait) if wait > PATIENCE => {
                if is_of_app {
                    *self.limited_until() = Some(Instant::now() + wait);
                }
                Err(GithubError::Limited { url: answer.url.clone(), wait })
            }
            Some(wait) => Ok(Some(wait)),
            None if answer.status.is_server_error() => Ok(Some(pause)),
            None if is_of_app && answer.status == StatusCode::UNAUTHORIZED && self.learn_the_time(answer) => {
                Ok(Some(Duration::ZERO))
            }
            None => Ok(None),
        }
    }

    /// Requests during a rate limit would extend it, for all jobs of this App.
    fn check_limit(&self, url: &str) -> Result<(), GithubError> {
        let left = self.limited_until().map(|until| until.saturating_duration_since(Instant::now()));
        match left {
            Some(wait) if !wait.is_zero() => Err(GithubError::Limited { url: url.to_owned(), wait }),
            _ => Ok(()),
        }
    }

    fn limited_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.limited_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether GitHub's clock differs from what we knew. GitHub refuses signatures that are old or from the future.
    fn learn_the_time(&self, answer: &ApiAnswer) -> bool {
        let Some(date) = answer.date() else { return false };
        let skew_s = date - Epoch::now().timestamp().as_second();
        let known_s = self.skew_s.swap(skew_s, Ordering::Relaxed);
        let is_news = (skew_s - known_s).abs() > SKEW_S;
        if is_news {
            tracing::warn!(
                event = "clock_skew",
                skew_s,
                "clock differs from GitHub's; signing requests by GitHub's clock"
            );
        }
        is_news
    }

    /// The time by GitHub's clock, in seconds since the epoch, as far as known.
    pub(super) fn now_s(&self) -> i64 {
        Epoch::now().timestamp().as_second() + self.skew_s.load(Ordering::Relaxed)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.settings.api_url.trim_end_matches('/'))
    }

    /// The App's own credential, valid for at most ten minutes. It allows clocks that differ by a minute.
    fn jwt(&self) -> Result<Secret, GithubError> {
        #[derive(Serialize)]
        struct Claims<'a> {
            iat: i64,
            exp: i64,
            iss: &'a str,
        }
        let iss = self.settings.app_id.as_deref().ok_or(GithubError::NotConfigured("github.app_id is not set"))?;
        let now = self.now_s();
        let claims = Claims { iat: now - 60, exp: now + 540, iss };
        let jwt =
            jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key()?).map_err(KeyError::from)?;
        Ok(Secret::new(jwt))
    }

    /// Reads the key for each signature, so that it can be rotated.
    fn key(&self) -> Result<EncodingKey, GithubError> {
        let missing = GithubError::NotConfigured("set github.private_key or github.private_key_file");
        let bytes = secret_file::read_bytes(&self.settings.private_key().ok_or(missing)?)?;
        Ok(key::parse(bytes.expose())?)
    }
}

/// Counts a request by its answer.
fn count(bearer: Bearer<'_>, answer: Option<(StatusCode, &HeaderMap)>) {
    metric::GITHUB_REQUESTS.add([answer.as_ref().map_or("none", |(status, _)| status.as_str())], 1);
    let remaining = answer.and_then(|(_, headers)| headers.get("x-ratelimit-remaining")?.to_str().ok()?.parse().ok());
    if let Some(remaining) = remaining {
        let bearer = match bearer {
            Bearer::App => "app",
            Bearer::Token(_) => "installation",
        };
        metric::GITHUB_REMAINING.set([bearer], remaining);
    }
}

impl ApiAnswer {
    /// Parses the body of a successful answer.
    pub(super) fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, GithubError> {
        json::read(&self.body).map_err(|error| self.unavailable(error.to_string()))
    }

    /// The error of an unsuccessful answer.
    pub(super) fn error(&self) -> GithubError {
        let (url, status, message) = (self.url.clone(), self.status, self.message());
        match status {
            StatusCode::UNAUTHORIZED => GithubError::Refused { url, status, message },
            // A firewall before GitHub answers with a page, and not in GitHub's words.
            StatusCode::FORBIDDEN | StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS if self.own_message().is_some() => {
                GithubError::Denied { url, status, message }
            }
            _ => self.unavailable(message),
        }
    }

    /// GitHub's message, at most one line.
    pub(super) fn message(&self) -> String {
        let of_proxy = || self.proxy.as_ref().map(|proxy| format!("no message of GitHub's, through the proxy {proxy}"));
        self.own_message().or_else(of_proxy).unwrap_or_else(|| "no message".into())
    }

    fn own_message(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Body {
            message: String,
        }
        let body: Body = json::read(&self.body).ok()?;
        Some(body.message.lines().next().unwrap_or_default().chars().take(300).collect())
    }

    /// The target of a redirect.
    pub(super) fn location(&self) -> Option<&str> {
        self.status.is_redirection().then(|| self.header("location")).flatten()
    }

    fn unavailable(&self, message: String) -> GithubError {
        GithubError::Unavailable { url: self.url.clone(), status: self.status, message }
    }

    /// How long GitHub demands a wait, if this is a rate limit. A 403 may be one or a real refusal.
    fn limit(&self, now: Epoch) -> Option<Duration> {
        let number = |name| self.header(name).and_then(|text| text.parse::<u64>().ok());
        let (retry_after, is_spent) = (number("retry-after"), number("x-ratelimit-remaining") == Some(0));
        let is_limit = match self.status {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::FORBIDDEN => {
                let message = self.message().to_ascii_lowercase();
                // Two names of the limit on requests at once.
                retry_after.is_some()
                    || is_spent
                    || message.contains("rate limit")
                    || message.contains("abuse detection")
            }
            _ => false,
        };
        let until_reset = || {
            let now = self.date().unwrap_or_else(|| now.timestamp().as_second());
            // One second more, since both are whole seconds.
            number("x-ratelimit-reset").map(|at| at.saturating_sub(u64::try_from(now).unwrap_or(0)).saturating_add(1))
        };
        let seconds = retry_after.or_else(|| is_spent.then(until_reset).flatten());
        is_limit.then(|| seconds.map_or(UNSAID, Duration::from_secs).min(MAX_WAIT))
    }

    /// Seconds since the epoch by the server's clock (RFC 9110, `Date`).
    fn date(&self) -> Option<i64> {
        let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(self.header("date")?).ok()?;
        Some(date.as_second())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_700_000_000;

    #[test]
    fn the_apps_signature_goes_to_its_api_alone() {
        let settings = settings::Github { api_url: "https://api.github.com/".into(), ..Default::default() };
        let api = Api::new(settings, None).expect("a client");
        assert_eq!(api.path_of("https://api.github.com/repositories/1"), Some("/repositories/1"));
        for location in
            ["https://api.github.com.evil.example/x", "https://api.github.com@evil.example", "http://evil", "/x"]
        {
            assert_eq!(api.path_of(location), None, "{location}");
        }
    }

    fn limit(status: u16, headers: &[(&str, &str)], body: &str) -> Option<u64> {
        let headers = headers.iter().map(|(name, value)| {
            let name = reqwest::header::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, reqwest::header::HeaderValue::from_str(value).expect("a value"))
        });
        let answer = ApiAnswer {
            url: String::new(),
            proxy: None,
            status: StatusCode::from_u16(status).expect("a status"),
            headers: headers.collect(),
            body: body.into(),
        };
        answer.limit(Epoch::from_secs_f64(NOW_S as f64)).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_403_is_a_limit_only_when_it_says_so() {
        let reset = (NOW_S + 90).to_string();
        let spent = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", reset.as_str())];
        assert_eq!(limit(403, &[("x-ratelimit-remaining", "4999")], r#"{"message":"Resource not accessible"}"#), None);
        assert_eq!(limit(403, &[("retry-after", "7")], ""), Some(7));
        assert_eq!(limit(403, &[], r#"{"message":"You have exceeded a secondary rate limit."}"#), Some(60));
        assert_eq!(limit(403, &[], r#"{"message":"You have triggered an abuse detection mechanism."}"#), Some(60));
        assert_eq!(limit(403, &spent, ""), Some(91));
        assert_eq!(limit(429, &[], ""), Some(60));
        assert_eq!(limit(200, &spent, ""), None, "the last one that is allowed is answered");
        assert_eq!(limit(500, &[("retry-after", "7")], ""), None);
    }

    #[test]
    fn the_reset_is_counted_by_githubs_clock_and_is_never_absurd() {
        let headers = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "784111800"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        assert_eq!(limit(403, &headers, ""), Some(24));
        assert_eq!(limit(429, &[("retry-after", "99999999999")], ""), Some(3600));
    }
}

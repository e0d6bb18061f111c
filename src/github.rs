//! The GitHub App: one verb that returns a token for one repository.
//!
//! JWT, looking up the installation, retries and GitHub's error codes hide behind it. A token is minted for each job and
//! neither cached nor shared; its form is nobody's business but GitHub's.
//! Follows GitHub's REST API, "Generating an installation access token for a GitHub App".

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::clock::Epoch;
use crate::job::{Repository, Sha};
use crate::reason::{Failure, Reason};
use crate::secret::Secret;
use crate::settings;

/// Tries of one request, with a pause between them; what takes longer is the retry set's business.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// GitHub's answer was not a token.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    /// `github.app_id` or the private key is not set.
    #[error("no GitHub App is configured: {0}")]
    NotConfigured(&'static str),
    /// The private key cannot be read.
    #[error("the App's private key cannot be read from {path}: {source}")]
    KeyFile {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The private key is not a PEM of an RSA key.
    #[error("the App's private key is not a PEM of an RSA key: {0}")]
    Key(jsonwebtoken::errors::Error),
    /// GitHub cannot be reached.
    #[error("{url} cannot be reached: {source}")]
    Unreachable {
        /// Without credentials: none of ours are in URLs.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// GitHub does not know the App, or the App may not do this.
    #[error("GitHub refuses the App: {url} answered {status}: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// 401 or 403.
        status: StatusCode,
        /// GitHub's own words.
        message: String,
    },
    /// The App is not installed on the repository, or there is none of that name.
    #[error("the App cannot see {repository}: {message}")]
    NotFound {
        /// The repository.
        repository: Repository,
        /// GitHub's own words.
        message: String,
    },
    /// An error of GitHub's, a rate limit, or an answer that makes no sense.
    #[error("{url} answered {status}: {message}")]
    Unavailable {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// GitHub's own words.
        message: String,
    },
}

impl GithubError {
    /// The entry of the closed list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotConfigured(_) | Self::KeyFile { .. } | Self::Key(_) | Self::Refused { .. } => {
                Reason::GithubRefused
            }
            Self::NotFound { .. } => Reason::RepositoryNotFound,
            Self::Unreachable { .. } | Self::Unavailable { .. } => Reason::GithubUnavailable,
        }
    }
}

impl From<GithubError> for Failure {
    fn from(error: GithubError) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

/// A token that reads the contents of one repository, for at most an hour.
#[derive(Debug)]
pub struct InstallationToken {
    /// The token.
    pub secret: Secret,
    /// GitHub's number of the repository, which outlives renames.
    pub repository_id: u64,
}

/// The App.
#[derive(Clone, Debug)]
pub struct App {
    settings: settings::Github,
    http: reqwest::Client,
}

impl App {
    /// Takes the settings; nothing is read or asked yet.
    pub fn new(settings: settings::Github) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("sidebake/", env!("CARGO_PKG_VERSION")))
            .timeout(settings.timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { settings, http })
    }

    /// Mints a token for `repository` alone, with `contents: read`.
    ///
    /// `installation_id` saves a request when Rails knows it; when GitHub does not know it any more (the App was
    /// installed anew), it is looked up.
    pub async fn installation_token(
        &self,
        repository: &Repository,
        installation_id: Option<u64>,
    ) -> Result<InstallationToken, GithubError> {
        let jwt = self.jwt()?;
        let known = match installation_id {
            Some(id) => self.mint(&jwt, id, repository).await?,
            None => None,
        };
        if let Some(token) = known {
            return Ok(token);
        }
        let id = self.installation_of(&jwt, repository).await?;
        let minted = self.mint(&jwt, id, repository).await?;
        minted.ok_or_else(|| GithubError::NotFound {
            repository: repository.clone(),
            message: "the installation is gone".into(),
        })
    }

    /// Whether the commit is in the repository. libgit2 cannot tell a missing commit from a broken connection.
    pub async fn has_commit(
        &self,
        repository: &Repository,
        sha: &Sha,
        token: &InstallationToken,
    ) -> Result<bool, GithubError> {
        let path = format!("/repos/{repository}/commits/{sha}");
        let answer = self.ask(Method::GET, &path, &token.secret, None).await?;
        match answer.status() {
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => Ok(false),
            status if status.is_success() => Ok(true),
            _ => Err(self.error(&path, answer).await),
        }
    }

    /// Asks GitHub who the App is: for `doctor`.
    pub async fn name(&self) -> Result<String, GithubError> {
        let jwt = self.jwt()?;
        let answer = self.ask(Method::GET, "/app", &jwt, None).await?;
        if !answer.status().is_success() {
            return Err(self.error("/app", answer).await);
        }
        let app: Named = self.read("/app", answer).await?;
        Ok(app.name)
    }

    async fn installation_of(&self, jwt: &Secret, repository: &Repository) -> Result<u64, GithubError> {
        let path = format!("/repos/{repository}/installation");
        let answer = self.ask(Method::GET, &path, jwt, None).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => {
                Err(GithubError::NotFound { repository: repository.clone(), message: message(answer).await })
            }
            status if status.is_success() => {
                self.read(&path, answer).await.map(|installation: Numbered| installation.id)
            }
            _ => Err(self.error(&path, answer).await),
        }
    }

    /// `None` when there is no such installation.
    async fn mint(
        &self,
        jwt: &Secret,
        id: u64,
        repository: &Repository,
    ) -> Result<Option<InstallationToken>, GithubError> {
        let path = format!("/app/installations/{id}/access_tokens");
        let body = json!({"repositories": [repository.name], "permissions": {"contents": "read"}});
        let answer = self.ask(Method::POST, &path, jwt, Some(&body)).await?;
        match answer.status() {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNPROCESSABLE_ENTITY => {
                Err(GithubError::NotFound { repository: repository.clone(), message: message(answer).await })
            }
            status if status.is_success() => {
                let minted: Minted = self.read(&path, answer).await?;
                let asked = repository.to_string();
                let found = minted.repositories.iter().find(|found| found.full_name.eq_ignore_ascii_case(&asked));
                let repository_id = found.map(|found| found.id).ok_or_else(|| GithubError::NotFound {
                    repository: repository.clone(),
                    message: "the token is for another repository".into(),
                })?;
                Ok(Some(InstallationToken { secret: minted.token, repository_id }))
            }
            _ => Err(self.error(&path, answer).await),
        }
    }

    /// Sends one request, again after a failure that may pass. Asking for a token twice harms nobody.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        bearer: &Secret,
        body: Option<&serde_json::Value>,
    ) -> Result<Response, GithubError> {
        let url = self.url(path);
        let mut n_tries = 0;
        loop {
            n_tries += 1;
            let mut request = self
                .http
                .request(method.clone(), &url)
                .bearer_auth(bearer.expose())
                .header("accept", "application/vnd.github+json");
            if let Some(body) = body {
                request = request.json(body);
            }
            let answer = request.send().await;
            let may_pass = answer.as_ref().map_or(true, |answer| answer.status().is_server_error());
            if !may_pass || n_tries == TRIES {
                return answer.map_err(|source| GithubError::Unreachable { url, source: source.without_url() });
            }
            tokio::time::sleep(PAUSE * n_tries).await;
        }
    }

    /// What an answer with an error status means.
    async fn error(&self, path: &str, answer: Response) -> GithubError {
        let (url, status) = (self.url(path), answer.status());
        let is_limited = answer.headers().contains_key("retry-after")
            || answer.headers().get("x-ratelimit-remaining").is_some_and(|remaining| remaining == "0");
        let message = message(answer).await;
        match status {
            StatusCode::UNAUTHORIZED => GithubError::Refused { url, status, message },
            StatusCode::FORBIDDEN if !is_limited => GithubError::Refused { url, status, message },
            _ => GithubError::Unavailable { url, status, message },
        }
    }

    async fn read<T: for<'de> Deserialize<'de>>(&self, path: &str, answer: Response) -> Result<T, GithubError> {
        let status = answer.status();
        answer.json().await.map_err(|error| GithubError::Unavailable {
            url: self.url(path),
            status,
            message: error.without_url().to_string(),
        })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.settings.api_url.trim_end_matches('/'))
    }

    /// The App's own credential, good for ten minutes at most. A minute is allowed for clocks that differ.
    fn jwt(&self) -> Result<Secret, GithubError> {
        #[derive(Serialize)]
        struct Claims<'a> {
            iat: i64,
            exp: i64,
            iss: &'a str,
        }
        let iss = self.settings.app_id.as_deref().ok_or(GithubError::NotConfigured("github.app_id is not set"))?;
        let now = Epoch::now().timestamp().as_second();
        let claims = Claims { iat: now - 60, exp: now + 540, iss };
        let jwt =
            jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key()?).map_err(GithubError::Key)?;
        Ok(Secret::new(jwt))
    }

    /// Reads the key anew each time, so that it can be rotated.
    fn key(&self) -> Result<EncodingKey, GithubError> {
        let pem = match (&self.settings.private_key, &self.settings.private_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map(Secret::new)
                .map_err(|source| GithubError::KeyFile { path: path.display().to_string(), source })?,
            (None, None) => {
                return Err(GithubError::NotConfigured("neither github.private_key nor private_key_file is set"));
            }
        };
        // A key in an environment variable often has its line ends as a backslash and an n.
        let pem = pem.expose().replace("\\n", "\n");
        EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(GithubError::Key)
    }
}

/// GitHub's own words, at most a line of them.
async fn message(answer: Response) -> String {
    #[derive(Deserialize)]
    struct Body {
        message: String,
    }
    let body = answer.json().await.map(|body: Body| body.message);
    body.map_or_else(
        |_| "no message".into(),
        |message| message.lines().next().unwrap_or_default().chars().take(300).collect(),
    )
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Numbered {
    id: u64,
}

#[derive(Deserialize)]
struct Minted {
    token: Secret,
    #[serde(default)]
    repositories: Vec<Granted>,
}

#[derive(Deserialize)]
struct Granted {
    id: u64,
    full_name: String,
}

//! The GitHub App: returns a token for one repository.
//!
//! Hides the JWT, the look-up of the installation, renamed repositories, retries and GitHub's error codes. Each job gets a token of
//! its own, which is neither cached nor shared, and is revoked afterwards.
//! Follows GitHub's REST API, "Generating an installation access token for a GitHub App".

mod api;
mod git_ref;
mod key;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;

use crate::body::TooLong;
use crate::bounds;
use crate::clock::Epoch;
use crate::job::{Repository, Sha};
use crate::metric;
use crate::network::{ClientError, Unreachable};
use crate::reason::{HasReason, Reason};
use crate::secret::Secret;
use crate::secret_file::SecretError;
use crate::settings;
use crate::text;

use api::{Api, ApiAnswer, ApiRequest, Bearer};

pub use key::KeyError;
pub use token::InstallationToken;

/// The most installations that are remembered; with more accounts, some are looked up again.
const MAX_INSTALLATIONS: usize = 10_000;

/// Pauses before a new token is tried again: GitHub's other servers may not know it yet.
pub const LAG: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// The lifetime of a token, if the answer does not state it.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// GitHub did not return a token.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    /// `github.app_id` or the private key is not set.
    #[error("no GitHub App is configured: {0}")]
    NotConfigured(&'static str),
    /// The private key cannot be read.
    #[error("the App's private key: {0}")]
    KeyFile(#[from] SecretError),
    /// The private key cannot be used.
    #[error("the App's private key cannot be used: {0}")]
    Key(#[from] KeyError),
    /// GitHub cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// GitHub does not know the App, or not its key.
    #[error("GitHub refused the App: {url} answered {status}: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// 401.
        status: StatusCode,
        /// GitHub's own words.
        message: String,
    },
    /// GitHub knows the App, and does not let it have this repository: the installation is suspended or lacks a permission, an
    /// address allow list does not have this worker, or GitHub blocked the repository.
    #[error("GitHub does not let the App read the repository: {url} answered {status}: {message}")]
    Denied {
        /// What was asked.
        url: String,
        /// 403 or 451.
        status: StatusCode,
        /// GitHub's own words.
        message: String,
    },
    /// The App is not installed on the repository, or the repository does not exist.
    #[error("the App does not have access to {repository}: {message}")]
    NotFound {
        /// The repository.
        repository: Repository,
        /// GitHub's own words.
        message: String,
    },
    /// GitHub limits the request rate.
    #[error("{url}: GitHub limits the request rate for another {} s", wait.as_secs())]
    Limited {
        /// What was asked.
        url: String,
        /// For how long.
        wait: Duration,
    },
    /// The answer is longer than allowed.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// GitHub failed, or its answer is invalid.
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

impl HasReason for GithubError {
    fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::NotConfigured(_) | Self::KeyFile(_) | Self::Key(_) | Self::Refused { .. } => Reason::GithubRefused,
            Self::NotFound { .. } => Reason::RepositoryNotFound,
            Self::Denied { .. } => Reason::RepositoryDenied,
            Self::Unreachable(_) | Self::Limited { .. } | Self::TooLong(_) | Self::Unavailable { .. } => {
                Reason::GithubUnavailable
            }
        })
    }

    fn wait(&self) -> Duration {
        match self {
            Self::Limited { wait, .. } => *wait,
            _ => Duration::ZERO,
        }
    }
}

/// The App.
#[derive(Debug)]
pub struct App {
    api: Arc<Api>,
    /// By repository, in lower case.
    installations: Mutex<HashMap<String, u64>>,
}

/// The App's installation on a repository's account.
struct Installation {
    id: u64,
    /// Its number, when GitHub redirected us because it was renamed.
    repository_id: Option<u64>,
}

impl App {
    /// Takes the settings. Reads and asks nothing yet.
    ///
    /// # Errors
    ///
    /// When `network.ca_file` cannot be used.
    pub fn new(settings: &settings::Settings) -> Result<Self, ClientError> {
        let api = Api::new(settings.github.clone(), settings.ca_file())?;
        Ok(Self { api: Arc::new(api), installations: Mutex::default() })
    }

    /// Mints a token for `repository` alone, with `contents: read`.
    ///
    /// `installation_id` from Rails saves a request. It is looked up again when GitHub no longer knows it, because the App was
    /// reinstalled or the repository was renamed.
    pub async fn installation_token(
        &self,
        repository: &Repository,
        installation_id: Option<u64>,
    ) -> Result<InstallationToken, GithubError> {
        let key = repository.to_string().to_ascii_lowercase();
        let known = installation_id.or_else(|| self.installations().get(&key).copied());
        if let Some(id) = known {
            let minted = self.mint(&Installation { id, repository_id: None }, repository).await;
            if !matches!(minted, Err(GithubError::NotFound { .. })) {
                return minted;
            }
            self.installations().remove(&key);
        }
        let installation = self.installation_of(repository).await?;
        let token = self.mint(&installation, repository).await?;
        let mut installations = self.installations();
        if installations.len() >= MAX_INSTALLATIONS {
            installations.clear();
        }
        installations.insert(key, installation.id);
        Ok(token)
    }

    /// Whether the commit is in the repository. A git host's answer does not tell a missing commit from another failure.
    ///
    /// GitHub stores the commits of a repository and of all its forks together, so a fork's commits are found too.
    pub async fn has_commit(
        &self,
        repository: &Repository,
        sha: &Sha,
        token: &InstallationToken,
    ) -> Result<bool, GithubError> {
        let path = format!("/repos/{repository}/commits/{sha}");
        Ok(self.find(&ApiRequest::get_sha(&path, Bearer::Token(&token.secret)), &LAG).await?.is_some())
    }

    /// Whether a commit must be on the branch or tag that its job names.
    pub fn checks_refs(&self) -> bool {
        self.api.checks_refs()
    }

    /// Asks for an object of a repository with a token; `None` when it is still missing after every pause. A server may refuse a token
    /// that is too new for it, even after other servers accepted it.
    async fn find(&self, request: &ApiRequest<'_>, pauses: &[Duration]) -> Result<Option<ApiAnswer>, GithubError> {
        let (mut pauses, mut lag) = (pauses.iter(), LAG.iter());
        loop {
            let answer = self.api.ask(request).await?;
            let left = if answer.status == StatusCode::UNAUTHORIZED { &mut lag } else { &mut pauses };
            match (answer.status, left.next()) {
                (StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND, Some(pause)) => tokio::time::sleep(*pause).await,
                (StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY, _) => return Ok(None),
                (status, _) if status.is_success() || status.is_redirection() => return Ok(Some(answer)),
                _ => return Err(answer.error()),
            }
        }
    }

    /// The current name and number of a public repository. Any token will do: GitHub counts the request for its installation, and
    /// allows only few requests without a token.
    pub async fn public_repository(
        &self,
        repository: &Repository,
        token: &InstallationToken,
    ) -> Result<(Repository, u64), GithubError> {
        let find = async |path: &str| self.find(&ApiRequest::get(path, Bearer::Token(&token.secret)), &[]).await;
        let not_found =
            |message: &str| GithubError::NotFound { repository: repository.clone(), message: message.into() };
        let mut found = find(&format!("/repos/{repository}")).await?;
        if let Some(moved) =
            found.as_ref().and_then(ApiAnswer::location).and_then(|location| self.api.path_of(location))
        {
            found = find(moved).await?;
        }
        let found: Granted = good(found.ok_or_else(|| not_found("no public repository has this name"))?)?.read()?;
        let present = Repository::parse(&found.full_name).filter(|_| !found.private);
        Ok((present.ok_or_else(|| not_found("it is private"))?, found.id))
    }

    /// The App's name, for `doctor`.
    pub async fn name(&self) -> Result<String, GithubError> {
        let app: Named = good(self.api.ask(&ApiRequest::get("/app", Bearer::App)).await?)?.read()?;
        Ok(app.name)
    }

    /// Waits until all unneeded tokens are revoked.
    pub async fn finish(&self) {
        self.api.revocations.close();
        self.api.revocations.wait().await;
    }

    async fn installation_of(&self, repository: &Repository) -> Result<Installation, GithubError> {
        let path = format!("/repos/{repository}/installation");
        let mut answer = self.api.ask(&ApiRequest::get(&path, Bearer::App)).await?;
        let mut repository_id = None;
        if let Some(moved) = answer.location().and_then(|location| self.api.path_of(location)) {
            let moved = moved.to_owned();
            repository_id = moved.strip_prefix("/repositories/").and_then(|rest| rest.split('/').next()?.parse().ok());
            answer = self.api.ask(&ApiRequest::get(&moved, Bearer::App)).await?;
        }
        if answer.status == StatusCode::NOT_FOUND {
            return Err(GithubError::NotFound { repository: repository.clone(), message: answer.message() });
        }
        let found: Numbered = good(answer)?.read()?;
        Ok(Installation { id: found.id, repository_id })
    }

    /// Mints a token of the installation for a repository: by name, or by number after a rename.
    async fn mint(
        &self,
        installation: &Installation,
        repository: &Repository,
    ) -> Result<InstallationToken, GithubError> {
        let path = format!("/app/installations/{}/access_tokens", installation.id);
        let mut body = json!({"permissions": {"contents": "read"}});
        match installation.repository_id {
            Some(id) => body["repository_ids"] = json!([id]),
            None => body["repositories"] = json!([repository.name]),
        }
        let answer = self.api.ask(&ApiRequest::post(&path, Bearer::App, body)).await?;
        let not_found = |message| GithubError::NotFound { repository: repository.clone(), message };
        if matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY) {
            return Err(not_found(answer.message()));
        }
        let minted: Minted = good(answer)?.read()?;
        metric::TOKENS.add([], 1);
        let left_s = minted.expires_at.map(|at| u64::try_from(at.as_second() - self.api.now_s()).unwrap_or(0));
        let expires_at = Epoch::now().plus(left_s.map_or(HOUR, Duration::from_secs));
        let (repository, api) = (repository.clone(), Arc::clone(&self.api));
        let mut token = InstallationToken { secret: minted.token, repository, repository_id: 0, expires_at, api };
        // A customer must not get another account's repository, even if it was transferred.
        let granted =
            minted.repositories.first().ok_or_else(|| not_found("GitHub's token covers no repository".into()))?;
        let is_asked = match installation.repository_id {
            Some(id) => granted.id == id,
            None => granted.full_name.eq_ignore_ascii_case(&token.repository.to_string()),
        };
        let present =
            Repository::parse(&granted.full_name).filter(|present| is_asked && present.is_of_owner(&token.repository));
        token.repository = present.ok_or_else(|| {
            not_found(format!("it was renamed to {}", text::shown(&granted.full_name, bounds::NOTICE)))
        })?;
        token.repository_id = granted.id;
        Ok(token)
    }

    fn installations(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.installations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn good(answer: ApiAnswer) -> Result<ApiAnswer, GithubError> {
    if answer.status.is_success() { Ok(answer) } else { Err(answer.error()) }
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
    expires_at: Option<Timestamp>,
    #[serde(default)]
    repositories: Vec<Granted>,
}

#[derive(Deserialize)]
struct Granted {
    id: u64,
    full_name: String,
    #[serde(default = "yes")]
    private: bool,
}

/// A repository is private unless GitHub says otherwise.
fn yes() -> bool {
    true
}

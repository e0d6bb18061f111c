//! `[github]`: the GitHub App.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::SecretSource;
use crate::field_error::FieldError;
use crate::secret::Secret;

/// The GitHub App whose installation tokens the worker uses.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Github {
    /// Base URL of the REST API. GitHub Enterprise Server: `https://HOST/api/v3`.
    pub api_url: String,
    /// Base URL of the repositories. GitHub Enterprise Server: `https://HOST`.
    pub git_url: String,
    /// App id or client id.
    pub app_id: Option<String>,
    /// The App's private key: PEM, DER, or Base64 of either. `\n` may stand for line feeds.
    pub private_key: Option<Secret>,
    /// File of the App's private key, in the same forms. The worker reads it for each signature, so that you can rotate it.
    pub private_key_file: Option<PathBuf>,
    /// Whether the worker revokes a job's token as soon as its source is fetched.
    pub revoke: bool,
    /// Whether a commit must be on the branch or tag that its job names in `ref`. GitHub serves the commits of a fork from the
    /// original repository too. The check takes one or two requests beside the fetch, one more for an annotated tag. It does
    /// not apply to a fork's build.
    pub check_ref: bool,
    /// Timeout of one request.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for Github {
    fn default() -> Self {
        Self {
            api_url: "https://api.github.com".into(),
            git_url: "https://github.com".into(),
            app_id: None,
            private_key: None,
            private_key_file: None,
            revoke: true,
            check_ref: true,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Github {
    /// Where the App's private key is.
    pub fn private_key(&self) -> Option<SecretSource> {
        SecretSource::of(self.private_key.as_ref(), self.private_key_file.as_ref())
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        SecretSource::check("github", "private_key", self.private_key.as_ref(), self.private_key_file.as_ref())
    }
}

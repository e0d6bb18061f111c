//! The registry credentials of one account, for one job.

use serde_json::{Map, Value, json};

use super::BakeError;
use crate::job::Build;
use crate::secret::Secret;
use crate::settings::Accounts;

/// The docker `config.json` of a job: the account's `auths` and nothing else.
///
/// Whatever else such a file can hold (proxies become build arguments, helpers would be executed) is left out.
/// An account without a file has no credentials.
pub(super) fn docker_config(accounts: &Accounts, build: &Build) -> Result<Secret, BakeError> {
    let Some(pattern) = &accounts.registries else { return Ok(Secret::new("{}")) };
    let path = pattern.expand(&build.account, &build.repository.owner, &build.repository.name);
    let refused = |message: String| BakeError::Credentials { path: path.clone(), message };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Secret::new("{}")),
        Err(error) => return Err(refused(error.to_string())),
    };
    let config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|_| refused("expected a JSON object".into()))?;
    let auths = config.get("auths").cloned().unwrap_or_else(|| json!({}));
    Ok(Secret::new(json!({"auths": auths}).to_string()))
}

//! The token of one job, given back when it is not needed any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::api::{Api, Bearer, Request};
use crate::clock::Epoch;
use crate::job::Repository;
use crate::secret::Secret;

/// Longer than any phase needs a token for, and less than a new one lasts.
const LONG: Duration = Duration::from_secs(30 * 60);

/// A token that reads the contents of one repository, for at most an hour. Revoked when this is dropped, in the background
/// and once: what GitHub does not hear of expires by itself.
#[derive(Debug)]
pub struct InstallationToken {
    /// The token.
    pub secret: Secret,
    /// The repository under its present name.
    pub repository: Repository,
    /// GitHub's number of the repository, which outlives renames.
    pub repository_id: u64,
    /// When it ends.
    pub(super) expires_at: Epoch,
    pub(super) api: Arc<Api>,
}

impl InstallationToken {
    /// Whether it works for that long yet, or for half an hour: a limit beyond a token's whole life would reject each new one.
    pub fn outlives(&self, duration: Duration) -> bool {
        self.expires_at > Epoch::now().plus(duration.min(LONG))
    }
}

impl Drop for InstallationToken {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.api.revokes() {
            return;
        }
        let (api, secret) = (Arc::clone(&self.api), self.secret.clone());
        let revoke = async move {
            match api.send(&Request::delete("/installation/token", Bearer::Token(&secret))).await {
                Ok(answer) if answer.status.is_success() => {}
                Ok(answer) => tracing::debug!(status = %answer.status, "the token was not revoked, and expires"),
                Err(error) => tracing::debug!(%error, "the token was not revoked, and expires"),
            }
        };
        self.api.revocations.spawn_on(revoke, &runtime);
    }
}

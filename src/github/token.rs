//! The token of one job, revoked when it is dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::api::{Api, ApiRequest, Bearer};
use crate::clock::Epoch;
use crate::job::Repository;
use crate::secret::Secret;

/// Longer than any phase needs a token, and shorter than a token's lifetime.
const LONG: Duration = Duration::from_secs(30 * 60);

/// A token that reads the contents of one repository, for at most an hour. Dropping it revokes it in the background, once. If that
/// fails, it expires by itself.
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
    /// Whether it is valid for that long, or for half an hour: a limit beyond a token's lifetime would reject each new one.
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
            match api.send(&ApiRequest::delete("/installation/token", Bearer::Token(&secret))).await {
                Ok(answer) if answer.status.is_success() => {}
                Ok(answer) => {
                    tracing::debug!(status = %answer.status, "installation token not revoked; it expires within the hour")
                }
                Err(error) => tracing::debug!(%error, "installation token not revoked; it expires within the hour"),
            }
        };
        self.api.revocations.spawn_on(revoke, &runtime);
    }
}

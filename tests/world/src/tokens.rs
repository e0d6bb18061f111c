//! Installation tokens, shared by both halves of GitHub: the API mints and revokes them, the git host checks them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jiff::Timestamp;

/// Every issued token, shared between `GitHub` and `GitHost`.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<BTreeMap<String, Grant>>>);

/// What one token may do.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The installation of the token.
    pub installation_id: u64,
    /// The repositories that the token can read.
    pub reach: Reach,
    /// Permission name to level, `contents` to `read`.
    pub permissions: BTreeMap<String, String>,
    /// When it expires; the API grants one hour.
    pub expires_at: Timestamp,
    /// Whether a client called `DELETE /installation/token` with it.
    pub is_revoked: bool,
}

/// The repositories of a token or an installation.
#[derive(Clone, Debug)]
pub enum Reach {
    /// These, as `owner/name`.
    Only(Vec<String>),
    /// Every bare repository `OWNER/NAME.git` below this directory, including later ones.
    Under(PathBuf),
}

impl Reach {
    /// Whether `full_name` (`owner/name`) is one of them. As on GitHub, case does not matter.
    pub fn covers(&self, full_name: &str) -> bool {
        self.full_names().iter().any(|name| name.eq_ignore_ascii_case(full_name))
    }

    /// All names, as `owner/name`.
    pub fn full_names(&self) -> Vec<String> {
        match self {
            Reach::Only(names) => names.clone(),
            Reach::Under(root) => {
                let owners = names_in(root).into_iter();
                let names = owners.flat_map(|owner| {
                    let names = names_in(&root.join(&owner)).into_iter();
                    names.filter_map(move |name| Some(format!("{owner}/{}", name.strip_suffix(".git")?)))
                });
                names.collect()
            }
        }
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

impl Grant {
    /// Whether it still works.
    pub fn is_valid(&self) -> bool {
        !self.is_revoked && Timestamp::now() < self.expires_at
    }
}

impl Tokens {
    /// Issues a token without the API: `contents: read` on these repositories for one hour.
    pub fn issue(&self, repositories: &[&str]) -> String {
        self.mint(
            1,
            Grant {
                installation_id: 0,
                reach: Reach::Only(repositories.iter().map(|name| (*name).to_owned()).collect()),
                permissions: [("contents".into(), "read".into())].into(),
                expires_at: Timestamp::now() + Duration::from_secs(3600),
                is_revoked: false,
            },
        )
    }

    /// What this token may do; none when it was never issued.
    pub fn grant(&self, token: &str) -> Option<Grant> {
        self.0.lock().unwrap().get(token).cloned()
    }

    /// Every token with what it may do.
    pub fn all(&self) -> Vec<(String, Grant)> {
        self.0.lock().unwrap().iter().map(|(token, grant)| (token.clone(), grant.clone())).collect()
    }

    /// Revokes a token and returns whether it exists.
    pub fn revoke(&self, token: &str) -> bool {
        self.0.lock().unwrap().get_mut(token).map(|grant| grant.is_revoked = true).is_some()
    }

    /// Expires a token.
    pub fn expire(&self, token: &str) {
        self.0.lock().unwrap().get_mut(token).unwrap().expires_at = Timestamp::UNIX_EPOCH;
    }

    /// A token in the stateless form of 2026: `ghs_`, the App id, and three base64url parts, about 520 characters.
    pub(crate) fn mint(&self, app_id: u64, grant: Grant) -> String {
        let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let header = part(br#"{"alg":"ES256","typ":"JWT"}"#);
        let claims = part(&rand::random::<[u8; 285]>());
        let signature = part(&rand::random::<[u8; 64]>());
        let token = format!("ghs_{app_id}_{header}.{claims}.{signature}");
        self.0.lock().unwrap().insert(token.clone(), grant);
        token
    }
}

//! GitHub for one App: its installations, clock, tokens and recorded calls. `rest` has the endpoints.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::faults::Faults;
use crate::rest::router;
use crate::server::Server;
use crate::tokens::{Reach, Tokens};

/// A running API with one App.
pub struct GitHub {
    shared: Arc<Shared>,
    server: Server,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    /// `GET`, `POST`, …
    pub method: String,
    /// Path with query.
    pub path: String,
    /// The body, which is JSON at every endpoint here.
    pub body: String,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// What the endpoints share.
pub(crate) struct Shared {
    pub(crate) app: App,
    pub(crate) tokens: Tokens,
    pub(crate) faults: Faults,
    pub(crate) state: Mutex<Mutable>,
}

#[derive(Default)]
pub(crate) struct Mutable {
    pub(crate) installations: BTreeMap<u64, Installation>,
    pub(crate) calls: Vec<Call>,
    /// The current names of moved repositories, by their old names in lower case.
    pub(crate) moved: BTreeMap<String, String>,
    pub(crate) clock_offset_s: i64,
    pub(crate) token_lifetime: Duration,
    pub(crate) repositories_root: Option<PathBuf>,
    is_logging: bool,
}

/// The App's installation on one account.
pub(crate) struct Installation {
    pub(crate) account: String,
    pub(crate) reach: Reach,
    pub(crate) permissions: BTreeMap<String, String>,
    pub(crate) is_suspended: bool,
}

impl GitHub {
    /// An API on a free port, with App 12345. All APIs of a process have one key.
    pub fn start() -> GitHub {
        GitHub::start_with(App::of_this_process(12345), 0)
    }

    /// An API for this App on this port, or on a free one when `port` is 0.
    pub fn start_with(app: App, port: u16) -> GitHub {
        let shared =
            Arc::new(Shared { app, tokens: Tokens::default(), faults: Faults::default(), state: Mutex::default() });
        shared.state.lock().unwrap().token_lifetime = Duration::from_secs(3600);
        let server = Server::start(router(shared.clone()), port);
        GitHub { shared, server }
    }

    /// The base of the API, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// The port of the API.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The App: ids and private key.
    pub fn app(&self) -> &App {
        &self.shared.app
    }

    /// Every token that this API has issued; give it to [`crate::GitHost::start`].
    pub fn tokens(&self) -> Tokens {
        self.shared.tokens.clone()
    }

    /// Installs the App on these repositories (names without the owner) and returns the installation id.
    ///
    /// Grants it `contents: read`, `statuses: write` and `checks: write`.
    pub fn install(&self, account: &str, repositories: &[&str]) -> u64 {
        let names = repositories.iter().map(|name| format!("{account}/{name}")).collect();
        let id = 7_000_001 + self.state().installations.len() as u64;
        self.install_as(id, account, Reach::Only(names));
        id
    }

    /// Installs the App under a given id.
    pub fn install_as(&self, id: u64, account: &str, reach: Reach) {
        let permissions = [("contents", "read"), ("metadata", "read"), ("statuses", "write"), ("checks", "write")];
        let installation = Installation {
            account: account.into(),
            reach,
            permissions: permissions.map(|(name, level)| (name.into(), level.into())).into(),
            is_suspended: false,
        };
        self.state().installations.insert(id, installation);
    }

    /// Suspends an installation, or ends its suspension.
    pub fn suspend(&self, id: u64, is_suspended: bool) {
        self.state().installations.get_mut(&id).unwrap().is_suspended = is_suspended;
    }

    /// Removes an installation and revokes its tokens, as GitHub does.
    pub fn uninstall(&self, id: u64) {
        self.state().installations.remove(&id);
        for (token, grant) in self.shared.tokens.all() {
            if grant.installation_id == id {
                self.shared.tokens.revoke(&token);
            }
        }
    }

    /// Renames a repository (`owner/name`) in the API. The caller moves its installation and its directory.
    pub fn moved(&self, old: &str, new: &str) {
        self.state().moved.insert(old.to_ascii_lowercase(), new.into());
    }

    /// Serves commits from the bare repositories `OWNER/NAME.git` below `root` (the root of a `GitHost`).
    pub fn serve_commits_from(&self, root: &Path) {
        self.state().repositories_root = Some(root.into());
    }

    /// Sets the lifetime of new tokens; GitHub's is an hour.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.state().token_lifetime = lifetime;
    }

    /// Moves the server's clock, by which it judges JWTs and dates answers.
    pub fn set_clock_offset_s(&self, offset_s: i64) {
        self.state().clock_offset_s = offset_s;
    }

    /// Logs to stderr which JWTs it verified and what it minted tokens for, but never the tokens.
    pub fn log_to_stderr(&self) {
        self.state().is_logging = true;
    }

    /// Every request so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// The faults of this API.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Mutable> {
        self.shared.state.lock().unwrap()
    }
}

/// The numeric id of `owner/name`, derived from the name so that it is the same everywhere.
pub fn repository_id(full_name: &str) -> u64 {
    let hash = Sha256::digest(full_name.to_ascii_lowercase());
    100_000_000 + u64::from(u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

impl Shared {
    pub(crate) fn now_s(&self) -> i64 {
        Timestamp::now().as_second() + self.state.lock().unwrap().clock_offset_s
    }

    pub(crate) fn log(&self, line: impl Fn() -> String) {
        if self.state.lock().unwrap().is_logging {
            eprintln!("github: {}", line());
        }
    }
}

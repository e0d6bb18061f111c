//! The registry credentials of one account, for one job.
//!
//! A credential helper is the operator's program: it runs here, in the worker's trust, and only its answer enters the
//! sandbox. Follows Docker's credential helper protocol (`docker-credential-helpers`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::BakeError;
use super::own_registries::host_of_credentials;
use crate::bounds;
use crate::environment;
use crate::job::Build;
use crate::json;
use crate::name::is_name;
use crate::process::{self, Ended, Stream};
use crate::secret::Secret;
use crate::settings::Accounts;

/// The time limit of a helper, which may ask a cloud service.
const PATIENCE: Duration = Duration::from_secs(15);
/// The most registries of a store that are looked up.
const MAX_REGISTRIES: usize = 50;
/// The user name by which a helper marks its secret as an identity token.
const IDENTITY: &str = "<token>";
/// How a helper's output begins when it has no credentials for a registry.
const NOT_FOUND: &[u8] = b"credentials not found";

/// The account's file: the fields of a docker `config.json` that concern credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: Map<String, Value>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

/// A helper's answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// The secret fields of an entry of `auths`. A user name is not secret.
const SECRET_FIELDS: [&str; 4] = ["auth", "password", "identitytoken", "registrytoken"];

/// The registry credentials of a job.
pub(super) struct Credentials {
    /// The text of a docker `config.json`.
    pub(super) config: Secret,
    /// Its secrets, in each form in which they can appear, for masking.
    pub(super) secrets: Vec<Secret>,
    /// The registries that they are for, as in `auths`.
    pub(super) registries: Vec<String>,
}

/// How a job logs in to a registry.
pub(super) enum Login {
    /// User name and password, as in HTTP's basic authentication.
    Password(Secret),
    /// A token that the registry's token server exchanges.
    Identity(Secret),
    /// A token for the registry itself.
    Token(Secret),
}

impl Credentials {
    /// The login for a registry, as references name it; `None` when the account has none.
    pub(super) fn login(&self, registry: &str) -> Option<Login> {
        let config: Config = json::read(self.config.expose().as_bytes()).ok()?;
        let (_, entry) = config.auths.into_iter().find(|(key, _)| host_of_credentials(key) == registry)?;
        let text = |field: &str| entry.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let token = |field: &str| text(field).map(Secret::new);
        let pair = || Some(BASE64.encode(format!("{}:{}", text("username")?, text("password")?)));
        let password = || text("auth").map(str::to_owned).or_else(pair).map(Secret::new);
        let registry_token = token("registrytoken").map(Login::Token);
        registry_token
            .or_else(|| token("identitytoken").map(Login::Identity))
            .or_else(|| password().map(Login::Password))
    }

    pub(super) fn new(auths: Map<String, Value>) -> Self {
        let secrets = auths.values().flat_map(secrets).map(Secret::new).collect();
        let registries = auths.keys().cloned().collect();
        Self { registries, config: Secret::new(json!({"auths": auths}).to_string()), secrets }
    }
}

/// The docker `config.json` of a job, with credentials only.
///
/// Leaves out everything else that such a file can hold (proxies become build arguments). An account without a file has no
/// credentials.
///
/// # Errors
///
/// `Credentials` names the account's file or the failed helper, never their content or output. `Stopped` when the build is
/// stopped while a helper runs.
pub(super) async fn docker_config(
    accounts: &Accounts,
    build: &Build,
    stop: &CancellationToken,
) -> Result<Credentials, BakeError> {
    let Some(pattern) = &accounts.registries else { return Ok(Credentials::new(Map::new())) };
    let path = pattern.expand(&build.names());
    let refused = |message: String| BakeError::Credentials { path: path.clone(), message };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Credentials::new(Map::new())),
        Err(error) => return Err(refused(error.to_string())),
    };
    let config: Config = json::read(&text).map_err(|_| refused("expected a docker config.json".into()))?;
    let mut auths = config.auths;
    let asked = async {
        let mut helpers = config.cred_helpers;
        if let Some(store) = config.creds_store {
            for registry in list(accounts, &store, stop).await? {
                helpers.entry(registry).or_insert_with(|| store.clone());
            }
        }
        for (registry, helper) in helpers {
            if let Some(entry) = get(accounts, &helper, &registry, stop).await? {
                auths.insert(registry, entry);
            }
        }
        Ok(())
    };
    match asked.await {
        Err(_) if stop.is_cancelled() => return Err(BakeError::Stopped),
        asked => asked.map_err(refused)?,
    }
    Ok(Credentials::new(auths))
}

/// Passwords and tokens of an entry of `auths`: as written, decoded, and as sent in a request (RFC 7617).
fn secrets(entry: &Value) -> Vec<String> {
    let text = |field: &str| entry.get(field).and_then(Value::as_str);
    let mut all: Vec<String> = SECRET_FIELDS.into_iter().filter_map(text).map(str::to_owned).collect();
    let decoded = text("auth").and_then(|auth| String::from_utf8(BASE64.decode(auth).ok()?).ok());
    let apart = || Some(format!("{}:{}", text("username")?, text("password")?));
    if let Some(pair) = decoded.or_else(apart) {
        // In a URL it may have no padding.
        all.push(BASE64.encode(&pair).trim_end_matches('=').to_owned());
        all.extend(pair.split_once(':').map(|(_, password)| password.to_owned()));
    }
    all
}

/// The registries for which a store has credentials.
async fn list(accounts: &Accounts, helper: &str, stop: &CancellationToken) -> Result<BTreeSet<String>, String> {
    let Some(answer) = ask(accounts, helper, "list", "", stop).await? else { return Ok(BTreeSet::new()) };
    let known: BTreeMap<String, Value> = json::read(answer.expose().as_bytes())
        .map_err(|_| format!("docker-credential-{helper} list did not print a JSON object"))?;
    Ok(known.into_keys().take(MAX_REGISTRIES).collect())
}

/// The entry of `auths` for a registry; none when the helper has no credentials for it.
async fn get(
    accounts: &Accounts,
    helper: &str,
    registry: &str,
    stop: &CancellationToken,
) -> Result<Option<Value>, String> {
    let Some(answer) = ask(accounts, helper, "get", registry, stop).await? else { return Ok(None) };
    let Answer { username, secret } = json::read(answer.expose().as_bytes())
        .map_err(|_| format!("docker-credential-{helper} did not print a credential for {registry}"))?;
    Ok(Some(match username.as_str() {
        IDENTITY => json!({"identitytoken": secret.expose()}),
        _ => json!({"auth": BASE64.encode(format!("{username}:{}", secret.expose()))}),
    }))
}

/// Runs a helper with the verb as its argument and the registry on its standard input. `None` when it has no credentials.
///
/// Its output is never reported when it fails: it may contain a credential, and customers read the message.
async fn ask(
    accounts: &Accounts,
    helper: &str,
    verb: &str,
    input: &str,
    stop: &CancellationToken,
) -> Result<Option<Secret>, String> {
    let name = format!("docker-credential-{helper}");
    let folder = accounts.credential_helpers.as_deref();
    let folder = folder.ok_or_else(|| format!("{name} is needed; set accounts.credential_helpers to its directory"))?;
    // The name comes from the account's file and becomes the name of a program.
    if !is_name(helper) {
        return Err(format!("{helper:?} is not a valid name of a credential helper"));
    }
    let mut command = process::command(Path::new(folder).join(&name));
    command.arg(verb).envs(environment::of_plugins());
    let limits = process::RunLimits {
        timeout: Some(PATIENCE),
        silence: None,
        max_output_bytes: bounds::CREDENTIAL,
        stop: stop.clone(),
    };
    let mut answer = Vec::new();
    let ended = process::run(command, input.as_bytes(), &limits, |stream, line| {
        if stream == Stream::Out {
            answer.extend_from_slice(line);
        }
    })
    .await
    .map_err(|error| error.to_string())?;
    let of = if input.is_empty() { String::new() } else { format!(" for {input}") };
    match ended {
        Ended::Exited(status) if status.success() => {
            let answer = String::from_utf8(answer).map_err(|_| format!("{name} printed bytes that are not UTF-8"))?;
            Ok(Some(Secret::new(answer)))
        }
        // The protocol reports it on standard output.
        Ended::Exited(_) if answer.starts_with(NOT_FOUND) => Ok(None),
        Ended::Exited(status) => Err(format!("{name} {verb}{of} failed ({status}); run it by hand to see why")),
        Ended::TooMuchOutput => Err(format!("{name} {verb}{of} printed more than {} bytes", bounds::CREDENTIAL)),
        Ended::TimedOut | Ended::Silent | Ended::Stopped => {
            Err(format!("{name} {verb}{of} took more than {} s", PATIENCE.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_known_in_each_form_and_a_name_is_no_secret() {
        let pair = BASE64.encode("robot:pa55:word");
        let bare = pair.trim_end_matches('=');
        for (entry, expected) in [
            (json!({"auth": pair}), vec![pair.as_str(), bare, "pa55:word"]),
            (json!({"username": "robot", "password": "pa55:word"}), vec!["pa55:word", bare, "pa55:word"]),
            (json!({"identitytoken": "t0ken"}), vec!["t0ken"]),
            (json!({"registrytoken": "t0ken", "email": "ada@example.test"}), vec!["t0ken"]),
            (json!({"auth": "no Base64"}), vec!["no Base64"]),
            (json!("nonsense"), vec![]),
        ] {
            assert_eq!(secrets(&entry), expected, "{entry}");
        }
    }
}

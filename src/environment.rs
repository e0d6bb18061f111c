//! The environment of this process: the one module that reads it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use crate::secret::{Secret, SecretBytes};
use crate::settings::{CREDENTIAL_VARIABLES, SecretSource, credential, passwords_of};

/// The names of the variables for the proxy of `https` URLs. The first one that is set counts, here and in the next three lists.
pub const HTTPS_PROXY: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];

/// Those for the proxy of `http` URLs.
pub const HTTP_PROXY: [&str; 2] = ["HTTP_PROXY", "http_proxy"];

/// Those for the proxy of all other URLs.
pub const ALL_PROXY: [&str; 2] = ["ALL_PROXY", "all_proxy"];

/// Those for the hosts that are reached without a proxy.
pub const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Every variable whose name and value are UTF-8.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// systemd's socket (`NOTIFY_SOCKET`) and the period of its watchdog (`WATCHDOG_USEC`, unless `WATCHDOG_PID` names another
/// process). `None` without systemd.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn notify() -> Option<(OsString, Option<Duration>)> {
    let socket = std::env::var_os("NOTIFY_SOCKET")?;
    let variable = |name| std::env::var(name).ok();
    let is_for_us = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let period = variable("WATCHDOG_USEC").filter(|_| is_for_us).and_then(|text| text.parse().ok());
    Some((socket, period.map(Duration::from_micros)))
}

/// The name of this host in Sidekiq's Web UI: `DYNO` if set, as in Sidekiq, otherwise the host name.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn hostname() -> String {
    let node = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    std::env::var("DYNO").unwrap_or_else(|_| node())
}

/// Name and namespace of the worker's pod, when its manifest says them (`POD_NAME`, `POD_NAMESPACE`).
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn own_pod() -> Option<(String, String)> {
    let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some((of("POD_NAME")?, of("POD_NAMESPACE")?))
}

/// `DOCKER_HOST`: the engine of the person at the terminal.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn docker_host() -> Option<String> {
    std::env::var("DOCKER_HOST").ok()
}

/// Whether a terminal may get colors: `NO_COLOR` is empty or not set (<https://no-color.org>).
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn wants_colors() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether the terminal can move its cursor: `TERM` is set, and not to `dumb`.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn has_cursor() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term != "dumb" && !term.is_empty())
}

/// The environment of credential helpers and of a kubeconfig's plugins: that of this process without `SIDEBAKE_…` and without
/// the variable of Redis' URL.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn of_plugins() -> impl Iterator<Item = (OsString, OsString)> {
    let provider = std::env::var_os("REDIS_PROVIDER").unwrap_or_else(|| "REDIS_URL".into());
    std::env::vars_os().filter(move |(name, _)| *name != provider && !name.as_encoded_bytes().starts_with(b"SIDEBAKE_"))
}

/// Every variable whose name begins like this: credentials of a service, by the names that its own programs use.
pub fn beginning_with(prefix: &str) -> impl Iterator<Item = (String, Secret)> {
    let variables = variables().into_iter().filter(move |(name, _)| name.starts_with(prefix));
    variables.map(|(name, value)| (name, Secret::new(value)))
}

/// The first of these variables that is not empty, with its value.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn first_of(names: &[&'static str]) -> Option<(&'static str, String)> {
    let named = names.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?)));
    named.into_iter().find(|(_, value)| !value.trim().is_empty())
}

/// The credentials in the variables of AWS, Azure and Google, and the passwords of proxies.
pub fn credentials() -> impl Iterator<Item = SecretSource> {
    let variables = CREDENTIAL_VARIABLES.into_iter().flat_map(beginning_with);
    let of_services = variables.filter_map(|(name, value)| credential(&name, &value));
    let proxies = variables_of_proxies().flat_map(|url| passwords_of(&url)).map(SecretSource::Value);
    of_services.chain(proxies)
}

/// Every proxy variable in any mixture of cases: programs differ in which they read.
fn variables_of_proxies() -> impl Iterator<Item = Secret> {
    let names = || [HTTPS_PROXY, HTTP_PROXY, ALL_PROXY].into_iter().flatten();
    let is_proxys = move |name: &str| names().any(|own| own.eq_ignore_ascii_case(name));
    variables().into_iter().filter(move |(name, _)| is_proxys(name)).map(|(_, url)| Secret::new(url))
}

/// The value of a variable that holds a build secret. It may contain any byte but NUL.
#[expect(clippy::disallowed_methods, reason = "the environment is read here")]
pub fn secret(name: &str) -> Option<SecretBytes> {
    std::env::var_os(name).map(|value| SecretBytes::new(value.into_encoded_bytes()))
}

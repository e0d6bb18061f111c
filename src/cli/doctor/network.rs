//! What a worker connects to: GitHub's API, the git host, the registries that the settings name, their names in DNS, and the API servers
//! of builders. Each is asked in the way that a job does, through its proxy where it has one.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Client;
use serde_json::Value;

use super::{Color, Finding, open_state};
use crate::bake::registry_url;
use crate::builder::Builders;
use crate::json;
use crate::name::reference::registry_of;
use crate::network::{self, Proxies, Proxy, Unreachable};
use crate::settings::Settings;
use crate::source::Worktrees;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The findings about every connection except those to Redis.
pub(super) async fn findings(settings: &Settings) -> Vec<Finding> {
    let made =
        network::check(settings).and_then(|()| network::client(settings.ca_file(), |client| client.timeout(TIMEOUT)));
    let client = match made {
        Ok(client) => client,
        Err(error) => return vec![Finding::new("network", Color::Red, error.to_string())],
    };
    let proxies = Proxies::of_process();
    let builders = Builders::new(settings);
    let registries = registries(settings);
    let (github, git, registries, names, api_servers) = tokio::join!(
        answer(&client, proxies, &settings.github.api_url),
        git_host(settings, proxies),
        of_registries(&client, proxies, &registries),
        names(settings, proxies, &builders, &registries),
        api_servers(&builders),
    );
    let mut findings = vec![Finding::of("github api", github), Finding::of("git host", git)];
    findings.extend(registries);
    findings.push(names);
    findings.extend(api_servers);
    findings
}

/// Whether a server answers. Any answer of its own will do.
async fn answer(client: &Client, proxies: &Proxies, url: &str) -> Result<String, String> {
    let proxy = proxies.of(url);
    let status = match client.get(url).send().await {
        Ok(answer) => answer.status(),
        Err(error) => return Err(Unreachable::new(url, &error.without_url()).with_refusal().await.to_string()),
    };
    match proxy {
        Some(proxy) if Proxy::refuses(url, status) => {
            Err(Unreachable::by_proxy(url, proxy.clone(), status).to_string())
        }
        _ if status.is_server_error() => Err(format!("{url} answered {status}; check whether the server is healthy")),
        _ => Ok(format!("{url} answers{}", Proxy::shown(proxy))),
    }
}

/// Asks the git host from a source child, with its sandbox and its certificates.
async fn git_host(settings: &Settings, proxies: &Proxies) -> Result<String, String> {
    let url = &settings.github.git_url;
    let asked = async {
        let scratch = tempfile::tempdir()?;
        let state = open_state(scratch.path())?;
        let directory = state.job_directory()?;
        Worktrees::new(settings).reach(&state, &directory).await?;
        anyhow::Ok(())
    };
    match asked.await {
        Ok(()) => Ok(format!("{url} answers{}", Proxy::shown(proxies.of(url)))),
        Err(error) => Err(error.to_string()),
    }
}

async fn of_registries(client: &Client, proxies: &Proxies, registries: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for registry in registries {
        let found = match registry_url(registry) {
            Some(url) => answer(client, proxies, url.as_str()).await,
            None => Err("not a valid registry".into()),
        };
        findings.push(Finding::of(&format!("registry {registry}"), found));
    }
    findings
}

/// The registries of tags, caches and credentials, as far as they are the same for every account.
fn registries(settings: &Settings) -> BTreeSet<String> {
    let accounts = &settings.accounts;
    let tags = accounts.tags.iter().map(ToString::to_string);
    let caches = accounts.cache.from.iter().chain(&accounts.cache.to).map(ToString::to_string);
    let caches =
        caches.filter_map(|cache| cache.split(',').find_map(|field| Some(field.strip_prefix("ref=")?.to_owned())));
    let cache = accounts.cache.reference.iter().map(ToString::to_string);
    let named = tags.chain(caches).chain(cache).map(|reference| registry_of(&reference).to_owned());
    let file = accounts.registries.as_ref().map(ToString::to_string).filter(|path| !path.contains('{'));
    let text = file.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let config: Value = json::read(&text).unwrap_or_default();
    let logins = ["auths", "credHelpers"].into_iter().filter_map(|field| config[field].as_object());
    let logins = logins.flat_map(|entries| entries.keys()).map(|name| {
        let name = name.split_once("://").map_or(name.as_str(), |(_, rest)| rest);
        name.split('/').next().unwrap_or(name).to_owned()
    });
    named.chain(logins).filter(|registry| !registry.contains('{')).collect()
}

/// Whether the names of all these servers have addresses. Of a server behind a proxy, the proxy's name counts.
async fn names(settings: &Settings, proxies: &Proxies, builders: &Builders, registries: &BTreeSet<String>) -> Finding {
    let mut urls = vec![settings.github.api_url.clone(), settings.github.git_url.clone()];
    urls.extend(registries.iter().filter_map(|registry| registry_url(registry)).map(String::from));
    let host = |url: &String| match proxies.of(url) {
        Some(proxy) => Some(proxy.host().to_owned()),
        None => Some(reqwest::Url::parse(url).ok()?.host_str()?.to_owned()),
    };
    let mut hosts: BTreeSet<String> = urls.iter().filter_map(host).collect();
    for name in builders.names() {
        hosts.extend(builders.api_host(name).await);
    }
    hosts.retain(|host| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err());
    let mut failures = Vec::new();
    for host in &hosts {
        match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((host.as_str(), 443))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => failures.push(format!("{host} has no address: {error}")),
            Err(_) => {
                failures.push(format!("{host} has no address: the DNS did not answer within {} s", TIMEOUT.as_secs()))
            }
        }
    }
    let all = hosts.into_iter().collect::<Vec<_>>().join(", ");
    if failures.is_empty() {
        let detail = if all.is_empty() { "no server needs one".into() } else { format!("addresses found for {all}") };
        return Finding::new("dns", Color::Green, detail);
    }
    let check = "check the spelling of the host, and the nameservers in /etc/resolv.conf";
    Finding::new("dns", Color::Red, format!("{}; {check}", failures.join("; ")))
}

async fn api_servers(builders: &Builders) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in builders.names() {
        if let Some(found) = builders.reach(name).await {
            findings.push(Finding::of(&format!("api server of {name}"), found));
        }
    }
    findings
}

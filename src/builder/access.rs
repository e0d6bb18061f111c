//! The API server of a builder and the credentials for it: from a kubeconfig or from the worker's own pod.
//!
//! Everything is looked up here, in the worker's trust: certificates and tokens are read from their files, and an exec plugin is
//! run. The result is self-contained, so the docker-buildx of a stranger's build needs no other file and no plugin. Follows
//! `client.authentication.k8s.io/v1` and the kubeconfig of `k8s.io/client-go`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use kube::Config;
use kube::client::{ClientBuilder, ConfigExt};
use kube::config::{AuthInfo, ExecConfig, KubeConfigOptions, Kubeconfig, KubeconfigError};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;
use tower::util::{BoxService, MapResponseLayer};
use tower::{BoxError, ServiceBuilder};

use crate::body::{Bounded, Room};
use crate::bounds;
use crate::clock::Epoch;
use crate::environment;
use crate::json;
use crate::network::{Proxies, Proxy};
use crate::process::{self, Ended, ProcessError, RunLimits, Stream};
use crate::secret::Secret;
use crate::settings;
use crate::text;

/// How long an exec plugin may take.
pub(super) const PLUGIN: Duration = Duration::from_secs(30);

/// A service that sends requests through a proxy.
type ProxiedService = BoxService<http::Request<kube::client::Body>, http::Response<hyper::body::Incoming>, BoxError>;

/// The time limit of one request to the API server.
const REQUEST: Duration = Duration::from_secs(15);

/// The API server's address or the credentials for it are not available.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The kubeconfig cannot be read, or is incomplete.
    #[error("the kubeconfig {path}: {message}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// No kubeconfig is configured, and the worker's pod has no usable service account.
    #[error("no kubeconfig is configured, and this pod's service account cannot be used: {0}")]
    ServiceAccount(String),
    /// A certificate, key or token cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The exec plugin cannot be run.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The exec plugin did not return credentials.
    #[error("the kubeconfig's plugin {command}: {message}")]
    Plugin {
        /// Its command.
        command: String,
        /// Its error, or what its output lacks.
        message: String,
    },
    /// Another build still looks them up.
    #[error("the credentials for Kubernetes were not available in time")]
    Late,
    /// The client cannot be created.
    #[error("{0}")]
    Client(String),
}

impl AccessError {
    /// Whether a later attempt may succeed: a plugin asks another server, and a file may be replaced just now.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Plugin { .. } | Self::File { .. } | Self::Late)
    }
}

/// The address of an API server and complete credentials for it.
#[derive(Clone, Debug)]
pub(super) struct KubeAccess {
    config: Config,
    /// The proxy through which the API server is reached.
    proxy: Option<Proxy>,
    /// When a plugin's credentials expire.
    pub(super) expires: Option<Timestamp>,
}

impl KubeAccess {
    /// Looks everything up.
    pub(super) async fn find(builder: &settings::Builder) -> Result<Self, AccessError> {
        let (mut config, proxy) = match &builder.kubeconfig {
            Some(path) => from_kubeconfig(path, builder.context.clone()).await?,
            // The API server of the worker's own cluster is beside it, and not behind a proxy.
            None => {
                let config = Config::incluster_env();
                (config.map_err(|error| AccessError::ServiceAccount(error.to_string()))?, None)
            }
        };
        // Handled here: kube reads the environment in its own way, and sends a password undecoded.
        config.proxy_url = None;
        // kube's retries would multiply the worker's own, and kube has no default timeout.
        config.default_retry = false;
        (config.connect_timeout, config.read_timeout, config.write_timeout) =
            (Some(REQUEST), Some(REQUEST), Some(REQUEST));
        if let Some(namespace) = &builder.namespace {
            config.default_namespace.clone_from(namespace);
        }
        let expires = complete(&mut config.auth_info).await?;
        Ok(Self { config, proxy, expires })
    }

    /// Whether it can still be used: files are read again every minute, and a plugin runs again before its credentials expire.
    pub(super) fn is_fresh(&self, age: Duration) -> bool {
        match self.expires {
            Some(end) => end.duration_since(Epoch::now().timestamp()).as_secs() > 60,
            None => age < Duration::from_secs(60),
        }
    }

    /// The namespace of the builder.
    pub(super) fn namespace(&self) -> &str {
        &self.config.default_namespace
    }

    /// A client for it.
    pub(super) fn client(&self) -> Result<kube::Client, AccessError> {
        let room = Room::new(self.config.cluster_url.to_string(), bounds::KUBERNETES);
        let failed = |error: kube::Error| AccessError::Client(error.to_string());
        let Some(proxy) = &self.proxy else {
            let client = ClientBuilder::try_from(self.config.clone()).map_err(failed)?;
            return Ok(client.with_layer(&bounded(room)).build());
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(REQUEST));
        match proxy.uri().scheme_str() {
            Some("http") => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                if let Some(authorization) = proxy.authorization() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                Ok(over(&self.config, tunnel).map_err(failed)?.with_layer(&bounded(room)).build())
            }
            Some("socks5" | "socks5h") => {
                let mut socks = SocksV5::new(proxy.uri().clone(), tcp);
                if let Some((user, password)) = proxy.login() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                Ok(over(&self.config, socks).map_err(failed)?.with_layer(&bounded(room)).build())
            }
            _ => Err(AccessError::Client(format!(
                "the proxy {} of the API server has a scheme that is not supported; expected http or socks5",
                proxy.name()
            ))),
        }
    }

    /// The URL of the API server.
    pub(super) fn url(&self) -> String {
        self.config.cluster_url.to_string().trim_end_matches('/').to_owned()
    }

    /// The proxy of the API server.
    pub(super) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// The host of the API server, an IPv6 address without its brackets.
    pub(super) fn host(&self) -> &str {
        self.config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The port to which connections go: the API server's, or its proxy's.
    pub(super) fn port(&self) -> u16 {
        let default = if self.config.cluster_url.scheme_str() == Some("http") { 80 } else { 443 };
        let own = self.config.cluster_url.port_u16().unwrap_or(default);
        self.proxy.as_ref().map_or(own, Proxy::port)
    }

    /// The addresses to which connections go: the API server's, or its proxy's.
    pub(super) async fn addresses(&self) -> Vec<SocketAddr> {
        let host = self.proxy.as_ref().map_or_else(|| self.host(), Proxy::host);
        let found = tokio::net::lookup_host((host, self.port())).await;
        found
            .into_iter()
            .flatten()
            .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
            .collect()
    }

    /// A kubeconfig that refers to no other file and no plugin.
    pub(super) fn kubeconfig(&self) -> Result<Secret, AccessError> {
        let mut cluster = Map::from_iter([("server".to_owned(), json!(self.config.cluster_url.to_string()))]);
        if self.config.accept_invalid_certs {
            cluster.insert("insecure-skip-tls-verify".into(), json!(true));
        } else if let Some(path) = &self.config.root_cert_file {
            cluster.insert("certificate-authority-data".into(), json!(BASE64_STANDARD.encode(read(path)?)));
        } else if let Some(certificates) = &self.config.root_cert {
            let pem: String = certificates.iter().map(|der| pem("CERTIFICATE", der)).collect();
            cluster.insert("certificate-authority-data".into(), json!(BASE64_STANDARD.encode(pem)));
        }
        if let Some(name) = &self.config.tls_server_name {
            cluster.insert("tls-server-name".into(), json!(name));
        }
        if let Some(proxy) = &self.proxy {
            cluster.insert("proxy-url".into(), json!(proxy.url.expose()));
        }
        let name = "builder";
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user(&self.config.auth_info)?}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": self.namespace()}}],
            "current-context": name,
        });
        Ok(Secret::new(text.to_string()))
    }
}

/// The configuration of a kubeconfig, and the proxy of its API server: its own `proxy-url`, else that of the environment.
async fn from_kubeconfig(path: &Path, context: Option<String>) -> Result<(Config, Option<Proxy>), AccessError> {
    let wrong = |error: &dyn std::fmt::Display| AccessError::Kubeconfig {
        path: path.display().to_string(),
        message: error.to_string(),
    };
    let mut kubeconfig = Kubeconfig::read_from(path).map_err(|error| match error {
        // A parser's error quotes its input, which can contain a token.
        KubeconfigError::Parse(_) => wrong(&"not a valid kubeconfig"),
        error => wrong(&error),
    })?;
    let own = proxy_url(&mut kubeconfig, context.as_deref());
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| match error {
        // kube reads the environment in its own way, and its error would quote a password.
        KubeconfigError::ParseProxyUrl(_) => wrong(&"HTTPS_PROXY is not the URL of a proxy"),
        error => wrong(&error),
    })?;
    let proxy = match own {
        Some(url) => Some(Proxy::new("proxy-url", &url).map_err(|error| wrong(&error))?),
        None => Proxies::of_process().of(&config.cluster_url.to_string()).cloned(),
    };
    if config.auth_info.auth_provider.is_some() {
        return Err(wrong(&"auth-provider is not supported; use an exec plugin"));
    }
    Ok((config, proxy))
}

/// Takes the `proxy-url` out of the cluster of a context.
fn proxy_url(kubeconfig: &mut Kubeconfig, context: Option<&str>) -> Option<String> {
    let name = context.or(kubeconfig.current_context.as_deref())?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == name)?;
    let cluster = context.context.as_ref()?.cluster.clone();
    let cluster = kubeconfig.clusters.iter_mut().find(|named| named.name == cluster)?;
    cluster.cluster.as_mut()?.proxy_url.take().filter(|url| !url.is_empty())
}

/// Bounds the bodies of answers: kube reads them by itself.
fn bounded<B>(room: Room) -> MapResponseLayer<impl Fn(http::Response<B>) -> http::Response<Bounded<B>> + Clone> {
    MapResponseLayer::new(move |answer: http::Response<B>| {
        let room = room.clone();
        answer.map(|body| Bounded::new(body, room))
    })
}

/// A client over connections that go through a proxy. kube's own differs in its proxies alone.
fn over<C>(config: &Config, connector: C) -> Result<ClientBuilder<ProxiedService>, kube::Error>
where
    C: tower::Service<http::Uri> + Clone + Send + Sync + 'static,
    C::Response:
        hyper_util::client::legacy::connect::Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let client = Client::builder(TokioExecutor::new()).build::<_, kube::client::Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(ClientBuilder::new(BoxService::new(service), config.default_namespace.clone()))
}

/// Runs the exec plugin, if there is one, and sets its credentials. Returns when they expire.
async fn complete(user: &mut AuthInfo) -> Result<Option<Timestamp>, AccessError> {
    let Some(exec) = user.exec.take() else { return Ok(None) };
    let status = run_plugin(&exec).await?;
    user.token = status.token.map(SecretString::from);
    user.client_certificate_data = status.client_certificate_data.map(|pem| BASE64_STANDARD.encode(pem));
    user.client_key_data = status.client_key_data.map(|pem| SecretString::from(BASE64_STANDARD.encode(pem)));
    Ok(status.expiration_timestamp)
}

/// The user of a kubeconfig, with the content of each file that it refers to.
fn user(info: &AuthInfo) -> Result<Value, AccessError> {
    let mut user = Map::new();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            user.insert(key.into(), json!(value));
        }
    };
    let exposed = |secret: &Option<SecretString>| secret.as_ref().map(|secret| secret.expose_secret().to_owned());
    let content = |data: Option<String>, file: &Option<String>| match (data, file) {
        (None, Some(path)) => read(Path::new(path)).map(|bytes| Some(BASE64_STANDARD.encode(bytes))),
        (data, _) => Ok(data),
    };
    let token = match (exposed(&info.token), &info.token_file) {
        (None, Some(path)) => Some(String::from_utf8_lossy(&read(Path::new(path))?).trim().to_owned()),
        (token, _) => token,
    };
    set("token", token);
    set("client-certificate-data", content(info.client_certificate_data.clone(), &info.client_certificate)?);
    set("client-key-data", content(exposed(&info.client_key_data), &info.client_key)?);
    set("username", info.username.clone());
    set("password", exposed(&info.password));
    set("as", info.impersonate.clone());
    if let Some(groups) = &info.impersonate_groups {
        user.insert("as-groups".into(), json!(groups));
    }
    Ok(Value::Object(user))
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|source| AccessError::File { path: path.display().to_string(), source })
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

// ---------------------------------------------------------------- exec plugins

#[derive(Deserialize)]
struct ExecCredential {
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<Timestamp>,
}

/// Runs the plugin with its kubeconfig's environment and with the variables of `environment::of_plugins`.
async fn run_plugin(exec: &ExecConfig) -> Result<ExecStatus, AccessError> {
    let name = exec.command.clone().unwrap_or_default();
    let wrong = |message: String| AccessError::Plugin { command: name.clone(), message };
    let mut command = process::command(&name);
    command.args(exec.args.iter().flatten()).envs(environment::of_plugins());
    for variable in exec.env.iter().flatten() {
        if let (Some(key), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(key, value);
        }
    }
    let version = exec.api_version.as_deref().unwrap_or("client.authentication.k8s.io/v1");
    let info = json!({"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": false}});
    command.env("KUBERNETES_EXEC_INFO", info.to_string());
    let stop = CancellationToken::new();
    let limits = RunLimits { timeout: Some(PLUGIN), silence: None, max_output_bytes: bounds::PLUGIN, stop };
    let (mut out, mut last) = (Vec::new(), String::new());
    let ended = process::run(command, b"", &limits, |stream, line| match stream {
        Stream::Out => out.extend_from_slice(line),
        Stream::Err => last = text::shown(&String::from_utf8_lossy(line), bounds::NOTICE),
    })
    .await?;
    match ended {
        _ if ended.is_success() => {}
        Ended::TooMuchOutput => return Err(wrong(format!("it printed more than {} bytes", bounds::PLUGIN))),
        Ended::TimedOut | Ended::Silent => return Err(wrong(format!("it took more than {} s", PLUGIN.as_secs()))),
        Ended::Exited(_) | Ended::Stopped => return Err(wrong(format!("it ended with an error: {last}"))),
    }
    // A parser's error could quote a token.
    let credential: ExecCredential =
        json::read(&out).map_err(|_| wrong("its output is not an ExecCredential".into()))?;
    credential.status.ok_or_else(|| wrong("its output has no status".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) -> std::path::PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    fn builder(kubeconfig: std::path::PathBuf) -> settings::Builder {
        let mut builder = settings::Builder::new(settings::Driver::Kubernetes, None);
        builder.kubeconfig = Some(kubeconfig);
        builder
    }

    #[tokio::test]
    async fn the_jobs_kubeconfig_names_no_file_and_no_plugin() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        write(directory.path(), "token", "from-a-file\n");
        let text = "{apiVersion: v1, kind: Config, current-context: b, \
             clusters: [{name: c, cluster: {server: 'https://k8s.example:6443'}}], \
             users: [{name: u, user: {tokenFile: token}}, {name: p, user: {exec: {apiVersion: client.authentication.k8s.io/v1, \
             command: /bin/sh, args: ['-c', 'echo \"{\\\"status\\\":{\\\"token\\\":\\\"plug-$A\\\",\\\"expirationTimestamp\\\":\\\"2099-01-01T00:00:00Z\\\"}}\"'], \
             env: [{name: A, value: in}]}}}], \
             contexts: [{name: a, context: {cluster: c, user: u, namespace: builds}}, {name: b, context: {cluster: c, user: p}}]}";
        let kubeconfig = write(directory.path(), "config", text);

        let mut of_file = builder(kubeconfig.clone());
        of_file.context = Some("a".into());
        let access = KubeAccess::find(&of_file).await.expect("found");
        let made: Value = serde_json::from_str(access.kubeconfig().expect("made").expose()).expect("JSON");
        assert_eq!(made["users"][0]["user"], json!({"token": "from-a-file"}));
        assert_eq!((access.namespace(), access.port()), ("builds", 6443));

        let of_plugin = KubeAccess::find(&builder(kubeconfig)).await.expect("found");
        let made: Value = serde_json::from_str(of_plugin.kubeconfig().expect("made").expose()).expect("JSON");
        assert_eq!(made["users"][0]["user"], json!({"token": "plug-in"}));
        assert!(of_plugin.is_fresh(Duration::from_secs(3600)), "the plugin's word counts");
    }

    #[tokio::test]
    async fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let missing = KubeAccess::find(&builder(directory.path().join("none"))).await.expect_err("refused");
        assert!(missing.to_string().contains("/none"), "{missing}");
        let broken = "{users: [{name: u, user: {exec: {command: /bin/sh, args: ['-c', 'echo s3cret; echo no >&2; exit $0']}}}], \
             clusters: [{name: c, cluster: {server: 'https://k'}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}";
        let failed = write(directory.path(), "fails", &broken.replace("$0", "3"));
        let failed = KubeAccess::find(&builder(failed)).await.expect_err("refused").to_string();
        assert!(failed.contains("/bin/sh") && failed.contains(": no") && !failed.contains("s3cret"), "{failed}");
        let endless = "{users: [{name: u, user: {exec: {command: /bin/sh, args: ['-c', 'while :; do echo xxxxxxxxxxxxxxxx; done']}}}], \
             clusters: [{name: c, cluster: {server: 'https://k'}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}";
        let endless = write(directory.path(), "endless", endless);
        let endless = KubeAccess::find(&builder(endless)).await.expect_err("refused").to_string();
        assert!(endless.ends_with("it printed more than 1048576 bytes"), "{endless}");
        let nonsense = write(directory.path(), "nonsense", &broken.replace("$0", "0"));
        let nonsense = KubeAccess::find(&builder(nonsense)).await.expect_err("refused").to_string();
        assert!(nonsense.ends_with("its output is not an ExecCredential"), "{nonsense}");
    }
}

//! Proxies and private certificates: one rule for GitHub's API, the git host, registries and API servers, and what `doctor` says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use world::{Kubernetes, Proxy, Registry, Script};

use crate::harness::{Harness, text};

/// The password `p@ss word` of the user `robot`, as it is sent and as it is written in a URL.
const AUTHORIZATION: &str = "Basic cm9ib3Q6cEBzcyB3b3Jk";
const LOGIN: &str = "robot:p%40ss%20word";

fn with_login(proxy: &Proxy) -> String {
    format!("http://{LOGIN}@127.0.0.1:{}", proxy.port())
}

/// The port in a URL, as a proxy sees it.
fn target(url: &str) -> String {
    url.strip_prefix("http://").unwrap().to_owned()
}

async fn report_of(harness: &Harness, config: &Path, variables: &[(&str, String)]) -> Value {
    let (_, sha) = harness.voting_app();
    harness.builder.script_for_the_rest(Script::success(&["vote"]));
    let mut native = harness.native(&sha);
    native["callback"]["on"] = json!(["retrying", "finished"]);
    let _worker = harness.worker_with_variables(config, &[], variables);
    harness.redis.push("default", "BuildJob", json!([native])).await;
    harness.callbacks(1).await.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_through_the_proxy_of_the_environment_and_shows_no_password() {
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let (harness, proxy) = (Harness::start(), Proxy::demanding(Some(AUTHORIZATION)));
        let report = report_of(&harness, &harness.config(""), &[(name, with_login(&proxy))]).await;
        assert_eq!(report["status"], "succeeded", "{name}: {report:#}");
        let targets = proxy.targets();
        for url in [harness.github.url(), harness.git.url()] {
            assert!(targets.contains(&target(&url)), "{name}: {url} in {targets:?}");
        }
        for secret in ["p%40ss", "p@ss", "cm9ib3Q6cEBzcyB3b3Jk"] {
            assert_eq!(harness.traces_of(secret).await, Vec::<String>::new(), "{secret}");
        }
        let run = &harness.builder.runs()[0];
        assert!(run.env.contains_key("HTTPS_PROXY") == (name == "ALL_PROXY"), "{:?}", run.env.keys());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_proxy_counts_for_git_as_for_the_api_with_and_without_a_port() {
    let (harness, proxy) = (Harness::start(), Proxy::start());
    let variables = |no: String| [("HTTP_PROXY", proxy.url()), ("NO_PROXY", no)];
    let report = report_of(&harness, &harness.config(""), &variables("localhost, 127.0.0.0/8".into())).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    assert_eq!(proxy.targets(), Vec::<String>::new());

    let harness = Harness::start();
    let report = report_of(&harness, &harness.config(""), &variables(target(&harness.github.url()))).await;
    assert_eq!(report["status"], "succeeded", "{report:#}");
    let targets = proxy.targets();
    assert!(!targets.is_empty() && targets.iter().all(|one| *one == target(&harness.git.url())), "{targets:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_git_is_named_with_its_status_and_what_to_check() {
    for (status, words) in [
        (407, "the proxy answered 407 Proxy Authentication Required; check the user and password of the proxy"),
        (403, "the proxy answered 403 Forbidden; check whether the proxy allows this host and port"),
        (502, "the proxy answered 502 Bad Gateway; check whether the proxy can resolve and reach this host"),
    ] {
        let (harness, proxy) = (Harness::start(), Proxy::start());
        proxy.refuse(Some(status));
        let variables = [("HTTP_PROXY", proxy.url()), ("NO_PROXY", target(&harness.github.url()))];
        let report = report_of(&harness, &harness.config(""), &variables).await;
        assert_eq!(report["reason"], "git_unavailable", "{report:#}");
        let message = report["message"].as_str().unwrap();
        let through = format!("cannot be reached through the proxy 127.0.0.1:{}: {words}", proxy.port());
        assert!(message.contains(&through), "{message}");
    }
    let harness = Harness::start();
    let away = format!("http://{LOGIN}@127.0.0.1:{}", world::free_port());
    let variables = [("http_proxy", away), ("no_proxy", target(&harness.github.url()))];
    let report = report_of(&harness, &harness.config(""), &variables).await;
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("no connection to its proxy 127.0.0.1:"), "{message}");
    assert!(message.contains("Connection refused") && message.contains("; check http_proxy"), "{message}");
}

/// A server with TLS before a plain one, with a certificate of a private authority for these names.
struct Front {
    port: u16,
    authority: PathBuf,
    _directory: tempfile::TempDir,
}

fn front(plain: &[(&str, u16)]) -> Vec<Front> {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "a private authority");
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    plain.iter().map(|(name, port)| front_of(name, *port, &issuer, &pem)).collect()
}

fn front_of(name: &str, plain: u16, issuer: &Issuer<'_, KeyPair>, pem: &str) -> Front {
    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca.pem");
    std::fs::write(&authority, pem).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, issuer).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], private).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", plain)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    Front { port, authority, _directory: directory }
}

/// The configuration with other URLs of GitHub and the git host.
fn config_of(harness: &Harness, api: &str, git: &str, more: &str) -> PathBuf {
    let config = harness.config(more);
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&format!("\"{}\"", harness.github.url()), &format!("\"{api}\""));
    std::fs::write(&config, text.replace(&format!("\"{}\"", harness.git.url()), &format!("\"{git}\""))).unwrap();
    config
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_private_authority_serves_the_api_and_git_through_a_tunnel() {
    let (harness, proxy) = (Harness::start(), Proxy::demanding(Some(AUTHORIZATION)));
    let plain = [("api.ghes.test", port_of(&harness.github.url())), ("ghes.test", port_of(&harness.git.url()))];
    let fronts = front(&plain);
    for ((name, _), front) in plain.iter().zip(&fronts) {
        proxy.lead(&format!("{name}:443"), &format!("127.0.0.1:{}", front.port));
    }
    let variables = [("https_proxy", with_login(&proxy))];
    let authority = fronts[0].authority.display();
    for setting in ["network.ca_file", "source.ca_file"] {
        let more = format!("{setting} = \"{authority}\"");
        let config = config_of(&harness, "https://api.ghes.test", "https://ghes.test", &more);
        let n_before = harness.redis.queue(world::CALLBACKS).await.len();
        let (_, sha) = harness.voting_app();
        harness.builder.script_for_the_rest(Script::success(&["vote"]));
        let _worker = harness.worker_with_variables(&config, &[], &variables);
        harness.redis.push("default", "BuildJob", json!([harness.native(&sha)])).await;
        let report = harness.callbacks(n_before + 1).await.remove(n_before);
        assert_eq!(report["status"], "succeeded", "{setting}: {report:#}");
        let run = harness.builder.runs().pop().unwrap();
        assert_eq!(run.env["SSL_CERT_FILE"], authority.to_string());
    }
    let config = config_of(&harness, "https://api.ghes.test", "https://ghes.test", "");
    let findings = doctor(&harness, &config, &variables);
    for name in ["github api", "git host"] {
        let (health, detail) = found(&findings, name);
        assert_eq!(health, "red", "{detail}");
        assert!(detail.contains("UnknownIssuer") && detail.contains("network.ca_file adds an authority"), "{detail}");
    }
}

fn doctor(harness: &Harness, config: &Path, variables: &[(&str, String)]) -> Vec<Value> {
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = harness.home.run(&["doctor", "--json"], config, &variables);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
}

fn found(findings: &[Value], name: &str) -> (String, String) {
    let finding = findings.iter().find(|finding| finding["name"] == name);
    let finding = finding.unwrap_or_else(|| panic!("{name} is in {findings:#?}"));
    let text = |field: &str| finding[field].as_str().unwrap().to_owned();
    (text("health"), text("detail"))
}

/// The settings of a Kubernetes builder and a registry, which doctor asks too.
fn peers(harness: &Harness, registry: &Registry, kubeconfig: &Value) -> String {
    let path = harness.home.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    format!(
        "accounts.tags = [\"{}/{{account}}/{{target}}:1\"]\n\
         builders.k8s = {{ driver = \"kubernetes\", kubeconfig = \"{}\", accounts = [\"none\"] }}",
        registry.address(),
        path.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_asks_every_server_directly_and_through_the_proxy() {
    let (harness, proxy) = (Harness::start(), Proxy::demanding(Some(AUTHORIZATION)));
    let (registry, kubernetes) = (Registry::start(), Kubernetes::start());
    let config = harness.config(&peers(&harness, &registry, &kubernetes.kubeconfig()));
    let names = ["github api", "git host", &format!("registry {}", registry.address()), "api server of k8s"];
    let findings = doctor(&harness, &config, &[]);
    for name in names.iter().chain(&["dns"]) {
        assert_eq!(found(&findings, name).0, "green", "{findings:#?}");
    }
    let findings = doctor(&harness, &config, &[("HTTP_PROXY", with_login(&proxy))]);
    let through = format!("through the proxy 127.0.0.1:{} (HTTP_PROXY)", proxy.port());
    for name in names {
        let (health, detail) = found(&findings, name);
        assert_eq!(health, "green", "{detail}");
        assert!(detail.contains(&through), "{detail}");
    }
    assert!(!json!(findings).to_string().contains("p%40ss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_of_every_server_why_its_proxy_does_not_serve_it() {
    let (harness, proxy) = (Harness::start(), Proxy::start());
    let (registry, kubernetes) = (Registry::start(), Kubernetes::start());
    let config = harness.config(&peers(&harness, &registry, &kubernetes.kubeconfig()));
    let names = ["github api", "git host", &format!("registry {}", registry.address()), "api server of k8s"];
    for (status, words) in [
        (407, "the proxy answered 407 Proxy Authentication Required; check the user and password of the proxy"),
        (403, "the proxy answered 403 Forbidden; check whether the proxy allows this host and port"),
        (502, "the proxy answered 502 Bad Gateway; check whether the proxy can resolve and reach this host"),
    ] {
        proxy.refuse(Some(status));
        let findings = doctor(&harness, &config, &[("HTTP_PROXY", proxy.url())]);
        for name in names {
            let (health, detail) = found(&findings, name);
            assert!(health == "red" && detail.contains(words), "{name}: {detail}");
        }
    }
    let away = format!("http://{LOGIN}@127.0.0.1:{}", world::free_port());
    let findings = doctor(&harness, &config, &[("HTTP_PROXY", away)]);
    for name in names {
        let (health, detail) = found(&findings, name);
        assert!(health == "red" && detail.contains("no connection to its proxy 127.0.0.1:"), "{name}: {detail}");
        assert!(detail.ends_with("; check HTTP_PROXY, and whether the proxy runs"), "{name}: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_has_its_own_proxy_or_that_of_the_environment_unless_no_proxy_has_it() {
    let (harness, proxy) = (Harness::start(), Proxy::demanding(Some(AUTHORIZATION)));
    let (registry, kubernetes) = (Registry::start(), Kubernetes::start());
    let api = format!("127.0.0.1:{}", kubernetes.port());
    let config = harness.config(&peers(&harness, &registry, &kubernetes.kubeconfig()));
    let away = format!("http://127.0.0.1:{}", world::free_port());
    let variables = [("HTTPS_PROXY", away.clone()), ("HTTP_PROXY", away), ("NO_PROXY", "127.0.0.1".into())];
    let findings = doctor(&harness, &config, &variables);
    assert_eq!(found(&findings, "api server of k8s").0, "green", "{findings:#?}");
    assert_eq!(proxy.targets(), Vec::<String>::new());

    let mut kubeconfig = kubernetes.kubeconfig();
    kubeconfig["clusters"][0]["cluster"]["proxy-url"] = json!(with_login(&proxy));
    let config = harness.config(&peers(&harness, &registry, &kubeconfig));
    let findings = doctor(&harness, &config, &variables);
    let (health, detail) = found(&findings, "api server of k8s");
    assert!(health == "green" && detail.contains("(proxy-url)"), "{detail}");
    assert!(proxy.targets().contains(&api), "{:?}", proxy.targets());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_at_the_start_by_its_name() {
    let harness = Harness::start();
    let broken = harness.home.path().join("broken.pem");
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let path = broken.display();
    let refusal = async |more: &str, variables: &[(&str, &str)]| {
        let mut worker = harness.worker_with_variables(&harness.config(more), &[], variables);
        assert_eq!(worker.ended().await, Some(1), "{more}");
        worker.log()
    };
    for setting in ["network.ca_file", "source.ca_file"] {
        let log = refusal(&format!("{setting} = \"{path}\""), &[]).await;
        assert!(log.contains(&format!("the certificates in {path} cannot be used: certificate 1 is damaged")), "{log}");
    }
    let log = refusal("network.ca_file = \"/nowhere.pem\"", &[]).await;
    assert!(log.contains("the certificates in /nowhere.pem cannot be used: No such file"), "{log}");
    let log = refusal(&format!("network.ca_file = \"{path}\"\nsource.ca_file = \"{path}\""), &[]).await;
    assert!(log.contains("source.ca_file: is the former name of network.ca_file"), "{log}");
    let log = refusal("", &[("HTTPS_PROXY", "http://robot:hunter2/x@proxy")]).await;
    assert!(log.contains("HTTPS_PROXY is not the URL of a proxy") && !log.contains("hunter2"), "{log}");
}

/// A port whose connections stay open without an answer, or are closed at once.
fn silent(closes: bool) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for client in listener.incoming().flatten() {
            if !closes {
                open.push(client);
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_of_every_server_why_it_cannot_be_reached_and_what_to_check() {
    let harness = Harness::start();
    let kubernetes = Kubernetes::start();
    let plain = port_of(&harness.git.url());
    let nobody = world::free_port();
    let front = front(&[("other.test", plain)]).remove(0);
    let secure = front.port;
    for (server, words, check) in [
        (format!("http://127.0.0.1:{nobody}"), "Connection refused", "check the port, and whether the server runs"),
        ("http://nowhere.invalid".into(), "failed to lookup address", "check the spelling of the host, and the DNS"),
        (format!("https://127.0.0.1:{plain}"), "corrupt message", "check whether the port speaks TLS"),
        (format!("https://127.0.0.1:{secure}"), "UnknownIssuer", "check who signed its certificate"),
        (format!("http://127.0.0.1:{}", silent(false)), "timed out", "; check whether "),
        (format!("http://127.0.0.1:{}", silent(true)), "", "check whether the port is right"),
    ] {
        let mut kubeconfig = kubernetes.kubeconfig();
        kubeconfig["clusters"][0]["cluster"]["server"] = json!(server);
        let path = harness.home.path().join("kubeconfig");
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let registry = server.split_once("://").unwrap().1;
        let more = format!(
            "accounts.tags = [\"{registry}/{{account}}/{{target}}:1\"]\nsource.stall_timeout = \"2s\"\n\
             builders.k8s = {{ driver = \"kubernetes\", kubeconfig = \"{}\", accounts = [\"none\"] }}",
            path.display()
        );
        let findings = doctor(&harness, &config_of(&harness, &server, &server, &more), &[]);
        let registry = format!("registry {registry}");
        // A registry on this machine is reached without TLS.
        let has_tls = server.starts_with("https:");
        let names = ["github api", "git host", "api server of k8s"].into_iter().chain((!has_tls).then_some(&*registry));
        for name in names {
            let (health, detail) = found(&findings, name);
            assert_eq!(health, "red", "{name}: {detail}");
            assert!(detail.contains("cannot be reached: ") && detail.contains(words), "{name} at {server}: {detail}");
            assert!(detail.contains(check), "{name} at {server}: {detail}");
        }
    }
}

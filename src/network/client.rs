//! HTTP clients that share one rule for proxies and one set of trusted certificates.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client, ClientBuilder, redirect};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{InvalidProxy, Proxies};
use crate::environment;
use crate::settings::Settings;

/// Where distributions keep the certificates of public authorities, in one file.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client that cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// A file of certificates cannot be used.
    #[error("the certificates in {} cannot be used: {message}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A proxy variable cannot be used.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// Any other failure.
    #[error("the HTTP client cannot be created: {0}")]
    Other(String),
}

/// Checks what clients need of this machine: `network.ca_file` and the proxy variables.
///
/// # Errors
///
/// The first thing that cannot be used.
pub fn check(settings: &Settings) -> Result<(), ClientError> {
    settings.ca_file().map_or(Ok(()), |path| certificates(path).map(drop))?;
    Ok(Proxies::check()?)
}

/// A client that follows no redirects, obeys the proxy variables, and trusts the certificates in `ca_file` beside the system's.
///
/// # Errors
///
/// When the certificates or a proxy variable cannot be used.
pub fn client(
    ca_file: Option<&Path>,
    configure: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<Client, ClientError> {
    Proxies::check()?;
    let proxies = Proxies::of_process();
    let proxy = move |url: &reqwest::Url| proxies.of(url.as_str()).map(|proxy| proxy.url.expose().to_owned());
    let certificates = ca_file.map(certificates).transpose()?.unwrap_or_default();
    let builder = Client::builder()
        .user_agent(concat!("sidebake/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .tls_certs_merge(certificates)
        .proxy(reqwest::Proxy::custom(proxy));
    configure(builder).build().map_err(|error| ClientError::Other(super::explain(&error)))
}

/// Every certificate in a PEM file, for a client.
///
/// # Errors
///
/// Those of [`authorities`].
pub fn certificates(path: &Path) -> Result<Vec<Certificate>, ClientError> {
    let read = |der: CertificateDer<'_>| Certificate::from_der(&der).expect("any bytes can be one");
    Ok(authorities(path)?.into_iter().map(read).collect())
}

/// Every certificate in a PEM file.
///
/// # Errors
///
/// When the file cannot be read, has none, or has one that is damaged.
pub fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let refused = |message: String| ClientError::Certificates { path: path.to_owned(), message };
    let text = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let der = certificate.map_err(|error| refused(format!("it is not valid PEM: {error}")))?;
        let n = certificates.len() + 1;
        let damaged = |error: rustls::Error| refused(format!("certificate {n} is damaged: {error}"));
        RootCertStore::empty().add(der.clone()).map_err(damaged)?;
        certificates.push(der);
    }
    if certificates.is_empty() {
        return Err(refused(
            "it has no certificate; expected PEM, which begins with -----BEGIN CERTIFICATE-----".into(),
        ));
    }
    Ok(certificates)
}

/// The file with the system's certificates of public authorities: `SSL_CERT_FILE`, or where the distribution keeps it.
pub fn system_certificates() -> PathBuf {
    let named = environment::first_of(&["SSL_CERT_FILE"]).map(|(_, path)| PathBuf::from(path));
    let of_distribution = || BUNDLES.map(PathBuf::from).into_iter().find(|path| path.is_file());
    named.or_else(of_distribution).unwrap_or_else(|| BUNDLES[0].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_of_certificates_is_refused_by_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("ca.pem");
        let refusal = |text: &str| {
            std::fs::write(&path, text).expect("written");
            certificates(&path).expect_err(text).to_string()
        };
        let begins = format!("the certificates in {} cannot be used: ", path.display());
        let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        for (text, words) in [
            (String::new(), "it has no certificate"),
            ("hello".into(), "it has no certificate"),
            (pem("AAAA"), "certificate 1 is damaged"),
            (pem("not base 64!"), "it is not valid PEM"),
            ("-----BEGIN CERTIFICATE-----\nMIIB".into(), "it is not valid PEM"),
        ] {
            let refusal = refusal(&text);
            assert!(refusal.starts_with(&begins) && refusal.contains(words), "{refusal}");
        }
        std::fs::remove_file(&path).expect("removed");
        assert!(certificates(&path).expect_err("missing").to_string().contains("No such file"));
        let good = rcgen::generate_simple_self_signed(["x.example".to_owned()]).expect("a certificate").cert.pem();
        std::fs::write(&path, format!("# two\n{good}{good}")).expect("written");
        assert_eq!(certificates(&path).expect("valid").len(), 2);
    }
}

//! Opens connections to Redis: TCP, TLS, or a Unix socket.
//!
//! Every TCP connection has keepalive. Without it, an idle connection that a load balancer has forgotten is found only by the next
//! command, which waits for its timeout.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, RedisError};
use rustls::ClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::url::{Address, Target};
use crate::settings;

/// An idle connection is probed after so long, and is given up after this many probes without an answer. Load balancers forget idle
/// connections after a minute or more.
const IDLE: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;

/// How to connect.
pub(super) struct Dialer {
    /// When the server or a sentinel speaks TLS.
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
}

/// A connection that ends with its last clone.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    driver: Arc<Driver>,
}

/// The task that reads and writes.
struct Driver(JoinHandle<()>);

impl Connection {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Dialer {
    /// Reads the certificates if one of the targets needs any.
    pub(super) fn new<'t>(
        settings: &settings::Redis,
        targets: impl IntoIterator<Item = &'t Target>,
    ) -> Result<Self, RedisError> {
        let needs_tls = targets.into_iter().any(|target| target.address.is_tls());
        let tls = needs_tls.then(|| tls(settings)).transpose()?;
        Ok(Self { tls: tls.map(Arc::new), timeout: settings.timeout })
    }

    /// Connects and logs in.
    pub(super) async fn connect(&self, to: &Target, config: AsyncConnectionConfig) -> Result<Connection, RedisError> {
        let config = config.set_response_timeout(Some(self.timeout));
        let late = || RedisError::from((ErrorKind::Io, "no connection in time", format!("{:?}", self.timeout)));
        timeout(self.timeout, self.open(to, config)).await.map_err(|_| late())?
    }

    async fn open(&self, to: &Target, config: AsyncConnectionConfig) -> Result<Connection, RedisError> {
        match &to.address {
            Address::Unix(path) => log_in(to, UnixStream::connect(path).await?, config).await,
            Address::Tcp { host, port, is_tls } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(IDLE / PROBES).with_retries(PROBES);
                SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
                let Some(tls) = self.tls.as_ref().filter(|_| *is_tls) else {
                    return log_in(to, stream, config).await;
                };
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                log_in(to, TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?, config).await
            }
        }
    }
}

async fn log_in(
    to: &Target,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    config: AsyncConnectionConfig,
) -> Result<Connection, RedisError> {
    let (commands, driver) = MultiplexedConnection::new_with_config(&to.session, stream, config).await?;
    Ok(Connection { commands, driver: Arc::new(Driver(tokio::spawn(driver))) })
}

/// The certificates of `ca_file`, otherwise those of the system; and our own for a server that asks for one.
fn tls(settings: &settings::Redis) -> Result<ClientConfig, RedisError> {
    let wrong = |error: &dyn std::fmt::Display| {
        RedisError::from((ErrorKind::InvalidClientConfig, "TLS cannot be used", error.to_string()))
    };
    let verified = match &settings.ca_file {
        Some(path) => {
            let verifier = Verifier::new(certificates(path)?).map_err(|error| wrong(&error))?;
            ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
        None => ClientConfig::builder().with_platform_verifier().map_err(|error| wrong(&error))?,
    };
    match (&settings.client_certificate_file, &settings.client_key_file) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, &error))?;
            verified.with_client_auth_cert(certificates(certificate)?, key).map_err(|error| wrong(&error))
        }
        _ => Ok(verified.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RedisError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unreadable(path, &error))?;
    if certificates.is_empty() {
        return Err(unreadable(path, &"it has no certificate"));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> RedisError {
    let message = format!("{}: {error}", path.display());
    RedisError::from((ErrorKind::InvalidClientConfig, "a certificate or key cannot be read", message))
}

/// Trusts what the given certificates have signed, and a server that has one of them itself. The second is what a certificate of its own
/// authority needs (`openssl req -x509`), and what OpenSSL, and so Ruby, does.
#[derive(Debug)]
struct Verifier {
    authorities: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl Verifier {
    fn new(given: Vec<CertificateDer<'static>>) -> Result<Self, Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        let (n_added, _) = roots.add_parsable_certificates(given.iter().cloned());
        if n_added == 0 {
            return Err("no certificate in ca_file is valid".into());
        }
        Ok(Self { authorities: WebPkiServerVerifier::builder(Arc::new(roots)).build()?, given })
    }
}

/// Whether the error says only that a certificate is an authority's, has no known issuer, or does not have the host's name. The key of a
/// given certificate proves the server, so these do not matter. Dates are checked first: an expired certificate has another error.
fn is_of_its_own_authority(error: &rustls::Error) -> bool {
    let rustls::Error::InvalidCertificate(error) = error else { return false };
    match error {
        CertificateError::UnknownIssuer
        | CertificateError::NotValidForName
        | CertificateError::NotValidForNameContext { .. } => true,
        CertificateError::Other(error) => error.to_string() == "CaUsedAsEndEntity",
        _ => false,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(error) if is_of_its_own_authority(&error) && self.given.iter().any(|given| given == end_entity) => {
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.authorities.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_idle_connection_is_kept_alive() {
        let server = world::Redis::start();
        let target = super::super::url::read(&server.url()).expect("a URL");
        let dialer = Dialer { tls: None, timeout: Duration::from_secs(5) };
        let connection = dialer.connect(&target, AsyncConnectionConfig::new()).await.expect("connected");
        assert!(connection.is_same(&connection.clone()));
        // The kernel's table has the peer's port in hexadecimal and the kind of timer that runs; 02 is keepalive's.
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        let peer = format!(":{:04X} 01", server.port());
        let line = table.lines().find(|line| line.contains(&peer)).expect("the connection");
        assert!(line.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with("02:")), "{line}");
    }
}

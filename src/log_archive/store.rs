//! The archive itself: a bucket of S3, Google Cloud Storage or Azure, or a directory.
//!
//! Owns the client and its credentials. They come from the environment, by the names that the services' own programs use, and from
//! `journal.archive_options`.

use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::buffered::BufWriter;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, Certificate, ClientOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme,
    RetryConfig,
};
use reqwest::Url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::ArchiveError;
use crate::secret::Secret;
use crate::settings::{Journal, SecretSource, Settings};
use crate::{bounds, environment, hex, network, secret_file, text};

/// How much of a file is read at once.
const BLOCK: usize = 64 << 10;

/// Another try of a request that failed takes little of the time limit.
const N_RETRIES: usize = 2;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The archive of `journal.archive`.
#[derive(Debug)]
pub(super) struct Store {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    /// The URL of the prefix, without a slash at its end.
    url: String,
    is_local: bool,
    secrets: Vec<Secret>,
}

/// An error of the archive, without secrets.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    message: String,
    is_refusal: bool,
}

impl StoreError {
    /// Whether the archive answered that this worker may not do it.
    pub(super) fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}

/// Writes and deletes a small object. Returns the archive's URL.
///
/// # Errors
///
/// What the archive refused or why it cannot be reached. `None` without `journal.archive`.
pub async fn probe(settings: &Settings) -> Option<Result<String, ArchiveError>> {
    let journal = &settings.journal;
    let url = journal.archive.as_ref()?;
    let probed = async {
        let store = Store::new(url, journal, settings.ca_file())?;
        store.probe().await.map(|()| store.url)
    };
    Some(timeout(journal.archive_timeout, probed).await.unwrap_or(Err(ArchiveError::TimedOut(journal.archive_timeout))))
}

impl Store {
    /// The archive at `url`, which is reached with the certificates in `ca_file` beside the system's.
    pub(super) fn new(url: &str, journal: &Journal, ca_file: Option<&std::path::Path>) -> Result<Self, ArchiveError> {
        let refused = |error: &dyn Error| ArchiveError::Settings(text::shown(&error.to_string(), bounds::ERROR));
        let parsed = Url::parse(url).map_err(|error| refused(&error))?;
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|error| refused(&error))?;
        let mut client = ClientOptions::new()
            // The worker's own limit comes first.
            .with_timeout(journal.archive_timeout + CONNECT)
            .with_connect_timeout(CONNECT.min(journal.archive_timeout));
        let authorities = ca_file.map(network::authorities).transpose().map_err(|error| refused(&error))?;
        for authority in authorities.into_iter().flatten() {
            client = client.with_root_certificate(Certificate::from_der(&authority).map_err(|error| refused(&error))?);
        }
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: N_RETRIES,
            retry_timeout: journal.archive_timeout,
        };
        macro_rules! bucket {
            ($builder:ty, $variables:literal) => {{
                let mut builder = <$builder>::new().with_url(url).with_client_options(client).with_retry(retry);
                for (name, value) in options($variables, journal)? {
                    builder = builder.with_config(name, value.expose());
                }
                Arc::new(builder.build().map_err(|error| refused(&error))?) as Arc<dyn ObjectStore>
            }};
        }
        let objects = match scheme {
            ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new()) as Arc<dyn ObjectStore>,
            ObjectStoreScheme::AmazonS3 => bucket!(AmazonS3Builder, "AWS_"),
            ObjectStoreScheme::GoogleCloudStorage => bucket!(GoogleCloudStorageBuilder, "GOOGLE_"),
            ObjectStoreScheme::MicrosoftAzure => bucket!(MicrosoftAzureBuilder, "AZURE_"),
            _ => return Err(ArchiveError::Settings(format!("unknown kind of archive: {url}"))),
        };
        let sources: Vec<SecretSource> = journal.archive_secrets().chain(environment::credentials()).collect();
        Ok(Self {
            objects,
            prefix,
            url: url.trim_end_matches('/').to_owned(),
            is_local: scheme == ObjectStoreScheme::Local,
            secrets: secret_file::secrets_in(&sources).collect(),
        })
    }

    /// Uploads a file. Returns the URL of its object.
    pub(super) async fn put(&self, key: &str, file: PathBuf, content_type: &str) -> Result<String, ArchiveError> {
        let mut file = tokio::fs::File::open(file).await?;
        let mut upload = BufWriter::with_capacity(Arc::clone(&self.objects), self.path(key)?, bounds::ARCHIVE_PART)
            .with_max_concurrency(1)
            .with_attributes(self.attributes(content_type));
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            if file.read_buf(&mut block).await? == 0 {
                break;
            }
            upload.put(Bytes::from(block)).await.map_err(|error| self.failed(&error))?;
        }
        upload.shutdown().await.map_err(|error| self.failed(&error))?;
        Ok(format!("{}/{key}", self.url))
    }

    async fn probe(&self) -> Result<(), ArchiveError> {
        let path = self.path(&format!("=doctor/{}", hex::random::<6>()))?;
        self.objects.put(&path, "sidebake doctor\n".into()).await.map_err(|error| self.failed(&error))?;
        self.objects.delete(&path).await.map_err(|error| self.failed(&error))
    }

    fn path(&self, key: &str) -> Result<Path, ArchiveError> {
        Path::parse(format!("{}/{key}", self.prefix)).map_err(|error| self.failed(&error))
    }

    /// A directory has none.
    fn attributes(&self, content_type: &str) -> Attributes {
        if self.is_local {
            return Attributes::new();
        }
        let attributes =
            [(Attribute::ContentType, content_type.to_owned()), (Attribute::ContentEncoding, "gzip".to_owned())];
        attributes.into_iter().collect()
    }

    /// The error without credentials and without queries of URLs: Azure's tokens are in them.
    fn failed(&self, error: &(dyn Error + 'static)) -> ArchiveError {
        let mut message = error.to_string();
        let is_secret = |secret: &&Secret| secret.expose().len() >= 4;
        for secret in self.secrets.iter().filter(is_secret) {
            message = message.replace(secret.expose(), "***");
        }
        let message = text::shown(&without_queries(&message), bounds::ERROR);
        ArchiveError::Store(StoreError { message, is_refusal: is_refusal(error) })
    }
}

/// The options of one service: variables whose names begin like this, then the settings. Settings must be known.
fn options<K: FromStr>(variables: &str, journal: &Journal) -> Result<Vec<(K, Secret)>, ArchiveError> {
    let of_environment = environment::beginning_with(variables)
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)));
    let mut options: Vec<(K, Secret)> = of_environment.collect();
    for (name, value) in &journal.archive_options {
        let unknown = |_| ArchiveError::Settings(format!("unknown option {name} in journal.archive_options"));
        options.push((name.to_ascii_lowercase().parse().map_err(unknown)?, value.clone()));
    }
    Ok(options)
}

/// Whether the archive understood the request and refused it. The writer wraps errors of the store.
fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_store = error.downcast_ref::<object_store::Error>().or_else(|| {
            let wrapped = error.downcast_ref::<std::io::Error>()?.get_ref()?;
            wrapped.downcast_ref::<object_store::Error>()
        });
        if let Some(error) = of_store {
            use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
            return matches!(error, NotFound { .. } | PermissionDenied { .. } | Unauthenticated { .. });
        }
        cause = error.source();
    }
    false
}

/// The text without what follows a `?`, up to the end of the URL.
fn without_queries(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some((before, query)) = rest.split_once('?') {
        shown.push_str(before);
        let end = query.find(|c: char| c.is_whitespace() || "\"'`()<>,;".contains(c)).unwrap_or(query.len());
        rest = &query[end..];
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(options: &[(&str, &str)]) -> Journal {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value)));
        Journal { archive_options: options.collect(), ..Journal::default() }
    }

    #[test]
    fn each_kind_of_archive_is_known_and_an_unknown_option_is_not() {
        let aws = [("aws_access_key_id", "id"), ("AWS_SECRET_ACCESS_KEY", "s3cret"), ("aws_region", "eu-central-1")];
        let azure = [("azure_storage_account_name", "acme"), ("azure_storage_account_key", "c2VjcmV0")];
        for (url, options, prefix) in [
            ("s3://logs/a/b", &aws[..], "a/b"),
            ("s3://logs", &aws, ""),
            ("gs://logs/a/", &[("google_skip_signature", "true")], "a"),
            ("az://logs/a", &azure, "a"),
            ("file:///var/log/builds", &[], "var/log/builds"),
        ] {
            let store = Store::new(url, &journal(options), None).expect(url);
            assert_eq!((store.prefix.as_ref(), store.url.as_str()), (prefix, url.trim_end_matches('/')));
        }
        for url in ["s3://logs", "gs://logs", "az://logs"] {
            let error = Store::new(url, &journal(&[("aws_acces_key", "x")]), None).expect_err(url).to_string();
            assert_eq!(error, "unknown option aws_acces_key in journal.archive_options");
        }
    }

    #[test]
    fn an_error_shows_neither_an_option_nor_a_query() {
        let store =
            Store::new("file:///x", &journal(&[("aws_secret_access_key", "hunter2")]), None).expect("a directory");
        let error = std::io::Error::other("PUT https://a.example/x?sig=abc%3D (hunter2): 403, why? no");
        let ArchiveError::Store(error) = store.failed(&error) else { panic!("an error of the store") };
        assert_eq!(error.to_string(), "PUT https://a.example/x (***): 403, why no");
    }
}

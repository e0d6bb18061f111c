//! `[journal]`: the live log of each build in Redis, and its archived log.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::{SHORTEST, SecretSource, credential};
use crate::field_error::{FieldError, refuse};
use crate::secret::Secret;

/// A smaller stream has no room for both the output and the events of a build.
const LEAST_BUILD_BYTES: usize = 64 << 10;

/// A step with less keeps no useful output.
const LEAST_STEP_BYTES: usize = 4 << 10;

/// An archived log with less keeps no useful output.
const LEAST_ARCHIVE_BYTES: usize = 64 << 10;

/// How the URL of an archive begins.
const ARCHIVES: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];

/// The logs of each build: the live log is a Redis Stream, and the finished log can be archived.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Journal {
    /// Whether the worker writes the events and output of each build to a Redis Stream, and its record beside it.
    pub stream: bool,
    /// URL of the Redis for these streams and records. Default: `redis.url`. The other settings of `redis` apply, except `sentinels`.
    pub redis_url: Option<Secret>,
    /// How long a stream stays after the end of its build.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long the record of a build stays after its end, for `sidebake show`.
    #[serde(with = "humantime_serde")]
    pub record_ttl: Duration,
    /// Bytes of output that a stream keeps of one step: half for its end, most of the rest for its beginning.
    pub step_bytes: usize,
    /// Bytes of the stream of one build, with all its attempts.
    pub build_bytes: usize,
    /// Bytes of all builds of a worker that wait for Redis. When Redis does not take them, more output is left out.
    pub pending_bytes: usize,
    /// Where the worker archives the whole log of each attempt: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`
    /// or `file:///DIRECTORY`.
    pub archive: Option<String>,
    /// Credentials and options of the archive, by their names in the environment, such as `aws_access_key_id`. They override the
    /// variables `AWS_…`, `GOOGLE_…` and `AZURE_…` of the worker's environment. [logs.md](logs.md#credentials) lists them.
    pub archive_options: BTreeMap<String, Secret>,
    /// How long the end of a build waits for the archive. After it, the build ends without an archived log.
    #[serde(with = "humantime_serde")]
    pub archive_timeout: Duration,
    /// Bytes of output that an archived log keeps whole. Beyond it, each step keeps its last lines.
    pub archive_bytes: usize,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            stream: true,
            redis_url: None,
            ttl: Duration::from_secs(24 * 60 * 60),
            record_ttl: Duration::from_secs(7 * 24 * 60 * 60),
            step_bytes: 512 << 10,
            build_bytes: 2 << 20,
            pending_bytes: 8 << 20,
            archive: None,
            archive_options: BTreeMap::new(),
            archive_timeout: Duration::from_secs(10),
            archive_bytes: 64 << 20,
        }
    }
}

impl Journal {
    /// The options of the archive that are credentials.
    pub fn archive_secrets(&self) -> impl Iterator<Item = SecretSource> {
        self.archive_options.iter().filter_map(|(name, value)| credential(name, value))
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        for (field, ttl) in [("journal.ttl", self.ttl), ("journal.record_ttl", self.record_ttl)] {
            if ttl < Duration::from_secs(1) {
                return refuse(field, "must be at least 1s");
            }
        }
        for (field, value, least) in [
            ("journal.step_bytes", self.step_bytes, LEAST_STEP_BYTES),
            ("journal.build_bytes", self.build_bytes, LEAST_BUILD_BYTES),
            ("journal.pending_bytes", self.pending_bytes, LEAST_BUILD_BYTES),
            ("journal.archive_bytes", self.archive_bytes, LEAST_ARCHIVE_BYTES),
        ] {
            if value < least {
                return refuse(field, format!("must be at least {least}"));
            }
        }
        if self.archive_timeout < SHORTEST {
            return refuse("journal.archive_timeout", "must be at least 50ms");
        }
        self.archive.as_ref().map_or(Ok(()), |url| check_archive(url))
    }
}

fn check_archive(url: &str) -> Result<(), FieldError> {
    let Some(rest) = ARCHIVES.iter().find_map(|begin| url.strip_prefix(begin)) else {
        return refuse("journal.archive", format!("must begin with {}", ARCHIVES.join(", ")));
    };
    if rest.is_empty() || rest.starts_with('/') {
        return refuse("journal.archive", "must name a bucket, a container or a directory");
    }
    // Credentials would be in the URLs that Rails gets.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=".contains(c);
    if !rest.chars().all(is_plain) || rest.split('/').any(|part| [".", ".."].contains(&part)) {
        let message = "may contain only letters, digits, /, ., _, - and =; credentials go into journal.archive_options";
        return refuse("journal.archive", message);
    }
    if rest.trim_end_matches('/').contains("//") {
        return refuse("journal.archive", "must not contain //");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_a_plain_url_without_credentials() {
        for (url, is_good) in [
            ("s3://logs", true),
            ("gs://logs/builds/", true),
            ("az://logs/a=b", true),
            ("file:///var/log/builds", true),
            ("file://var/log", false),
            ("file:///", false),
            ("s3://", false),
            ("s3:///x", false),
            ("https://logs.example/", false),
            ("logs", false),
            ("s3://key:secret@logs/x", false),
            ("az://logs/x?sig=abc", false),
            ("file:///var/../etc", false),
            ("gs://logs//x", false),
            ("gs://logs/x y", false),
        ] {
            assert_eq!(check_archive(url).is_ok(), is_good, "{url}");
        }
    }
}

//! `[buildx]`: the program that builds.

use std::path::PathBuf;

use serde::Deserialize;

use crate::field_error::{FieldError, refuse};

/// The program that builds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Buildx {
    /// Absolute path of `docker-buildx`.
    pub binary: PathBuf,
}

impl Default for Buildx {
    fn default() -> Self {
        Self { binary: "/usr/libexec/docker/cli-plugins/docker-buildx".into() }
    }
}

impl Buildx {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if !self.binary.is_absolute() {
            return refuse("buildx.binary", "must be an absolute path");
        }
        Ok(())
    }
}

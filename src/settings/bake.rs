//! `[bake]`: limits and defaults of a build.

use std::time::Duration;

use serde::Deserialize;

use crate::attestation::{Asked, Attestation, By};
use crate::field_error::{FieldError, refuse};
use crate::job::SourceDateEpoch;

/// Limits and defaults of a build.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bake {
    /// Timeout of `docker buildx bake --print`, which resolves the definition.
    #[serde(with = "humantime_serde")]
    pub print_timeout: Duration,
    /// Definitions that are resolved at once. Each can use a whole CPU until its timeout.
    pub prints: usize,
    /// Bytes that `bake --print` may write.
    pub max_print_bytes: usize,
    /// Timeout of a build whose job has no `timeout_s`.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// How long `docker-buildx` may write nothing. Does not apply to the kubernetes driver, whose pods are watched.
    #[serde(with = "humantime_serde")]
    pub silence: Duration,
    /// Targets of one definition.
    pub max_targets: usize,
    /// Provenance attestations of builds whose definition and job do not ask for any: `false`, `true`, or options as in
    /// `docker buildx build --attest`, such as `"mode=min,builder-id=https://builds.example"`. Only this setting may set
    /// `builder-id`. `disabled=true` keeps attestations off and sets the options of those that a job asks for. With an
    /// attestation, no two builds of a commit have the same digest.
    pub provenance: Asked,
    /// SBOM attestations of builds whose definition and job do not ask for any, in the same form. Only this setting may set
    /// `generator`, the image that reads what was built.
    pub sbom: Asked,
    /// Whether images have the labels `org.opencontainers.image.revision`, `.source` and `.created`, which name the commit, its
    /// repository and its time.
    pub labels: bool,
    /// The build argument `SOURCE_DATE_EPOCH` of builds whose definition and job do not set it. With `commit`, a new commit runs the
    /// steps after `ARG SOURCE_DATE_EPOCH` again. A new BuildKit also runs the steps after each `WORKDIR` again.
    pub source_date_epoch: SourceDateEpoch,
}

impl Default for Bake {
    fn default() -> Self {
        Self {
            print_timeout: Duration::from_secs(30),
            prints: 4,
            max_print_bytes: 4 << 20,
            timeout: Duration::from_secs(30 * 60),
            silence: Duration::from_secs(15 * 60),
            max_targets: 100,
            provenance: Asked::default(),
            sbom: Asked::default(),
            labels: true,
            source_date_epoch: SourceDateEpoch::Off,
        }
    }
}

impl Bake {
    /// The setting of one kind of attestation.
    pub fn asked(&self, attestation: Attestation) -> &Asked {
        match attestation {
            Attestation::Provenance => &self.provenance,
            Attestation::Sbom => &self.sbom,
        }
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.prints == 0 {
            return refuse("bake.prints", "must be at least 1");
        }
        if self.timeout.is_zero() {
            return refuse("bake.timeout", "must be longer than 0");
        }
        Attestation::ALL.into_iter().try_for_each(|attestation| {
            let refused = |message| FieldError::new(format!("bake.{}", attestation.name()), message);
            self.asked(attestation).check(attestation, By::Configuration).map_err(refused)
        })
    }
}

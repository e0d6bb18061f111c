//! The platform's Application Template: a list of images.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{JobError, plain};
use crate::attestation::{Asked, Attestation, By};
use crate::name::{is_name, is_target_name};

/// Variables by which buildx would hand a secret of this id to any git host that a Dockerfile names.
const FOR_ANY_HOST: &[&str] = &["GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"];

/// The platform's template: a list of images.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// At least one.
    pub images: Vec<Image>,
}

/// One image of an Application Template. Fields that are not set are left to bake.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Name of the target.
    pub name: String,
    /// Directory of the build context, relative to the worktree; default: the whole worktree.
    pub context: Option<String>,
    /// More contexts, by the names that the Dockerfile has for them: directories, `docker-image://…`, `target:…`.
    pub contexts: BTreeMap<String, String>,
    /// Dockerfile, relative to the context; default `Dockerfile`.
    pub dockerfile: Option<String>,
    /// The Dockerfile itself.
    pub dockerfile_inline: Option<String>,
    /// Stage to stop at.
    pub target: Option<String>,
    /// Build arguments.
    pub args: BTreeMap<String, String>,
    /// References to push to.
    pub tags: Vec<String>,
    /// Image labels.
    pub labels: BTreeMap<String, String>,
    /// Such as `linux/amd64`.
    pub platforms: Vec<String>,
    /// Build secrets that the worker's configuration grants.
    pub secrets: Vec<ImageSecret>,
    /// Where to look for cached steps, such as `type=registry,ref=…`.
    pub cache_from: Vec<String>,
    /// Where to leave them.
    pub cache_to: Vec<String>,
    /// `default` or `none`.
    pub network: Option<String>,
    /// Size of `/dev/shm`, such as `128m`.
    pub shm_size: Option<String>,
    /// Such as `nofile=1024:1024`.
    pub ulimits: Vec<String>,
    /// Addresses by the names that steps have for them.
    pub extra_hosts: BTreeMap<String, String>,
    /// Stages whose cached steps are run again.
    pub no_cache_filter: Vec<String>,
    /// Whether to attest how it was built, or `mode=max` and the like.
    pub provenance: Option<Asked>,
    /// Whether to attest what is in it.
    pub sbom: Option<Asked>,
}

/// A build secret of an image.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSecret {
    /// What the Dockerfile calls it.
    pub id: String,
    /// What the worker's configuration calls it; default: the same.
    #[serde(default)]
    pub from: Option<String>,
}

impl Application {
    /// Reads a template alone, as `sidebake build --template` has it.
    pub fn parse(template: &Value, push: bool) -> Result<Self, JobError> {
        let application: Self = serde_path_to_error::deserialize(template)
            .map_err(|error| JobError::new(error.path().to_string(), plain(&error.inner().to_string())))?;
        application.check(push)?;
        Ok(application)
    }

    pub(super) fn check(&self, push: bool) -> Result<(), JobError> {
        if self.images.is_empty() {
            return Err(JobError::new("application.images", "expected at least one image"));
        }
        for (i, image) in self.images.iter().enumerate() {
            let path = |field| format!("application.images[{i}].{field}");
            if !is_target_name(&image.name) {
                return Err(JobError::new(path("name"), format!("{:?} is not a target name", image.name)));
            }
            if self.images[..i].iter().any(|other| other.name == image.name) {
                return Err(JobError::new(path("name"), format!("{:?} is there twice", image.name)));
            }
            if push && image.tags.is_empty() {
                return Err(JobError::new(path("tags"), "expected at least one, since the images are pushed"));
            }
            if image.dockerfile.is_some() && image.dockerfile_inline.is_some() {
                return Err(JobError::new(path("dockerfile_inline"), "there is a dockerfile as well"));
            }
            for (attestation, asked) in image.attestations() {
                let refused = |message| JobError::new(path(attestation.name()), message);
                asked.check(attestation, By::Definition).map_err(refused)?;
            }
            for secret in &image.secrets {
                check_secret(secret).map_err(|message| JobError::new(path("secrets"), message))?;
            }
        }
        Ok(())
    }
}

impl Image {
    /// What it says of attestations.
    pub fn attestations(&self) -> impl Iterator<Item = (Attestation, &Asked)> {
        let all = [(Attestation::Provenance, &self.provenance), (Attestation::Sbom, &self.sbom)];
        all.into_iter().filter_map(|(attestation, asked)| Some((attestation, asked.as_ref()?)))
    }
}

fn check_secret(secret: &ImageSecret) -> Result<(), String> {
    if !is_name(&secret.id) || !is_name(secret.from.as_ref().unwrap_or(&secret.id)) {
        return Err(format!("{:?} is not the name of a secret", secret.from.as_ref().unwrap_or(&secret.id)));
    }
    if is_for_any_host(&secret.id) {
        return Err(format!("{} would go to any git host: {}.github.com goes to that one", secret.id, secret.id));
    }
    Ok(())
}

/// Whether buildx would hand a secret of this id to any git host.
pub fn is_for_any_host(id: &str) -> bool {
    FOR_ANY_HOST.contains(&id)
}

//! The platform's Application Template: a list of images.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::request::plain;
use crate::attestation::{Asked, Attestation, By};
use crate::field_error::FieldError;
use crate::name::{is_name, is_target_name, reference};

/// Secret ids that buildx would send to any git host that a Dockerfile names.
const FOR_ANY_HOST: &[&str] = &["GIT_AUTH_TOKEN", "GIT_AUTH_HEADER"];

/// The platform's template: a list of images.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Application {
    /// At least one.
    pub images: Vec<Image>,
}

/// One image of an Application Template. bake's defaults apply to fields that are not set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Name of the target.
    pub name: String,
    /// Directory of the build context, relative to the worktree; default: the whole worktree.
    pub context: Option<String>,
    /// Named contexts: directories, `docker-image://…`, `target:…`.
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
    /// Where to import cached steps from, such as `type=registry,ref=…`.
    pub cache_from: Vec<String>,
    /// Where to export them to.
    pub cache_to: Vec<String>,
    /// `default` or `none`.
    pub network: Option<String>,
    /// Size of `/dev/shm`, such as `128m`.
    pub shm_size: Option<String>,
    /// Such as `nofile=1024:1024`.
    pub ulimits: Vec<String>,
    /// Host names for steps, with their addresses.
    pub extra_hosts: BTreeMap<String, String>,
    /// Stages whose cached steps are not used.
    pub no_cache_filter: Vec<String>,
    /// Whether to attest how it was built, with options such as `mode=max`.
    pub provenance: Option<Asked>,
    /// Whether to attest what it contains.
    pub sbom: Option<Asked>,
}

/// A build secret of an image.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSecret {
    /// Its id in the Dockerfile.
    pub id: String,
    /// Its name in the worker's configuration; default: the id.
    #[serde(default)]
    pub from: Option<String>,
}

impl Application {
    /// Reads a template alone, for `sidebake build --template`.
    pub fn parse(template: &Value, push: bool) -> Result<Self, FieldError> {
        let application: Self = serde_path_to_error::deserialize(template)
            .map_err(|error| FieldError::new(error.path().to_string(), plain(&error.inner().to_string())))?;
        application.check(push)?;
        Ok(application)
    }

    pub(super) fn check(&self, push: bool) -> Result<(), FieldError> {
        if self.images.is_empty() {
            return Err(FieldError::new("application.images", "expected at least one image"));
        }
        for (i, image) in self.images.iter().enumerate() {
            let path = |field: &str| format!("application.images[{i}].{field}");
            if !is_target_name(&image.name) {
                return Err(FieldError::new(path("name"), format!("{:?} is not a valid target name", image.name)));
            }
            if self.images[..i].iter().any(|other| other.name == image.name) {
                return Err(FieldError::new(path("name"), format!("duplicate image name {:?}", image.name)));
            }
            if push && image.tags.is_empty() {
                return Err(FieldError::new(path("tags"), "expected at least one tag, since the image is pushed"));
            }
            for (j, tag) in image.tags.iter().enumerate() {
                reference::check_tag(tag).map_err(|message| FieldError::new(path(&format!("tags[{j}]")), message))?;
            }
            if image.dockerfile.is_some() && image.dockerfile_inline.is_some() {
                return Err(FieldError::new(
                    path("dockerfile_inline"),
                    "set dockerfile or dockerfile_inline, not both",
                ));
            }
            for (attestation, asked) in image.attestations() {
                let refused = |message| FieldError::new(path(attestation.name()), message);
                asked.check(attestation, By::Definition).map_err(refused)?;
            }
            for secret in &image.secrets {
                check_secret(secret).map_err(|message| FieldError::new(path("secrets"), message))?;
            }
        }
        Ok(())
    }
}

impl Image {
    /// Its requested attestations.
    pub fn attestations(&self) -> impl Iterator<Item = (Attestation, &Asked)> {
        let all = [(Attestation::Provenance, &self.provenance), (Attestation::Sbom, &self.sbom)];
        all.into_iter().filter_map(|(attestation, asked)| Some((attestation, asked.as_ref()?)))
    }
}

fn check_secret(secret: &ImageSecret) -> Result<(), String> {
    if !is_name(&secret.id) || !is_name(secret.from.as_ref().unwrap_or(&secret.id)) {
        return Err(format!("{:?} is not a valid secret name", secret.from.as_ref().unwrap_or(&secret.id)));
    }
    if is_for_any_host(&secret.id) {
        return Err(format!("{} would go to any git host; name it {}.github.com", secret.id, secret.id));
    }
    Ok(())
}

/// Whether buildx would send a secret of this id to any git host.
pub fn is_for_any_host(id: &str) -> bool {
    FOR_ANY_HOST.contains(&id)
}

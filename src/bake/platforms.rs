//! Checks that base images, and the images built on them, match the platforms that targets name.
//!
//! BuildKit takes a base image for another processor when its name means a single image and no index, and writes the wanted
//! platform into the image that it builds. Newer versions warn of the base image, which [`super::progress`] reads. Registries that
//! the build pushes to are asked here as well. The others are not: the worker itself connects to no host of a customer's choice. Nor
//! is Docker Hub, which counts each question as a pull.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::credentials::{self, Credentials};
use super::own_registries::{DOCKER_HUB, OwnRegistries, host_of};
use super::policy::Refusal;
use super::registry::{Content, Registries, RegistryError};
use super::{Bake, BakeError, Definition, definition};
use crate::cache::BaseImage;
use crate::event::{Status, TargetReport};
use crate::job::Build;
use crate::platform::Platform;
use crate::reason::{Failure, Reason};

/// How long all questions of a check may take. What is not known then is not checked.
const PATIENCE: Duration = Duration::from_secs(10);

/// Checks images in the registries that a build pushes to.
pub(super) struct PlatformCheck<'a> {
    definition: &'a Definition,
    registries: Registries<'a>,
    pushed_to: OwnRegistries,
    /// What was answered, by reference.
    known: Mutex<BTreeMap<String, Option<Content>>>,
}

/// What to write in a stage that is for another platform on purpose.
const ADVICE: &str = "if the stage is meant to be for it, write FROM --platform=";

/// A target whose image does not match its platforms.
pub(super) struct PlatformMismatch {
    target: String,
    failure: Failure,
}

impl PlatformMismatch {
    /// Of a base image: the target, and what BuildKit says.
    pub(super) fn of_base((target, said): (&str, String)) -> Self {
        let failure = Failure::new(Reason::BaseImageNotFound, format!("{said}; {ADVICE}…"));
        Self { target: target.to_owned(), failure }
    }

    /// Blames the failure on its target.
    pub(super) fn blame(self, targets: &mut [TargetReport]) -> Failure {
        for target in targets.iter_mut().filter(|target| target.name == self.target) {
            (target.status, target.error) = (Some(Status::Failed), Some(self.failure.detail.clone()));
        }
        self.failure
    }
}

/// Refuses a base image in a registry of the job that is not for each platform of its target.
pub(super) async fn check_bases(
    bake: &Bake,
    build: &Build,
    definition: &Definition,
    stop: &CancellationToken,
) -> Result<(), BakeError> {
    if definition.platforms().is_empty() {
        return Ok(());
    }
    let credentials = credentials::docker_config(&bake.accounts, build, stop).await?;
    let check = PlatformCheck::new(definition, &credentials, bake.ca_file.as_deref());
    Ok(stop.run_until_cancelled(check.check_bases()).await.ok_or(BakeError::Stopped)??)
}

impl<'a> PlatformCheck<'a> {
    pub(super) fn new(definition: &'a Definition, credentials: &'a Credentials, ca_file: Option<&Path>) -> Self {
        let tags = definition.targets.values().flat_map(definition::tags);
        let (pushed_to, known) = (OwnRegistries::new([], tags), Mutex::default());
        Self { definition, registries: Registries::new(credentials, ca_file), pushed_to, known }
    }

    /// Refuses a base image that is not for each platform of its target.
    async fn check_bases(&self) -> Result<(), Refusal> {
        timeout(PATIENCE, self.all_bases()).await.unwrap_or(Ok(()))
    }

    async fn all_bases(&self) -> Result<(), Refusal> {
        for target in self.definition.targets.keys() {
            let wanted = self.wanted(target);
            if wanted.is_empty() {
                continue;
            }
            let bases = self.definition.base_images(target).into_iter().filter(BaseImage::is_for_target);
            for BaseImage { line, image, .. } in bases {
                if let Some(has) = self.platform(image).await
                    && let Some(other) = wanted.iter().find(|wanted| !wanted.is_like(&has))
                {
                    let dockerfile = self.definition.dockerfile(target).unwrap_or_else(|| "dockerfile-inline".into());
                    let path = format!("target.{target}.platforms");
                    let message = format!(
                        "the base image {image} ({dockerfile}:{line}) is for {has}, not for {other}; {ADVICE}{has}"
                    );
                    return Err(Refusal::new(Reason::BaseImageNotFound, path, message));
                }
            }
        }
        Ok(())
    }

    /// The first pushed image whose configuration has another platform than its target names.
    pub(super) async fn check_images(&self, targets: &[TargetReport]) -> Option<PlatformMismatch> {
        timeout(PATIENCE, self.all_images(targets)).await.ok().flatten()
    }

    async fn all_images(&self, targets: &[TargetReport]) -> Option<PlatformMismatch> {
        for TargetReport { name, digest, tags, .. } in targets {
            let (wanted, Some(digest), Some(tag)) = (self.wanted(name), digest, tags.first()) else { continue };
            if wanted.is_empty() {
                continue;
            }
            let place = |digest: &str| format!("{}@{digest}", without_tag(tag));
            let images = match self.content(&place(digest)).await {
                Some(Content::Index(digests)) => digests.into_iter().collect(),
                Some(Content::Image(_)) => vec![digest.clone()],
                None => continue,
            };
            for digest in images {
                let Some(has) = self.platform(&place(&digest)).await else { continue };
                if !wanted.iter().any(|wanted| wanted.is_like(&has)) {
                    let wanted: Vec<String> = wanted.iter().map(Platform::to_string).collect();
                    let wanted = wanted.join(", ");
                    let advice = "check the frontend of `# syntax=`, and do not use the image";
                    let what = format!("the image {digest} is for {has}, not for {wanted}; {advice}");
                    let detail = format!("target.{name}.platforms: {what}");
                    let failure = Failure::new(Reason::DefinitionInvalid, detail);
                    return Some(PlatformMismatch { target: name.clone(), failure });
                }
            }
        }
        None
    }

    fn wanted(&self, target: &str) -> Vec<Platform> {
        self.definition.platforms_of(target).iter().filter_map(|name| Platform::parse(name)).collect()
    }

    /// The platform of an image; `None` for an index, of which BuildKit takes the right image, and for one that cannot be read.
    async fn platform(&self, reference: &str) -> Option<Platform> {
        match self.content(reference).await? {
            Content::Image(platform) => Some(platform),
            Content::Index(_) => None,
        }
    }

    async fn content(&self, reference: &str) -> Option<Content> {
        let host = host_of(reference);
        if host == DOCKER_HUB || !self.pushed_to.has(host) {
            return None;
        }
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known().get(reference) {
            return known.clone();
        }
        let content = self.registries.content(reference).await.unwrap_or_else(|error| not_read(reference, &error));
        known().insert(reference.to_owned(), content.clone());
        content
    }
}

fn without_tag(tag: &str) -> &str {
    match tag.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => tag,
    }
}

fn not_read(reference: &str, error: &RegistryError) -> Option<Content> {
    tracing::debug!(reference, %error, event = "image_not_read", "image not read from its registry; its platform is not checked");
    None
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::json;
    use world::Registry;

    use super::*;

    /// A definition of the target `web`, for these platforms, pushed under this tag.
    fn definition(platforms: &[&str], tag: &str) -> Definition {
        let fields = json!({"platforms": platforms, "tags": [tag]}).as_object().cloned().expect("an object");
        Definition::of(BTreeMap::from([("web".to_owned(), fields)]), "".into())
    }

    #[tokio::test]
    async fn a_pushed_image_that_is_for_another_platform_is_blamed_on_its_target() {
        let registry = Registry::start();
        let tag = registry.serve("acme/web", world::Content::Whole).reference;
        let credentials = Credentials::new(serde_json::Map::new());
        let digest =
            Registries::new(&credentials, None).tagged(&tag).await.expect("an answer").expect("it is there").digest;
        let mut targets = [TargetReport {
            name: "web".into(),
            status: Some(Status::Succeeded),
            digest: Some(digest.clone()),
            tags: vec![tag.clone()],
            ..TargetReport::default()
        }];
        for (platforms, is_foreign) in
            [(&["local"][..], false), (&[], false), (&["linux/s390x", "linux/ppc64le"], true)]
        {
            let definition = definition(platforms, &tag);
            let found = PlatformCheck::new(&definition, &credentials, None).check_images(&targets).await;
            assert_eq!(found.is_some(), is_foreign, "{platforms:?}");
            let Some(found) = found else { continue };
            let own = Platform::parse("local").expect("a platform");
            let failure = found.blame(&mut targets);
            assert!(failure.detail.contains(&format!("{digest} is for {own}, not for linux/s390x, linux/ppc64le")));
            assert_eq!(targets[0].status, Some(Status::Failed));
        }
    }

    #[test]
    fn the_name_of_an_image_is_its_tag_without_the_version() {
        let names: BTreeSet<&str> = ["h:5000/a", "h:5000/a:1"].map(without_tag).into();
        assert_eq!(Vec::from_iter(names), ["h:5000/a"]);
    }
}

//! A push that a registry refuses, although the tag already has the same image: an immutable tag, and a build that is repeated.

use std::path::Path;

use super::credentials::Credentials;
use super::diagnose;
use super::progress::BakeProgress;
use super::registry::{Registries, RegistryError, Tagged};
use crate::event::Event;
use crate::journal::Journal;

/// Settles these pushes as done. Returns whether there are any.
///
/// An image is settled when each of its tags has it. When the registry does not say so, the push has failed as before.
pub(super) async fn settle(
    progress: &mut BakeProgress,
    credentials: &Credentials,
    ca_file: Option<&Path>,
    journal: &Journal,
) -> bool {
    let refused: Vec<_> = diagnose::refused_manifests(progress)
        .filter_map(|vertex| {
            let target = progress.target_of(vertex)?.to_owned();
            Some((vertex.number, target, vertex.images(), progress.tags_of(vertex).to_vec()))
        })
        .filter(|(_, _, images, tags)| !images.is_empty() && !tags.is_empty())
        .collect();
    if refused.is_empty() {
        return false;
    }
    let registries = Registries::new(credentials, ca_file);
    let mut has_settled = false;
    for (number, target, images, tags) in refused {
        let has_image = |tagged: &Tagged| tagged.images == images;
        let Some(found) = all(&tags, &registries, has_image).await else { continue };
        let notice = format!("the registry refused to push {target} again; its tags already have this image");
        journal.emit(Event::Notice(notice));
        journal.emit(Event::TargetDone(target));
        progress.settle(number, tags.into_iter().zip(found).collect());
        has_settled = true;
    }
    has_settled
}

/// The digest of each tag, if all have the image.
async fn all(tags: &[String], registries: &Registries<'_>, has_image: impl Fn(&Tagged) -> bool) -> Option<Vec<String>> {
    let mut digests = Vec::new();
    for tag in tags {
        let tagged = registries.tagged(tag).await.unwrap_or_else(|error| not_read(tag, &error));
        digests.push(tagged.filter(&has_image)?.digest);
    }
    Some(digests)
}

fn not_read(tag: &str, error: &RegistryError) -> Option<Tagged> {
    tracing::debug!(tag, %error, event = "tag_not_read", "tag not read from its registry; its push counts as failed");
    None
}

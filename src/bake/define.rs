//! Makes a bake definition from the platform's Application Template.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::BakeRequest;
use super::escape::literal;
use super::policy::attestations::entry;
use super::print::Targets;
use crate::job::{Application, Image, Recipe};

/// The platform's definition, for buildx to resolve; `None` when it is in files of the repository.
pub(super) fn text(request: &BakeRequest<'_>) -> Option<String> {
    match &request.build.recipe {
        Recipe::Application(template) => {
            // buildx would look for the file of each secret, which only `restore` and policy know.
            let without_secrets = |image: &Image| Image { secrets: Vec::new(), ..image.clone() };
            Some(application(&Application { images: template.images.iter().map(without_secrets).collect() }))
        }
        Recipe::Inline(definition) => Some(definition.clone()),
        Recipe::Files(_) => None,
    }
}

/// Fields that bake resolves to themselves, but for the text that it normalizes.
const WRITTEN: [&str; 6] = ["args", "context", "contexts", "dockerfile", "dockerfile-inline", "labels"];

/// Restores in the printed targets of an Application Template what is as it was written, and the secrets that [`text`] has left
/// out.
pub(super) fn restore(request: &BakeRequest<'_>, targets: &mut Targets) {
    let Recipe::Application(template) = &request.build.recipe else { return };
    for image in &template.images {
        let Some(printed) = targets.get_mut(&image.name) else { continue };
        let own = target(image, str::to_owned).into_iter();
        printed.extend(own.filter(|(field, _)| field == "secret" || WRITTEN.contains(&field.as_str())));
    }
}

/// The bake definition of an Application Template: byte-stable JSON, with only the fields that the template sets.
///
/// The template's values are plain text, so expressions of bake in them are escaped.
pub fn application(template: &Application) -> String {
    let names: Vec<&str> = template.images.iter().map(|image| image.name.as_str()).collect();
    let targets: Map<String, Value> =
        template.images.iter().map(|image| (image.name.clone(), target(image, literal).into())).collect();
    let definition = json!({"group": {"default": {"targets": names}}, "target": targets});
    serde_json::to_string_pretty(&definition).expect("a value is JSON")
}

/// An Application Template as buildx would resolve it: it has no expressions, so only bake's defaults are added.
///
/// `None` where buildx does more: it normalizes caches and sizes, and selects targets.
pub(super) fn resolved(request: &BakeRequest<'_>) -> Option<Targets> {
    let Recipe::Application(template) = &request.build.recipe else { return None };
    let has_more = |image: &Image| {
        let has_caches = !(image.cache_from.is_empty() && image.cache_to.is_empty());
        has_caches || !image.contexts.is_empty() || !image.ulimits.is_empty() || image.shm_size.is_some()
    };
    if template.images.iter().any(has_more) || !request.build.targets.is_empty() {
        return None;
    }
    let resolve = |image: &Image| {
        let mut target = target(image, str::to_owned);
        target.entry("context").or_insert_with(|| ".".into());
        target.entry("dockerfile").or_insert_with(|| "Dockerfile".into());
        (image.name.clone(), target)
    };
    Some(template.images.iter().map(resolve).collect())
}

/// The fields that the image sets, each text passed through `write`.
fn target(image: &Image, write: impl Fn(&str) -> String) -> Map<String, Value> {
    let mut target = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            target.insert(name.into(), value);
        }
    };
    let text = |text: &String| Value::String(write(text));
    let list = |texts: &Vec<String>| (!texts.is_empty()).then(|| texts.iter().map(text).collect());
    let map = |texts: &BTreeMap<String, String>| {
        (!texts.is_empty()).then(|| texts.iter().map(|(name, value)| (write(name), text(value))).collect())
    };
    set("context", image.context.as_ref().map(text));
    set("contexts", map(&image.contexts));
    set("dockerfile", image.dockerfile.as_ref().map(text));
    set("dockerfile-inline", image.dockerfile_inline.as_ref().map(text));
    set("args", map(&image.args));
    set("labels", map(&image.labels));
    set("tags", list(&image.tags));
    set("target", image.target.as_ref().map(text));
    set("platforms", list(&image.platforms));
    set("cache-from", list(&image.cache_from));
    set("cache-to", list(&image.cache_to));
    set("secret", secrets(image));
    set("network", image.network.as_ref().map(text));
    set("shm-size", image.shm_size.as_ref().map(text));
    set("ulimits", list(&image.ulimits));
    set("extra-hosts", map(&image.extra_hosts));
    set("no-cache-filter", list(&image.no_cache_filter));
    set("attest", attestations(image));
    target
}

/// Only ids: the worker's configuration decides what they grant.
fn secrets(image: &Image) -> Option<Value> {
    let ids = image.secrets.iter().map(|secret| json!({"id": secret.id}));
    (!image.secrets.is_empty()).then(|| ids.collect())
}

/// Provenance and SBOM as `--attest` takes them. A disabled one is listed too: it overrides the job's.
fn attestations(image: &Image) -> Option<Value> {
    let all: Vec<Value> = image.attestations().map(|(attestation, asked)| entry(attestation, asked)).collect();
    (!all.is_empty()).then(|| all.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ruby_generators_definition_is_reproduced() {
        let seed = include_str!("../../tests/fixtures/seed/bake.json");
        let image = |name: &str| Image {
            name: name.into(),
            context: Some(format!("./{name}")),
            tags: vec![format!("registry.example/acme/{name}:0123456789abcdef0123456789abcdef01234567")],
            ..Image::default()
        };
        let template = Application { images: ["vote", "result", "worker"].map(image).into() };
        assert_eq!(application(&template), seed.trim_end());
    }

    #[test]
    fn a_templates_text_is_not_evaluated() {
        let image = Image {
            name: "a".into(),
            args: [("${k}".into(), "${homedir()} %{if}".into())].into(),
            cache_to: vec!["type=registry,ref=x".into()],
            ..Image::default()
        };
        let template = Application { images: vec![image] };
        let made = application(&template);
        assert!(made.contains(r#""$${k}": "$${homedir()} %%{if}""#), "{made}");
        assert!(made.contains("cache-to"));
    }
}

//! Build arguments that buildx, BuildKit or the Dockerfile frontend read themselves.
//!
//! Each is judged as the field that it stands for. Deny by default: an argument of BuildKit's that is not listed here is
//! refused by name, since a newer BuildKit may give it a meaning. Names are compared in their exact case, except for the kind
//! of an attestation. Follows buildx's `build/opt.go` (`toSolveOpt`), BuildKit's `frontend/dockerui/config.go` and
//! `frontend/attestations/parse.go`.
//!
//! What a Dockerfile says for itself is not seen here. `# syntax=` loses against a pinned frontend. `# check=` and an `ARG`
//! with a default concern only the build itself.

use serde_json::{Map, Value, json};

use super::image_name::ImageName;
use super::{Refusal, Rules};
use crate::attestation::{Asked, Attestation, fields, is_boolean, is_true};

/// Which frontend reads the Dockerfile.
const FRONTEND: &str = "BUILDKIT_SYNTAX";

/// Whose cached directories the steps of a build see.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// Stands for `cache-to` of the type `inline`.
const INLINE_CACHE: &str = "BUILDKIT_INLINE_CACHE";

/// The names of all other arguments that BuildKit reads begin with this. Outside of it are `SOURCE_DATE_EPOCH` and proxies,
/// which concern only the times and steps of the image.
const OF_BUILDKIT: &str = "BUILDKIT_";

/// Stands for an entry of `attest`; the kind follows.
const ATTESTATION: &str = "BUILDKIT_ATTEST_";

/// Whether the image is an index, as a boolean. BuildKit quotes any other value in the error that the build ends with.
const MULTI_PLATFORM: &str = "BUILDKIT_MULTI_PLATFORM";

/// These concern only the steps, the image and the record of the build. BuildKit takes any text, or says in its own words what
/// is wrong with it.
const HARMLESS: &[&str] = &[
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
];

impl Rules<'_> {
    /// Replaces arguments that stand for a field by that field, for its own rules to judge.
    pub(super) fn translate_arguments(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let Some(arguments) = target.remove("args") else { return Ok(()) };
        let Value::Object(arguments) = arguments else { return Err(self.refusal("args", "expected an object")) };
        let mut kept = Map::new();
        for (name, value) in arguments {
            // buildx gives a Dockerfile no argument without a value.
            if value.is_null() {
                continue;
            }
            let field = format!("args.{}", name.escape_debug());
            check_name(&name).map_err(|message| self.refusal(&field, message))?;
            let Some(text) = value.as_str() else { return Err(self.refusal(&field, "expected a string")) };
            if let Some(kind) = name.strip_prefix(ATTESTATION) {
                let attestation = self.attestation_of(&field, kind, text)?;
                self.add(target, "attest", attestation)?;
            } else if name == INLINE_CACHE {
                self.translate_inline_cache(&field, text, target)?;
            } else if name == MULTI_PLATFORM && !is_boolean(text) {
                return Err(self.refusal(&field, "expected true or false"));
            } else if name.starts_with(OF_BUILDKIT) && !is_known(&name) {
                let message = "BuildKit reads arguments of such a name, and this one is not known here";
                return Err(self.refusal(&field, message));
            } else {
                kept.insert(name, value);
            }
        }
        target.insert("args".into(), kept.into());
        Ok(())
    }

    /// The entry of `attest` that BuildKit makes of an argument: a field without `=` is an option without a value.
    fn attestation_of(&self, field: &str, kind: &str, value: &str) -> Result<Value, Refusal> {
        let attestation = Attestation::parse(kind);
        let attestation = attestation.ok_or_else(|| self.refusal(field, "unknown kind of attestation"))?;
        let options = if value.is_empty() { Some(Vec::new()) } else { fields(value) };
        let options = options.ok_or_else(|| self.refusal(field, "expected name=value,…"))?;
        let pairs = options.iter().map(|option| option.split_once('=').unwrap_or((option, "")));
        let options = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let asked = Asked { is_on: true, options };
        self.check_attestation(field, attestation, &asked)?;
        Ok(super::attestations::entry(attestation, &asked))
    }

    fn translate_inline_cache(
        &mut self,
        field: &str,
        value: &str,
        target: &mut Map<String, Value>,
    ) -> Result<(), Refusal> {
        if !is_true(value) {
            return Ok(());
        }
        match self.why_no_own_cache() {
            Some(why) => self.notice(field, why),
            None => self.add(target, "cache-to", json!({"type": "inline"}))?,
        }
        Ok(())
    }

    /// Puts an entry before those of a list, which may not be there yet.
    fn add(&self, target: &mut Map<String, Value>, field: &str, entry: Value) -> Result<(), Refusal> {
        let list = target.entry(field).or_insert_with(|| json!([]));
        let list = list.as_array_mut().ok_or_else(|| self.refusal(field, "expected a list"))?;
        list.insert(0, entry);
        Ok(())
    }

    /// Sets the arguments that are the worker's.
    pub(super) fn settle_arguments(&mut self, target: &mut Map<String, Value>) {
        let build = self.request.build;
        let namespace = format!("{}/{}", build.repository, build.trust.name());
        let ours = [(FRONTEND, self.grants.policy.frontend.clone()), (CACHE_NAMESPACE, Some(namespace))];
        let mut arguments = target.remove("args").and_then(|value| value.as_object().cloned()).unwrap_or_default();
        for (name, value) in ours {
            let Some(value) = value else { continue };
            let theirs = arguments.insert(name.into(), json!(value));
            let is_same = |theirs: &str| match name {
                FRONTEND => ImageName::parse(theirs) == ImageName::parse(&value),
                _ => theirs == value,
            };
            if theirs.as_ref().and_then(Value::as_str).is_some_and(|theirs| !is_same(theirs)) {
                self.notice(&format!("args.{name}"), &format!("is {value}"));
            }
        }
        target.insert("args".into(), arguments.into());
    }
}

/// Refuses a name that means another one to BuildKit: an external frontend gets each argument and each named context as the
/// text NAME=VALUE, and splits it at the first `=`.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let is_allowed = |c: char| c != '=' && !c.is_control();
    match !name.is_empty() && name.chars().all(is_allowed) {
        true => Ok(()),
        false => Err("expected a name without = and control characters"),
    }
}

fn is_known(name: &str) -> bool {
    HARMLESS.contains(&name) || [FRONTEND, CACHE_NAMESPACE, MULTI_PLATFORM].contains(&name)
}

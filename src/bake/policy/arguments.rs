//! Build arguments that buildx, BuildKit or the Dockerfile frontend read themselves.
//!
//! Each is judged as the field with the same effect. Deny by default: an unknown argument of BuildKit's is refused by name,
//! since a newer BuildKit may give it a meaning. Names are case-sensitive, except for the kind of an attestation. Follows
//! buildx's `build/opt.go` (`toSolveOpt`), BuildKit's `frontend/dockerui/config.go` and `frontend/attestations/parse.go`.
//!
//! What a Dockerfile itself sets is not visible here. A pinned frontend overrides `# syntax=`. `# check=` and an `ARG` with a
//! default affect only the build itself.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::image_name::ImageName;
use super::{Refusal, Rules};
use crate::attestation::{Asked, Attestation, fields, is_boolean, is_true};
use crate::job::SourceDateEpoch;

/// Selects the frontend that reads the Dockerfile.
const FRONTEND: &str = "BUILDKIT_SYNTAX";

/// The namespace of cache mounts.
const CACHE_NAMESPACE: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// The same as `cache-to` with the type `inline`.
const INLINE_CACHE: &str = "BUILDKIT_INLINE_CACHE";

/// The prefix of all other arguments that BuildKit reads. Without it are only `SOURCE_DATE_EPOCH` and proxies, which affect
/// just the times and steps of the image.
const OF_BUILDKIT: &str = "BUILDKIT_";

/// The time of the image and of its files, by reproducible-builds.org. Steps after a declaration of it get it too.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The same as an entry of `attest`; the kind follows.
const ATTESTATION: &str = "BUILDKIT_ATTEST_";

/// Whether the image is an index: a boolean. BuildKit quotes any other value in its error.
const MULTI_PLATFORM: &str = "BUILDKIT_MULTI_PLATFORM";

/// These affect only the steps, the image and the record of the build. BuildKit accepts any text, or reports what is wrong.
const HARMLESS: &[&str] = &[
    "BUILDKIT_BUILD_NAME",
    "BUILDKIT_CONTEXT_KEEP_GIT_DIR",
    "BUILDKIT_DOCKERFILE_CHECK",
    "BUILDKIT_SANDBOX_HOSTNAME",
    "BUILDKIT_SBOM_SCAN_CONTEXT",
    "BUILDKIT_SBOM_SCAN_STAGE",
];

impl Rules<'_> {
    /// Replaces arguments by the fields that have the same effect, so that those fields' rules apply.
    pub(super) fn translate_arguments(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let Some(arguments) = target.remove("args") else { return Ok(()) };
        let Value::Object(arguments) = arguments else { return Err(self.invalid("args", "expected an object")) };
        let mut kept = Map::new();
        for (name, value) in arguments {
            // buildx does not pass on an argument without a value.
            if value.is_null() {
                continue;
            }
            let field = format!("args.{}", name.escape_debug());
            check_name(&name).map_err(|message| self.invalid(&field, message))?;
            let Some(text) = value.as_str() else { return Err(self.invalid(&field, "expected a string")) };
            if let Some(kind) = name.strip_prefix(ATTESTATION) {
                let attestation = self.attestation_of(&field, kind, text)?;
                self.add(target, "attest", attestation)?;
            } else if name == INLINE_CACHE {
                self.translate_inline_cache(&field, text, target)?;
            } else if name == MULTI_PLATFORM && !is_boolean(text) {
                return Err(self.invalid(&field, "expected true or false"));
            } else if name.starts_with(OF_BUILDKIT) && !is_known(&name) {
                let message = "BuildKit reads arguments with this prefix itself, and this one is not allowed";
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
        let attestation =
            attestation.ok_or_else(|| self.refusal(field, "unknown attestation; known: provenance, sbom"))?;
        let options = if value.is_empty() { Some(Vec::new()) } else { fields(value) };
        let options = options.ok_or_else(|| self.invalid(field, "expected name=value,…"))?;
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

    /// Puts an entry at the front of a list, which may not exist yet.
    fn add(&self, target: &mut Map<String, Value>, field: &str, entry: Value) -> Result<(), Refusal> {
        let list = target.entry(field).or_insert_with(|| json!([]));
        let list = list.as_array_mut().ok_or_else(|| self.invalid(field, "expected a list"))?;
        list.insert(0, entry);
        Ok(())
    }

    /// Sets the arguments that the worker decides.
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
                self.notice(&format!("args.{name}"), &format!("set to {value}"));
            }
        }
        if let Some(epoch) = self.epoch() {
            arguments.entry(EPOCH).or_insert_with(|| json!(epoch.to_string()));
        }
        target.insert("args".into(), arguments.into());
    }

    /// The time that steps get, in seconds since 1970.
    fn epoch(&self) -> Option<i64> {
        let asked = self.request.build.source_date_epoch.unwrap_or(self.limits.source_date_epoch);
        let commit = self.request.commit.filter(|_| asked == SourceDateEpoch::Commit)?;
        commit.committed_at.map(Timestamp::as_second)
    }
}

/// Refuses a name that BuildKit would read as another one: an external frontend gets each argument and named context as the
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

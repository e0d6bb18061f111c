//! What BuildKit attests of the images of a target.
//!
//! The platform decides: its own definition, else the job, else the configuration. What a repository's file asks for is
//! checked, replaced and reported.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::references::is_cache_only;
use super::{Refusal, Rules, list, repository_file};
use crate::attestation::{Asked, Attestation, By, pairs};

impl Rules<'_> {
    /// Decides `attest`, after `output`.
    pub(super) fn settle_attestations(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let theirs = self.attestations(target.remove("attest"))?;
        let is_file = repository_file(self.request).is_some();
        let leaves_nothing = target.get("output").is_some_and(|output| list(output).iter().all(is_cache_only));
        let mut settled = Vec::new();
        for attestation in Attestation::ALL {
            let configured = self.limits.asked(attestation);
            let ours = self.request.build.asked(attestation).unwrap_or(configured);
            let theirs = theirs.get(&attestation);
            let asked = match theirs {
                Some(theirs) if !is_file => theirs,
                // An image that stays in the builder needs no attestation.
                _ if leaves_nothing => continue,
                _ => ours,
            };
            if let Some(theirs) = theirs.filter(|theirs| is_file && !means_the_same(theirs, ours)) {
                let message = format!("{} set to {ours} in place of {theirs}", attestation.name());
                self.notice("attest", &message);
            }
            if asked.is_on {
                settled.push(entry(attestation, &with_reserved(asked, configured, attestation)));
            }
        }
        if !settled.is_empty() {
            target.insert("attest".into(), settled.into());
        }
        Ok(())
    }

    /// The entries of `attest`, as objects or as text. Of two of one kind the later one counts, as in buildx.
    fn attestations(&self, value: Option<Value>) -> Result<BTreeMap<Attestation, Asked>, Refusal> {
        let Some(value) = value else { return Ok(BTreeMap::new()) };
        let mut all = BTreeMap::new();
        for (i, attestation) in self.list("attest", &value)?.iter().enumerate() {
            let field = format!("attest[{i}]");
            let refused = |message: &str| self.invalid(&field, message);
            let mut options =
                options(attestation).ok_or_else(|| refused("expected name=value,… or an object of strings"))?;
            let kind = options.iter().position(|(name, _)| name.eq_ignore_ascii_case("type"));
            let kind = kind.map(|at| options.remove(at).1).unwrap_or_default();
            let kind = Attestation::parse(&kind);
            let kind = kind.ok_or_else(|| refused("expected the type provenance or sbom"))?;
            let asked = Asked::from_options(options).map_err(|message| refused(&message))?;
            self.check_attestation(&field, kind, &asked)?;
            all.insert(kind, asked);
        }
        Ok(all)
    }

    /// Refuses reserved options: a generator is a program that the definition would choose; a builder id would name another builder.
    pub(super) fn check_attestation(
        &self,
        field: &str,
        attestation: Attestation,
        asked: &Asked,
    ) -> Result<(), Refusal> {
        asked.check(attestation, By::Definition).map_err(|message| self.refusal(field, message))
    }
}

/// An entry of `attest`.
pub(in crate::bake) fn entry(attestation: Attestation, asked: &Asked) -> Value {
    let mut entry = Map::from_iter([("type".to_owned(), json!(attestation.name()))]);
    if asked.is_on {
        entry.extend(asked.options.iter().map(|(name, value)| (name.clone(), json!(value))));
    } else {
        entry.insert("disabled".into(), json!(true));
    }
    entry.into()
}

/// Adds the option that only the configuration sets.
fn with_reserved(asked: &Asked, configured: &Asked, attestation: Attestation) -> Asked {
    let mut asked = asked.clone();
    if let Some((name, value)) = configured.options.get_key_value(attestation.reserved_option()) {
        asked.options.insert(name.clone(), value.clone());
    }
    asked
}

fn means_the_same(theirs: &Asked, ours: &Asked) -> bool {
    theirs.is_on == ours.is_on && (!ours.is_on || theirs.options == ours.options)
}

/// The options of an entry. buildx before 0.19 prints an entry as text.
fn options(entry: &Value) -> Option<Vec<(String, String)>> {
    let pair = |(name, value): (&String, &Value)| {
        let value = match value {
            Value::Bool(value) => value.to_string(),
            value => value.as_str()?.to_owned(),
        };
        Some((name.clone(), value))
    };
    match entry {
        Value::String(text) => pairs(text),
        Value::Object(fields) => fields.iter().map(pair).collect(),
        _ => None,
    }
}

//! Labels that say what an image was built from, by the names of the OCI image specification (`annotations.md`).
//!
//! The platform's own definition wins. A repository's file must not describe another commit than the one that was built. BuildKit
//! puts labels of a definition over those of a Dockerfile and of its base image.

use serde_json::{Map, Value, json};

use super::{Refusal, Rules, repository_file};
use crate::job::Commit;

const REVISION: &str = "org.opencontainers.image.revision";
const SOURCE: &str = "org.opencontainers.image.source";
const CREATED: &str = "org.opencontainers.image.created";

impl Rules<'_> {
    /// Describes the commit, if the tree is one. No label differs between two builds of a commit.
    pub(super) fn settle_labels(&mut self, target: &mut Map<String, Value>) -> Result<(), Refusal> {
        let Some(commit) = self.request.commit.filter(|_| self.limits.labels) else { return Ok(()) };
        let mut labels = match target.remove("labels") {
            None => Map::new(),
            Some(Value::Object(labels)) => labels,
            Some(_) => return Err(self.invalid("labels", "expected an object")),
        };
        let is_file = repository_file(self.request).is_some();
        for (name, value) in describe(commit) {
            let theirs = labels.get(name).and_then(Value::as_str);
            if theirs.is_some() && !is_file {
                continue;
            }
            if theirs.is_some_and(|theirs| theirs != value) {
                self.notice(&format!("labels.{name}"), &format!("set to {value}"));
            }
            labels.insert(name.into(), json!(value));
        }
        target.insert("labels".into(), labels.into());
        Ok(())
    }
}

fn describe(commit: &Commit) -> impl Iterator<Item = (&'static str, String)> {
    // The repository's page, from which it can be cloned too. Registries link an image to its repository by this URL.
    let page = commit.url.strip_suffix(".git").unwrap_or(&commit.url);
    let created = commit.committed_at.map(|time| (CREATED, time.to_string()));
    [(REVISION, commit.sha.to_string()), (SOURCE, page.to_owned())].into_iter().chain(created)
}

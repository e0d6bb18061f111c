//! Whether a commit is on a branch or tag, according to GitHub.
//!
//! Asks only for the reference of exactly the job's name. Follows GitHub's REST API, "Git references", "Git tags" and "Compare
//! two commits".

use serde::Deserialize;

use super::api::{ApiRequest, Bearer};
use super::{App, GithubError, InstallationToken, LAG};
use crate::job::{GitRef, Repository, Sha};

/// The most nested annotated tags that are followed to a commit.
const MAX_TAGS: usize = 5;

impl App {
    /// Whether the commit is, or was, on this branch or tag of the token's own repository.
    pub async fn is_on(&self, sha: &Sha, git_ref: &GitRef, token: &InstallationToken) -> Result<bool, GithubError> {
        let mut pauses = LAG.iter();
        loop {
            match (self.has_come_to(git_ref, sha, token).await?, pauses.next()) {
                // Some of GitHub's servers learn of a new push late.
                (false, Some(pause)) => tokio::time::sleep(*pause).await,
                (is_on, _) => return Ok(is_on),
            }
        }
    }

    /// Whether a branch or tag points to the commit or to one of its descendants.
    async fn has_come_to(&self, git_ref: &GitRef, sha: &Sha, token: &InstallationToken) -> Result<bool, GithubError> {
        let Some(tip) = self.tip(git_ref, token).await? else { return Ok(false) };
        if tip == *sha {
            return Ok(true);
        }
        if self.is_behind(sha, &tip, token).await? {
            return Ok(true);
        }
        // The id may be an annotated tag's.
        match self.commit_of_tag(&token.repository, sha, token).await? {
            Some(commit) => Ok(commit == tip || self.is_behind(&commit, &tip, token).await?),
            None => Ok(false),
        }
    }

    /// Whether a commit is an ancestor of another one.
    async fn is_behind(&self, sha: &Sha, tip: &Sha, token: &InstallationToken) -> Result<bool, GithubError> {
        #[derive(Deserialize)]
        struct Comparison {
            status: String,
        }
        let path = format!("/repos/{}/compare/{tip}...{sha}?per_page=1", token.repository);
        let compared = self.find(&ApiRequest::get(&path, Bearer::Token(&token.secret)), &[]).await?;
        let compared = compared.map(|answer| answer.read::<Comparison>()).transpose()?;
        Ok(compared.is_some_and(|compared| compared.status == "behind"))
    }

    /// The commit of a branch or tag of exactly this name. The endpoint for commits would also find other references of that name,
    /// such as a tag `heads/main`.
    async fn tip(&self, git_ref: &GitRef, token: &InstallationToken) -> Result<Option<Sha>, GithubError> {
        let (repository, bearer) = (&token.repository, Bearer::Token(&token.secret));
        let path = format!("/repos/{repository}/git/ref/{}", in_url(git_ref));
        let Some(answer) = self.find(&ApiRequest::get(&path, bearer), &LAG).await? else { return Ok(None) };
        let found: Reference = answer.read()?;
        if found.name != git_ref.to_string() {
            return Ok(None);
        }
        match found.object.kind.as_str() {
            "tag" => self.commit_of_tag(repository, &found.object.sha, token).await,
            "commit" => Ok(Some(found.object.sha)),
            _ => Ok(None),
        }
    }

    /// The commit to which the annotated tag with this id leads; `None` when the tag is missing, or leads to something else.
    pub async fn commit_of_tag(
        &self,
        repository: &Repository,
        sha: &Sha,
        token: &InstallationToken,
    ) -> Result<Option<Sha>, GithubError> {
        let mut next = sha.clone();
        // A tag may point to another tag.
        for _ in 0..MAX_TAGS {
            let path = format!("/repos/{repository}/git/tags/{next}");
            let request = ApiRequest::get(&path, Bearer::Token(&token.secret));
            let Some(answer) = self.find(&request, &[]).await? else { return Ok(None) };
            let object = answer.read::<Tag>()?.object;
            match object.kind.as_str() {
                "tag" => next = object.sha,
                "commit" => return Ok(Some(object.sha)),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }
}

/// The name below `refs/`, encoded for a URL.
fn in_url(git_ref: &GitRef) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.');
    let encoded = |byte| if is_plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    git_ref.below_refs().bytes().map(encoded).collect()
}

/// A reference, and what it points to.
#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "ref")]
    name: String,
    object: Object,
}

#[derive(Deserialize)]
struct Tag {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    #[serde(rename = "type")]
    kind: String,
    sha: Sha,
}

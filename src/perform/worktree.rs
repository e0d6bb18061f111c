//! A job's worktree: its commit and those of its submodules, each with the access that the job has to it.

use super::{Attempt, Integrations};
use crate::beneath::Destination;
use crate::event::{Event, Phase};
use crate::github::{self, App, GithubError, InstallationToken};
use crate::job::{Build, BuildJob, GitRef, Repository, Sha, Trust};
use crate::reason::{End, Failure, Reason};
use crate::secret::Secret;
use crate::source::{GitDirRequest, MAX_ENCODED, MAX_SUBMODULES, Origin, Revision, Spent, Submodule, Worktree};
use crate::state::JobDirectory;

/// The deepest nesting of submodules.
const MAX_NESTING: usize = 4;

/// How a repository is accessed.
enum Access<'a> {
    /// With a token for it alone.
    Token(InstallationToken),
    /// As a public repository. The token belongs to another repository, and only authenticates requests to GitHub.
    Public { repository: Repository, id: u64, token: &'a InstallationToken },
}

/// Mints a token, even when the mirror has everything: a mirror on disk is not an authorization.
pub(super) async fn mint(
    integrations: &Integrations,
    job: &BuildJob,
    repository: &Repository,
    attempt: Attempt<'_>,
) -> Result<InstallationToken, GithubError> {
    let _phase = attempt.journal.begin(Phase::Token);
    integrations.github.installation_token(repository, job.installation_id).await
}

/// Checks that the job may read the repository, and that its commit is on its branch or tag, as a build does.
pub async fn authorize(integrations: &Integrations, job: &BuildJob, attempt: Attempt<'_>) -> Result<(), End> {
    let token = attempt.unless_stopped(mint(integrations, job, &job.build.repository, attempt)).await??;
    let git_ref = checked_ref(integrations, job);
    attempt.unless_stopped(refuse_foreign(&integrations.github, &job.sha, git_ref, &token)).await?
}

/// The branch or tag that must have the commit. A fork's commit is on no branch of this repository, and its build is untrusted anyway.
fn checked_ref<'a>(integrations: &Integrations, job: &'a BuildJob) -> Option<&'a GitRef> {
    let is_checked = integrations.github.checks_refs() && job.build.trust != Trust::Fork;
    job.branch_or_tag.as_ref().filter(|_| is_checked)
}

/// Creates the worktree of the job's commit. Each token is revoked afterwards, whatever the result.
pub(super) async fn check_out(
    integrations: &Integrations,
    job: &BuildJob,
    token: InstallationToken,
    since: Vec<String>,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<Worktree, End> {
    let destination = directory.vacancy("tree", &job.build.repository.name)?;
    let mut checkout = Checkout { integrations, job, directory, attempt, since, spent: Spent::default() };
    let mut access = Access::Token(token);
    let git_ref = checked_ref(integrations, job);
    let git_dir = integrations.source.git_dir(job.branch_or_tag.as_ref());
    let mut worktree = checkout.of_commit(&mut access, &job.sha, git_ref, git_dir, &destination).await?;
    notify_of_encodings(&worktree, attempt);
    if let Access::Token(token) = &mut access
        && integrations.source.takes_submodules_of(&job.build.repository)
    {
        checkout.fill_submodules(&mut worktree, token).await?;
    } else {
        notify_of_submodules(&worktree, attempt);
    }
    Ok(worktree)
}

/// Notifies the customer that submodules are empty: a step that needs their files fails without saying so.
pub fn notify_of_submodules(worktree: &Worktree, attempt: Attempt<'_>) {
    let Some(first) = worktree.submodules.first() else { return };
    let notice = match worktree.submodules.len() {
        1 => format!("{} is a submodule and stays empty", first.path),
        _ => format!("{} and others are submodules and stay empty", first.path),
    };
    attempt.journal.emit(Event::Notice(notice));
}

/// Notifies the customer of files that are not as git would write them.
pub fn notify_of_encodings(worktree: &Worktree, attempt: Attempt<'_>) {
    let named = &worktree.encoded[..worktree.encoded.len().min(MAX_ENCODED)];
    if named.is_empty() {
        return;
    }
    let others = if worktree.encoded.len() > MAX_ENCODED { " and others" } else { "" };
    let files = named.join(", ");
    attempt.journal.emit(Event::Notice(format!(
        "working-tree-encoding in .gitattributes is ignored; these files are as stored, in UTF-8: {files}{others}"
    )));
}

/// The checkout of one job.
struct Checkout<'a> {
    integrations: &'a Integrations,
    job: &'a BuildJob,
    directory: &'a JobDirectory,
    attempt: Attempt<'a>,
    /// Older commits with which the job's commit is compared.
    since: Vec<String>,
    /// What its commits have used so far.
    spent: Spent,
}

impl Checkout<'_> {
    /// Creates the worktree of one commit. The commit must be on the branch or tag, if there is one.
    async fn of_commit(
        &mut self,
        access: &mut Access<'_>,
        sha: &Sha,
        git_ref: Option<&GitRef>,
        git_dir: Option<GitDirRequest>,
        destination: &Destination,
    ) -> Result<Worktree, End> {
        let (source, github, attempt) = (&self.integrations.source, &self.integrations.github, self.attempt);
        let mut pauses = github::LAG.iter();
        loop {
            if let Access::Token(token) = access {
                // A token that was refused twice may have been revoked.
                let is_refused = pauses.len() == 0;
                self.renew(token, is_refused).await?;
            }
            let origin = Origin {
                url: source.url(access.repository()),
                token: access.credential(),
                mirror: access.id().to_string(),
                trust: access.trust(&self.job.build),
                directory: self.directory,
                worktree: destination,
                revision: Revision::Sha(sha.clone()),
                mtimes_key: source.mtimes_key(&self.job.build)?,
                since: if *sha == self.job.sha { self.since.clone() } else { Vec::new() },
                git_dir: git_dir.clone(),
                spent: self.spent,
            };
            let fetched = source.check_out(&origin, &self.integrations.state, attempt.journal, attempt.stop.token());
            let belongs = attempt.unless_stopped(refuse_foreign(github, sha, git_ref, access.token()));
            let (fetched, belongs) = tokio::join!(fetched, belongs);
            match (fetched, pauses.next()) {
                (Err(error), Some(pause)) if error.is_denied() && matches!(access, Access::Token(_)) => {
                    attempt.unless_stopped(tokio::time::sleep(*pause)).await?;
                }
                (Err(error), _)
                    if error.is_unclear()
                        && !attempt
                            .unless_stopped(github.has_commit(access.repository(), sha, access.token()))
                            .await?? =>
                {
                    let message = format!("{} has no commit {sha}", access.repository());
                    return Err(Failure::new(Reason::CommitNotFound, message).into());
                }
                (result, _) => {
                    let mut worktree = result?;
                    belongs??;
                    if let (true, Some(commit)) = (worktree.is_tag, &mut worktree.commit) {
                        // The child is not trusted to say which commit it is.
                        let tagged = github.commit_of_tag(access.repository(), sha, access.token());
                        commit.sha = attempt.unless_stopped(tagged).await??.unwrap_or_else(|| sha.clone());
                    }
                    self.spent.add(&worktree);
                    return Ok(worktree);
                }
            }
        }
    }

    /// Mints a new token when this one was refused, or may expire before the work is done.
    async fn renew(&mut self, token: &mut InstallationToken, is_refused: bool) -> Result<(), End> {
        if is_refused || !token.outlives(self.integrations.source.timeout()) {
            let minted = mint(self.integrations, self.job, &token.repository, self.attempt);
            *token = self.attempt.unless_stopped(minted).await??;
        }
        Ok(())
    }

    /// Fills the submodules of a worktree of the token's repository, and nested ones.
    async fn fill_submodules(&mut self, worktree: &mut Worktree, token: &mut InstallationToken) -> Result<(), End> {
        let refused = |what: String| Err(Failure::new(Reason::SourceRefused, what).into());
        let mut n_filled = 0;
        let mut level = within(&token.repository, &mut worktree.submodules);
        for _ in 0..MAX_NESTING {
            n_filled += level.len();
            if n_filled > MAX_SUBMODULES {
                return refused(format!("the commit has more than {MAX_SUBMODULES} submodules"));
            }
            let mut next = Vec::new();
            for (parent, submodule) in level {
                let filled = self.fill(worktree, &parent, &submodule, token).await;
                let (repository, mut inner) = filled.map_err(|end| end.map(|failure| failure.of(&submodule.path)))?;
                inner.move_below(&submodule.path);
                worktree.lfs_pointers.append(&mut inner.lfs_pointers);
                next.append(&mut within(&repository, &mut inner.submodules));
            }
            level = next;
        }
        match level.first() {
            Some((_, submodule)) => {
                refused(format!("{}: submodules are nested more than {MAX_NESTING} levels deep", submodule.path))
            }
            None => Ok(()),
        }
    }

    async fn fill(
        &mut self,
        worktree: &Worktree,
        parent: &Repository,
        submodule: &Submodule,
        token: &mut InstallationToken,
    ) -> Result<(Repository, Worktree), End> {
        let repository = self.integrations.source.repository_of(submodule, parent)?;
        let destination = worktree.make_room(submodule)?;
        // Another owner's repository must not request tokens, and neither must a fork.
        let is_theirs =
            [parent, &repository].iter().all(|repository| repository.is_of_owner(&self.job.build.repository));
        let may_mint = is_theirs && self.job.build.trust != Trust::Fork;
        let mut access = self.access(repository, may_mint, token).await?;
        let inner = self.of_commit(&mut access, &submodule.sha, None, None, &destination).await?;
        Ok((access.repository().clone(), inner))
    }

    async fn access<'t>(
        &mut self,
        repository: Repository,
        may_mint: bool,
        token: &'t mut InstallationToken,
    ) -> Result<Access<'t>, End> {
        if may_mint {
            let minted = mint(self.integrations, self.job, &repository, self.attempt);
            match self.attempt.unless_stopped(minted).await? {
                // The App need not be installed on a public repository.
                Err(GithubError::NotFound { .. }) => {}
                minted => return Ok(Access::Token(minted?)),
            }
        }
        // Some hundred submodules may take longer than a token's lifetime.
        self.renew(token, false).await?;
        let asked = self.integrations.github.public_repository(&repository, token);
        let (repository, id) = self.attempt.unless_stopped(asked).await??;
        Ok(Access::Public { repository, id, token })
    }
}

/// Refuses a commit that is not on the job's branch or tag. GitHub stores a fork's commits with the repository's, so they can be
/// fetched from it, although nobody with write access to the branch has reviewed them.
async fn refuse_foreign(
    github: &App,
    sha: &Sha,
    git_ref: Option<&GitRef>,
    token: &InstallationToken,
) -> Result<(), End> {
    let Some(git_ref) = git_ref else { return Ok(()) };
    if github.is_on(sha, git_ref, token).await? {
        return Ok(());
    }
    let message = format!(
        "{sha} is not on {git_ref} of {}: it is only on a fork, or the branch was rewritten or removed",
        token.repository
    );
    Err(Failure::new(Reason::CommitNotFound, message).into())
}

/// The submodules, each with the repository that contains it.
fn within(repository: &Repository, submodules: &mut Vec<Submodule>) -> Vec<(Repository, Submodule)> {
    submodules.drain(..).map(|submodule| (repository.clone(), submodule)).collect()
}

impl Access<'_> {
    fn repository(&self) -> &Repository {
        match self {
            Self::Token(token) => &token.repository,
            Self::Public { repository, .. } => repository,
        }
    }

    /// GitHub's number of the repository.
    fn id(&self) -> u64 {
        match self {
            Self::Token(token) => token.repository_id,
            Self::Public { id, .. } => *id,
        }
    }

    /// The trust of the mirror. Any job may use a public repository as a submodule, at any commit, so it counts as a fork's.
    fn trust(&self, build: &Build) -> Trust {
        match self {
            Self::Token(_) => build.trust,
            Self::Public { .. } => Trust::Fork,
        }
    }

    /// The token for requests to GitHub.
    fn token(&self) -> &InstallationToken {
        match self {
            Self::Token(token) => token,
            Self::Public { token, .. } => token,
        }
    }

    /// The credential for the git host.
    fn credential(&self) -> Option<Secret> {
        match self {
            Self::Token(token) => Some(token.secret.clone()),
            Self::Public { .. } => None,
        }
    }
}

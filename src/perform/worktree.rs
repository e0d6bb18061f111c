//! A job's worktree: its commit, and those of its submodules, each by the right that the job has to it.

use super::{Attempt, Integrations};
use crate::beneath::Destination;
use crate::event::{Event, Phase};
use crate::github::{self, App, GithubError, InstallationToken};
use crate::job::{Build, BuildJob, GitRef, Repository, Sha, Trust};
use crate::reason::{End, Failure, Reason};
use crate::secret::Secret;
use crate::source::{MAX_SUBMODULES, Origin, Revision, Spent, Submodule, Worktree};
use crate::state::JobDirectory;

/// Submodules in submodules.
const MAX_NESTING: usize = 4;

/// By what right a repository is read.
enum Access<'a> {
    /// By a token for it alone.
    Token(InstallationToken),
    /// By everybody's; the token is another repository's, and only for asking GitHub.
    Public { repository: Repository, id: u64, token: &'a InstallationToken },
}

/// Asked for even when the mirror has everything: what lies on our disk is no authorization.
pub(super) async fn mint(
    integrations: &Integrations,
    job: &BuildJob,
    repository: &Repository,
    attempt: Attempt<'_>,
) -> Result<InstallationToken, GithubError> {
    let _phase = attempt.journal.begin(Phase::Token);
    integrations.github.installation_token(repository, job.installation_id).await
}

/// Makes the worktree of the job's commit. Each token is given back at its end, whatever that is.
pub(super) async fn check_out(
    integrations: &Integrations,
    job: &BuildJob,
    token: InstallationToken,
    directory: &JobDirectory,
    attempt: Attempt<'_>,
) -> Result<Worktree, End> {
    let place = directory.vacancy("tree", &job.build.repository.name)?;
    let mut checkout = Checkout { integrations, job, directory, attempt, spent: Spent::default() };
    let mut access = Access::Token(token);
    // A fork's commit is on none of this repository's branches, and is built as a stranger's.
    let is_checked = integrations.github.checks_refs() && job.build.trust != Trust::Fork;
    let git_ref = job.branch_or_tag.as_ref().filter(|_| is_checked);
    let mut worktree = checkout.of_commit(&mut access, &job.sha, git_ref, &place).await?;
    if let Access::Token(token) = &mut access
        && integrations.source.takes_submodules_of(&job.build.repository)
    {
        checkout.fill_submodules(&mut worktree, token).await?;
    } else {
        tell_of_submodules(&worktree, attempt);
    }
    Ok(worktree)
}

/// Says that submodules are empty: a step that needs their files does not.
pub fn tell_of_submodules(worktree: &Worktree, attempt: Attempt<'_>) {
    let Some(first) = worktree.submodules.first() else { return };
    let others = if worktree.submodules.len() > 1 { ", like others," } else { "" };
    attempt.journal.tell(Event::Notice(format!("{}{others} is a submodule, and is left empty", first.path)));
}

/// One job's way to its files.
struct Checkout<'a> {
    integrations: &'a Integrations,
    job: &'a BuildJob,
    directory: &'a JobDirectory,
    attempt: Attempt<'a>,
    /// By the commits that it has so far.
    spent: Spent,
}

impl Checkout<'_> {
    /// Makes the worktree of one commit, which has to be on the branch or tag, if there is one.
    async fn of_commit(
        &mut self,
        access: &mut Access<'_>,
        sha: &Sha,
        git_ref: Option<&GitRef>,
        place: &Destination,
    ) -> Result<Worktree, End> {
        let (source, github, attempt) = (&self.integrations.source, &self.integrations.github, self.attempt);
        let mut pauses = github::LAG.iter();
        loop {
            if let Access::Token(token) = access {
                // One that was refused twice may have been revoked.
                let is_refused = pauses.len() == 0;
                self.renew(token, is_refused).await?;
            }
            let origin = Origin {
                url: source.url(access.repository()),
                token: access.credential(),
                mirror: access.id().to_string(),
                trust: access.trust(&self.job.build),
                directory: self.directory,
                worktree: place,
                revision: Revision::Sha(sha.clone()),
                mtimes_key: source.mtimes_key(&self.job.build)?,
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
                    let worktree = result?;
                    belongs??;
                    self.spent.add(&worktree);
                    return Ok(worktree);
                }
            }
        }
    }

    /// Has a new token minted when this one is refused, or may end before the work does for which it is needed.
    async fn renew(&mut self, token: &mut InstallationToken, is_refused: bool) -> Result<(), End> {
        if is_refused || !token.outlives(self.integrations.source.timeout()) {
            let minted = mint(self.integrations, self.job, &token.repository, self.attempt);
            *token = self.attempt.unless_stopped(minted).await??;
        }
        Ok(())
    }

    /// Fills the submodules of a worktree of the token's repository, and theirs.
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
                refused(format!("{}: submodules are nested more than {MAX_NESTING} deep", submodule.path))
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
        let place = worktree.make_room(submodule)?;
        // What another owner's repository names is no wish of this one's, and a fork's author is a stranger.
        let is_theirs =
            [parent, &repository].iter().all(|repository| repository.is_of_owner(&self.job.build.repository));
        let may_mint = is_theirs && self.job.build.trust != Trust::Fork;
        let mut access = self.access(repository, may_mint, token).await?;
        let inner = self.of_commit(&mut access, &submodule.sha, None, &place).await?;
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
                // The App may not be on a repository that everybody sees.
                Err(GithubError::NotFound { .. }) => {}
                minted => return Ok(Access::Token(minted?)),
            }
        }
        // Some hundred of them may take longer than a token lasts.
        self.renew(token, false).await?;
        let asked = self.integrations.github.public_repository(&repository, token);
        let (repository, id) = self.attempt.unless_stopped(asked).await??;
        Ok(Access::Public { repository, id, token })
    }
}

/// What is on a fork only can be fetched from the repository as well: GitHub keeps the commits of both together. Nobody has
/// read it who may write to the branch for which it would be built.
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
        "{sha} is not on {git_ref} of {}: it may be on a fork only, or the branch has been rewritten or removed since",
        token.repository
    );
    Err(Failure::new(Reason::CommitNotFound, message).into())
}

/// Submodules, each with the repository that it is in.
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

    /// How far the mirror is trusted. Anybody's job may have a public repository as a submodule, at a commit of anybody's.
    fn trust(&self, build: &Build) -> Trust {
        match self {
            Self::Token(_) => build.trust,
            Self::Public { .. } => Trust::Fork,
        }
    }

    /// Who may ask GitHub about the repository.
    fn token(&self) -> &InstallationToken {
        match self {
            Self::Token(token) => token,
            Self::Public { token, .. } => token,
        }
    }

    /// What the git host is shown.
    fn credential(&self) -> Option<Secret> {
        match self {
            Self::Token(token) => Some(token.secret.clone()),
            Self::Public { .. } => None,
        }
    }
}

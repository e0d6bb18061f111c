//! The source child: reads the request, fetches, checks out, reports the result. Ordinary synchronous code.

use std::cell::Cell;
use std::ffi::OsString;
use std::io::Read;
use std::process::ExitCode;

use git2::{Index, Oid, Repository};

use super::budget::{self, Verdict};
use super::changes;
use super::checkout;
use super::effort;
use super::encoding;
use super::fetch::{self, Tag};
use super::git_dir;
use super::lfs;
use super::mirror::Mirror;
use super::mtimes;
use super::remote::Remote;
use super::request::{CheckoutLimits, CheckoutRequest, Failed, Fault, Message, say};
use super::{Revision, Size, submodules};
use crate::cache::Changes;
use crate::network::Proxy;
use crate::sandbox::Sandbox;

/// The first argument of our own binary when it starts as a source child.
pub const VERB: &str = "source-child";

/// The child's `main`. Arguments: the sandbox and the worker's process id.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut text = || arguments.next().and_then(|text| text.into_string().ok()).unwrap_or_default();
    let (sandbox, worker) = (text(), text());
    let last = match Sandbox::enter(&sandbox, &worker) {
        Err(error) => Err(Failed::worker(error)),
        Ok(_) => read_request().and_then(|request| acquire(&request).map_err(|failed| failed.without_paths(&request))),
    };
    let (message, code) = match last {
        Ok(done) => (done, ExitCode::SUCCESS),
        Err(failed) => (Message::Failed { fault: failed.fault, message: failed.message }, ExitCode::FAILURE),
    };
    say(&message);
    code
}

fn read_request() -> Result<CheckoutRequest, Failed> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(Failed::worker)?;
    serde_json::from_slice(&text).map_err(Failed::worker)
}

fn acquire(request: &CheckoutRequest) -> Result<Message, Failed> {
    configure_libgit2(request)?;
    effort::allow_fetch(request.limits, 0);
    let mirror = Mirror::lock(&request.mirror, &request.stage)?;
    let n_received = Cell::new(0);
    let on_progress = |n_bytes: u64| {
        let received_bytes = n_received.get() + n_bytes;
        n_received.set(received_bytes);
        effort::allow_fetch(request.limits, received_bytes);
        say(&Message::Progress { received_bytes });
    };
    let proxy = request.proxy.as_ref().map(|proxy| Proxy::new(&proxy.source, &proxy.url)).transpose();
    let proxy = proxy.map_err(|error| Failed::new(Fault::Client, error.to_string()))?;
    let remote = Remote {
        url: &request.url,
        token: request.token.as_deref(),
        certificates: &request.certificates,
        proxy: proxy.as_ref(),
        limits: request.limits,
        on_progress: &on_progress,
    };
    let id = match &request.revision {
        Revision::Sha(sha) => Oid::from_str(sha.as_str()).map_err(Failed::worker)?,
        Revision::Name(name) => fetch::resolve(&remote, name)?,
    };
    let (mut mirror, commit, size) = complete(mirror, &remote, id, request.limits)?;
    let tags = match &request.git_dir {
        Some(wanted) => mirror.tags(&remote, commit, wanted.tag.as_deref())?,
        None => Vec::new(),
    };
    let reading = mirror.read()?;
    say(&Message::Fetched);
    let (index, size) = match write(request, &reading.repository, commit, &tags, size) {
        Ok(written) => written,
        Err(failed) => {
            drop(reading);
            if failed.fault == Fault::Damaged {
                // The walk reads only sizes. The next attempt finds an empty mirror.
                Mirror::lock(&request.mirror, &request.stage)?.renew()?;
            }
            return Err(failed);
        }
    };
    let committed_at_s = reading.repository.find_commit(commit).map_err(Failed::worker)?.time().seconds();
    Ok(Message::Done {
        sha: commit.to_string(),
        size,
        lfs_pointers: lfs::pointers(&reading.repository, &index)?,
        submodules: submodules::list(&index, &request.worktree()),
        links: changes::links(&index),
        changes: changed(request, &reading.repository, commit),
        encoded: encoding::ignored(&reading.repository, &index)?,
        committed_at_s,
    })
}

/// Writes the worktree. Returns the index of its files, and the size of all of it.
fn write(
    request: &CheckoutRequest,
    repository: &Repository,
    commit: Oid,
    tags: &[Tag],
    size: Size,
) -> Result<(Index, Size), Failed> {
    effort::allow_checkout(request.limits, size);
    let worktree = request.worktree();
    let index = checkout::write(repository, commit, &worktree)?;
    if let Some(key) = &request.mtimes_key {
        mtimes::set(&worktree, &index, key)?;
    }
    let Some(wanted) = &request.git_dir else { return Ok((index, size)) };
    effort::allow_checkout(request.limits, size);
    let (files, sizes) = ((&index, &*worktree), (size, request.limits));
    let size = git_dir::write(repository, commit, wanted.branch.as_deref(), tags, files, sizes)?;
    Ok((index, size))
}

/// How the worktree differs from those of older commits.
fn changed(request: &CheckoutRequest, repository: &Repository, commit: Oid) -> Vec<Changes> {
    let since = request.since.iter().filter_map(|sha| changes::since(repository, sha, commit));
    match request.git_dir {
        Some(_) => since.map(|found| changes::with_git_dir(found, commit)).collect(),
        None => since.collect(),
    }
}

/// Ensures that the commit with this id, or of the annotated tag with this id, and its whole tree are in the mirror. Uses no network
/// when they already are. Returns the commit.
///
/// A mirror is a cache: it is emptied and filled again, once, when it is damaged or incomplete after a fetch, or has too many packs.
fn complete(
    mut mirror: Mirror,
    remote: &Remote<'_>,
    id: Oid,
    limits: CheckoutLimits,
) -> Result<(Mirror, Oid, Size), Failed> {
    match fill(&mut mirror, remote, id, limits) {
        Ok(Some((commit, size))) => return Ok((mirror, commit, size)),
        Ok(None) | Err(Failed { fault: Fault::Damaged | Fault::Worker, .. }) => {}
        Err(failed) => return Err(failed),
    }
    let mut mirror = mirror.renew()?;
    mirror.fetch(remote, id)?;
    match whole(&mirror, id, limits) {
        Ok(Some((commit, size))) => Ok((mirror, commit, size)),
        Ok(None) => Err(Failed::new(Fault::Unavailable, "the remote did not send the whole commit")),
        // It was hashed on arrival, just now: so the remote's own object is invalid.
        Err(Failed { fault: Fault::Damaged, message }) => Err(Failed::new(Fault::Refused, message)),
        Err(failed) => Err(failed),
    }
}

fn fill(
    mirror: &mut Mirror,
    remote: &Remote<'_>,
    id: Oid,
    limits: CheckoutLimits,
) -> Result<Option<(Oid, Size)>, Failed> {
    if let Some(found) = whole(mirror, id, limits)? {
        return Ok(Some(found));
    }
    if mirror.is_worn() {
        return Ok(None);
    }
    mirror.fetch(remote, id)?;
    whole(mirror, id, limits)
}

/// The commit, if it is in the mirror with its whole tree.
fn whole(mirror: &Mirror, id: Oid, limits: CheckoutLimits) -> Result<Option<(Oid, Size)>, Failed> {
    let Some(commit) = mirror.peeled(id)? else { return Ok(None) };
    Ok(match budget::walk(&mirror.repository, commit, limits)? {
        Verdict::Complete(size) => Some((commit, size)),
        Verdict::Missing => None,
    })
}

/// Process-wide settings of libgit2: none of the machine's configuration.
#[expect(
    unsafe_code,
    reason = "libgit2's options are global; this process has one thread and has not used libgit2 yet"
)]
fn configure_libgit2(request: &CheckoutRequest) -> Result<(), Failed> {
    use git2::{ConfigLevel, opts};
    let configured = (|| {
        // SAFETY: no other thread exists that could use libgit2 meanwhile.
        unsafe {
            for level in [ConfigLevel::ProgramData, ConfigLevel::System, ConfigLevel::XDG, ConfigLevel::Global] {
                opts::set_search_path(level, "")?;
            }
            // git does not hash objects that it reads. Fetched objects are hashed on arrival.
            opts::strict_hash_verification(request.is_verified);
        }
        Ok::<_, git2::Error>(())
    })();
    configured.map_err(Failed::worker)
}

#[cfg(test)]
mod tests {
    use world::GitHost;

    use super::super::mirror::MAX_PACKS;
    use super::*;
    use crate::settings::Source;

    #[test]
    fn a_mirror_of_many_packs_is_emptied_by_the_next_fetch_and_by_nothing_else() {
        let host = GitHost::open();
        let repository = host.repository("acme/busy");
        let [first, second, third] = ["1", "2", "3"].map(|text| repository.commit(&[("file", text)]));
        let [directory, stage] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
        let url = format!("{}/acme/busy.git", host.url());
        let ask = |sha: &str| {
            let limits = CheckoutLimits::from(&Source::default());
            let remote =
                Remote { url: &url, token: None, certificates: &[], proxy: None, limits, on_progress: &|_| () };
            let mirror = Mirror::lock(directory.path(), stage.path()).expect("locked");
            let (mirror, _, _) =
                complete(mirror, &remote, Oid::from_str(sha).expect("a sha"), limits).expect("complete");
            let n_commits = std::fs::read_to_string(directory.path().join("commits")).expect("read").lines().count();
            (mirror.n_packs(), n_commits, host.n_fetches())
        };
        assert_eq!(ask(&first), (1, 1, 1));
        // Hundreds of fetches take a minute. libgit2 passes over a pack without an index.
        let packs = directory.path().join("pack");
        for n in 2..MAX_PACKS {
            std::fs::write(packs.join(format!("pack-{n}.pack")), "").expect("written");
        }
        assert_eq!(ask(&second), (MAX_PACKS, 2, 2), "a fetch adds one pack and one commit, with one request");
        assert_eq!(ask(&first), (MAX_PACKS, 2, 2), "what is there needs no fetch");
        assert_eq!(ask(&third), (1, 1, 3), "emptied, and filled by one fetch");
        assert_eq!(ask(&first), (2, 2, 4));
    }
}

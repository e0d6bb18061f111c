//! Fetches exactly one commit. The only file that speaks git's protocol, through libgit2.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use git2::{
    AutotagOption, Cred, Direction, ErrorClass, ErrorCode, FetchOptions, Oid, RemoteCallbacks, RemoteRedirect,
    Repository,
};

use super::request::{CheckoutLimits, Failed, Fault};

/// The shortest time between two progress messages.
const PROGRESS: Duration = Duration::from_millis(200);

/// The kernel's errors for a full disk.
const DISK_FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// How libgit2's errors for a refused token, or one without access, end.
const DENIED: [&str; 3] = ["http status code: 401", "http status code: 403", "http status code: 404"];

/// Where to fetch from.
pub(super) struct Remote<'a> {
    pub(super) url: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) limits: CheckoutLimits,
    /// Receives the number of bytes so far, now and then.
    pub(super) on_progress: &'a dyn Fn(u64),
}

/// Fetches `commit` with its tree and files, without its history.
pub(super) fn fetch(repository: &Repository, remote: &Remote<'_>, commit: Oid) -> Result<(), Failed> {
    let is_over_limit = Cell::new(false);
    let mut callbacks = credentials(remote);
    let told = RefCell::new(Instant::now());
    callbacks.transfer_progress(|progress| {
        let received_bytes = progress.received_bytes() as u64;
        is_over_limit.set(received_bytes > remote.limits.max_fetch_bytes);
        if told.borrow().elapsed() > PROGRESS {
            told.replace(Instant::now());
            (remote.on_progress)(received_bytes);
        }
        !is_over_limit.get()
    });
    let authorization = remote.token.map(authorization);
    let headers: Vec<&str> = authorization.iter().map(String::as_str).collect();
    let mut options = FetchOptions::new();
    options
        .remote_callbacks(callbacks)
        .custom_headers(&headers)
        .depth(1)
        .download_tags(AutotagOption::None)
        .update_fetchhead(false)
        // By default libgit2 would send the token to any host that a redirect names.
        .follow_redirects(RemoteRedirect::None);
    // Anonymous: neither URL nor token is written to the configuration.
    let mut anonymous = repository.remote_anonymous(remote.url).map_err(Failed::worker)?;
    let refspec = format!("+{commit}:refs/jobs/{commit}");
    let fetched = anonymous.fetch(&[&refspec], Some(&mut options), None);
    drop(options);
    fetched.map_err(|error| {
        if is_over_limit.get() {
            let limit = remote.limits.max_fetch_bytes;
            return Failed::new(Fault::Refused, format!("the commit is larger than {limit} bytes"));
        }
        classify(&error)
    })
}

/// The commit of the remote's branch, tag or `HEAD` of this name.
pub(super) fn resolve(repository: &Repository, remote: &Remote<'_>, name: &str) -> Result<Oid, Failed> {
    let mut anonymous = repository.remote_anonymous(remote.url).map_err(Failed::worker)?;
    let connection =
        anonymous.connect_auth(Direction::Fetch, Some(credentials(remote)), None).map_err(|error| classify(&error))?;
    let heads = connection.list().map_err(|error| classify(&error))?;
    let candidates =
        [name.to_owned(), format!("refs/heads/{name}"), format!("refs/tags/{name}^{{}}"), format!("refs/tags/{name}")];
    let found = candidates.iter().find_map(|candidate| heads.iter().find(|head| head.name() == candidate.as_str()));
    found
        .map(git2::RemoteHead::oid)
        .ok_or_else(|| Failed::new(Fault::CommitNotFound, format!("no branch or tag {name:?}")))
}

/// Sends the token with the first request. Otherwise libgit2 would send one without it, be refused, and send it again.
fn authorization(token: &str) -> String {
    format!("Authorization: Basic {}", BASE64.encode(format!("x-access-token:{token}")))
}

fn credentials<'a>(remote: &Remote<'a>) -> RemoteCallbacks<'a> {
    let token = remote.token;
    let is_asked_again = Cell::new(false);
    let mut callbacks = RemoteCallbacks::new();
    callbacks.credentials(move |_, _, _| match token {
        // libgit2 asks again and again while the answer is refused.
        Some(token) if !is_asked_again.replace(true) => Cred::userpass_plaintext("x-access-token", token),
        Some(_) => Err(git2::Error::new(ErrorCode::Auth, ErrorClass::Http, "the token was refused")),
        None => Err(git2::Error::new(ErrorCode::Auth, ErrorClass::Http, "the repository requires credentials")),
    });
    callbacks
}

/// The kind of a libgit2 error. Its codes are coarse, so its messages decide: their texts are libgit2's and the kernel's.
fn classify(error: &git2::Error) -> Failed {
    let fault = match (error.class(), error.message()) {
        // Network errors have the same class.
        (ErrorClass::Os, message) if DISK_FULL.iter().any(|words| message.contains(words)) => Fault::Full,
        // libgit2's form of the remote's "not our ref" for a shallow fetch.
        (_, message) if message.contains("unexpected packet type") || message.contains("not our ref") => Fault::Unclear,
        (ErrorClass::Filesystem, _) => Fault::Worker,
        (ErrorClass::NoMemory, _) => Fault::Refused,
        _ if error.code() == ErrorCode::Auth => Fault::Denied,
        (_, message) if DENIED.iter().any(|words| message.ends_with(words)) => Fault::Denied,
        (ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssl | ErrorClass::Os | ErrorClass::Ssh, _) => {
            Fault::Unavailable
        }
        // Not the network: something in the mirror, such as an invalid list of shallow commits.
        _ => Fault::Damaged,
    };
    Failed::new(fault, error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_taken_for_the_network() {
        let fault = |message| classify(&git2::Error::new(ErrorCode::GenericError, ErrorClass::Os, message)).fault;
        assert_eq!(fault("cannot extend packfile '/x': No space left on device"), Fault::Full);
        assert_eq!(fault("failed to connect to github.com: Connection refused"), Fault::Unavailable);
    }
}

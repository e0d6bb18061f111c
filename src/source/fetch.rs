//! Fetching exactly one commit. The one file that speaks git's protocol, through libgit2.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use git2::{
    AutotagOption, Cred, Direction, ErrorClass, ErrorCode, FetchOptions, Oid, RemoteCallbacks, RemoteRedirect,
    RemoteUpdateFlags, Repository,
};

use super::mirror::Mirror;
use super::request::{Failed, Fault, Limits, Message, say};

/// Progress is told at most this often.
const PROGRESS: Duration = Duration::from_millis(200);

/// What the kernel says of a disk that takes no more.
const DISK_FULL: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// How libgit2 says the statuses of a token that is not taken, or that shows nothing.
const DENIED: [&str; 3] = ["http status code: 401", "http status code: 403", "http status code: 404"];

/// Where to fetch from.
pub(super) struct Remote<'a> {
    pub(super) url: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) limits: Limits,
}

/// Fetches `commit`, its tree and its files, and nothing of its history. The mirror gets them when all are there.
pub(super) fn fetch(mirror: &Mirror, remote: &Remote<'_>, commit: Oid) -> Result<(), Failed> {
    // Anonymous: neither URL nor token is written to the mirror's configuration.
    let mut anonymous = mirror.repository.remote_anonymous(remote.url).map_err(Failed::worker)?;
    let quarantine = mirror.quarantine()?;
    download(&mut anonymous, remote, commit)?;
    quarantine.release()?;
    let tips = anonymous.update_tips(None, RemoteUpdateFlags::empty(), AutotagOption::None, None);
    tips.map_err(|error| classify(&error))
}

fn download(anonymous: &mut git2::Remote<'_>, remote: &Remote<'_>, commit: Oid) -> Result<(), Failed> {
    let is_over_limit = Cell::new(false);
    let mut callbacks = credentials(remote);
    let told = RefCell::new(Instant::now());
    callbacks.transfer_progress(|progress| {
        let received_bytes = progress.received_bytes() as u64;
        is_over_limit.set(received_bytes > remote.limits.max_fetch_bytes);
        if told.borrow().elapsed() > PROGRESS {
            told.replace(Instant::now());
            say(&Message::Progress { received_bytes });
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
        // By default libgit2 would send the token to whatever host a redirect names.
        .follow_redirects(RemoteRedirect::None);
    let refspec = format!("+{commit}:refs/jobs/{commit}");
    let fetched = anonymous.download(&[&refspec], Some(&mut options));
    drop(options);
    fetched.and_then(|()| anonymous.disconnect()).map_err(|error| {
        if is_over_limit.get() {
            let limit = remote.limits.max_fetch_bytes;
            return Failed::new(Fault::Refused, format!("the commit is larger than {limit} bytes"));
        }
        classify(&error)
    })
}

/// What the remote's branch, tag or `HEAD` of this name points to.
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
        .ok_or_else(|| Failed::new(Fault::CommitNotFound, format!("there is no branch or tag {name:?}")))
}

/// With the token in the first request, the remote has nothing to ask: libgit2 would first send one without, be refused,
/// and send it again.
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
        None => Err(git2::Error::new(ErrorCode::Auth, ErrorClass::Http, "the repository asks for credentials")),
    });
    callbacks
}

/// libgit2's codes are coarse: the words of its messages are what is left.
fn classify(error: &git2::Error) -> Failed {
    let fault = match (error.class(), error.message()) {
        // The same class has what the network does.
        (ErrorClass::Os, message) if DISK_FULL.iter().any(|words| message.contains(words)) => Fault::Full,
        // What remains of the remote's "not our ref" when a depth was asked for.
        (_, message) if message.contains("unexpected packet type") || message.contains("not our ref") => Fault::Unclear,
        (ErrorClass::Filesystem, _) => Fault::Worker,
        _ if error.code() == ErrorCode::Auth => Fault::Denied,
        (_, message) if DENIED.iter().any(|words| message.ends_with(words)) => Fault::Denied,
        (ErrorClass::Net | ErrorClass::Http | ErrorClass::Ssl | ErrorClass::Os | ErrorClass::Ssh, _) => {
            Fault::Unavailable
        }
        // Not the network: something of the mirror's, such as a list of shallow commits that makes no sense.
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

//! The archived log of each attempt: its whole log, as text and as JSON lines, in a bucket or a directory.
//!
//! A [`LogArchive`] listens to the journal of one attempt and writes two compressed files. They are uploaded at the end of the attempt.
//! An archive that is slow, refuses or is away never fails a build, and delays its end by at most `journal.archive_timeout`.
//! The format is gzip: browsers, `zcat` and Ruby read it without another program, and it takes a fraction of the memory of zstd.

mod excerpt;
mod object_key;
mod spool;
mod store;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::bounds;
use crate::event::Event;
use crate::journal::Listener;
use crate::settings::Settings;
use crate::state::{StateDirectory, StateError};

use object_key::ObjectKey;
use spool::{Closed, Spool};
use store::Store;

pub use store::probe;

/// Why a log is not archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The settings do not name an archive.
    #[error("{0}")]
    Settings(String),
    /// The log could not be written to the state directory.
    #[error("failed to write the log to the state directory: {0}")]
    Spool(#[from] io::Error),
    /// The state directory has no room for the log.
    #[error("failed to use the state directory: {0}")]
    State(#[from] StateError),
    /// The archive did not take the log in time.
    #[error("the archive did not take the log within {0:?}")]
    TimedOut(Duration),
    /// The worker stops or has lost the job.
    #[error("the worker had no time to upload the log")]
    GivenUp,
    /// The archive refused a request, failed or cannot be reached.
    #[error("{0}")]
    Store(#[source] store::StoreError),
}

impl ArchiveError {
    /// The same for a customer, without what it reveals of the platform.
    pub fn notice(&self) -> String {
        let why = match self {
            Self::TimedOut(_) | Self::GivenUp => "the archive did not take it in time",
            Self::Store(error) if error.is_refusal() => "the archive refused it",
            Self::Store(_) => "the archive is not available",
            Self::Spool(_) | Self::State(_) => "the worker could not write it to its disk",
            Self::Settings(_) => "the archive is not configured correctly",
        };
        format!("the log of this build is not archived: {why}")
    }
}

/// The archived logs of all builds of a worker.
#[derive(Debug)]
pub struct LogArchives(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    store: Store,
    timeout: Duration,
    max_bytes: usize,
    uploads: Semaphore,
}

/// Names one run of a job.
#[derive(Clone, Debug)]
pub struct RunOf {
    /// The job.
    pub jid: String,
    /// From 1.
    pub attempt: u32,
    /// How often this attempt was interrupted or recovered before.
    pub n_earlier_runs: u32,
}

/// The archived log of one attempt.
#[derive(Debug)]
pub struct LogArchive {
    shared: Arc<Shared>,
    state_directory: Arc<StateDirectory>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    key: ObjectKey,
    log: Writing,
}

#[derive(Debug)]
enum Writing {
    /// Nothing was written yet.
    Empty,
    Open(Box<Spool>),
    Failed(ArchiveError),
    /// It was taken for the upload.
    Closed,
}

impl LogArchives {
    /// Makes a client for `journal.archive`. Without that setting, it archives nothing. It connects with the first upload.
    ///
    /// # Errors
    ///
    /// `Settings` when an option is unknown or the client cannot be made.
    pub fn new(settings: &Settings) -> Result<Self, ArchiveError> {
        let journal = &settings.journal;
        let Some(url) = &journal.archive else { return Ok(Self(None)) };
        Ok(Self(Some(Arc::new(Shared {
            store: Store::new(url, journal, settings.ca_file())?,
            timeout: journal.archive_timeout,
            max_bytes: journal.archive_bytes,
            uploads: Semaphore::new(bounds::ARCHIVE_UPLOADS),
        }))))
    }

    /// The listener of a new attempt.
    pub fn begin(&self, run: RunOf, state_directory: &Arc<StateDirectory>) -> Option<Arc<LogArchive>> {
        let shared = Arc::clone(self.0.as_ref()?);
        let state = Mutex::new(State { key: ObjectKey::new(run), log: Writing::Empty });
        Some(Arc::new(LogArchive { shared, state_directory: Arc::clone(state_directory), state }))
    }
}

impl LogArchive {
    /// Ends the log with `ended` and uploads it. Returns its URL; `None` for a job that did nothing.
    ///
    /// # Errors
    ///
    /// `TimedOut` and `GivenUp` drop a running upload. Objects appear whole or not at all.
    pub async fn finish(
        &self,
        ended: &Event,
        given_up: impl Future<Output = ()>,
    ) -> Result<Option<String>, ArchiveError> {
        if matches!(self.state().log, Writing::Empty) {
            return Ok(None);
        }
        self.on_event(ended);
        let (key, log) = {
            let mut state = self.state();
            (state.key.to_string(), std::mem::replace(&mut state.log, Writing::Closed))
        };
        let closed = match log {
            Writing::Open(spool) => spool.close()?,
            Writing::Failed(error) => return Err(error),
            Writing::Empty | Writing::Closed => return Ok(None),
        };
        let uploaded = timeout(self.shared.timeout, self.shared.upload(&closed, &key));
        tokio::pin!(given_up);
        // An upload that is dropped leaves no object.
        let result = tokio::select! {
            biased;
            () = &mut given_up => Err(ArchiveError::GivenUp),
            uploaded = uploaded => uploaded.unwrap_or(Err(ArchiveError::TimedOut(self.shared.timeout))),
        };
        closed.remove().await;
        result.map(Some)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for LogArchive {
    fn on_event(&self, event: &Event) {
        let mut state = self.state();
        match event {
            Event::BuildId(Some(Value::String(id))) => state.key.name_build(id),
            Event::BuildId(Some(id)) => state.key.name_build(&id.to_string()),
            Event::Commit { account, repository, .. } => state.key.name_repository(account, repository),
            _ => {}
        }
        if matches!(state.log, Writing::Empty) && spool::is_logged(event) {
            let opened = self.state_directory.job_directory().map_err(ArchiveError::from);
            let opened = opened.and_then(|directory| Ok(Spool::open(directory, self.shared.max_bytes)?));
            state.log = opened.map_or_else(Writing::Failed, |spool| Writing::Open(Box::new(spool)));
        }
        // A file in the page cache: it takes no longer than to hand the event to another task.
        if let Writing::Open(spool) = &mut state.log
            && let Err(error) = spool.take_in(event)
        {
            state.log = Writing::Failed(error.into());
        }
    }
}

impl Shared {
    /// Uploads both files. The text comes last: who knows its URL finds both.
    async fn upload(&self, log: &Closed, key: &str) -> Result<String, ArchiveError> {
        // Each upload holds parts of its file in memory.
        let _permit = self.uploads.acquire().await.expect("the semaphore is never closed");
        self.store.put(&format!("{key}.jsonl.gz"), log.records(), "application/x-ndjson").await?;
        self.store.put(&format!("{key}.log.gz"), log.text(), "text/plain; charset=utf-8").await
    }
}

//! Why a build is stopped: one value, set once by the code that stops it.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

use crate::reason::Cause;

/// Stops one build. Each part of the build listens to the token; the processor reads the cause.
#[derive(Clone, Debug)]
pub struct Stop {
    token: CancellationToken,
    cause: Arc<OnceLock<Cause>>,
}

impl Stop {
    /// For a build that also stops when `shutdown` is cancelled.
    pub fn with(shutdown: &CancellationToken) -> Self {
        Self { token: shutdown.child_token(), cause: Arc::default() }
    }

    /// Stops the build. The first cause counts.
    pub fn because(&self, cause: Cause) {
        // Set before the token is cancelled, so that every listener finds the cause.
        self.note(cause);
        self.token.cancel();
    }

    /// Notes the cause of a stop whose last part the caller stops by itself: the rest of the build may clean up in peace.
    pub fn note(&self, cause: Cause) {
        let _ = self.cause.set(if self.token.is_cancelled() { Cause::Shutdown } else { cause });
    }

    /// Cancelled when the build is to end.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Why the build was stopped; `None` while it may go on.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.get().copied().or_else(|| self.token.is_cancelled().then_some(Cause::Shutdown))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_cause_counts_and_a_shutdown_is_one() {
        let shutdown = CancellationToken::new();
        let [stop, other] = [Stop::with(&shutdown), Stop::with(&shutdown)];
        assert_eq!(stop.cause(), None);
        stop.because(Cause::Cancelled);
        stop.because(Cause::Reclaimed);
        assert!(stop.token().is_cancelled() && !other.token().is_cancelled());
        let late = Stop::with(&shutdown);
        late.note(Cause::TimedOut { limit: Duration::ZERO });
        late.because(Cause::Cancelled);
        assert_eq!(late.cause(), Some(Cause::TimedOut { limit: Duration::ZERO }));
        shutdown.cancel();
        other.because(Cause::Cancelled);
        assert_eq!([stop.cause(), other.cause()], [Some(Cause::Cancelled), Some(Cause::Shutdown)]);
    }
}

//! Admits source children: as many at once as configured, and one at a time per mirror until it has fetched.
//!
//! A child that waits for another's lock on the mirror wastes a slot. So jobs of the same mirror wait here and leave the slots to
//! other repositories. The mirror's own lock is for other processes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Turns, OwnedMutexGuard, Semaphore, SemaphorePermit};

/// Shared by all jobs of a process.
#[derive(Debug)]
pub(super) struct Gate {
    slots: Semaphore,
    turns: Mutex<HashMap<PathBuf, Weak<Turns<()>>>>,
}

/// What a child holds.
#[derive(Debug)]
pub(super) struct Admission<'a> {
    /// Dropped when the child has fetched: then the next one may fetch while this one writes its files.
    pub(super) turn: Option<OwnedMutexGuard<()>>,
    _slot: SemaphorePermit<'a>,
}

impl Gate {
    pub(super) fn new(n_slots: usize) -> Self {
        Self { slots: Semaphore::new(n_slots), turns: Mutex::default() }
    }

    /// Waits, first come, first served. Dropping the future only gives up its turn.
    pub(super) async fn enter(&self, mirror: &Path) -> Admission<'_> {
        let turn = self.turns_of(mirror).lock_owned().await;
        let slot = self.slots.acquire().await.expect("the semaphore is never closed");
        Admission { turn: Some(turn), _slot: slot }
    }

    fn turns_of(&self, mirror: &Path) -> Arc<Turns<()>> {
        let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, turns| turns.strong_count() > 0);
        let known = all.get(mirror).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let turns = Arc::new(Turns::new(()));
            all.insert(mirror.to_owned(), Arc::downgrade(&turns));
            turns
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_job_that_waits_for_a_mirror_takes_no_slot_from_others() {
        let gate = Gate::new(2);
        let (mirror, other) = (Path::new("a"), Path::new("b"));
        let mut first = poll(pin!(gate.enter(mirror))).expect("a slot is free");
        let mut second = pin!(gate.enter(mirror));
        assert!(poll(second.as_mut()).is_none(), "the mirror is taken");
        let third = poll(pin!(gate.enter(other))).expect("the second slot is free");

        first.turn = None;
        assert!(poll(second.as_mut()).is_none(), "it may fetch now, and there is no slot");
        drop(third);
        assert!(poll(second.as_mut()).is_some());
        drop(first);
        assert_eq!(gate.turns.lock().expect("unpoisoned").len(), 2);
        drop(poll(pin!(gate.enter(Path::new("c")))).expect("a slot is free"));
        assert!(
            !gate.turns.lock().expect("unpoisoned").contains_key(other),
            "a mirror without waiting jobs is forgotten"
        );
    }
}

//! Detects when this machine stalled. Other users of a shared machine can stop every process here for seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

const TICK: Duration = Duration::from_millis(50);
/// A tick with a longer delay is a stall.
const LATE: Duration = Duration::from_millis(250);

/// A thread that only sleeps, and records when it wakes late.
pub struct Stalls {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<(SystemTime, SystemTime)>>,
}

impl Stalls {
    pub fn watch() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let (mut stalls, mut last) = (Vec::new(), SystemTime::now());
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                let now = SystemTime::now();
                if now.duration_since(last).is_ok_and(|slept| slept > LATE) {
                    stalls.push((last, now));
                }
                last = now;
            }
            stalls
        });
        Self { is_over, thread }
    }

    /// Each stall, with start and end.
    pub fn end(self) -> Vec<(SystemTime, SystemTime)> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

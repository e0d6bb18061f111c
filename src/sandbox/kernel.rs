//! Which walls of the sandbox the running kernel has.
//!
//! seccomp, capabilities and limits hold on every kernel that sidebake runs on. Landlock's rules were added one by one. Where it has
//! none for ports, a broker takes their place, unless a trial shows that this machine refuses what a broker needs.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr};

use super::trial::{self, Refusal};
use crate::settings::{self, SandboxMode};

/// How long the outcome of a trial counts that failed for a moment's reason.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A wall that some kernels lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wall {
    /// Which files a child reads, writes and executes: Landlock ABI 1.
    Files,
    /// To which TCP ports a child connects: Landlock ABI 4.
    Ports,
}

impl Wall {
    const ALL: [Self; 2] = [Self::Files, Self::Ports];

    /// Its name in a log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Ports => "TCP ports",
        }
    }

    /// What is missing without it, and what follows.
    pub fn lack(self) -> String {
        match self {
            Self::Files => "the kernel cannot restrict which files a child uses (Landlock, Linux 5.13): a hostile definition can read \
                            and write the worker's files"
                .into(),
            Self::Ports => {
                let refusal = tried().and_then(Result::err);
                let why = refusal.map(|refusal| format!(", and a broker does not work here ({})", refusal.why));
                let why = why.unwrap_or_default();
                format!(
                    "the kernel cannot restrict TCP ports (Landlock ABI 4, Linux 6.7){why}: a child that an attacker controls can \
                     connect to everything that the NetworkPolicy lets the worker reach"
                )
            }
        }
    }

    /// The setting that lets a worker start without it.
    pub fn waiver(self) -> &'static str {
        match self {
            Self::Files => "sandbox.mode = \"best effort\"",
            Self::Ports => "sandbox.require_ports = false",
        }
    }

    /// Whether a worker with a sandbox may not start without it.
    pub fn is_required(self, settings: &settings::Sandbox) -> bool {
        match self {
            Self::Files => settings.mode == SandboxMode::Required,
            Self::Ports => settings.require_ports,
        }
    }

    fn is_missing(self) -> bool {
        !(self.is_in_landlock() || self == Self::Ports && has_broker())
    }

    fn is_in_landlock(self) -> bool {
        let required = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let handled = match self {
            Self::Files => required.handle_access(AccessFs::from_all(ABI::V1)),
            Self::Ports => required.handle_access(AccessNet::from_all(ABI::V4)),
        };
        handled.and_then(Ruleset::create).is_ok()
    }
}

/// Whether brokers restrict TCP ports here. Tried where Landlock cannot.
pub fn has_broker() -> bool {
    tried().is_some_and(|outcome| outcome.is_ok())
}

/// How the trial of a broker ended; `None` where Landlock has rules for ports.
///
/// Tried once, and again after a minute when it failed for a moment's reason.
fn tried() -> Option<Result<(), Refusal>> {
    static TRIED: Mutex<Option<Tried>> = Mutex::new(None);
    let mut tried = TRIED.lock().unwrap_or_else(PoisonError::into_inner);
    if tried.as_ref().is_none_or(|tried| tried.is_over(Instant::now())) {
        let outcome = (!Wall::Ports.is_in_landlock()).then(trial::run);
        *tried = Some(Tried { outcome, at: Instant::now() });
    }
    tried.as_ref().and_then(|tried| tried.outcome.clone())
}

/// A trial of a broker, if this kernel needs one, and when it was.
struct Tried {
    outcome: Option<Result<(), Refusal>>,
    at: Instant,
}

impl Tried {
    /// Whether it no longer counts. A success and a definite refusal always count.
    fn is_over(&self, now: Instant) -> bool {
        let is_transient = matches!(&self.outcome, Some(Err(refusal)) if refusal.is_transient);
        is_transient && now.saturating_duration_since(self.at) >= TRY_AGAIN_AFTER
    }
}

/// The walls that are missing here.
pub fn missing_walls() -> Vec<Wall> {
    Wall::ALL.into_iter().filter(|wall| wall.is_missing()).collect()
}

/// What this kernel enforces, in words, with its version of Landlock.
pub fn enforced() -> String {
    // The kernel reports it to a thread that restricts itself. This thread ends with it.
    let restrict = || {
        let ruleset = Ruleset::default().handle_access(AccessFs::from_all(ABI::V1))?.create()?;
        Ok::<_, landlock::RulesetError>(ruleset.restrict_self()?.landlock)
    };
    let status = std::thread::spawn(restrict).join().ok().and_then(Result::ok);
    let Some(LandlockStatus::Available { effective_abi, kernel_abi }) = status else {
        return "seccomp and limits; no Landlock".into();
    };
    let version = kernel_abi.unwrap_or(effective_abi as i32);
    let parts = [(1, "files"), (4, "TCP ports"), (5, "device commands"), (6, "abstract Unix sockets")];
    let (has, lacks): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(since, _)| *since <= version);
    let words =
        |parts: Vec<(i32, &'static str)>| parts.into_iter().map(|(_, what)| what).collect::<Vec<_>>().join(", ");
    let but = if lacks.is_empty() { String::new() } else { format!(", but not {}", words(lacks)) };
    let broker = if has_broker() { "; a broker restricts TCP ports" } else { "" };
    format!("Landlock ABI {version} ({}{but}), seccomp, capabilities, limits{broker}", words(has))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_transient_failure_is_forgotten() {
        let at = Instant::now();
        let refused = |is_transient| Some(Err(Refusal { why: "a reason".into(), is_transient }));
        for (outcome, is_over) in [(None, false), (Some(Ok(())), false), (refused(false), false), (refused(true), true)]
        {
            let tried = Tried { outcome, at };
            assert!(!tried.is_over(at));
            assert_eq!(tried.is_over(at + TRY_AGAIN_AFTER), is_over);
        }
    }
}

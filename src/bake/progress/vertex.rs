//! The state of one vertex: a step, or one of BuildKit's chores.

use std::sync::Arc;

use jiff::Timestamp;

use super::stream::VertexReport;
use crate::bake::shown::Said;

/// How an error ends that another vertex's failure caused.
const CANCELED: &str = "context canceled";

/// A step or chore.
#[derive(Debug)]
pub(in crate::bake) struct Vertex {
    /// The name without the target, such as `[2/3] RUN make`.
    pub(in crate::bake) name: Arc<str>,
    /// The targets for which it was reported, by number, in order. For shared steps this is a guess.
    pub(super) targets: Vec<u16>,
    pub(super) started: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
    /// Whether any report of its completion says that it was not cached.
    pub(super) has_run: bool,
    is_cached: bool,
    error: Failing,
    pub(super) context_bytes: u64,
    /// Pushed tags, with the digests of their manifests.
    pub(super) pushed: Vec<(Box<str>, Box<str>)>,
}

/// Whether and how a vertex failed.
#[derive(Debug, Default)]
enum Failing {
    #[default]
    No,
    /// It was canceled because another vertex failed.
    Echo,
    Own(Box<Said>),
    /// It failed, and there was no room for its error.
    Untold,
}

impl Vertex {
    /// How BuildKit's file operations begin when a step cannot be done. The rest is a path of the customer's.
    pub(in crate::bake) const MISTAKES: &[&str] = &["cannot copy to non-directory: ", "cannot replace to directory "];

    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            targets: Vec::new(),
            started: None,
            completed: None,
            has_run: false,
            is_cached: false,
            error: Failing::No,
            context_bytes: 0,
            pushed: Vec::new(),
        }
    }

    pub(super) fn is_for(&mut self, target: u16) {
        if let Err(index) = self.targets.binary_search(&target) {
            self.targets.insert(index, target);
        }
    }

    /// Reads when it began and ended. A vertex is reported once per target that shares it, and a local source runs twice: the widest
    /// span counts.
    pub(super) fn take_in(&mut self, report: &VertexReport<'_>) {
        self.started = [self.started, report.started].into_iter().flatten().min();
        self.completed = self.completed.max(report.completed);
        if report.completed.is_some() {
            self.is_cached |= report.cached;
            self.has_run |= !report.cached;
        }
    }

    /// Sets its error; `None` when there is no room for more errors.
    pub(super) fn fail(&mut self, said: Option<Said>) {
        self.error = said.map_or(Failing::Untold, |said| Failing::Own(Box::new(said)));
    }

    /// Notes that it was canceled because another vertex failed. Its own failure stays: a target that shares the vertex may be
    /// notified only of the cancellation.
    pub(super) fn echo(&mut self) {
        if !self.has_failed() {
            self.error = Failing::Echo;
        }
    }

    /// Whether an error only echoes another vertex's failure: it ends with Go's `context.Canceled`. A customer's path or name may
    /// contain the same words, but does not end the error.
    pub(super) fn is_echo(error: &str) -> bool {
        let said = error.rsplit('"').next().unwrap_or(error);
        let ends_so = |before: &str| [": ", " desc = "].iter().any(|end| before.ends_with(end));
        let is_echo = error == CANCELED || said.strip_suffix(CANCELED).is_some_and(ends_so);
        is_echo && !Self::MISTAKES.iter().any(|begin| error.starts_with(begin))
    }

    /// The instruction of a Dockerfile step, such as `RUN`. The rest of the name is the customer's.
    pub(in crate::bake) fn instruction(&self) -> Option<&str> {
        self.position()?;
        let (_, text) = self.name.split_once(']')?;
        text.strip_prefix(' ')?.split(' ').next()
    }

    /// Stage and number of a Dockerfile step: its bracket ends with `n/m`.
    pub(super) fn position(&self) -> Option<(&str, u32)> {
        let (bracket, _) = self.name.strip_prefix('[')?.split_once(']')?;
        let (stage, step) = bracket.rsplit_once(' ').unwrap_or(("", bracket));
        let (n, m) = step.split_once('/')?;
        m.parse::<u32>().ok()?;
        Some((stage, n.parse().ok()?))
    }

    pub(super) fn is_step(&self) -> bool {
        self.position().is_some()
    }

    /// Whether its events are emitted: a chore's are, once it fails.
    pub(super) fn is_shown(&self) -> bool {
        self.is_step() || self.has_error()
    }

    /// Whether it is the last vertex of a target.
    pub(super) fn is_export(&self) -> bool {
        self.name.starts_with("exporting to ")
    }

    pub(super) fn was_cached(&self) -> bool {
        self.is_cached && !self.has_run
    }

    pub(super) fn has_error(&self) -> bool {
        !matches!(self.error, Failing::No)
    }

    /// Whether it failed by itself and was not canceled for another vertex.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.error, Failing::Own(_) | Failing::Untold)
    }

    /// Whether it failed by itself and the build with it. A cache that cannot be imported breaks nothing.
    pub(in crate::bake) fn breaks_build(&self) -> bool {
        self.has_failed() && !self.name.starts_with("importing ")
    }

    /// Its own error, if there was room for it.
    pub(in crate::bake) fn own_error(&self) -> Option<&Said> {
        match &self.error {
            Failing::Own(said) => Some(said),
            Failing::No | Failing::Echo | Failing::Untold => None,
        }
    }

    /// The digest that was pushed under this tag.
    pub(super) fn pushed_as(&self, tag: &str) -> Option<&str> {
        let (_, digest) = self.pushed.iter().find(|(pushed, _)| **pushed == *tag)?;
        (!self.has_failed()).then_some(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_ends_as_buildkit_says_it_and_no_name_of_the_customers_makes_one() {
        for echo in [
            "context canceled",
            "context canceled: context canceled",
            "Canceled: context canceled",
            "rpc error: code = Canceled desc = context canceled",
            "failed to copy: failed to do request: Get \"https://r.example/v2/x\": context canceled",
            "process \"/bin/sh -c sleep 9\" did not complete successfully: exit code: 137: context canceled: context canceled",
        ] {
            assert!(Vertex::is_echo(echo), "{echo}");
        }
        for own in [
            "lstat /buildkit/cachemounts/buildkit1768283894/x/context canceled: not a directory",
            "process \"/nosuch context canceled\" did not complete successfully: exit code: 1",
            "process \"/bin/sh -c true\" did not complete successfully: unable to find user context canceled: invalid argument",
            "cannot copy to non-directory: /buildkit/cachemounts/buildkit1/x: context canceled",
            "open /buildkit/my context canceled",
            "",
        ] {
            assert!(!Vertex::is_echo(own), "{own}");
        }
    }

    #[test]
    fn the_instruction_of_a_step_is_the_one_that_buildkit_runs() {
        for (name, instruction) in [
            ("[2/3] RUN make", Some("RUN")),
            ("[linux/amd64 deps 1/2] FROM base", Some("FROM")),
            ("[3/3] WORKDIR /x/] FROM connection refused", Some("WORKDIR")),
            ("[2/2] ADD [http://127.0.0.1:1/x] FROM y,/x]", Some("ADD")),
            ("[internal] load metadata for x", None),
            ("exporting to image", None),
        ] {
            assert_eq!(Vertex::new(name.into()).instruction(), instruction, "{name}");
        }
    }
}

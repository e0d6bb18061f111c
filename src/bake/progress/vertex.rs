//! The state of one vertex: a step, or one of BuildKit's chores.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::millis;
use super::stream::VertexReport;
use crate::bake::noise;
use crate::bake::shown::Said;
use crate::text;

/// How buildx names what it does before a builder works on a target.
const BEFORE_TARGETS: &[&str] =
    &["[internal] load local bake definitions", "[internal] waiting for connection", "[internal] booting buildkit"];

/// How BuildKit names its work with the image of a Dockerfile frontend.
const FRONTENDS: &[&str] =
    &["resolve image config for docker-image://", "resolve image config for ", "docker-image://"];

/// How buildx and BuildKit name the writing and pushing of an image. `exporting cache to registry` is not one: it may fail.
const EXPORTS: &[&str] = &["exporting to ", "pushing "];

/// How BuildKit begins the error of a command. The command follows in Go's quotes, and then how it ended.
pub(in crate::bake) const PROCESS: &str = "process \"";

/// Bytes of a command that identify it.
const QUOTED: usize = 300;

/// How an error ends that another vertex's failure caused.
const CANCELED: &str = "context canceled";

/// A step or chore.
#[derive(Debug)]
pub(in crate::bake) struct Vertex {
    /// Its number in the build, in the order of the stream.
    pub(in crate::bake) number: u32,
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
    /// The digests of exported images, with the time when each was begun. BuildKit exports them in the order of the platforms.
    pub(super) exported: Vec<(Option<Timestamp>, Box<str>)>,
}

/// What a vertex does that is not a step of the Dockerfile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bake) enum Work<'a> {
    /// Looks up a base image.
    Base(&'a str),
    /// Looks up or pulls the image of a Dockerfile frontend.
    Frontend(&'a str),
    /// Writes or pushes the image.
    Export,
    Other,
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
    /// How BuildKit begins the error of a step that cannot be done. The rest is a path or a name of the customer's.
    pub(in crate::bake) const MISTAKES: &[&str] = &[
        "cannot copy to non-directory: ",
        "cannot replace to directory ",
        "too many symlinks: ",
        "unset ssh forward key ",
        "no SSH key ",
    ];

    pub(super) fn new(number: u32, name: Arc<str>) -> Self {
        Self {
            number,
            name,
            targets: Vec::new(),
            started: None,
            completed: None,
            has_run: false,
            is_cached: false,
            error: Failing::No,
            context_bytes: 0,
            pushed: Vec::new(),
            exported: Vec::new(),
        }
    }

    /// Notes that it was reported for a target. buildx's work before it connects belongs to no target, even if there is only one.
    pub(super) fn is_for(&mut self, target: u16) {
        if BEFORE_TARGETS.contains(&&*self.name) {
            return;
        }
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

    /// Whether it reads the target's Dockerfile, which BuildKit does first and for each build.
    pub(super) fn loads_definition(&self) -> bool {
        self.name.starts_with("[internal] load build definition from ")
    }

    /// Sets its error; `None` when there is no room for more errors.
    pub(super) fn fail(&mut self, said: Option<Said>) {
        self.error = said.map_or(Failing::Untold, |said| Failing::Own(Box::new(said)));
    }

    /// Notes that its error is none.
    pub(super) fn forgive(&mut self) {
        self.error = Failing::No;
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
        let error = noise::of_checksum(error).unwrap_or(error);
        is_echo && !Self::MISTAKES.iter().any(|begin| error.starts_with(begin))
    }

    /// The instruction of a Dockerfile step, such as `RUN`. The rest of the name is the customer's.
    pub(in crate::bake) fn instruction(&self) -> Option<&str> {
        self.position()?;
        let (_, text) = self.name.split_once(']')?;
        text.strip_prefix(' ')?.split(' ').next()
    }

    /// The image of a FROM step, without its digest.
    pub(in crate::bake) fn image(&self) -> Option<&str> {
        let (_, rest) = self.name.split_once("] FROM ").filter(|_| self.instruction() == Some("FROM"))?;
        rest.split(['@', ' ']).next()
    }

    /// What a vertex does that is not a step of the Dockerfile.
    pub(in crate::bake) fn work(&self) -> Work<'_> {
        let after = |begins: &[&str]| begins.iter().find_map(|begin| self.name.strip_prefix(begin));
        if let Some(reference) = after(&["[internal] load metadata for "]) {
            Work::Base(reference)
        } else if let Some(reference) = after(FRONTENDS) {
            Work::Frontend(reference)
        } else if after(EXPORTS).is_some() {
            Work::Export
        } else {
            Work::Other
        }
    }

    /// Stage and number of a Dockerfile step, and the number of the stage's steps: its bracket ends with `n/m`.
    pub(super) fn position(&self) -> Option<(&str, u32, u32)> {
        let (bracket, _) = self.name.strip_prefix('[')?.split_once(']')?;
        let (stage, step) = bracket.rsplit_once(' ').unwrap_or(("", bracket));
        let (n, m) = step.split_once('/')?;
        Some((stage, n.parse().ok()?, m.parse().ok()?))
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

    /// How long it ran, on the builder's clock.
    pub(super) fn took(&self) -> Duration {
        Duration::from_millis(self.started.zip(self.completed).map_or(0, |(from, to)| millis(from, to)))
    }

    pub(super) fn is_running(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }

    /// Whether it is a RUN step whose command BuildKit quotes in this error, in Go's form (`%q`).
    pub(super) fn runs(&self, error: &str) -> bool {
        let Some((_, run)) = self.name.split_once("] RUN ").filter(|_| self.instruction() == Some("RUN")) else {
            return false;
        };
        let flags = run.split_inclusive(' ').take_while(|word| word.starts_with("--")).map(str::len).sum();
        let command = &run[flags..];
        let beginning = &command[..text::boundary(command, QUOTED)];
        let quoted = beginning.replace('\\', "\\\\").replace('"', "\\\"");
        error.starts_with(PROCESS) && error.contains(&quoted)
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

    /// The digests of the images that it exported.
    pub(in crate::bake) fn images(&self) -> BTreeSet<String> {
        self.exported.iter().map(|(_, digest)| String::from(&**digest)).collect()
    }

    /// Its own error, if there was room for it.
    pub(in crate::bake) fn own_error(&self) -> Option<&Said> {
        match &self.error {
            Failing::Own(said) => Some(said),
            Failing::No | Failing::Echo | Failing::Untold => None,
        }
    }

    /// Its error as shown, also when it is not its own or there was no room for it.
    pub(super) fn shown_error(&self) -> Option<&str> {
        match &self.error {
            Failing::No => None,
            Failing::Own(said) => Some(&said.shown),
            Failing::Echo => Some("canceled"),
            Failing::Untold => Some("failed"),
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
            "failed to calculate checksum of ref ab::cd: too many symlinks: /x: context canceled",
            "unset ssh forward key x: context canceled",
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
    fn a_vertex_names_the_image_that_it_needs() {
        let vertex = |name: &str| Vertex::new(0, name.into());
        let from = vertex("[linux/amd64 deps 1/2] FROM r.example/x:1@sha256:12");
        assert_eq!((from.image(), from.work()), (Some("r.example/x:1"), Work::Other));
        assert_eq!(vertex("[2/2] COPY a] FROM b /x").image(), None);
        for (name, work) in [
            ("[internal] load metadata for r.example/x:1", Work::Base("r.example/x:1")),
            ("resolve image config for docker-image://r.example/x:1", Work::Frontend("r.example/x:1")),
            ("resolve image config for r.example/x:1", Work::Frontend("r.example/x:1")),
            ("exporting to image", Work::Export),
            ("pushing layers", Work::Export),
            ("exporting cache to registry", Work::Other),
            ("[internal] load build context", Work::Other),
        ] {
            assert_eq!(vertex(name).work(), work, "{name}");
        }
    }

    #[test]
    fn what_buildx_does_before_it_has_a_builder_is_no_targets() {
        for (name, targets) in
            [("[internal] waiting for connection", vec![]), ("[internal] load build context", vec![0])]
        {
            let mut vertex = Vertex::new(0, name.into());
            vertex.is_for(0);
            assert_eq!(vertex.targets, targets, "{name}");
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
            assert_eq!(Vertex::new(0, name.into()).instruction(), instruction, "{name}");
        }
    }
}

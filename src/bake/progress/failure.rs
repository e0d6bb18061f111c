//! A failed step of a Dockerfile, as its customer reads it: which one, where, how it ended, and what it printed.

use super::{BakeProgress, Vertex};
use crate::bake::evidence::{self, Line};
use crate::event::FailedStep;
use crate::text;

/// Bytes of an instruction and of a line of output in a sentence. Both fit into a report's `message`.
const MAX_INSTRUCTION: usize = 300;
const MAX_CAUSE: usize = 700;
const MAX_ERROR: usize = 1000;
const MAX_STAGE: usize = 100;

/// Bytes of an error's end that identify it.
const COMPARED: usize = 500;

/// A failed step and what is known of its failure.
#[derive(Clone, Debug)]
pub(in crate::bake) struct StepFailure {
    pub(in crate::bake) step: FailedStep,
    /// The target, as far as the step's name shows it.
    target: Option<String>,
    pub(in crate::bake) log_tail: Option<String>,
    /// How it ended, such as "exited with 1: `npm ERR! missing script: build`".
    pub(in crate::bake) ending: String,
}

impl StepFailure {
    /// The same, with the line of the step that `line_of` finds for its target, when docker-buildx showed none.
    #[must_use]
    pub(in crate::bake) fn located(mut self, line_of: impl Fn(&str, &FailedStep) -> Option<u32>) -> Self {
        let found = self.target.as_ref().filter(|_| self.step.line.is_none());
        if let Some(line) = found.and_then(|target| line_of(target, &self.step)) {
            self.step.line = Some(line);
        }
        self
    }

    /// One sentence: "Step 4/7 of `vote` failed: `RUN npm ci` (vote/Dockerfile:12) exited with 1: `npm ERR! …`".
    pub(in crate::bake) fn sentence(&self) -> String {
        let FailedStep { number, total, stage, instruction, dockerfile, line, exit_code } = &self.step;
        let stage = stage.as_ref().map(|stage| format!(" of stage `{stage}`")).unwrap_or_default();
        let target = self.target.as_ref().map(|target| format!(" of `{target}`")).unwrap_or_default();
        let place = place(dockerfile.as_deref(), *line).map(|place| format!(" ({place})")).unwrap_or_default();
        let joined = if exit_code.is_some() { " " } else { ": " };
        let instruction = text::clip(instruction, MAX_INSTRUCTION);
        format!("Step {number}/{total}{stage}{target} failed: `{instruction}`{place}{joined}{}", self.ending)
    }
}

impl BakeProgress {
    /// What is known of a failed step of a target; `None` for a vertex that has not failed by itself or is not a step. Without a
    /// name, the target is the one that buildx blames, or the first one.
    pub(in crate::bake) fn step_failure(&self, vertex: &Vertex, target: Option<&str>) -> Option<StepFailure> {
        let said = vertex.own_error()?;
        let (stage, n, total) = vertex.position()?;
        let (_, instruction) = vertex.name.split_once("] ")?;
        let blamed = || self.blamed().filter(|blamed| self.is_of(vertex, blamed));
        let target = target.or_else(blamed).or_else(|| self.target_of(vertex));
        let dockerfile = target.and_then(|target| self.dockerfiles.get(target));
        let line = self.line_of(vertex, target);
        let excerpt = self.tails.of(vertex.number);
        let exit_code = said.ended.as_deref().and_then(evidence::exit_code);
        let ending = match (exit_code, &said.ended) {
            (Some(code), _) => match excerpt.and_then(|excerpt| excerpt.cause()) {
                Some(cause) => format!("exited with {code}: `{}`", text::elide(cause, MAX_CAUSE)),
                None if excerpt.is_none() => format!("exited with {code} and printed nothing"),
                None => format!("exited with {code}"),
            },
            (None, Some(ended)) => text::elide(ended, MAX_ERROR).into_owned(),
            (None, None) => text::elide(&said.shown, MAX_ERROR).into_owned(),
        };
        let step = FailedStep {
            number: n,
            total,
            stage: stage_name(stage).map(|name| text::clip(name, MAX_STAGE).into_owned()),
            instruction: text::one_line(instruction),
            dockerfile: dockerfile.cloned(),
            line,
            exit_code,
        };
        let log_tail = excerpt.and_then(|excerpt| excerpt.text());
        Some(StepFailure { step, target: target.map(str::to_owned), log_tail, ending })
    }

    /// Where the only error of the bake is, such as `web/Dockerfile:4`. Without a target, the one that buildx blames, or the only one.
    pub(in crate::bake) fn place_of_error(&self, target: Option<&str>) -> Option<String> {
        let [_] = self.errors() else { return None };
        let only = || if let [only] = &*self.targets { Some(&**only) } else { None };
        let blamed = self.blamed().or_else(only)?;
        let is_blamed = target.is_none_or(|target| target == blamed);
        let dockerfile = self.dockerfiles.get(blamed).filter(|_| is_blamed)?;
        place(Some(dockerfile), self.ending.line)
    }

    /// The line of a failed step in its Dockerfile. docker-buildx shows it for the error that it reports last.
    fn line_of(&self, vertex: &Vertex, target: Option<&str>) -> Option<u32> {
        let [reported] = self.errors() else { return None };
        let Line::BuildKit(answer) = Line::parse(reported.judged()) else { return None };
        let is_this_target = self.targets.len() == 1 || target.is_some() && self.blamed() == target;
        // A long error is cut, so its end is compared.
        let own = vertex.own_error()?.judged();
        let is_this_error = answer.ends_with(&own[text::boundary(own, own.len().saturating_sub(COMPARED))..]);
        self.ending.line.filter(|_| is_this_target && is_this_error)
    }

    fn is_of(&self, vertex: &Vertex, target: &str) -> bool {
        vertex.targets.iter().any(|number| *self.targets[usize::from(*number)] == *target)
    }
}

fn place(dockerfile: Option<&str>, line: Option<u32>) -> Option<String> {
    match (dockerfile, line) {
        (Some(path), Some(line)) => Some(format!("{path}:{line}")),
        (Some(path), None) => Some(path.to_owned()),
        (None, line) => line.map(|line| format!("line {line}")),
    }
}

/// The name of a stage in a step's bracket. BuildKit puts the platform before it, and pads numbers with spaces. It calls a stage
/// without a name `stage-0`.
fn stage_name(bracket: &str) -> Option<&str> {
    let stage = label(bracket);
    let is_made_up = stage.strip_prefix("stage-").is_some_and(|number| number.parse::<u32>().is_ok());
    (!stage.is_empty() && !is_made_up).then_some(stage)
}

/// The stage in a step's bracket, without its platform.
pub(super) fn label(bracket: &str) -> &str {
    let stage = bracket.trim_end();
    match stage.split_once(' ') {
        Some((platform, stage)) if platform.contains('/') => stage,
        None if stage.contains('/') => "",
        _ => stage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_named_without_its_platform() {
        for (bracket, name) in [
            ("", None),
            ("build", Some("build")),
            ("build ", Some("build")),
            ("linux/amd64", None),
            ("linux/amd64 stage-1", None),
            ("linux/amd64 build ", Some("build")),
        ] {
            assert_eq!(stage_name(bracket), name, "{bracket}");
        }
    }
}

//! Facts that BuildKit and Kubernetes report only as text: how a step's process ended, and what Kubernetes forbids.
//!
//! The only module that parses such text. It parses the text as received, before masking and cutting, and follows its
//! format: a command is in Go's quotes (`%q`), and the facts come after them. So a command, a file name or an argument
//! cannot imitate a fact. Follows BuildKit's `solver/llbsolver/ops/exec.go` and buildx's `driver/kubernetes`.

use crate::name::is_target_name;
use crate::reason::Evidence;

/// Exit code of a process that KILL ended: the kernel's, when memory runs out, or the step's own.
const KILL: i32 = 137;

/// Exit code of a process that TERM ended.
const TERM: i32 = 143;

/// What BuildKit reports in place of an exit code when the kernel reported that the step ran out of memory (cgroup v2).
const NO_MEMORY: &str = "cannot allocate memory";

/// gRPC codes that buildx puts in front of a step's own error.
const CODES: &[&str] = &["ResourceExhausted: ", "NotFound: ", "InvalidArgument: ", "FailedPrecondition: ", "Unknown: "];

/// How buildx begins to pass on BuildKit's answer: from the status of the solve, or from its own request, whichever ends first.
pub(super) const BUILDKIT: &[&str] = &["failed to solve: ", "failed to run Build function: "];

/// How buildx begins an error of a Kubernetes request. A request to create the builder is not here: buildx makes it only while the
/// builder is missing, and that passes.
const KUBERNETES: &[&str] = &[
    "error for bootstrap \"",
    "failed to connect to pod ",
    "failed to list workers: ",
    "listing workers for ",
    "unable to upgrade connection: ",
];

/// The last line of buildx, by its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// BuildKit's answer.
    BuildKit(&'a str),
    /// buildx's own: about itself, the definition or Kubernetes.
    Buildx(&'a str),
}

impl<'a> Line<'a> {
    /// Parses the line without `ERROR: `. It may begin with the name of its target.
    pub(super) fn parse(line: &'a str) -> Self {
        let (_, line) = split_target(line);
        let answer = BUILDKIT.iter().find_map(|begin| line.strip_prefix(begin));
        answer.map_or(Self::Buildx(line), Self::BuildKit)
    }

    /// The evidence in it.
    pub(super) fn evidence(self) -> Option<Evidence> {
        match self {
            Self::BuildKit(answer) => of_step(answer),
            Self::Buildx(line) => is_forbidden(line).then_some(Evidence::Forbidden),
        }
    }
}

/// The target in the last line of buildx, and the rest. A bake of one target names none.
pub(super) fn split_target(line: &str) -> (Option<&str>, &str) {
    match line.strip_prefix("target ").and_then(|rest| rest.split_once(": ")) {
        Some((name, rest)) if is_target_name(name) => (Some(name), rest),
        _ => (None, line),
    }
}

/// An error without the gRPC codes that buildx puts in front of some. Each process that passes an error on may add one.
pub(super) fn without_code(error: &str) -> &str {
    without(error, CODES)
}

/// An error without these beginnings, however often they are repeated.
pub(super) fn without<'a>(mut error: &'a str, begins: &[&str]) -> &'a str {
    while let Some(rest) = begins.iter().find_map(|begin| error.strip_prefix(begin)) {
        error = rest;
    }
    error
}

/// How the process of a step ended: the rest of `process "…" did not complete successfully: `. `None` for another error.
pub(super) fn ended(error: &str) -> Option<&str> {
    after_quoted(without_code(error).strip_prefix("process ")?)?.strip_prefix(" did not complete successfully: ")
}

/// The exit code in [`ended`].
pub(super) fn exit_code(ended: &str) -> Option<i32> {
    let code = ended.strip_prefix("exit code: ")?;
    code.split(':').next()?.parse().ok()
}

/// The evidence in a step's error: `process "…" did not complete successfully: exit code: 137`.
pub(super) fn of_step(error: &str) -> Option<Evidence> {
    let ended = ended(error)?;
    match exit_code(ended) {
        Some(KILL) => Some(Evidence::OutOfMemory),
        Some(TERM) => Some(Evidence::StepKilled),
        None if ended == NO_MEMORY => Some(Evidence::OutOfMemory),
        _ => None,
    }
}

/// The rest after a text in Go's quotes.
fn after_quoted(text: &str) -> Option<&str> {
    let quoted = text.strip_prefix('"')?;
    let mut is_escaped = false;
    let end = quoted.bytes().position(|byte| {
        let is_end = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        is_end
    })?;
    Some(&quoted[end + 1..])
}

/// Whether Kubernetes forbids a request of buildx: `pods "NAME" is forbidden: User "…" cannot create resource "pods/exec"`,
/// alone or after buildx's own words. A gRPC error quotes it once more.
fn is_forbidden(line: &str) -> bool {
    let Some((before, user)) = line.split_once(" is forbidden: User ") else { return false };
    let object = before.rsplit(": ").next().unwrap_or(before);
    let wrapper = &before[..before.len() - object.len()];
    let resource = object.split(' ').next().unwrap_or(object);
    let is_resource = !resource.is_empty() && resource.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'.');
    let is_buildx = wrapper.is_empty() || KUBERNETES.iter().any(|begin| wrapper.starts_with(begin));
    is_resource && is_buildx && user.starts_with(['"', '\\']) && user.contains(" cannot ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_line(line: &str) -> Option<Evidence> {
        Line::parse(line).evidence()
    }

    #[test]
    fn a_step_that_was_killed_is_known_by_what_stands_after_its_command() {
        for (end, evidence) in [
            ("exit code: 137", Evidence::OutOfMemory),
            ("exit code: 137: context canceled", Evidence::OutOfMemory),
            ("cannot allocate memory", Evidence::OutOfMemory),
            ("exit code: 143", Evidence::StepKilled),
        ] {
            for command in ["make", r#"echo \"hi\" \\"#, r"a\nb"] {
                let error = format!("process \"/bin/sh -c {command}\" did not complete successfully: {end}");
                assert_eq!(of_step(&error), Some(evidence), "{error}");
                assert_eq!(of_line(&format!("failed to solve: {error}")), Some(evidence), "{error}");
                assert_eq!(of_line(&format!("target web: failed to solve: {error}")), Some(evidence));
                assert_eq!(of_line(&error), None, "{error}");
                let exhausted = format!("failed to solve: ResourceExhausted: ResourceExhausted: {error}");
                assert_eq!(of_line(&exhausted), Some(evidence), "{exhausted}");
            }
        }
    }

    #[test]
    fn a_customers_command_or_file_name_is_no_evidence() {
        for error in [
            r#"process "/bin/sh -c echo exit code: 137; exit 1" did not complete successfully: exit code: 1"#,
            r#"process "/bin/sh -c echo \"x\" did not complete successfully: exit code: 137" did not complete successfully: exit code: 1"#,
            r#"process "/bin/sh -c echo \\\" did not complete successfully: exit code: 143; false" did not complete successfully: exit code: 2"#,
            r#"process "/bin/sh -c : cannot allocate memory" did not complete successfully: exit code: 1"#,
            r#"process "/bin/sh -c OOMKilled" did not complete successfully: exit code: 1370"#,
            r#"failed to calculate checksum of ref x: "/a did not complete successfully: exit code: 137": not found"#,
            "dockerfile parse error on line 1: unknown instruction: exit code: 137",
            r#"process "no end did not complete successfully: exit code: 137"#,
        ] {
            assert_eq!(of_step(error), None, "{error}");
            assert_eq!(of_line(&format!("failed to solve: {error}")), None, "{error}");
        }
    }

    const USER: &str = r#"User "system:serviceaccount:builds:worker" cannot"#;

    #[test]
    fn what_kubernetes_forbids_is_known_in_each_form_that_buildx_gives_it() {
        let quoted = USER.replace('"', "\\\"");
        for line in [
            format!(r#"pods is forbidden: {USER} list resource "pods" in API group "" in the namespace "builds""#),
            format!(
                r#"error for bootstrap "d0": deployments.apps "d0" is forbidden: {USER} get resource "deployments""#
            ),
            format!(
                r#"failed to connect to pod d0-a after 5 attempts: pods "d0-a" is forbidden: {USER} create resource "pods/exec""#
            ),
            format!(
                r#"listing workers for Build: failed to list workers: Unavailable: connection error: desc = "transport: Error while dialing: pods \"d0-a\" is forbidden: {quoted} create resource \"pods/exec\"""#
            ),
        ] {
            assert_eq!(of_line(&line), Some(Evidence::Forbidden), "{line}");
            assert_eq!(of_line(&format!("target web: {line}")), Some(Evidence::Forbidden), "{line}");
        }
    }

    #[test]
    fn a_customer_who_writes_that_something_is_forbidden_forbids_nothing() {
        let forged = format!("pods is forbidden: {USER} list resource");
        for line in [
            format!("failed to solve: {forged}"),
            format!("failed to solve: dockerfile parse error on line 1: unknown instruction: {forged}"),
            format!("unable to prepare context: path \"{forged}\" not found"),
            format!("unable to prepare context: path x: {forged}"),
            format!("invalid tag \"x: {forged}\": invalid reference format"),
            format!("error from sender: open x/y: {forged}: permission denied"),
            "pods is forbidden: exceeded quota: few".to_owned(),
            format!("Not.A.Resource is forbidden: {USER} list"),
        ] {
            assert_eq!(of_line(&line), None, "{line}");
        }
    }
}

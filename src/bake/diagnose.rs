//! Why a bake failed: one entry of the closed list, from its exit and its events.
//!
//! Steps are judged first, by the vertex that failed; only then is the `ERROR:` line read. What a customer wrote is never
//! matched: BuildKit quotes commands, names and messages in its errors, and `RUN false # connection refused` is no network
//! failure. So an error is known by how it begins, and a registry's answer is read without references and URLs. How an error
//! ends counts only where its beginning shows that no customer wrote the end.

use super::progress::{Progress, Vertex};
use super::shown::Said;
use crate::process::Ended;
use crate::reason::{Class, End, Failure, Reason};
use crate::text;

/// Bytes of a step's name and of its error in the detail of a failure, so that both are in it.
const MAX_NAME: usize = 600;
const MAX_ERROR: usize = 1100;

/// Why the bake did not succeed; `None` when it did.
pub(super) fn diagnose(ended: Ended, progress: &Progress) -> Option<End> {
    let failure = match ended {
        Ended::Exited(status) if status.success() => return None,
        Ended::Exited(_) => exited(progress),
        // buildx had given up already, and lingered.
        Ended::Stopped if !progress.errors().is_empty() => exited(progress),
        Ended::Stopped => return Some(End::Stopped),
        Ended::TimedOut => Failure::new(Reason::TimedOut, "the build was stopped at its time limit"),
        Ended::Silent => Failure::new(Reason::Stalled, "docker-buildx said nothing for too long and was killed"),
        Ended::TooMuchOutput => {
            Failure::new(Reason::BuildFailed, "docker-buildx wrote an image to its standard output")
        }
    };
    Some(failure.into())
}

fn exited(progress: &Progress) -> Failure {
    if let Some((reason, vertex)) = progress.failed().find_map(|vertex| Some((judge(vertex)?, vertex))) {
        return Failure::new(reason, describe(progress, vertex));
    }
    let has_failed_vertex = progress.failed().next().is_some();
    let judged = |said: &'_ Said| (by_error_line(said.judged(), has_failed_vertex), said.shown.clone());
    let mut errors: Vec<(Reason, String)> = progress.errors().iter().map(judged).collect();
    // Of two lines that may be the error one is a customer's imitation: what the customer can mend is the error.
    let own = errors.iter().position(|(reason, _)| reason.class() == Class::User);
    if let Some(error) = own.map(|place| errors.swap_remove(place)).or_else(|| errors.pop()) {
        return Failure::new(error.0, error.1);
    }
    match progress.last_words() {
        Some(words) => Failure::new(by_error_line(words, has_failed_vertex), words),
        None => Failure::new(Reason::BuildFailed, "docker-buildx ended without saying why"),
    }
}

/// What a failed vertex says: a step of the Dockerfile, a base image, an export.
fn judge(vertex: &Vertex) -> Option<Reason> {
    let error = vertex.own_error()?.judged();
    if let Some((_, reason)) = STEP_ERRORS.iter().find(|(begin, _)| error.starts_with(begin)) {
        return Some(*reason);
    }
    match vertex.instruction() {
        Some("FROM") => base_image(error),
        Some("ADD") if ADD_ERRORS.iter().any(|begin| error.starts_with(begin)) => Some(Reason::StepFailed),
        Some(instruction) => is_mistake(instruction, error).then_some(Reason::StepFailed),
        None if IMAGE_CHORES.iter().any(|begin| vertex.name.starts_with(begin)) => base_image(error),
        None if vertex.name.starts_with("exporting ") => registry(error),
        None => None,
    }
}

/// Whether a step on files does not fit the image: a path leads through a file, or a file is where a directory should be. The same words end errors of the system's, so they count for no other step.
fn is_mistake(instruction: &str, error: &str) -> bool {
    let ends = [": not a directory", ": is a directory", ": file exists", ": file name too long"];
    let is_on_files = ["ADD", "COPY", "WORKDIR"].contains(&instruction);
    is_on_files
        && (Vertex::MISTAKES.iter().any(|begin| error.starts_with(begin))
            || ends.iter().any(|end| error.ends_with(end)))
}

/// Why a base image cannot be had. Docker's own registry answers for an image that is not there as for a private one.
fn base_image(error: &str) -> Option<Reason> {
    let is_missing = error.ends_with(": not found") && !error.contains(" snapshot ")
        || ["pull access denied, repository does not exist", "manifest unknown"]
            .iter()
            .any(|words| error.contains(words));
    if is_missing { Some(Reason::BaseImageNotFound) } else { registry(error) }
}

/// What BuildKit calls the look at a base image or a frontend.
const IMAGE_CHORES: &[&str] = &["[internal] load metadata for ", "resolve image config for "];

/// How the error of an address begins that a Dockerfile adds.
const ADD_ERRORS: &[&str] = &["Get \"", "digest mismatch ", "failed to fetch remote ", "invalid response status "];

/// How the error of a step begins. What follows quotes the customer.
const STEP_ERRORS: &[(&str, Reason)] = &[
    ("process \"", Reason::StepFailed),
    ("secret ", Reason::StepFailed),
    ("failed to calculate checksum of ref", Reason::FileNotFound),
];

/// What a registry's answer means; `None` when it says nothing that we know. References and URLs are not read.
fn registry(error: &str) -> Option<Reason> {
    let words: Vec<&str> = error.split_whitespace().filter(|word| !word.contains('/')).collect();
    let said = words.join(" ").to_ascii_lowercase();
    let says = |patterns: &[&str]| patterns.iter().any(|pattern| said.contains(pattern));
    if says(DENIED) {
        Some(Reason::RegistryDenied)
    } else if says(UNAVAILABLE) {
        Some(Reason::RegistryUnavailable)
    } else {
        None
    }
}

/// What a registry that refuses the credentials makes BuildKit say, in lower case.
const DENIED: &[&str] = &[
    "401 unauthorized",
    "403 forbidden",
    "authorization failed",
    "access denied",
    "insufficient_scope",
    "no basic auth",
    // Our own sandbox: the port is not among `sandbox.registry_ports`.
    "connect: permission denied",
];

/// What a registry that is away, failing or overrun makes BuildKit say, in lower case.
const UNAVAILABLE: &[&str] = &[
    "429 too many requests",
    "toomanyrequests",
    "500 internal",
    "502 bad",
    "503 service",
    "504 gateway",
    "connection refused",
    "no such host",
    "i/o timeout",
    "connection reset",
    "tls handshake",
    "dial tcp",
];

/// The last resort: the line that buildx ends with, judged by how it begins. Only a line that quotes no field of a definition
/// is searched for words.
fn by_error_line(error: &str, has_failed_vertex: bool) -> Reason {
    let line = match error.strip_prefix("target ").and_then(|rest| rest.split_once(": ")) {
        Some((name, rest)) if crate::name::is_target_name(name) => rest,
        _ => error,
    };
    match BUILDKIT.iter().find_map(|begin| line.strip_prefix(begin)) {
        Some(line) => by_solve_error(line, has_failed_vertex),
        None => {
            let of_field = FIELD_ERRORS.iter().find(|(begin, _)| line.starts_with(begin));
            let known = of_field.or_else(|| BUILDX.iter().find(|(words, _)| line.contains(words)));
            known.map_or(Reason::BuildFailed, |(_, reason)| *reason)
        }
    }
}

/// How buildx passes on what BuildKit answered: by the status of the solve, and now and then by the end of its own request,
/// whichever came first.
const BUILDKIT: &[&str] = &["failed to solve: ", "failed to run Build function: "];

/// What BuildKit answered. A line that it does not begin in a way we know, without a failed step, is the Dockerfile
/// frontend's: it quotes the customer, and the customer can mend it.
fn by_solve_error(line: &str, has_failed_vertex: bool) -> Reason {
    if let Some((_, reason)) = SOLVE_ERRORS.iter().find(|(begin, _)| line.starts_with(begin)) {
        return *reason;
    }
    // A name that cannot be sent to the builder, which answers with its own header's name.
    if line.starts_with("Internal: ") && line.contains("header key \"followpaths\"") {
        return Reason::FileNotFound;
    }
    if let Some(error) = of_base_image(line) {
        return base_image(error).unwrap_or(Reason::BuildFailed);
    }
    if REGISTRY_ERRORS.iter().any(|begin| line.starts_with(begin)) {
        return registry(line).unwrap_or(Reason::RegistryUnavailable);
    }
    let is_ours =
        has_failed_vertex || INFRASTRUCTURE_ERRORS.iter().any(|begin| line.starts_with(begin)) || is_of_disk(line);
    if is_ours { Reason::BuildFailed } else { Reason::DockerfileInvalid }
}

/// What is said of a base image, behind its reference, or of a frontend. A reference has no blanks and no quotes, so it is
/// none of the frontend's own words.
fn of_base_image(line: &str) -> Option<&str> {
    const BEGIN: &str = "failed to resolve source metadata for ";
    if line.starts_with(BEGIN) {
        return Some(line);
    }
    let (reference, error) = line.split_once(": ")?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]".contains(c);
    let is_reference = !reference.is_empty() && reference.chars().all(is_part);
    (is_reference && error.starts_with(BEGIN)).then_some(error)
}

/// Whether the system gave up on one of the builder's own files.
fn is_of_disk(line: &str) -> bool {
    DISK_ERRORS.iter().any(|end| line.ends_with(end)) && FILE_OPERATIONS.iter().any(|begin| line.starts_with(begin))
}

/// BuildKit did not begin the solve within the six seconds that it waits for one: a bake of very many targets, or a builder
/// that has far too much to do (docker/buildx#3810).
const NO_SUCH_JOB: &str = "failed to receive status: rpc error: code = NotFound";

const SOLVE_ERRORS: &[(&str, Reason)] = &[
    ("process \"", Reason::StepFailed),
    ("cannot copy to non-directory: ", Reason::StepFailed),
    ("cannot replace to directory ", Reason::StepFailed),
    // The frontend, about a customer's words and in them.
    ("failed to process ", Reason::DockerfileInvalid),
    ("failed to parse ", Reason::DockerfileInvalid),
    ("target stage ", Reason::DockerfileInvalid),
    ("invalid boolean value for ", Reason::DefinitionInvalid),
    ("index annotations not supported ", Reason::DefinitionInvalid),
    ("failed to configure registry cache ", Reason::DefinitionInvalid),
    ("failed to load cache key", Reason::StepFailed),
    ("failed to read dockerfile", Reason::DockerfileNotFound),
    ("dockerfile parse error", Reason::DockerfileInvalid),
    ("failed to compute cache key: failed to calculate checksum of ref", Reason::FileNotFound),
    ("failed to calculate checksum of ref", Reason::FileNotFound),
    ("failed to load LLB: ", Reason::PolicyRefused),
    ("granting entitlement", Reason::PolicyRefused),
    ("tag is needed when pushing", Reason::DefinitionInvalid),
    ("rpc error: code = Unavailable", Reason::BuilderLost),
    ("Unavailable: ", Reason::BuilderLost),
    (NO_SUCH_JOB, Reason::BuilderUnavailable),
    ("failed to receive status", Reason::BuilderLost),
    // BuildKit gave up on itself or on buildx' session, as it does when it has far too much to do.
    ("DeadlineExceeded: ", Reason::BuilderUnavailable),
    ("no active session", Reason::BuilderUnavailable),
    ("exporter \"", Reason::BuilderUnavailable),
];

const REGISTRY_ERRORS: &[&str] = &[
    "failed to push ",
    "failed to do request",
    "failed to authorize",
    "failed to fetch ",
    "failed to copy",
    "failed commit on ref",
    "error writing ",
    "unexpected status from ",
];

const INFRASTRUCTURE_ERRORS: &[&str] = &[
    "Canceled: ",
    "FailedPrecondition: ",
    "Internal: ",
    "ResourceExhausted: ",
    "Unknown: ",
    "context canceled",
    "error from sender",
    "failed to dial",
    "failed to mount",
    "failed to prepare",
    "frontend grpc server closed",
    "mount callback failed",
    "rpc error",
];

/// How the system's own errors end. A customer's words may end so as well.
const DISK_ERRORS: &[&str] = &[": no space left on device", ": input/output error", ": read-only file system"];

/// How BuildKit begins to say what it did with a file of its own.
const FILE_OPERATIONS: &[&str] = &[
    "chmod /",
    "chown /",
    "failed to commit ",
    "failed to compute ",
    "failed to create lease",
    "failed to create snapshot",
    "failed to create temp",
    "failed to extract ",
    "failed to open ",
    "failed to stat ",
    "failed to sync ",
    "failed to write ",
    "link /",
    "lstat /",
    "mkdir /",
    "open /",
    "read /",
    "rename /",
    "stat /",
    "symlink /",
    "sync /",
    "truncate /",
    "write /",
];

/// How buildx begins to refuse a field of the definition, in the customer's words. Follows `build/opt.go`, `build/utils.go`
/// and `build/build.go` of buildx 0.29 to 0.36.
const FIELD_ERRORS: &[(&str, Reason)] = &[
    ("unable to prepare context", Reason::ContextNotFound),
    ("failed to get build context ", Reason::ContextNotFound),
    ("resolve : lstat ", Reason::DockerfileNotFound),
    ("failed to read dockerfile", Reason::DockerfileNotFound),
    ("failed to find target", Reason::DefinitionInvalid),
    ("failed to use ", Reason::DefinitionInvalid),
    ("invalid host ", Reason::DefinitionInvalid),
    ("invalid tag ", Reason::DefinitionInvalid),
    ("network mode ", Reason::DefinitionInvalid),
    ("tag is needed when pushing", Reason::DefinitionInvalid),
    ("unable to derive the IP value for host-gateway: host-gateway is not supported", Reason::DefinitionInvalid),
    // A file of the context.
    ("error from sender: ", Reason::BuildFailed),
];

/// What buildx itself says, when BuildKit was not reached or went away.
const BUILDX: &[(&str, Reason)] = &[
    ("granting entitlement", Reason::PolicyRefused),
    ("no builder ", Reason::BuilderUnavailable),
    ("no running buildkit pods", Reason::BuilderUnavailable),
    ("no pod found for key", Reason::BuilderUnavailable),
    ("replicas to be ready", Reason::BuilderUnavailable),
    ("is forbidden", Reason::BuilderUnavailable),
    ("listing workers", Reason::BuilderUnavailable),
    ("error reading server preface", Reason::BuilderUnavailable),
    ("error reading from server", Reason::BuilderLost),
    ("closing transport", Reason::BuilderLost),
    ("graceful_stop", Reason::BuilderLost),
    ("code = Unavailable", Reason::BuilderLost),
    (NO_SUCH_JOB, Reason::BuilderUnavailable),
    ("context deadline exceeded", Reason::BuilderUnavailable),
    ("failed to dial", Reason::BuilderUnavailable),
    ("Cannot connect to the Docker daemon", Reason::BuilderUnavailable),
    ("failed to connect to the docker API", Reason::BuilderUnavailable),
    // The API server and the kubelet, about an exec into a pod that is gone, ending or no BuildKit.
    ("command terminated with exit code ", Reason::BuilderLost),
    ("unable to upgrade connection", Reason::BuilderLost),
    ("cannot exec in", Reason::BuilderLost),
    ("pods \"", Reason::BuilderLost),
    ("error dialing backend", Reason::BuilderUnavailable),
    ("Internal error occurred", Reason::BuilderUnavailable),
    // The API server is away.
    ("dial tcp ", Reason::BuilderUnavailable),
    ("TLS handshake timeout", Reason::BuilderUnavailable),
    ("connection refused", Reason::BuilderUnavailable),
    ("client connection lost", Reason::BuilderUnavailable),
    ("unexpected EOF", Reason::BuilderUnavailable),
];

fn describe(progress: &Progress, vertex: &Vertex) -> String {
    let target = progress.target_of(vertex).map(|target| format!("target {target}, ")).unwrap_or_default();
    let error = vertex.own_error().map_or("", |said| &said.shown);
    format!("{target}{}: {}", text::clip(&vertex.name, MAX_NAME), text::elide(error, MAX_ERROR))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::super::mask::Mask;
    use super::super::progress::Baked;
    use super::super::shown::Shown;
    use super::*;
    use crate::text::places::Places;

    fn diagnosis(version: &str, case: &str, targets: &[&str]) -> Option<Failure> {
        let folder = format!("{}/tests/fixtures/buildx/{version}/{case}", env!("CARGO_MANIFEST_DIR"));
        let stderr = std::fs::read(format!("{folder}.stderr")).expect("a fixture");
        let exit: i32 =
            std::fs::read_to_string(format!("{folder}.exit")).expect("a fixture").trim().parse().expect("a number");
        let mut progress = progress(targets, "Dockerfile");
        let lines = stderr.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.for_each(|line| progress.line(line, &mut |_| {}));
        match diagnose(Ended::Exited(ExitStatus::from_raw(exit << 8)), &progress) {
            Some(End::Failed(failure)) => Some(failure),
            Some(End::Stopped) => panic!("no test stops a bake"),
            None => None,
        }
    }

    fn progress(targets: &[&str], dockerfile: &str) -> Progress {
        let targets = targets.iter().map(|target| ((*target).to_owned(), Vec::new())).collect();
        let baked = Baked { targets, dockerfiles: [dockerfile.to_owned()].into() };
        Progress::new(baked, Shown::new(Mask::new([]), Places::default()))
    }

    /// Why a bake failed that ended with this text.
    fn ended_with(dockerfile: &str, text: &str) -> Failure {
        let mut progress = progress(&["web"], dockerfile);
        text.lines().for_each(|line| progress.line(line.as_bytes(), &mut |event| panic!("forged: {event:?}")));
        exited(&progress)
    }

    #[test]
    fn a_file_that_is_called_like_an_error_has_the_error_of_its_content() {
        let rule = "-".repeat(20);
        let own = "failed to solve: dockerfile parse error on line 1: unknown instruction: FRM";
        for name in [
            "ERROR: failed to solve: rpc error: code = Unavailable",
            "ERROR: failed to solve: dockerfile parse error on line 9",
            "WARNING: x",
            "{\"vertexes\":[{\"digest\":\"x\",\"name\":\"[1/1] RUN x\",\"started\":\"2026-11-24T04:05:56Z\"}]}",
        ] {
            let text = format!("WARNING: y\n{name}:1\n{rule}\n   1 | >>> FRM x\n{rule}\nERROR: {own}\n");
            let failure = ended_with(name, &text);
            assert_eq!((failure.reason, &*failure.detail), (Reason::DockerfileInvalid, own), "{name}");
            // Another frontend may call the file as it likes.
            if !name.contains("line 9") {
                assert_eq!(ended_with("Dockerfile", &text).detail, own, "{name}");
            }
        }
    }

    #[test]
    fn a_crash_of_buildx_is_not_told_in_gos_words() {
        let crash = "panic: runtime error: index out of range [1]\n\ngoroutine 1 [running]:\nmain.main()\n\t/src/main.go:3 +0x1d";
        let failure = ended_with("Dockerfile", crash);
        assert_eq!((failure.reason, &*failure.detail), (Reason::BuildFailed, "docker-buildx ended without saying why"));
        let klog = "E1124 04:18:04.264391    6145 v2.go:105] \"Unhandled Error\" err=\"EOF\"";
        assert_eq!(ended_with("Dockerfile", klog).detail, "\"Unhandled Error\" err=\"EOF\"");
    }

    #[test]
    fn a_step_with_a_long_command_says_how_it_ended() {
        let command = "x ".repeat(30_000);
        let line = serde_json::json!({"vertexes": [{
            "digest": "a", "name": format!("[2/2] RUN {command}"), "completed": "2026-11-24T04:05:56Z",
            "error": format!("process \"/bin/sh -c {command}\" did not complete successfully: exit code: 137")}]});
        let mut progress = progress(&["web"], "Dockerfile");
        progress.line(line.to_string().as_bytes(), &mut |_| {});
        let failure = exited(&progress);
        assert!(failure.detail.ends_with("exit code: 137") && failure.detail.len() < 1900, "{failure}");
    }

    #[test]
    fn every_recorded_failure_has_its_reason() {
        for version in ["0.29", "0.36"] {
            for (case, reason) in [
                ("success-push", None),
                ("cached-push", None),
                ("failing-run", Some(Reason::StepFailed)),
                ("one-of-three-fails", Some(Reason::StepFailed)),
                ("missing-dockerfile", Some(Reason::DockerfileNotFound)),
                ("missing-context", Some(Reason::ContextNotFound)),
                ("missing-copy-source", Some(Reason::FileNotFound)),
                ("missing-base-image", Some(Reason::BaseImageNotFound)),
                ("dockerfile-syntax", Some(Reason::DockerfileInvalid)),
                ("unknown-target", Some(Reason::DefinitionInvalid)),
                ("push-refused", Some(Reason::RegistryUnavailable)),
                ("push-unauthorized", Some(Reason::RegistryDenied)),
                ("missing-builder", Some(Reason::BuilderUnavailable)),
            ] {
                let found = diagnosis(version, case, &["api"]).map(|failure| failure.reason);
                assert_eq!(found, reason, "{version}/{case}");
            }
        }
        let lost = diagnosis("0.36", "exec-stream-lost", &["slow"]).expect("a failure");
        assert_eq!(lost.reason, Reason::BuilderLost);
        assert_eq!(
            diagnosis("0.29", "server-killed", &["slow"]).map(|failure| failure.reason),
            Some(Reason::BuilderLost)
        );
        assert_eq!(diagnosis("0.29", "success-with-canceled-vertex", &["api"]), None);
        assert_eq!(diagnosis("0.29", "server-graceful-stop", &["slow"]), None);
    }

    #[test]
    fn the_detail_names_target_and_step() {
        let failure = diagnosis("0.36", "one-of-three-fails", &["api", "web", "broken"]).expect("a failure");
        assert!(failure.detail.starts_with("target broken, ["), "{failure}");
        assert!(failure.detail.contains("exit code: 3"), "{failure}");
    }

    #[test]
    fn a_solve_that_buildkit_has_not_begun_in_time_is_not_the_customers_fault() {
        let line = "failed to receive status: rpc error: code = NotFound desc = no such job xtcwi97x2fguo5z68ffeg6v5a";
        for line in [line.to_owned(), format!("target web-58: {line}"), format!("failed to solve: {line}")] {
            assert_eq!(by_error_line(&line, false), Reason::BuilderUnavailable, "{line}");
        }
    }

    /// Why a bake failed in which this step ended with this error, and nothing but the step said why.
    fn failed_step(name: &str, error: &str) -> Reason {
        let line = serde_json::json!({"vertexes": [{
            "digest": "a", "name": name, "completed": "2026-11-24T04:05:56Z", "error": error}]});
        let mut progress = progress(&["web"], "Dockerfile");
        progress.line(line.to_string().as_bytes(), &mut |_| {});
        progress.line(format!("ERROR: failed to solve: {error}").as_bytes(), &mut |_| {});
        exited(&progress).reason
    }

    #[test]
    fn what_a_step_is_called_makes_it_no_base_image_and_no_echo() {
        let file = "lstat /root/buildkit/cachemounts/buildkit3359588902/x/] FROM connection refused: not a directory";
        for (name, error, reason) in [
            ("[3/3] WORKDIR /x/] FROM connection refused", file, Reason::StepFailed),
            (
                "[2/2] ADD [http://127.0.0.1:1/x] FROM y,/x]",
                "failed to load cache key: Get \"http://127.0.0.1:1/x%5D%20FROM%20y\": dial tcp: connect: connection refused",
                Reason::StepFailed,
            ),
            (
                "[3/3] WORKDIR /x/context canceled",
                "lstat /buildkit1768283894/x/context canceled: not a directory",
                Reason::StepFailed,
            ),
            (
                "[2/2] ADD http://127.0.0.1:1/x /",
                "Get \"http://127.0.0.1:1/x\": dial tcp 127.0.0.1:1: connect: connection refused",
                Reason::StepFailed,
            ),
            (
                "resolve image config for docker-image://r.example/x:1",
                "failed to do request: Head \"https://r.example/v2/x/manifests/1\": dial tcp: no such host",
                Reason::RegistryUnavailable,
            ),
            ("[stage 1/2] FROM r.example/x:1", "r.example/x:1: not found", Reason::BaseImageNotFound),
            (
                "[1/2] FROM r.example/x:1",
                "dial tcp 10.0.0.1:99: connect: connection refused",
                Reason::RegistryUnavailable,
            ),
        ] {
            assert_eq!(failed_step(name, error), reason, "{name}");
        }
    }

    #[test]
    fn a_path_that_leads_through_a_file_is_the_customers() {
        for (name, error) in [
            ("[3/3] WORKDIR /x/y", "lstat /buildkit/buildkit680002012/x/y: not a directory"),
            ("[3/3] COPY Dockerfile /x/y", "mkdir /buildkit/buildkit274374101/x: not a directory"),
            ("[3/3] COPY . /x", "cannot copy to non-directory: /buildkit/buildkit4198201488/x"),
            (
                "[3/3] COPY Dockerfile /x/",
                "cannot replace to directory /buildkit/buildkit3449644680/x/Dockerfile with file",
            ),
        ] {
            assert_eq!(failed_step(name, error), Reason::StepFailed, "{name}");
        }
        for (name, error) in [
            ("[3/3] WORKDIR /x/y", "mkdir /buildkit/buildkit680002012/x/y: no space left on device"),
            ("[2/3] RUN make", "failed to mount /buildkit/buildkit1: not a directory"),
        ] {
            assert_eq!(failed_step(name, error), Reason::BuildFailed, "{name}");
        }
    }

    #[test]
    fn a_bake_of_which_nothing_but_echoes_is_known_is_judged_by_its_error() {
        for (error, reason) in
            [("Canceled: context canceled", Reason::BuildFailed), ("context canceled", Reason::BuildFailed)]
        {
            assert_eq!(failed_step("[2/3] RUN make", error), reason, "{error}");
        }
    }

    #[test]
    fn a_field_that_buildx_quotes_is_not_searched_for_words() {
        for (line, reason) in [
            ("invalid host foo=code = Unavailable", Reason::DefinitionInvalid),
            ("invalid tag \"connection refused\": invalid reference format", Reason::DefinitionInvalid),
            ("unable to prepare context: path \"code = Unavailable\" not found", Reason::ContextNotFound),
            ("failed to get build context unexpected EOF: stat x: no such file or directory", Reason::ContextNotFound),
            (
                "network mode \"closing transport\" not supported by buildkit - you can define",
                Reason::DefinitionInvalid,
            ),
            ("error from sender: open x/context deadline exceeded: permission denied", Reason::BuildFailed),
            (
                "unable to derive the IP value for host-gateway: host-gateway is not supported by the kubernetes driver",
                Reason::DefinitionInvalid,
            ),
            ("failed to receive status: rpc error: code = Unavailable desc = EOF", Reason::BuilderLost),
            ("listing workers for Build: failed to list workers: Unavailable: closing", Reason::BuilderUnavailable),
        ] {
            assert_eq!(by_error_line(line, false), reason, "{line}");
            assert_eq!(by_error_line(&format!("target web: {line}"), false), reason, "{line}");
        }
    }

    #[test]
    fn a_customers_own_words_are_not_matched() {
        for (line, reason) in [
            (
                r#"process "/bin/sh -c false # connection refused, code = Unavailable" did not complete successfully: exit code: 1"#,
                Reason::StepFailed,
            ),
            (r#"failed to process "${NOPE:?no": NOPE: connection refused"#, Reason::DockerfileInvalid),
            (
                r#"failed to process "\"${B:?x: no space left on device}\"": B: x: no space left on device"#,
                Reason::DockerfileInvalid,
            ),
            (
                r#"failed to process "${B:?a: failed to resolve source metadata for x: 503 service}": B: a: failed to resolve source metadata for x: 503 service"#,
                Reason::DockerfileInvalid,
            ),
            ("invalid signal: dial tcp: connection refused", Reason::DockerfileInvalid),
            ("invalid signal: x: no space left on device", Reason::DockerfileInvalid),
            (r#"target stage "x: no space left on device" could not be found"#, Reason::DockerfileInvalid),
            ("invalid boolean value for multi-platform: x: no space left on device", Reason::DefinitionInvalid),
            ("index annotations not supported for single platform export", Reason::DefinitionInvalid),
            ("mkdir /var/lib/buildkit/snapshots/9: no space left on device", Reason::BuildFailed),
            ("failed to prepare x: write /var/lib/buildkit/x: input/output error", Reason::BuildFailed),
            ("failed to parse platform dial tcp: connection refused: not an OS", Reason::DockerfileInvalid),
            ("Invalid containerPort: a", Reason::DockerfileInvalid),
            ("failed to load LLB: network.host is not allowed", Reason::PolicyRefused),
            (
                "r.example/toomanyrequests:1: failed to resolve source metadata for r.example/toomanyrequests:1: not found",
                Reason::BaseImageNotFound,
            ),
            (
                r#"failed to push r.example/x:1: failed to do request: Head "http://r.example/v2": dial tcp r.example: connect: connection refused"#,
                Reason::RegistryUnavailable,
            ),
            ("Internal: something broke", Reason::BuildFailed),
            ("DeadlineExceeded: context deadline exceeded", Reason::BuilderUnavailable),
            (
                r#"Internal: rpc error: code = Internal desc = header key "followpaths" contains value with non-printable ASCII characters"#,
                Reason::FileNotFound,
            ),
            (
                "r.example/x:1: failed to resolve source metadata for r.example/x:1: failed to fetch anonymous token: dial tcp 10.0.0.1:99: connect: permission denied",
                Reason::RegistryDenied,
            ),
            (
                "x: failed to resolve source metadata for docker.io/library/x:latest: pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Reason::BaseImageNotFound,
            ),
        ] {
            for begin in BUILDKIT {
                assert_eq!(by_error_line(&format!("{begin}{line}"), false), reason, "{line}");
                assert_eq!(by_error_line(&format!("target web: {begin}{line}"), false), reason, "{line}");
            }
        }
    }
}

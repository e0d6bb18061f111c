//! Every fixed bound on the size or number of what a stranger sends.
//!
//! One table, so that a reviewer sees which bounds multiply. `docs/limits.md` shows the same table; `tests/it/limits.rs`
//! compares the two. Bounds that an operator may change are settings.

/// Declares the table once: constant, value, unit, what it bounds, what happens beyond it.
macro_rules! bounds {
    ($($name:ident: $value:expr, $unit:ident, $what:literal, $beyond:literal;)+) => {
        $(#[doc = concat!($what, ". Beyond it: ", $beyond, ".")] pub const $name: usize = $value;)+

        /// Every bound, in the order of the table.
        pub const ALL: &[Bound] = &[$(Bound { what: $what, value: $value, unit: Unit::$unit, beyond: $beyond },)+];
    };
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// What it bounds.
    pub what: &'static str,
    /// How much is allowed.
    pub value: usize,
    /// Of what.
    pub unit: Unit,
    /// What happens to the rest.
    pub beyond: &'static str,
}

/// What a bound counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

impl Bound {
    /// The bound for a person: `8 KiB`, `256`.
    pub fn size(&self) -> String {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match self.unit {
            Unit::Count => self.value.to_string(),
            Unit::Bytes => units
                .iter()
                .find(|(size, _)| self.value >= *size && self.value.is_multiple_of(*size))
                .map_or_else(|| format!("{} B", self.value), |(size, unit)| format!("{} {unit}", self.value / size)),
        }
    }
}

bounds! {
    MESSAGE: 2 << 10, Bytes, "`message` of a report, and the error message in Redis", "cut, with a mark";
    ERROR: 4 << 10, Bytes, "`error` of a target", "cut, with a mark";
    LOG_TAIL: 8 << 10, Bytes, "`log_tail` of a failed target", "lines are left out, with a mark";
    LOG_TAIL_LINES: 60, Count, "Lines of `log_tail`", "left out, with a mark";
    LOG_TAILS: 1 << 20, Bytes, "Output that is kept of running steps, all together", "the longest lose their oldest lines";
    WARNINGS: 50, Count, "Warnings of BuildKit about a build's Dockerfiles", "counted in a notice";
    NOTICE: 1 << 10, Bytes, "One notice", "cut, with a mark";
    NOTICES: 50, Count, "Notices of a build", "counted, and the count is the last notice";
    REPORT: 256 << 10, Bytes, "A report as JSON: the argument of a callback job", "the longest texts are cut further";
    LINE: 4 << 20, Bytes, "A line that a child process writes", "the rest of the line is dropped";
    VERTICES: 10_000, Count, "Steps and chores of BuildKit in a build", "left out, and counted in a notice";
    STEP_NAME: 1 << 10, Bytes, "The name of a step, which is its instruction", "cut, with a mark";
    STEP_NAMES: 2 << 20, Bytes, "Names of steps in a build, all together", "cut to 64 bytes each";
    ERRORS: 512 << 10, Bytes, "Errors of steps in a build, all together", "left out, and the step has failed";
    PUSHES: 1_000, Count, "References that a build pushes", "left out";
    IMAGES: 500, Count, "Images that a build exports: one for each target and platform", "`image_digest` is null";
    OUTPUT_LINE: 64 << 10, Bytes, "A line that a step prints", "the rest of the line is dropped, with a mark";
    OUTPUT_PIECE: 8 << 10, Bytes, "A line of a step's output in the log", "continued in the next line of the log";
    OUTPUT_OPEN: 1 << 20, Bytes, "Lines of steps that have not ended yet, all together", "the rest of the line is dropped, with a mark";
    SAID: 32 << 10, Bytes, "Text that docker-buildx writes beside its events", "the oldest lines are dropped";
    LABEL: 64, Bytes, "Target and number of a step before a line of its output", "cut, with a mark";
    TITLE: 160, Bytes, "Name of a step in a log line or on the terminal", "cut, with a mark";
    LOG_ENTRY: 32 << 10, Bytes, "One entry of a log stream, without its last record", "continued in the next entry";
    ARCHIVE_TAIL: 64 << 10, Bytes, "Last lines of a step in an archived log that has reached `journal.archive_bytes`", "the oldest lines are dropped, with a mark";
    ARCHIVE_TAILS: 1 << 20, Bytes, "The same of all running steps of a build", "the longest lose their oldest lines";
    ARCHIVE_PART: 5 << 20, Bytes, "A part of an archived log in memory, while it is uploaded", "the rest follows in the next part";
    ARCHIVE_UPLOADS: 4, Count, "Archived logs that a worker uploads at once", "the next ones wait, within `journal.archive_timeout`";
    RECORD: 64 << 10, Bytes, "The record of one attempt in Redis", "texts are cut, then targets are left out and counted";
    RECORD_ATTEMPTS: 10, Count, "Attempts in the record of a build", "the oldest are removed";
    SLOWEST: 5, Count, "Steps of a target in the record, the slowest ones", "left out";
    TRACED_STEPS: 1_000, Count, "Steps of an attempt that are spans of its trace", "counted in `sidebake.steps_left_out`";
    TRACE_STATE: 512, Bytes, "`tracestate` of a job", "left out";
    BUILDS: 100_000, Count, "Builds in the list of `sidebake list`", "the oldest leave the list";
    SPINNERS: 64, Count, "Running steps that a terminal shows at once", "shown when they end";
    JOB: 8 << 20, Bytes, "The text of a job", "dead set, in a `Sidebake::Malformed` entry; no worker reads it";
    JOBS: 8 << 20, Bytes, "Texts of the jobs that a worker holds, all together", "the next ones wait in their queue";
    WINDOW: 256 << 10, Bytes, "Texts at the head of a contended queue among which a worker chooses", "the next ones are looked at later; one text always counts";
    PAGE: 1 << 20, Bytes, "Texts of waiting jobs that the poller looks at in one request", "the rest follows in the next one";
    OTHERS_DUE: 1_000, Count, "Due jobs of Rails that the poller moves from a set at one look", "the next look follows at once";
    FIELDS: 1_000, Count, "Fields of a job, beside those in its arguments", "dead set, in a `Sidebake::Malformed` entry";
    ARGUMENTS: 2_621_440, Bytes, "Arguments of a job", "`invalid_arguments`";
    ARGUMENT_DEPTH: 64, Count, "Levels of arrays and objects in arguments", "`invalid_arguments`";
    VALUES: 50_000, Count, "Names and values in one JSON text from outside", "like a text that is too long";
    DOCKERFILE: 512 << 10, Bytes, "A Dockerfile, also an inline one", "`dockerfile_invalid`";
    STRING: 2 << 20, Bytes, "A text of an Application Template or a definition", "`invalid_arguments`";
    PATH: 4095, Bytes, "A path in arguments: `compose`, `bake`, `context`, `dockerfile`", "`invalid_arguments`";
    NAME: 1 << 10, Bytes, "Any other text in arguments: `ref`, `builder`, tags, ids, names of queues", "`invalid_arguments`";
    VARIABLE: 128 << 10, Bytes, "One variable with its name; Linux takes no more in one", "`invalid_arguments`";
    ENVIRONMENT: 512 << 10, Bytes, "All variables with their names; Linux takes 2 MiB with all arguments", "`invalid_arguments`";
    DEFINITION_FILES: 20, Count, "Files in `compose` or `bake`", "`invalid_arguments`";
    DEFINITION_FILE: 1 << 20, Bytes, "One of these files", "`definition_invalid`";
    TARGETS: 1000, Count, "Names in `targets`, and images of an Application Template", "`invalid_arguments`";
    ECHO: 64 << 10, Bytes, "One echoed field as JSON", "`invalid_arguments`, and null in its place";
    ECHO_VALUES: 2_000, Count, "Names and values in one echoed field", "`invalid_arguments`, and null in its place";
    MALFORMED: 64 << 10, Bytes, "The text in a `Sidebake::Malformed` entry that can be read", "cut, and all of it follows in Base64";
    BACKTRACE: 4 << 20, Bytes, "An error's backtrace that came with a job, decompressed", "set aside: the Web UI does not show it";
    GITHUB: 4 << 20, Bytes, "An answer of GitHub's API", "`github_unavailable`";
    RESOLVED: 1 << 20, Bytes, "An answer of a resolver", "`resolver_unavailable`";
    KUBERNETES: 8 << 20, Bytes, "An answer of a Kubernetes API server", "`builder_unavailable`";
    PODS: 1_000, Count, "Pods of one builder", "`builder_unavailable`";
    WORKERS: 1 << 20, Bytes, "BuildKit's list of its workers", "the pod's name is not known";
    PLUGIN: 1 << 20, Bytes, "Output of an exec plugin of a kubeconfig", "`builder_unavailable`";
    CREDENTIAL: 256 << 10, Bytes, "Output of a credential helper", "`worker_failed`";
    MANIFEST: 4 << 20, Bytes, "A manifest that a registry answers", "the refused push counts as failed";
    TOKEN: 64 << 10, Bytes, "An answer of a registry's token server", "the refused push counts as failed";
    METADATA: 4 << 20, Bytes, "`metadata.json` of a bake", "not read: digests come from the progress stream";
    PRINT_MEMORY: 512 << 20, Bytes, "Memory of one `bake --print`, or `sandbox.max_data_bytes` if that is less", "it ends with an error";
    PROBE_MEMORY: 256 << 20, Bytes, "Memory of one docker-buildx that asks a builder for its state", "it ends with an error";
    BROKER_MEMORY: 32 << 20, Bytes, "Memory of the broker of one child, on a kernel whose Landlock has no rules for ports", "the child's connections fail";
    BROKER_SOCKETS: 256, Count, "Sockets of one child with a broker that are not connected yet", "the next one is refused: too many open files";
    BROKER_WAITS: 16, Count, "Calls of one child with a broker that wait for a connection", "the next one is refused: try again";
    SOURCE_OUTPUT: 8 << 20, Bytes, "Output of a source child", "the child is killed";
    CACHE_STEPS: 500, Count, "Instructions of a Dockerfile that are compared with the last build", "`not_known`";
    CACHE_RECORD: 8 << 10, Bytes, "What Redis remembers of the last build of a target", "`not_known`";
    CACHE_TARGETS: 100, Count, "Targets of a repository that Redis remembers, for each trust, builder and ref", "left out, or the record starts again";
    CACHE_COMMITS: 4, Count, "Earlier commits with which a commit is compared", "changed files are not known";
    RECOVERIES: 1, Count, "Recoveries of a job from dead workers in three days, while it runs beside others", "it runs apart from others";
    CRASHES: 2, Count, "Crashes among these in which only this job ran", "dead set, with the reason `poison`";
}

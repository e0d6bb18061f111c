//! Tables of causes, and what holds for any Dockerfile.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::cache::{Change, StepState, Wanted};
use crate::secret::Secret;

/// One build of one target.
#[derive(Clone)]
struct Build {
    dockerfile: &'static str,
    wanted: Wanted,
    digest: Option<&'static str>,
    /// The sha, and what changed since that of the first build.
    sha: &'static str,
    changed: Option<Vec<&'static str>>,
    pod: Option<&'static str>,
    has_pods: bool,
}

const DOCKERFILE: &str = "ARG TAG=1\n\
    FROM base:$TAG AS deps\n\
    ENV LANG=C\n\
    ARG VERSION=1\n\
    COPY a.txt /\n\
    RUN make\n\
    FROM deps\n\
    LABEL x=1\n\
    USER app\n\
    COPY --from=deps /out /\n\
    COPY . /src\n\
    RUN [\"x\"]\n";

impl Build {
    fn first() -> Self {
        Self {
            dockerfile: DOCKERFILE,
            wanted: Wanted::default(),
            digest: Some("sha256:1"),
            sha: "1",
            changed: Some(Vec::new()),
            pod: None,
            has_pods: false,
        }
    }

    fn of(dockerfile: &'static str) -> Self {
        Self { dockerfile, ..Self::first() }
    }

    fn with(self, name: &str, value: &str) -> Self {
        let arguments = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        Self { wanted: Wanted { arguments, ..self.wanted }, ..self }
    }

    fn changing(self, paths: &[&'static str]) -> Self {
        Self { sha: "2", changed: Some(paths.to_vec()), ..self }
    }

    /// The steps of this build: those from line `from` on ran, and those before were cached.
    fn steps(&self, from: u32) -> Vec<SeenStep> {
        let plan = self.plan();
        let seen = |stage: usize| {
            let (label, total) = (plan.stages[stage].label.clone(), plan.n_steps(stage) as u32);
            let seen = |(number, entry): (u32, &Entry)| SeenStep {
                label: label.clone(),
                number,
                total,
                instruction: format!("{} {}", entry.kind.name(), entry.text),
                state: if entry.line < from { StepState::Cached } else { StepState::Ran },
                took: Duration::from_millis(100),
            };
            plan.steps(stage).map(seen).collect::<Vec<_>>()
        };
        plan.needed().into_iter().flat_map(seen).collect()
    }

    fn plan(&self) -> Plan {
        Plan::read(self.dockerfile.as_bytes(), self.wanted.clone()).expect("understood")
    }

    fn with_facts<T>(&self, steps: &[SeenStep], tell: impl FnOnce(&Facts<'_>) -> T) -> T {
        let plan = self.plan();
        let images = self
            .digest
            .iter()
            .flat_map(|digest| ["1", "2"].map(|tag| (format!("docker.io/library/base:{tag}"), (*digest).to_owned())));
        let changes = |sha: &str| {
            let change = |path: &&str| Change { path: (*path).into(), is_removed: false, is_special: false };
            let changed = if sha == self.sha { Some(&[][..]) } else { self.changed.as_deref() };
            changed.map(|paths| ContextChanges {
                folder: "vote/".into(),
                paths: paths.iter().map(change).collect(),
                links: Some(Vec::new()),
                is_complete: true,
            })
        };
        tell(&Facts {
            marker: &Marker::new(&Secret::new("a key"), "a scope"),
            dockerfile: Some("vote/Dockerfile"),
            plan: Some(&plan),
            steps,
            images: &images.collect(),
            sha: Some(self.sha),
            pod: self.pod,
            has_pods: self.has_pods,
            why_pod: "the pod of this repository",
            changes: &changes,
            effort: &Cell::new(100_000),
        })
    }

    fn record(&self, is_built: bool, from: u32) -> LastBuild {
        let record = self.with_facts(&self.steps(from), |facts| facts.to_record(&[], is_built)).0;
        let json = record.to_json();
        assert_eq!(LastBuild::read(json.as_bytes()), Some(record.clone()), "{json}");
        record
    }

    /// The answer when the steps from line `from` on ran, after `last`.
    fn judged(&self, from: u32, last: &[&LastBuild]) -> NotCached {
        self.with_facts(&self.steps(from), |facts| judge(facts, Some(last))).expect("a step ran")
    }
}

/// Cause, line and words, when `now` follows a first build.
fn after_first(now: &Build, from: u32) -> (CacheMiss, Option<u32>, String) {
    let first = Build { has_pods: now.has_pods, pod: now.pod.and(Some("pod-1")), ..Build::first() }.record(true, 0);
    let found = now.judged(from, &[&first]);
    let (_, words) = found.message.rsplit_once(" was not cached: ").expect("a sentence");
    (found.cause, found.line, words.to_owned())
}

#[test]
fn each_cause_is_named_where_a_step_depends_on_it() {
    let other = |from: &str, to: &str| -> &'static str { DOCKERFILE.replacen(from, to, 1).leak() };
    let own = "the instruction is new or changed";
    let moved = "other instructions come before it than in the last build";
    let evicted = "nothing that it depends on changed, and the builder no longer has its result";
    let base = "the base image `base:$TAG` has another digest";
    use CacheMiss::*;
    for (now, from, cause, words) in [
        (Build::first(), 5, Evicted, evicted),
        (Build::first(), 11, Evicted, evicted),
        (Build::of(other("make", "make all")), 6, InstructionChanged, own),
        (Build::of(other("a.txt", "b.txt")), 5, InstructionChanged, own),
        (Build::of(other("RUN make\n", "RUN x\nRUN make\n")), 6, InstructionChanged, own),
        (Build::of(other("COPY a.txt /\n", "")), 5, InstructionChanged, moved),
        (
            Build::of(other("LANG=C", "LANG=D")),
            6,
            InstructionChanged,
            "`ENV LANG` (line 3) before it is new or changed",
        ),
        (Build::of(other("ENV LANG=C\n", "")), 5, InstructionChanged, "ENV or ARG before it was removed"),
        (
            Build::of(other("VERSION=1", "VERSION=2")),
            6,
            InstructionChanged,
            "`ARG VERSION` (line 4) before it is new or changed",
        ),
        (Build::of(other("TAG=1", "TAG=2")), 5, InstructionChanged, "`ARG TAG` (line 1) before it is new or changed"),
        (Build::of(other("base:$TAG", "base:2")), 5, InstructionChanged, "`FROM` (line 2) before it is new or changed"),
        (Build::of(other("USER app\n", "USER app\nRUN id\n")), 10, InstructionChanged, own),
        (Build::first().with("VERSION", "2"), 6, ArgumentChanged, "the build argument `VERSION` changed"),
        (Build::first().with("TAG", "2"), 5, ArgumentChanged, "the build argument `TAG` changed"),
        (Build { digest: Some("sha256:2"), ..Build::first() }, 5, BaseChanged, base),
        (Build::first().changing(&["a.txt"]), 5, FilesChanged, "`vote/a.txt` changed"),
        (Build::first().changing(&["a.txt", "b"]), 5, FilesChanged, "`vote/a.txt` changed"),
        (Build::first().changing(&["b", "c"]), 11, FilesChanged, "`vote/b` and 1 more file changed"),
        (Build::first().changing(&["b", "c", "d/e"]), 11, FilesChanged, "`vote/b` and 2 more files changed"),
        // What a step does not depend on.
        (Build::of(other("x=1", "x=2")), 10, Evicted, evicted),
        (Build::of(other("USER app", "USER b")), 10, Evicted, evicted),
        (Build::of(other("LANG=C", "LANG=D")), 5, Evicted, evicted),
        (Build::of(other(" AS deps", " AS deps # x")), 5, NotKnown, "the reason is not known"),
        (Build::of(other("ENV LANG=C", "# a comment\nENV LANG=\"C\"")), 6, Evicted, evicted),
        (Build::first().with("VERSION", "1"), 6, Evicted, evicted),
        (Build::first().with("UNUSED", "1"), 6, Evicted, evicted),
        (Build::first().changing(&["b"]), 5, Evicted, evicted),
        (
            Build { wanted: Wanted { no_cache: true, ..Wanted::default() }, ..Build::first() },
            5,
            NoCache,
            "the build was asked not to take it from the cache",
        ),
        (
            Build { wanted: Wanted { no_cache_stages: vec!["Deps".into()], ..Wanted::default() }, ..Build::first() },
            5,
            NoCache,
            "the build was asked not to take it from the cache",
        ),
        (
            Build { wanted: Wanted { no_cache_stages: vec!["Deps".into()], ..Wanted::default() }, ..Build::first() },
            10,
            Evicted,
            evicted,
        ),
        // What is not certain.
        (Build { digest: None, ..Build::first() }, 5, NotKnown, "the reason is not known"),
        (Build { sha: "2", changed: None, ..Build::first() }, 5, NotKnown, "the reason is not known"),
        (
            Build { wanted: Wanted { platforms: vec!["linux/arm64".into()], ..Wanted::default() }, ..Build::first() },
            5,
            NotKnown,
            "the reason is not known",
        ),
        (
            Build { wanted: Wanted { has_contexts: true, ..Wanted::default() }, ..Build::first() },
            5,
            NotKnown,
            "the reason is not known",
        ),
        // A step before it changed, and was cached by an older build.
        (Build::of(other("make", "make all")), 10, NotKnown, "the reason is not known"),
        (Build { digest: Some("sha256:2"), ..Build::first() }, 6, NotKnown, "the reason is not known"),
        (Build::first().changing(&["a.txt"]), 6, NotKnown, "the reason is not known"),
        // A step before it was cached, so the builder still has what the last build left.
        (
            Build { sha: "2", changed: None, ..Build::of(other("a.txt /", "--from=x /a /")) },
            11,
            NotKnown,
            "the reason is not known",
        ),
    ] {
        if now.dockerfile.contains("# x") {
            assert!(Plan::read(now.dockerfile.as_bytes(), Wanted::default()).is_none());
            continue;
        }
        let (found, line, told) = after_first(&now, from);
        assert_eq!((found, told.as_str(), line), (cause, words, Some(from)), "{}", now.dockerfile);
    }
}

#[test]
fn files_that_are_not_known_name_no_cause() {
    let dockerfiles =
        [("FROM base:1\nRUN a\nCOPY . .\n", 3), ("FROM base:1\nCOPY . .\n", 2), ("FROM base:1\nADD $URL /x\n", 2)];
    for (dockerfile, line) in dockerfiles {
        let first = Build::of(dockerfile).record(true, 0);
        let now = Build { sha: "2", changed: None, ..Build::of(dockerfile) };
        assert_eq!(now.judged(line, &[&first]).cause, CacheMiss::NotKnown, "{dockerfile}");
    }
}

/// The cause when the first step of `then` was cached and it runs again in `now`.
fn between(then: &Build, now: &Build, line: u32) -> CacheMiss {
    now.judged(line, &[&then.record(true, 0)]).cause
}

#[test]
fn what_a_step_does_not_name_may_enter_its_key() {
    use CacheMiss::*;
    let of = Build::of;
    let workdir = |user: &str| -> &'static str { format!("FROM base:1\nUSER {user}\nWORKDIR /app\n").leak() };
    assert_eq!(between(&of(workdir("a")), &of(workdir("b")), 3), InstructionChanged);
    let copy = of("FROM base:1\nCOPY a.txt /\n");
    let spaced = of("FROM base:1\nCOPY  a.txt   /\n");
    assert_eq!(between(&copy, &spaced.clone().changing(&["a.txt"]), 2), FilesChanged, "white space is not a change");
    assert_eq!(between(&copy, &spaced, 2), Evicted);
    let limited = |process: &str| {
        let wanted = Wanted { process: process.into(), ..Wanted::default() };
        Build { wanted, ..of("FROM base:1\nRUN make\n") }
    };
    assert_eq!(between(&limited("1"), &limited("2"), 2), NotKnown);
    assert_eq!(between(&limited("1"), &limited("1"), 2), Evicted);
    let dated = |epoch: &str| of("FROM base:1\nWORKDIR /app\n").with("SOURCE_DATE_EPOCH", epoch);
    assert_eq!(between(&dated("1"), &dated("2"), 2), NotKnown);
    let linked = |digest| Build { digest: Some(digest), ..of("FROM base:1\nCOPY --link a.txt /\n") };
    assert_eq!(between(&linked("sha256:1"), &linked("sha256:2"), 2), NotKnown, "it does not depend on the base image");
}

#[test]
fn triggers_and_long_lists_of_names_are_not_understood() {
    let names = |n: usize| (0..n).map(|n| format!("a{n}=$a{} ", n + 1)).collect::<String>();
    for text in [
        "FROM base AS b\nONBUILD ENV A=1\nFROM b\nRUN make\n".to_owned(),
        format!("ARG {}\n{}", names(30_000), "FROM --platform=$a0 scratch\n".repeat(490)),
        format!("FROM base\nENV A=\"{}\"\nRUN make\n", names(200).replace('"', "")),
    ] {
        assert!(Plan::read(text.as_bytes(), Wanted::default()).is_none(), "{}", &text[..40]);
    }
}

#[test]
fn a_comparison_without_effort_names_no_cause() {
    let build = Build::first();
    let first = build.record(true, 0);
    let found = build.with_facts(&build.steps(5), |facts| {
        facts.effort.set(3);
        judge(facts, Some(&[&first]))
    });
    assert_eq!(found.map(|found| found.cause), Some(CacheMiss::NotKnown));
}

#[test]
fn a_pod_counts_when_nothing_that_the_step_depends_on_changed() {
    let on = |pod: Option<&'static str>| Build { has_pods: true, pod, ..Build::first() };
    let other = "the last build ran on `pod-1`, this one on `pod-2` (the pod of this repository)";
    assert_eq!(after_first(&on(Some("pod-2")), 5).2, other);
    assert_eq!(after_first(&on(Some("pod-1")), 5).0, CacheMiss::Evicted);
    assert_eq!(after_first(&on(None), 5).0, CacheMiss::NotKnown);
    assert_eq!(after_first(&on(Some("pod-2")).changing(&["a.txt"]), 5).0, CacheMiss::FilesChanged);
}

#[test]
fn a_failed_build_is_remembered_as_far_as_it_came() {
    let mut steps = Build::first().steps(5);
    steps[1].state = StepState::Failed;
    steps[2..].iter_mut().for_each(|step| step.state = StepState::Planned);
    let failed = Build::first().with_facts(&steps, |facts| facts.to_record(&[], false)).0;
    assert_eq!(Build::first().judged(6, &[&failed]).cause, CacheMiss::NotFinished);
    assert_eq!(Build::first().judged(5, &[&failed]).cause, CacheMiss::Evicted);
    assert_eq!(Build::first().judged(11, &[&failed]).cause, CacheMiss::NotKnown, "it may have been there before");
}

#[test]
fn cached_steps_save_the_time_of_their_last_run_however_long_ago_that_was() {
    let build = Build::first();
    let after = |earlier: &[&LastBuild], from: u32| {
        build.with_facts(&build.steps(from), |facts| facts.to_record(earlier, true))
    };
    let n_steps = build.steps(0).len() as u32;
    let (first, saved) = after(&[], 0);
    assert_eq!(saved, None, "every step ran");
    assert_eq!(after(&[], 99).1, None, "nothing is known of their runs");
    let (second, saved) = after(&[&first], 99);
    assert_eq!(saved, Some(Duration::from_millis(100) * n_steps));
    assert_eq!(after(&[&second], 99).1, saved, "it is remembered from build to build");
    let last = build.steps(0).len() - build.steps(6).iter().filter(|step| step.state == StepState::Ran).count();
    assert_eq!(after(&[&second], 6).1, Some(Duration::from_millis(100) * last as u32));
}

#[test]
fn the_build_with_the_same_inputs_counts_and_else_that_of_the_ref() {
    let of = |make: &str| -> Build { Build::of(DOCKERFILE.replace("make", make).leak()) };
    let [a, b] = ["a", "b"].map(|make| of(make).record(true, 0));
    assert_eq!(of("a").judged(6, &[&b, &a]).cause, CacheMiss::Evicted);
    assert_eq!(of("c").judged(6, &[&b, &a]).cause, CacheMiss::InstructionChanged);
    assert_eq!(of("c").judged(6, &[]).cause, CacheMiss::FirstBuild);
    let steps = of("c").steps(6);
    assert_eq!(of("c").with_facts(&steps, |facts| judge(facts, None)).expect("a step ran").cause, CacheMiss::NotKnown);
    assert_eq!(of("c").with_facts(&of("c").steps(99), |facts| judge(facts, None)), None);
}

#[test]
fn a_step_that_does_not_fit_the_dockerfile_is_found_by_its_text_or_not_explained() {
    let first = Build::first().record(true, 0);
    let judged = |instruction: &str, change: fn(&mut SeenStep)| {
        let mut steps = Build::first().steps(6);
        steps[1].instruction = instruction.into();
        change(&mut steps[1]);
        let found = Build::first().with_facts(&steps, |facts| judge(facts, Some(&[&first]))).expect("a step ran");
        (found.cause, found.line)
    };
    let other_target =
        [(|step| step.label = "other".into()) as fn(&mut SeenStep), |step| step.total += 1, |step| step.number += 1];
    for change in other_target {
        assert_eq!(judged("RUN other", change), (CacheMiss::NotKnown, None));
        assert_eq!(judged("RUN  make", change), (CacheMiss::NotKnown, Some(6)));
    }
    assert_eq!(judged("RUN other", |_| ()), (CacheMiss::NotKnown, None));
    assert_eq!(judged("COPY make", |_| ()), (CacheMiss::NotKnown, None));
}

#[test]
fn a_record_has_no_text_of_the_dockerfile_and_a_bound() {
    let secret = Build::of("FROM base:1\nARG TOKEN=hunter2\nRUN echo hunter2\n").with("TOKEN", "hunter3");
    let json = secret.record(true, 0).to_json();
    assert!(!json.contains("hunter") && !json.contains("TOKEN") && !json.contains("base"), "{json}");
    let long = Build::of(format!("FROM base:1\n{}", "RUN x\n".repeat(400)).leak());
    let record = long.with_facts(&[], |facts| facts.to_record(&[], true)).0.to_json();
    assert!(record.len() < 500, "{record}");
    let last = LastBuild::read(record.as_bytes()).expect("a record");
    assert_eq!(long.judged(2, &[&last]).cause, CacheMiss::NotKnown);
    for text in ["", "{}", "[]", "\"x\"", &json.replace("\"t\":0", "\"t\":7"), &json[1..]] {
        assert_eq!(LastBuild::read(text.as_bytes()), None, "{text}");
    }
    let other = Marker::new(&Secret::new("another key"), "a scope");
    assert!(!last.is_of(&other));
}

#[test]
fn a_dockerfile_that_would_take_long_to_compare_is_not_planned() {
    let is_planned = |lines: String| Plan::read(format!("FROM base\n{lines}").as_bytes(), Wanted::default()).is_some();
    let words = |n: usize, word: fn(usize) -> String| (0..n).map(word).collect::<Vec<_>>().join(" ");
    for (at_most, make) in [
        (499, (|n| "RUN x\n".repeat(n)) as fn(usize) -> String),
        (500, |n| format!("ENV {}", (0..n).map(|n| format!("A{n}=1")).collect::<Vec<_>>().join(" "))),
    ] {
        assert_eq!([at_most, at_most + 1].map(|n| is_planned(make(n))), [true, false]);
    }
    assert_eq!([100, 101].map(|n| is_planned(format!("COPY {} /", words(n, |n| format!("f{n}"))))), [true, false]);
    assert_eq!([100, 101].map(|n| is_planned(format!("WORKDIR {}", words(n, |n| format!("$A{n}"))))), [true, false]);
    assert_eq!([100, 101].map(|n| is_planned(format!("ENV A=\"{}\"", words(n, |n| format!("$A{n}"))))), [true, false]);
}

/// Instructions of which random Dockerfiles are made.
const LINES: [&str; 10] = [
    "RUN a",
    "RUN b",
    "COPY a.txt /",
    "COPY $A /",
    "WORKDIR /x",
    "ENV A=1",
    "ENV A=2",
    "ARG V",
    "LABEL x=$A",
    "USER a",
];

/// What BuildKit's cache key of each step depends on: its line, the value of `A`, the user and whether `V` is set.
fn keys(lines: &[usize], has_argument: bool) -> Vec<(&'static str, Option<&'static str>, bool, bool)> {
    let (mut value, mut has_user, mut has_v) = (None, false, false);
    let mut keys = Vec::new();
    for line in lines.iter().map(|n| LINES[*n]) {
        match line.split(' ').next() {
            Some("ENV") => value = Some(line),
            Some("ARG") => has_v = has_argument,
            Some("USER") => has_user = true,
            Some("RUN") => keys.push((line, value, has_user, has_v)),
            Some("WORKDIR") => keys.push((line, None, has_user, false)),
            Some("COPY") => keys.push((line, value.filter(|_| line.contains('$')), false, false)),
            _ => {}
        }
    }
    keys
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Nothing is named that did not change, and a step that nothing changed for was evicted.
    #[test]
    fn no_cause_is_named_that_is_not_in_the_inputs(
        lines in proptest::collection::vec(0..LINES.len(), 1..8),
        other_line in proptest::option::of((0..8_usize, 0..LINES.len())),
        has_argument: bool,
        has_digest: bool,
        has_file: bool,
        at in 0..8_u32,
    ) {
        let text = |lines: &[usize]| -> &'static str {
            let lines: Vec<&str> = lines.iter().map(|n| LINES[*n]).collect();
            format!("FROM base:1\n{}\n", lines.join("\n")).leak()
        };
        let first = Build::of(text(&lines));
        let mut changed = lines.clone();
        if let Some((at, line)) = other_line && at < changed.len() {
            changed[at] = line;
        }
        let mut now = Build::of(text(&changed));
        if has_argument {
            now = now.with("V", "2");
        }
        if has_digest {
            now.digest = Some("sha256:2");
        }
        if has_file {
            now = now.changing(&["a.txt"]);
        }
        let steps = now.steps(at + 2);
        let found = now.with_facts(&steps, |facts| judge(facts, Some(&[&first.record(true, 0)])));
        let Some(found) = found else { return Ok(()) };
        let is_same_text = changed == lines;
        match found.cause {
            CacheMiss::InstructionChanged => prop_assert!(!is_same_text),
            CacheMiss::ArgumentChanged => prop_assert!(has_argument),
            CacheMiss::BaseChanged => prop_assert!(has_digest),
            CacheMiss::FilesChanged => prop_assert!(has_file),
            CacheMiss::Evicted => {
                let until = found.line.expect("a line") as usize - 1;
                let (before, steps) = (keys(&lines, false), keys(&changed[..until], has_argument));
                prop_assert!(!has_digest && before.starts_with(&steps), "{found:?}");
                prop_assert!(!has_file || !changed[..until].contains(&2), "{found:?}");
            }
            // It may copy anything where the variable is not set.
            CacheMiss::NotKnown => {
                let is_same = is_same_text && !has_argument && !has_digest && !has_file;
                prop_assert!(!is_same || lines.contains(&3), "{found:?}");
            }
            CacheMiss::NoCache | CacheMiss::FirstBuild | CacheMiss::OtherPod | CacheMiss::NotFinished => {
                prop_assert!(false, "{found:?}");
            }
        }
    }
}

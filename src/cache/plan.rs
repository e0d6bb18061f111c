//! What the steps of a target depend on, as its Dockerfile and its definition say.
//!
//! Reads only what it understands. What it does not understand makes the plan `None`, or `is_partial`: then the plan proves a
//! change, and never that there is none.

mod reader;
mod words;

use std::collections::BTreeMap;

use super::files::Reads;
use crate::bounds;
use crate::dockerfile;

use reader::{Reader, find};

pub(super) use words::{after_flags, expand, flags};

/// The frontend whose rules these are.
const FRONTEND: &str = "docker/dockerfile";

/// An argument that enters the keys of some steps that do not name it.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What a definition wants of a Dockerfile.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The stage; `None` for the last one.
    pub stage: Option<String>,
    /// Build arguments.
    pub arguments: BTreeMap<String, String>,
    /// Platforms.
    pub platforms: Vec<String>,
    /// Whether there are named contexts: they replace images and stages.
    pub has_contexts: bool,
    /// What else the processes of RUN get, such as limits.
    pub process: String,
    /// Whether nothing is taken from the cache.
    pub no_cache: bool,
    /// Stages of which nothing is taken from the cache.
    pub no_cache_stages: Vec<String>,
}

/// The stages of a Dockerfile, and what a definition wants of them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All stages, in order.
    pub(super) stages: Vec<Stage>,
    /// The stage to build.
    pub(super) target: usize,
    pub(super) wanted: Wanted,
    /// Whether something else may enter a cache key.
    pub(super) is_partial: bool,
    /// What holds for all steps: the frontend, and arguments that only BuildKit reads.
    pub(super) setting: String,
}

/// A stage.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// In lower case.
    pub(super) name: Option<String>,
    /// In the names of BuildKit's steps.
    pub(super) label: String,
    /// The stage that it is based on; `None` for an image and for `scratch`.
    pub(super) base: Option<usize>,
    /// The name of the stage or the image, with the values of arguments.
    pub(super) image: String,
    /// Its instructions. The first is its FROM.
    pub(super) entries: Vec<Entry>,
}

/// An instruction that may enter a cache key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) line: u32,
    pub(super) kind: Kind,
    /// Its words without the keyword, with its here-documents.
    pub(super) text: String,
    /// What ENV and ARG set. Of FROM, the global arguments that it mentions.
    pub(super) variables: Vec<Variable>,
    /// Variables in the text, where BuildKit expands them.
    pub(super) mentions: Vec<String>,
    /// Stages that it copies or mounts from.
    pub(super) sources: Vec<usize>,
    /// What it reads of the context.
    pub(super) reads: Option<Reads>,
    /// Whether it reads something whose content is not known, such as a URL or another image.
    pub(super) is_open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    From,
    Run,
    Copy,
    Add,
    Workdir,
    Env,
    Arg,
    User,
    Shell,
}

/// A variable of ENV or ARG.
#[derive(Clone, Debug)]
pub(super) struct Variable {
    pub(super) line: u32,
    pub(super) name: String,
    /// As the Dockerfile sets it.
    pub(super) default: Option<String>,
    /// As the definition sets it: of ARG only.
    pub(super) given: Option<String>,
    pub(super) mentions: Vec<String>,
}

impl Variable {
    pub(super) fn value(&self) -> Option<&str> {
        self.given.as_deref().or(self.default.as_deref())
    }
}

impl Kind {
    const ALL: [(Self, &str); 9] = [
        (Self::From, "FROM"),
        (Self::Run, "RUN"),
        (Self::Copy, "COPY"),
        (Self::Add, "ADD"),
        (Self::Workdir, "WORKDIR"),
        (Self::Env, "ENV"),
        (Self::Arg, "ARG"),
        (Self::User, "USER"),
        (Self::Shell, "SHELL"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).expect("it lists all").1
    }

    /// Whether BuildKit makes a step of it.
    pub(super) fn is_step(self) -> bool {
        matches!(self, Self::Run | Self::Copy | Self::Add | Self::Workdir)
    }
}

/// An image in a FROM.
#[derive(Clone, Copy, Debug)]
pub struct BaseImage<'a> {
    /// The line.
    pub line: u32,
    /// The image, with the values of arguments.
    pub image: &'a str,
    /// The text after FROM.
    from: &'a str,
}

impl BaseImage<'_> {
    /// Whether it has to be for the platform of the build.
    pub fn is_for_target(&self) -> bool {
        flags(self.from).all(|flag| ["--platform=$TARGETPLATFORM", "--platform=${TARGETPLATFORM}"].contains(&flag))
    }

    /// A FROM of the same image in a Dockerfile of its own; `None` when its platform is that of an argument of this one.
    pub fn alone(&self) -> Option<String> {
        let known = ["BUILDPLATFORM", "TARGETPLATFORM"].map(|name| format!("--platform=${name}"));
        let is_known = |flag: &str| !flag.contains('$') || known.iter().any(|known| known == flag);
        let words = flags(self.from).chain([self.image]).collect::<Vec<_>>().join(" ");
        flags(self.from).all(is_known).then_some(words)
    }
}

impl Plan {
    /// Reads a Dockerfile. `None` when it has something that is not understood, or too many instructions.
    pub fn read(text: &[u8], wanted: Wanted) -> Option<Self> {
        let syntax = dockerfile::directive(text, "syntax").unwrap_or_default();
        let image = syntax.split(['@', ':']).next().unwrap_or_default();
        let is_known = syntax.is_empty() || image.strip_prefix("docker.io/").unwrap_or(image) == FRONTEND;
        if !is_known || wanted.arguments.contains_key("BUILDKIT_SYNTAX") {
            return None;
        }
        let instructions = dockerfile::instructions(text);
        if instructions.len() > bounds::CACHE_STEPS {
            return None;
        }
        let mut reader = Reader { wanted: &wanted, globals: Vec::new(), stages: Vec::new(), n_variables: 0 };
        instructions.iter().try_for_each(|instruction| reader.take_in(instruction))?;
        let mut stages = reader.stages;
        let target = match wanted.stage.as_deref().filter(|stage| !stage.is_empty()) {
            None => stages.len().checked_sub(1)?,
            Some(name) => find(&stages, name)?,
        };
        if let [only] = &mut stages[..] {
            only.label.clear();
        }
        let is_own = |name: &str| name.starts_with("BUILDKIT_") || name == EPOCH;
        let own = wanted.arguments.iter().filter(|(name, _)| is_own(name));
        let setting = format!("{syntax}\n{:?}\n{:?}\n{}", wanted.platforms, Vec::from_iter(own), wanted.process);
        let is_partial = wanted.has_contexts || reader.globals.iter().any(|global| global.name == EPOCH);
        Some(Self { stages, target, wanted, is_partial, setting })
    }

    /// The instructions that a stage is made of: those of the stages below it come first.
    pub(super) fn chain(&self, stage: usize) -> Vec<&Entry> {
        let mut stages = vec![stage];
        while let Some(base) = stages.last().and_then(|stage| self.stages[*stage].base) {
            stages.push(base);
        }
        stages.iter().rev().flat_map(|stage| &self.stages[*stage].entries).collect()
    }

    /// The stages that the target needs, in order.
    pub(super) fn needed(&self) -> Vec<usize> {
        let mut is_needed = vec![false; self.stages.len()];
        is_needed[self.target] = true;
        // A stage can only name earlier ones.
        for stage in (0..=self.target).rev() {
            if is_needed[stage] {
                let Stage { base, entries, .. } = &self.stages[stage];
                base.iter().chain(entries.iter().flat_map(|entry| &entry.sources)).for_each(|n| is_needed[*n] = true);
            }
        }
        (0..self.stages.len()).filter(|stage| is_needed[*stage]).collect()
    }

    /// The base images that the target needs, from the first stage on.
    pub fn base_images(&self) -> impl Iterator<Item = BaseImage<'_>> {
        let stages = self.needed().into_iter().map(|stage| &self.stages[stage]);
        let of_image = stages.filter(|stage| stage.base.is_none() && !is_scratch(&stage.entries[0]));
        of_image.map(|stage| BaseImage {
            line: stage.entries[0].line,
            image: &stage.image,
            from: &stage.entries[0].text,
        })
    }

    /// How many steps BuildKit counts in a stage.
    pub(super) fn n_steps(&self, stage: usize) -> usize {
        let Stage { base, entries, .. } = &self.stages[stage];
        let is_image = base.is_none() && !is_scratch(&entries[0]);
        usize::from(is_image) + entries.iter().filter(|entry| entry.kind.is_step()).count()
    }

    /// The steps of a stage, with the numbers that BuildKit gives them.
    pub(super) fn steps(&self, stage: usize) -> impl Iterator<Item = (u32, &Entry)> {
        let entries = &self.stages[stage].entries;
        let n_steps = entries.iter().filter(|entry| entry.kind.is_step()).count();
        let first = self.n_steps(stage) - n_steps + 1;
        entries.iter().filter(|entry| entry.kind.is_step()).zip(first..).map(|(entry, n)| (to_u32(n), entry))
    }
}

impl Stage {
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name))
    }
}

pub(super) fn is_scratch(from: &Entry) -> bool {
    from.text.split_ascii_whitespace().find(|word| !word.starts_with("--")) == Some("scratch")
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

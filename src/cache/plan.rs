//! What the steps of a target depend on, as its Dockerfile and its definition say.
//!
//! Reads only what it understands. What it does not understand makes the plan `None`, or `is_partial`: then the plan proves a
//! change, and never that there is none.

use std::collections::BTreeMap;

use super::files::Reads;
use crate::bounds;
use crate::dockerfile::{self, Instruction};
use crate::json;

/// The frontend whose rules these are.
const FRONTEND: &str = "docker/dockerfile";

/// An argument that enters the keys of some steps that do not name it.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// The most variables, and the most sources, that one instruction may name.
const MAX_NAMES: usize = 100;

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

fn find(stages: &[Stage], name: &str) -> Option<usize> {
    let named = stages.iter().rposition(|stage| stage.is_named(name));
    named.or_else(|| name.parse().ok().filter(|n| *n < stages.len()))
}

struct Reader<'a> {
    wanted: &'a Wanted,
    /// The arguments before the first stage.
    globals: Vec<Variable>,
    stages: Vec<Stage>,
    /// The variables of all instructions so far.
    n_variables: usize,
}

impl Reader<'_> {
    fn take_in(&mut self, instruction: &Instruction<'_>) -> Option<()> {
        let keyword = std::str::from_utf8(instruction.keyword).ok()?;
        let Some((kind, _)) = Kind::ALL.into_iter().find(|(_, name)| name.eq_ignore_ascii_case(keyword)) else {
            // It is an instruction of another Dockerfile's stages.
            let is_trigger = keyword.eq_ignore_ascii_case("ONBUILD");
            // The others make no steps and enter no cache key.
            return (!is_trigger).then_some(());
        };
        let mut entry = Entry {
            line: to_u32(instruction.line),
            kind,
            text: String::from_utf8(instruction.arguments().to_vec()).ok()?,
            variables: Vec::new(),
            mentions: Vec::new(),
            sources: Vec::new(),
            reads: None,
            is_open: false,
        };
        match kind {
            Kind::From => return self.begin_stage(entry),
            Kind::Arg => entry.variables = self.arguments(&entry)?,
            Kind::Env => entry.variables = variables(&entry)?,
            Kind::Run => self.read_run(&mut entry)?,
            Kind::Copy | Kind::Add => self.read_copy(&mut entry)?,
            Kind::Workdir | Kind::User => entry.mentions = mentions(&entry.text),
            Kind::Shell => {}
        }
        self.count(&entry)?;
        for line in &instruction.heredocs {
            entry.text.push('\n');
            entry.text.push_str(std::str::from_utf8(line).ok()?);
        }
        match self.stages.last_mut() {
            Some(stage) => stage.entries.push(entry),
            None if kind == Kind::Arg => self.globals.append(&mut entry.variables),
            None => return None,
        }
        Some(())
    }

    /// `None` when there are so many variables and names that comparing them would take long.
    fn count(&mut self, entry: &Entry) -> Option<()> {
        self.n_variables += entry.variables.len();
        let mut names = [&entry.mentions].into_iter().chain(entry.variables.iter().map(|variable| &variable.mentions));
        let n_read = entry.reads.as_ref().map_or(0, |reads| reads.sources.len()) + entry.sources.len();
        let is_few = self.n_variables <= bounds::CACHE_STEPS && n_read <= MAX_NAMES;
        (is_few && names.all(|all| all.len() <= MAX_NAMES)).then_some(())
    }

    /// `FROM [--platform=…] IMAGE [AS NAME]`.
    fn begin_stage(&mut self, mut entry: Entry) -> Option<()> {
        let words: Vec<&str> = entry.text.split_ascii_whitespace().filter(|word| !word.starts_with("--")).collect();
        let (image, name) = match words[..] {
            [image] => (image, None),
            [image, as_, name] if as_.eq_ignore_ascii_case("AS") => (image, Some(name.to_ascii_lowercase())),
            _ => return None,
        };
        let image = self.expanded(image)?;
        let base = self.stages.iter().rposition(|stage| stage.is_named(&image));
        let mut names = mentions(&entry.text);
        while let Some(name) = names.pop() {
            if let Some(variable) = self.globals.iter().rev().find(|variable| variable.name == name)
                && !entry.variables.iter().any(|known| known.name == name)
            {
                names.extend(variable.mentions.iter().cloned());
                entry.variables.push(variable.clone());
            }
        }
        self.count(&entry)?;
        // The name of a stage enters no cache key.
        entry.text = entry
            .text
            .split_ascii_whitespace()
            .take_while(|word| !word.eq_ignore_ascii_case("AS"))
            .collect::<Vec<_>>()
            .join(" ");
        if base.is_some() && entry.text.starts_with("--") {
            return None;
        }
        let label = name.clone().unwrap_or_else(|| format!("stage-{}", self.stages.len()));
        self.stages.push(Stage { name, label, base, entries: vec![entry] });
        Some(())
    }

    /// The image of a FROM with the values of global arguments. `None` when it is not certain.
    fn expanded(&self, image: &str) -> Option<String> {
        let lookup = |name: &str| {
            let variable = self.globals.iter().rev().find(|variable| variable.name == name)?;
            variable.value().map(str::to_owned)
        };
        expand(image, &lookup)
    }

    /// The variables of ARG. One without a value takes that of the global one.
    fn arguments(&self, entry: &Entry) -> Option<Vec<Variable>> {
        let is_global = self.stages.is_empty();
        let argument = |word: String| {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(unquoted(value))),
                None => (word, None),
            };
            let given = self.wanted.arguments.get(&name).cloned();
            let inherited = self.globals.iter().rev().find(|global| global.name == name);
            match (inherited, default.is_none() && !is_global) {
                (Some(global), true) => global.clone(),
                _ => {
                    let mentions = default.as_deref().map(mentions).unwrap_or_default();
                    Variable { line: entry.line, name, default, given, mentions }
                }
            }
        };
        Some(words(&entry.text)?.into_iter().map(argument).collect())
    }

    fn read_run(&self, entry: &mut Entry) -> Option<()> {
        let text = entry.text.clone();
        for flag in flags(&text) {
            let Some(mount) = flag.strip_prefix("--mount=") else { continue };
            let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
            for field in mount.split(',') {
                let (name, value) = field.split_once('=').unwrap_or((field, ""));
                fields.insert(name, value);
            }
            if let Some(from) = fields.get("from") {
                self.read_from(from, entry);
            } else if ["bind", ""].contains(fields.get("type").unwrap_or(&"")) {
                let source = fields.get("source").or_else(|| fields.get("src")).copied().unwrap_or("/");
                let reads = entry.reads.get_or_insert_default();
                reads.add(source, source.contains(['$', '\'', '"']));
                reads.is_inexact |= fields.values().any(|value| value.contains('$'));
            }
        }
        Some(())
    }

    fn read_copy(&self, entry: &mut Entry) -> Option<()> {
        entry.mentions = mentions(&entry.text);
        let text = entry.text.clone();
        for flag in flags(&text) {
            if let Some(from) = flag.strip_prefix("--from=") {
                self.read_from(from, entry);
                return Some(());
            }
        }
        let is_inexact = flags(&entry.text).any(|flag| flag.starts_with("--exclude") || flag.starts_with("--parents"));
        let rest = after_flags(&entry.text);
        let words = if rest.starts_with('[') { json::read(rest.as_bytes()).ok()? } else { words(rest)? };
        let (_, sources) = words.split_last()?;
        let mut reads = Reads { is_inexact, ..Reads::default() };
        for source in sources.iter().filter(|source| !source.starts_with("<<")) {
            let is_elsewhere = source.contains("://") || source.starts_with("git@") || source.contains('$');
            if entry.kind == Kind::Add && is_elsewhere {
                entry.is_open = true;
            } else {
                reads.add(&unquoted(source), source.contains('\\'));
            }
        }
        entry.reads = (!reads.sources.is_empty()).then_some(reads);
        Some(())
    }

    fn read_from(&self, from: &str, entry: &mut Entry) {
        match find(&self.stages, from) {
            Some(stage) => entry.sources.push(stage),
            None => entry.is_open = true,
        }
    }
}

/// The flags after a keyword.
pub(super) fn flags(text: &str) -> impl Iterator<Item = &str> {
    text.split_ascii_whitespace().take_while(|word| word.starts_with("--"))
}

pub(super) fn after_flags(text: &str) -> &str {
    let mut rest = text.trim_start();
    while rest.starts_with("--") {
        rest = rest.find(char::is_whitespace).map_or("", |end| rest[end..].trim_start());
    }
    rest
}

/// The variables of ENV, in both of its forms.
fn variables(entry: &Entry) -> Option<Vec<Variable>> {
    let variable = |name: &str, value: &str| Variable {
        line: entry.line,
        name: name.to_owned(),
        default: Some(unquoted(value)),
        given: None,
        mentions: mentions(value),
    };
    let all = words(&entry.text)?;
    if !all.first()?.contains('=') {
        let (name, value) = entry.text.split_once(char::is_whitespace)?;
        return Some(vec![variable(name, value.trim())]);
    }
    all.iter().map(|word| word.split_once('=').map(|(name, value)| variable(name, value))).collect()
}

/// Words as the shell separates them, with their quotes. `None` when a quote does not end.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match (character, quote) {
            (character, None) if character.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            ('\\', None | Some('"')) => {
                word.push(character);
                word.extend(rest.next());
                continue;
            }
            ('"' | '\'', None) => quote = Some(character),
            (character, Some(open)) if character == open => quote = None,
            _ => {}
        }
        word.push(character);
    }
    if !word.is_empty() {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// A value without the quotes around all of it.
fn unquoted(value: &str) -> String {
    let inner = ['"', '\''].into_iter().find_map(|quote| {
        let inner = value.strip_prefix(quote)?.strip_suffix(quote)?;
        (!inner.contains([quote, '\\', '$'])).then_some(inner)
    });
    inner.unwrap_or(value).to_owned()
}

/// The names after each `$`.
fn mentions(text: &str) -> Vec<String> {
    let name = |rest: &str| {
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        (end > 0).then(|| rest[..end].to_owned())
    };
    let mut names: Vec<String> = text.split('$').skip(1).filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// A text with the values of its variables. `None` when it has anything but `$NAME` and `${NAME}`, or an unknown name.
pub(super) fn expand(text: &str, lookup: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let (mut expanded, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, end) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}')?,
            None => after.split_at(after.find(|c| !is_plain(c)).unwrap_or(after.len())),
        };
        if name.is_empty() || !name.chars().all(is_plain) {
            return None;
        }
        let value = lookup(name).filter(|value| !value.contains(['$', '\\', '"', '\'']))?;
        expanded.push_str(before);
        expanded.push_str(&value);
        rest = end;
    }
    expanded.push_str(rest);
    (!expanded.contains(['\\', '"', '\''])).then_some(expanded)
}

//! Reads the instructions of a Dockerfile into stages, one by one.

use std::collections::BTreeMap;

use super::words::{after_flags, expand, flags, mentions, unquoted, words};
use super::{Entry, Kind, Stage, Variable, Wanted, to_u32};
use crate::bounds;
use crate::cache::files::Reads;
use crate::dockerfile::Instruction;
use crate::json;

/// The most variables, and the most sources, that one instruction may name.
const MAX_NAMES: usize = 100;

pub(super) fn find(stages: &[Stage], name: &str) -> Option<usize> {
    let named = stages.iter().rposition(|stage| stage.is_named(name));
    named.or_else(|| name.parse().ok().filter(|n| *n < stages.len()))
}

pub(super) struct Reader<'a> {
    pub(super) wanted: &'a Wanted,
    /// The arguments before the first stage.
    pub(super) globals: Vec<Variable>,
    pub(super) stages: Vec<Stage>,
    /// The variables of all instructions so far.
    pub(super) n_variables: usize,
}

impl Reader<'_> {
    pub(super) fn take_in(&mut self, instruction: &Instruction<'_>) -> Option<()> {
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
        self.stages.push(Stage { name, label, base, image, entries: vec![entry] });
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

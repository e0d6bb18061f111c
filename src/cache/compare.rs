//! What a step depends on, compared with the last build, step by step.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::plan::{Entry, Kind, Variable, is_scratch};
use super::record::{Mark, MarkedEntry, MarkedVariable, Marker, step_text};

/// A longer value is not part of a path.
const MAX_VALUE: usize = 4 << 10;

/// Something that a step depends on, and that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Difference {
    /// An instruction: its line, unless it is gone, and the words that name it.
    Instruction(Option<u32>, String),
    /// A build argument: its name.
    Argument(String),
    /// A base image: its name.
    Base(String),
}

/// A step of both builds.
#[derive(Debug)]
pub(super) struct Compared<'a> {
    pub(super) now: &'a Entry,
    /// In the order of the Dockerfile.
    pub(super) differences: Vec<Difference>,
    /// Whether there are no others.
    pub(super) is_certain: bool,
    /// Whether the last build has the step's result, if that is known.
    pub(super) was_solved: Option<bool>,
    /// The values that the step's text can name.
    pub(super) values: BTreeMap<String, String>,
}

/// Knows the digest of the image in a FROM.
pub(super) type DigestOf<'a> = &'a dyn Fn(&Entry) -> Option<String>;

/// Compares the chains of a stage, up to the step in `last_line` or to their ends. `None` when one has fewer steps before that, or when
/// no effort is left: each step takes as much as it has variables in its scope.
pub(super) fn compare<'a>(
    (marker, effort): (&'a Marker, &Cell<usize>),
    digest: DigestOf<'a>,
    now: &[&'a Entry],
    then: &'a [&'a MarkedEntry],
    last_line: Option<u32>,
) -> Option<Vec<Compared<'a>>> {
    let mut walk = Walk { marker, digest, now: Scope::default(), then: Scope::default() };
    let (mut now, mut then) = (now.iter(), then.iter());
    let mut compared = Vec::new();
    loop {
        let step = now.by_ref().copied().find(|entry| walk.enter(entry));
        let earlier = then.by_ref().copied().find_map(|entry| walk.enter_earlier(entry));
        let Some(step) = step else {
            return (earlier.is_none() && last_line.is_none()).then_some(compared);
        };
        let is_last = last_line == Some(step.line);
        if earlier.is_none() && !is_last {
            return None;
        }
        effort.set(effort.get().checked_sub(1 + walk.now.variables.len() + walk.then.variables.len())?);
        compared.push(walk.compare(step, earlier, compared.is_empty()));
        if is_last {
            return Some(compared);
        }
    }
}

/// What instructions have set so far.
struct Scope<V, R, E> {
    /// By whether ENV set it, and by name.
    variables: BTreeMap<(bool, Mark), V>,
    root: Option<R>,
    user: Option<E>,
    shell: Option<E>,
}

impl<V, R, E> Default for Scope<V, R, E> {
    fn default() -> Self {
        Self { variables: BTreeMap::new(), root: None, user: None, shell: None }
    }
}

struct Walk<'a> {
    marker: &'a Marker,
    digest: DigestOf<'a>,
    /// Variables with the marks of their values.
    now: Scope<(&'a Variable, Option<Mark>), &'a Entry, &'a Entry>,
    then: Scope<MarkedVariable, &'a MarkedEntry, Mark>,
}

impl<'a> Walk<'a> {
    /// Takes in an instruction. Returns whether it is a step.
    fn enter(&mut self, entry: &'a Entry) -> bool {
        match entry.kind {
            // A later FROM names a stage.
            Kind::From => drop(self.now.root.get_or_insert(entry)),
            Kind::User => self.now.user = Some(entry),
            Kind::Shell => self.now.shell = Some(entry),
            Kind::Env | Kind::Arg => {
                for variable in &entry.variables {
                    let name = self.marker.mark(&variable.name);
                    let value = variable.value().map(|value| self.marker.mark(value));
                    self.now.variables.insert((entry.kind == Kind::Env, name), (variable, value));
                }
            }
            Kind::Run | Kind::Copy | Kind::Add | Kind::Workdir => return true,
        }
        false
    }

    fn enter_earlier(&mut self, entry: &'a MarkedEntry) -> Option<(Mark, Option<bool>)> {
        match entry {
            MarkedEntry::From(..) => drop(self.then.root.get_or_insert(entry)),
            MarkedEntry::User(text) => self.then.user = Some(*text),
            MarkedEntry::Shell(text) => self.then.shell = Some(*text),
            MarkedEntry::Env(variables) | MarkedEntry::Arg(variables) => {
                let is_env = matches!(entry, MarkedEntry::Env(_));
                self.then.variables.extend(variables.iter().map(|variable| ((is_env, variable.0), *variable)));
            }
            MarkedEntry::Step(text, was_solved, _) => return Some((*text, *was_solved)),
        }
        None
    }

    fn compare(&self, step: &'a Entry, earlier: Option<(Mark, Option<bool>)>, is_first: bool) -> Compared<'a> {
        let is_linked = super::plan::flags(&step.text).any(|flag| flag.starts_with("--link"));
        let mut found = Found { differences: Vec::new(), is_certain: !step.is_open && !is_linked };
        // A linked layer does not depend on what is below it.
        if is_first && !is_linked {
            self.compare_roots(&mut found);
        }
        let is_same = earlier.is_some_and(|(text, _)| text == self.marker.mark(&step_text(step)));
        if !is_same {
            found.instruction(Some(step.line), step.kind.name().into());
        }
        if step.kind == Kind::Workdir {
            self.compare_user(&mut found);
        }
        if step.kind == Kind::Run {
            self.compare_processes(step, &mut found);
            let names = self.now.variables.keys().chain(self.then.variables.keys()).copied();
            names.for_each(|name| self.compare_variable(name, &mut found));
        } else if is_same {
            self.compare_mentions(&step.mentions, &mut found);
        }
        found.differences.sort_by_key(|difference| match difference {
            Difference::Instruction(line, _) => (0, line.unwrap_or(u32::MAX)),
            Difference::Argument(_) => (1, 0),
            Difference::Base(_) => (2, 0),
        });
        let was_solved = earlier.and_then(|(_, was_solved)| was_solved);
        let Found { differences, is_certain } = found;
        Compared { now: step, differences, is_certain, was_solved, values: self.values(&step.mentions) }
    }

    fn compare_roots(&self, found: &mut Found) {
        let (Some(now), Some(MarkedEntry::From(text, digest, variables))) = (self.now.root, self.then.root) else {
            found.is_certain = false;
            return;
        };
        if *text != self.marker.mark(&now.text) {
            return found.instruction(Some(now.line), "FROM".into());
        }
        let mut is_same = true;
        for variable in &now.variables {
            let name = self.marker.mark(&variable.name);
            let earlier = variables.iter().find(|earlier| earlier.0 == name).copied();
            let value = variable.value().map(|value| self.marker.mark(value));
            is_same &= compare_values("ARG", Some((variable, value)), earlier, found);
        }
        // Another image has another digest.
        if !is_same || is_scratch(now) {
            return;
        }
        let own = (self.digest)(now).map(|own| self.marker.mark(&own));
        match own.zip(*digest) {
            Some((own, earlier)) if own != earlier => {
                let image = now.text.split_ascii_whitespace().find(|word| !word.starts_with("--"));
                found.differences.push(Difference::Base(image.unwrap_or_default().to_owned()));
            }
            Some(_) => {}
            None => found.is_certain = false,
        }
    }

    /// What a process of RUN depends on besides its variables.
    fn compare_processes(&self, step: &Entry, found: &mut Found) {
        self.compare_user(found);
        if !super::plan::after_flags(&step.text).starts_with('[') {
            self.compare_entries(self.now.shell, self.then.shell, found);
        }
    }

    fn compare_user(&self, found: &mut Found) {
        self.compare_entries(self.now.user, self.then.user, found);
    }

    fn compare_entries(&self, now: Option<&Entry>, then: Option<Mark>, found: &mut Found) {
        match now {
            Some(now) if then != Some(self.marker.mark(&now.text)) => {
                found.instruction(Some(now.line), now.kind.name().into());
            }
            None if then.is_some() => found.instruction(None, "USER or SHELL".into()),
            _ => {}
        }
    }

    /// Compares the variables that a text names, and those that their values name.
    fn compare_mentions(&self, names: &[String], found: &mut Found) {
        let mut names: Vec<&String> = names.iter().collect();
        let mut seen = BTreeSet::new();
        while let Some(name) = names.pop() {
            if !seen.insert(name) {
                continue;
            }
            let mark = self.marker.mark(name);
            for is_env in [true, false] {
                self.compare_variable((is_env, mark), found);
                names.extend(self.now.variables.get(&(is_env, mark)).into_iter().flat_map(|(its, _)| &its.mentions));
            }
        }
    }

    fn compare_variable(&self, (is_env, name): (bool, Mark), found: &mut Found) {
        let both = [true, false].map(|is_env| self.now.variables.get(&(is_env, name)).copied());
        let now = self.now.variables.get(&(is_env, name)).copied();
        let then = self.then.variables.get(&(is_env, name)).copied();
        let mut own = Found { differences: Vec::new(), is_certain: true };
        if compare_values(if is_env { "ENV" } else { "ARG" }, now, then, &mut own) {
            return;
        }
        // ENV hides an argument of the same name, or not, by their order.
        if both.iter().all(Option::is_some) || now.is_some_and(|(now, _)| is_special(&now.name)) {
            found.is_certain = false;
            return;
        }
        found
            .differences
            .extend(own.differences.into_iter().filter(|one| !found.differences.contains(one)).collect::<Vec<_>>());
    }

    /// The values of the variables that a text names. ENV comes last, and counts.
    fn values(&self, names: &[String]) -> BTreeMap<String, String> {
        let marks: Vec<Mark> = names.iter().map(|name| self.marker.mark(name)).collect();
        let named = self.now.variables.iter().filter(|((_, name), _)| marks.contains(name));
        let values = named.filter_map(|(_, (variable, _))| Some((variable.name.clone(), variable.value()?)));
        values.filter(|(_, value)| value.len() <= MAX_VALUE).map(|(name, value)| (name, value.to_owned())).collect()
    }
}

/// Compares a variable's values, and returns whether they are the same.
fn compare_values(
    keyword: &str,
    now: Option<(&Variable, Option<Mark>)>,
    then: Option<MarkedVariable>,
    found: &mut Found,
) -> bool {
    let earlier = then.and_then(|MarkedVariable(_, default, given)| given.or(default));
    if now.and_then(|(_, value)| value) == earlier {
        return true;
    }
    let is_given = now.is_some_and(|(now, _)| now.given.is_some()) || then.is_some_and(|then| then.2.is_some());
    match now {
        Some((now, _)) if is_given && then.is_some() => {
            found.differences.push(Difference::Argument(now.name.clone()));
        }
        Some((now, _)) => found.instruction(Some(now.line), format!("{keyword} {}", now.name)),
        None => found.instruction(None, "ENV or ARG".into()),
    }
    false
}

/// Whether BuildKit may treat an argument of this name in another way.
fn is_special(name: &str) -> bool {
    name == "SOURCE_DATE_EPOCH" || name.starts_with("BUILDKIT_") || name.to_ascii_uppercase().ends_with("_PROXY")
}

struct Found {
    differences: Vec<Difference>,
    is_certain: bool,
}

impl Found {
    fn instruction(&mut self, line: Option<u32>, words: String) {
        let difference = Difference::Instruction(line, words);
        if !self.differences.contains(&difference) {
            self.differences.push(difference);
        }
    }
}

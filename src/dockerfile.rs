//! The instructions of a Dockerfile: where each begins and ends, and its words.
//!
//! Follows BuildKit's `frontend/dockerfile/parser`. It reads bytes, since BuildKit builds texts that are not UTF-8.

use crate::event::FailedStep;

/// Instructions that can have here-documents.
const WITH_HEREDOCS: [&str; 3] = ["RUN", "COPY", "ADD"];

/// Instructions that make steps.
const STEPS: [&str; 4] = ["RUN", "COPY", "ADD", "WORKDIR"];

/// An instruction.
#[derive(Debug)]
pub struct Instruction<'a> {
    /// The number of its first line, from 1.
    pub line: usize,
    /// As it is written.
    pub keyword: &'a [u8],
    /// Its lines as one, without comments and here-documents.
    pub text: Vec<u8>,
    /// Its here-documents with their ends, as they are written.
    pub heredocs: Vec<&'a [u8]>,
    /// The bytes of all its lines, here-documents included.
    pub n_bytes: usize,
}

impl Instruction<'_> {
    /// Whether this is its keyword.
    pub fn is(&self, keyword: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// What follows the keyword.
    pub fn arguments(&self) -> &[u8] {
        let text = self.text.trim_ascii();
        text.strip_prefix(self.keyword).unwrap_or(text).trim_ascii()
    }

    /// The words of a text that is UTF-8; none of any other.
    fn words(&self) -> impl Iterator<Item = &str> {
        std::str::from_utf8(&self.text).unwrap_or_default().split_whitespace()
    }

    /// The name that a FROM gives to its stage.
    fn stage(&self) -> Option<&str> {
        let words: Vec<&str> = self.words().collect();
        match words[..] {
            [.., _, keyword, name] if keyword.eq_ignore_ascii_case("AS") => Some(name),
            _ => None,
        }
    }
}

/// The lines of a text, without their ends.
fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect()
}

/// All instructions, in order.
pub fn instructions(text: &[u8]) -> Vec<Instruction<'_>> {
    let lines = lines(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text));
    let escape = escape(&lines);
    let mut instructions = Vec::new();
    let mut rest = lines.iter().copied().zip(1..);
    while let Some((first, line)) = rest.next() {
        if is_skipped(first) {
            continue;
        }
        let (mut text, mut n_bytes, mut current) = (Vec::new(), first.len(), first);
        while let Some(content) = continued(current, escape) {
            text.extend_from_slice(content);
            // Empty lines and comments between two parts are left out.
            let mut more = rest.by_ref().inspect(|(line, _)| n_bytes += line.len() + 1);
            current = more.find(|(line, _)| !is_skipped(line)).map_or(&[], |(line, _)| line);
        }
        text.extend_from_slice(current);
        let keyword = first.trim_ascii_start().split(u8::is_ascii_whitespace).next().unwrap_or_default();
        let mut bodies = Vec::new();
        for (name, is_indented) in heredocs(keyword, &text) {
            let is_end = |line: &[u8]| {
                let tabs = line.iter().take_while(|byte| is_indented && **byte == b'\t').count();
                &line[tabs..] == name
            };
            for (line, _) in rest.by_ref() {
                n_bytes += line.len() + 1;
                bodies.push(line);
                if is_end(line) {
                    break;
                }
            }
        }
        instructions.push(Instruction { line, keyword, text, heredocs: bodies, n_bytes });
    }
    instructions
}

/// The line of a failed step, when BuildKit shows its instruction as it is written.
///
/// A stage without a name is any that has none: of several, only one may have the step.
pub fn line_of(text: &[u8], step: &FailedStep) -> Option<u32> {
    let instructions = instructions(text);
    let begins = instructions.iter().enumerate().filter(|(_, instruction)| instruction.is("FROM"));
    let begins: Vec<usize> = begins.map(|(at, _)| at).chain([instructions.len()]).collect();
    let stages = begins.windows(2).map(|range| &instructions[range[0]..range[1]]);
    let mut found = stages.filter_map(|stage| line_in_stage(stage, step));
    found.next().filter(|_| found.next().is_none())
}

/// BuildKit numbers the instructions that make steps, and FROM when it needs an image. An ONBUILD of that image adds steps that
/// the file does not have, and so does a count that is not the file's.
fn line_in_stage(stage: &[Instruction<'_>], step: &FailedStep) -> Option<u32> {
    let [from, rest @ ..] = stage else { return None };
    let is_named = match (from.stage(), &step.stage) {
        (Some(name), Some(shown)) => name.eq_ignore_ascii_case(shown),
        (name, shown) => name.is_none() && shown.is_none(),
    };
    let steps: Vec<&Instruction<'_>> =
        rest.iter().filter(|instruction| STEPS.iter().any(|keyword| instruction.is(keyword))).collect();
    let n_before = (step.total as usize).checked_sub(steps.len()).filter(|n| is_named && *n <= 1)?;
    let found = steps.get((step.number as usize).checked_sub(n_before + 1)?)?;
    let is_same = found.words().skip(1).eq(step.instruction.split_whitespace().skip(1))
        && step.instruction.split_whitespace().next().is_some_and(|keyword| found.is(keyword));
    is_same.then(|| u32::try_from(found.line).ok()).flatten()
}

/// The value of a directive at the top of the file, such as `syntax`.
pub fn directive<'a>(text: &'a [u8], name: &str) -> Option<&'a str> {
    directive_in(&lines(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)), name)
}

fn directive_in<'a>(lines: &[&'a [u8]], name: &str) -> Option<&'a str> {
    let directives = lines.iter().map_while(|line| line.trim_ascii().strip_prefix(b"#"));
    let mut named = directives.map_while(|text| {
        let (key, value) = std::str::from_utf8(text).ok()?.split_once('=')?;
        let key = key.trim();
        key.bytes().all(|byte| byte.is_ascii_alphanumeric()).then_some((key, value.trim()))
    });
    named.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The character that continues a line, from the directive at the top of the file.
fn escape(lines: &[&[u8]]) -> u8 {
    if directive_in(lines, "escape").is_some_and(|value| value.starts_with('`')) { b'`' } else { b'\\' }
}

/// The line without its end, if it continues in the next one. Two marks are one character, and continue nothing.
fn continued(line: &[u8], escape: u8) -> Option<&[u8]> {
    let content = line.trim_ascii_end().strip_suffix(&[escape])?;
    (content.last() != Some(&escape)).then_some(content)
}

/// Whether a line is empty or a comment.
fn is_skipped(line: &[u8]) -> bool {
    matches!(line.trim_ascii_start().first(), None | Some(b'#'))
}

/// The names of an instruction's here-documents, each with whether tabs before its end are ignored.
fn heredocs<'a>(keyword: &[u8], text: &'a [u8]) -> Vec<(&'a [u8], bool)> {
    if !WITH_HEREDOCS.iter().any(|known| keyword.eq_ignore_ascii_case(known.as_bytes())) {
        return Vec::new();
    }
    let words = text.split(u8::is_ascii_whitespace).filter_map(|word| {
        let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let name = word[digits..].strip_prefix(b"<<")?;
        let (name, is_indented) = name.strip_prefix(b"-").map_or((name, false), |name| (name, true));
        let quotes = |byte: &u8| matches!(byte, b'"' | b'\'');
        let begin = name.iter().take_while(|byte| quotes(byte)).count();
        let end = name.len() - name[begin..].iter().rev().take_while(|byte| quotes(byte)).count();
        let name = &name[begin..end];
        (!name.is_empty() && !name.contains(&b'<')).then_some((name, is_indented))
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(usize, String, usize)> {
        let shown = |one: &Instruction| (one.line, String::from_utf8_lossy(&one.text).into_owned(), one.heredocs.len());
        instructions(text.as_bytes()).iter().map(shown).collect()
    }

    #[test]
    fn an_instruction_ends_where_buildkit_ends_it() {
        let one = |line, text: &str| (line, text.to_owned(), 0);
        assert_eq!(read("\u{feff}# x\n\nFROM a\nrun b \\\n # c\n\n  d\n"), [one(3, "FROM a"), one(4, "run b   d")]);
        assert_eq!(read("RUN a \\\\\nRUN b"), [one(1, "RUN a \\\\"), one(2, "RUN b")], "two marks continue nothing");
        assert_eq!(read("# escape=`\nRUN a `\nb\nRUN c \\\n"), [one(2, "RUN a b"), one(4, "RUN c \\")]);
        let with_body = [(1, "COPY <<-A <<B /x/".to_owned(), 4), one(6, "RUN y")];
        assert_eq!(read("COPY <<-A <<B /x/\n1\n\tA\n2\nB\nRUN y"), with_body);
    }

    #[test]
    fn a_directive_stands_before_everything_else() {
        assert_eq!(directive(b"# Syntax = a/b:1\nFROM x", "syntax"), Some("a/b:1"));
        assert_eq!(directive(b"# a comment\n# syntax=a/b:1\nFROM x", "syntax"), None);
        assert_eq!(directive(b"FROM x\n# syntax=a/b:1", "syntax"), None);
    }

    #[test]
    fn the_line_of_a_step_is_known_by_its_stage_its_number_and_its_text() {
        let text = b"# escape=`\nARG V=1\nFROM base:$V AS Build\nWORKDIR /src\nrun  make `\n # why\n   all\nRUN make all\nENV A=b\n\
            RUN echo $A\nFROM scratch\nCOPY --from=build /x /x\nRUN false\nFROM build\nRUN false\nCOPY . .\n";
        let line = |stage: Option<&str>, number, total, instruction: &str| {
            let (stage, instruction) = (stage.map(str::to_owned), instruction.to_owned());
            line_of(text, &FailedStep { number, total, stage, instruction, ..FailedStep::default() })
        };
        let build = Some("build");
        assert_eq!(line(build, 2, 5, "WORKDIR /src"), Some(4));
        assert_eq!(line(build, 3, 5, "RUN make    all"), Some(5));
        assert_eq!(line(build, 4, 5, "RUN make all"), Some(8), "the second of two equal ones");
        assert_eq!(line(build, 5, 5, "RUN echo b"), None, "BuildKit has put a value in");
        assert_eq!(line(build, 4, 6, "RUN make all"), None, "an ONBUILD of the base image");
        assert_eq!(line(build, 1, 5, "FROM base:1@sha256:2"), None);
        assert_eq!(line(Some("other"), 4, 5, "RUN make all"), None);
        assert_eq!(line(None, 2, 2, "COPY . ."), Some(16));
        assert_eq!(line(None, 1, 2, "COPY --from=build /x /x"), Some(12));
        assert_eq!(line(None, 2, 2, "RUN false"), Some(13));
        for (number, total) in [(0, 2), (1, 3), (3, 2), (u32::MAX, u32::MAX), (2, 0)] {
            assert_eq!(line(None, number, total, "COPY . ."), None, "{number}/{total}");
        }
        let alike = b"FROM a\nRUN x\nRUN y\nFROM b\nRUN z\nRUN y\n";
        let step = FailedStep { number: 3, total: 3, instruction: "RUN y".into(), ..FailedStep::default() };
        assert_eq!(line_of(alike, &step), None, "either stage may be meant");
    }
}

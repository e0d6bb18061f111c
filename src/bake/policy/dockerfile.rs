//! What can be known of a Dockerfile before BuildKit reads it: sizes beyond gRPC and Linux, and text that is not UTF-8.
//!
//! BuildKit answers these with an error of gRPC that names no file. Follows BuildKit's `frontend/dockerfile/parser`. Where the
//! end of an instruction is uncertain, nothing is refused.

use crate::bounds;
use crate::event::FailedStep;

/// The longest line that BuildKit's parser reads, in bytes.
const MAX_LINE: usize = 65_535;

/// The longest argument of a program on Linux, in bytes and without the NUL (`MAX_ARG_STRLEN`). A shell gets a command as one.
const MAX_COMMAND: usize = (128 << 10) - 1;

/// Instructions that can have here-documents.
const WITH_HEREDOCS: [&str; 3] = ["RUN", "COPY", "ADD"];

/// Instructions that make steps.
const STEPS: [&str; 4] = ["RUN", "COPY", "ADD", "WORKDIR"];

/// Refuses a text that BuildKit cannot build. The message names the line.
pub(super) fn check(text: &[u8]) -> Result<(), String> {
    if is_utf16(text) {
        return Err("line 1 is UTF-16; save the file as UTF-8".into());
    }
    let lines = lines(text);
    let instructions = instructions(&lines);
    check_size(text, &instructions)?;
    if let Some((line, number)) = lines.iter().zip(1..).find(|(line, _)| line.len() > MAX_LINE) {
        let message = format!("line {number} has {} bytes; BuildKit reads at most {MAX_LINE}", line.len());
        return Err(format!("{message}. Break the line with \\, or copy a file in its place"));
    }
    instructions.iter().try_for_each(check_instruction)
}

/// BuildKit sends the whole file in each message about one of its lines, and gRPC limits a message.
fn check_size(text: &[u8], instructions: &[Instruction]) -> Result<(), String> {
    if text.len() <= bounds::DOCKERFILE {
        return Ok(());
    }
    let largest = instructions.iter().max_by_key(|instruction| instruction.n_bytes);
    let largest = largest.filter(|instruction| instruction.n_bytes > text.len() / 2);
    let part = largest.map(|one| format!(" ({} of them in the instruction of line {})", one.n_bytes, one.line));
    Err(too_large(text.len() as u64, &part.unwrap_or_default()))
}

/// The line of a failed step, when BuildKit shows its instruction as it is written.
///
/// A stage without a name is any that has none: of several, only one may have the step.
pub(in crate::bake) fn line_of(text: &[u8], step: &FailedStep) -> Option<u32> {
    let lines = lines(text);
    let instructions = instructions(&lines);
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

pub(super) fn too_large(n_bytes: u64, part: &str) -> String {
    let limit = bounds::DOCKERFILE;
    format!("{n_bytes} bytes{part}; at most {limit} are allowed. Put long text into a file and COPY it")
}

fn check_instruction(instruction: &Instruction) -> Result<(), String> {
    let Instruction { line, keyword, command, .. } = instruction;
    if std::str::from_utf8(keyword).is_err() {
        return Err(format!("line {line} is not UTF-8; save the file as UTF-8"));
    }
    match command {
        Some(n_bytes) if *n_bytes > MAX_COMMAND => {
            let message = format!("the command of line {line} has {n_bytes} bytes; Linux takes at most {MAX_COMMAND}");
            Err(format!("{message}. Put it into a script and COPY that"))
        }
        _ => Ok(()),
    }
}

fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect()
}

/// Whether it begins with the mark of UTF-16, or with a character of two bytes, one of them NUL.
fn is_utf16(text: &[u8]) -> bool {
    matches!(text, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 1..=255, ..] | [1..=255, 0, ..])
}

struct Instruction<'a> {
    /// The number of its first line.
    line: usize,
    keyword: &'a [u8],
    /// All its lines in one, without here-documents.
    text: Vec<u8>,
    /// The bytes of all its lines, here-documents included.
    n_bytes: usize,
    /// The bytes of the command that a shell gets as one argument.
    command: Option<usize>,
}

impl Instruction<'_> {
    fn is(&self, keyword: &str) -> bool {
        self.keyword.eq_ignore_ascii_case(keyword.as_bytes())
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

fn instructions<'a>(lines: &[&'a [u8]]) -> Vec<Instruction<'a>> {
    let escape = escape(lines);
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
        let heredocs = heredocs(keyword, &text);
        let has_heredocs = !heredocs.is_empty();
        for (name, is_indented) in heredocs {
            let is_end = |line: &[u8]| {
                let tabs = line.iter().take_while(|byte| is_indented && **byte == b'\t').count();
                &line[tabs..] == name
            };
            let _ = rest.by_ref().inspect(|(line, _)| n_bytes += line.len() + 1).find(|(line, _)| is_end(line));
        }
        let command = (!has_heredocs).then(|| command(keyword, &text)).flatten();
        instructions.push(Instruction { line, keyword, text, n_bytes, command });
    }
    instructions
}

/// The size of a RUN's command in the shell's form, without flags.
fn command(keyword: &[u8], text: &[u8]) -> Option<usize> {
    let mut rest =
        text.trim_ascii().strip_prefix(keyword).filter(|_| keyword.eq_ignore_ascii_case(b"RUN"))?.trim_ascii();
    while rest.starts_with(b"--") {
        let end = rest.iter().position(u8::is_ascii_whitespace)?;
        rest = rest[end..].trim_ascii();
    }
    (!rest.starts_with(b"[")).then_some(rest.len())
}

/// The line without its end, if it continues in the next one.
fn continued(line: &[u8], escape: u8) -> Option<&[u8]> {
    line.trim_ascii_end().strip_suffix(&[escape])
}

/// Whether a line is empty or a comment.
fn is_skipped(line: &[u8]) -> bool {
    matches!(line.trim_ascii_start().first(), None | Some(b'#'))
}

/// The character that continues a line, from the directive at the top of the file.
fn escape(lines: &[&[u8]]) -> u8 {
    let directives = lines.iter().map_while(|line| line.trim_ascii().strip_prefix(b"#"));
    let mut values = directives.filter_map(|text| {
        let text = std::str::from_utf8(text).ok()?;
        let (name, value) = text.split_once('=')?;
        name.trim().eq_ignore_ascii_case("escape").then(|| value.trim().bytes().next())?
    });
    values.find(|byte| *byte == b'`').unwrap_or(b'\\')
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

    fn refused(text: &[u8]) -> String {
        check(text).expect_err("refused")
    }

    #[test]
    fn text_in_another_encoding_is_refused_where_buildkit_would_quote_it() {
        let utf16 = |is_big: bool| -> Vec<u8> {
            let unit = |unit: u16| if is_big { unit.to_be_bytes() } else { unit.to_le_bytes() };
            "FROM x\nRUN y\n".encode_utf16().flat_map(unit).collect()
        };
        for is_big in [true, false] {
            assert_eq!(refused(&utf16(is_big)), "line 1 is UTF-16; save the file as UTF-8");
        }
        assert_eq!(refused(b"\xff\xfeF\0"), "line 1 is UTF-16; save the file as UTF-8");
        assert_eq!(refused(b"FROM x\nRUN a \\\n b\nR\xc9N true\n"), "line 4 is not UTF-8; save the file as UTF-8");
        assert_eq!(refused(b"FROM x\nRUN <<EOF\n\xe9 a\nEOF\n\xe9\n"), "line 5 is not UTF-8; save the file as UTF-8");
        // BuildKit builds these.
        for text in [
            &b"\xef\xbb\xbfFROM x\n"[..],
            b"FROM x\nMAINTAINER J\xe9r\n",
            b"FROM x\n# caf\xe9\nRUN echo caf\xe9\n",
            b"FROM x\nRUN echo \\\n  # \xe9\n\n \xe9\n",
            b"FROM x\r\nCOPY <<-'A' <<B /x/\r\n\xe9\r\n\tA\r\n\xe9\r\nB\r\nRUN y\r\n",
            b"# escape=`\nFROM x\nRUN a `\n\xe9\n",
            b"",
            b"F",
        ] {
            assert_eq!(check(text), Ok(()), "{:?}", String::from_utf8_lossy(text));
        }
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

    #[test]
    fn a_line_a_command_and_a_file_have_a_size() {
        let line = |n: usize| format!("FROM x\nENV A={}\n", "x".repeat(n - 6));
        assert_eq!(check(line(MAX_LINE).as_bytes()), Ok(()));
        assert!(
            refused(line(MAX_LINE + 1).as_bytes()).starts_with("line 2 has 65536 bytes; BuildKit reads at most 65535")
        );

        let lines = |n: usize| format!("{}\\\n", "x".repeat(1_000)).repeat(n);
        let run = |before: &str, n: usize| format!("FROM x\nRUN {before}{}\n", lines(n));
        assert_eq!(check(run("", 131).as_bytes()), Ok(()));
        let message = refused(run("--network=none  ", 132).as_bytes());
        assert!(
            message.starts_with("the command of line 2 has 132000 bytes; Linux takes at most 131071. "),
            "{message}"
        );
        // Several arguments, and a file in place of an argument.
        assert_eq!(check(run("[", 132).as_bytes()), Ok(()));
        assert_eq!(check(run("python <<EOF\n", 132).as_bytes()), Ok(()));
        assert_eq!(check(format!("FROM x\nENV A={}\n", lines(132)).as_bytes()), Ok(()));

        let message = refused(format!("FROM x\nRUN [\"a\", \"{}\"]\n", lines(1_500)).as_bytes());
        assert!(message.contains("of them in the instruction of line 2); at most 524288 are allowed"), "{message}");
        let message = refused(format!("FROM x\n{}", "ENV A=b\n".repeat(80_000)).as_bytes());
        assert!(message.starts_with("640007 bytes; at most 524288 are allowed. "), "{message}");
    }
}

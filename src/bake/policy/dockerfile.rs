//! What can be known of a Dockerfile before BuildKit reads it: sizes beyond gRPC and Linux, and text that is not UTF-8.
//!
//! BuildKit answers these with an error of gRPC that names no file. Follows BuildKit's `frontend/dockerfile/parser`. Where the
//! end of an instruction is uncertain, nothing is refused.

use crate::bounds;
use crate::dockerfile::{Instruction, instructions};

/// The longest line that BuildKit's parser reads, in bytes.
const MAX_LINE: usize = 65_535;

/// The longest argument of a program on Linux, in bytes and without the NUL (`MAX_ARG_STRLEN`). A shell gets a command as one.
const MAX_COMMAND: usize = (128 << 10) - 1;

/// Refuses a text that BuildKit cannot build. The message names the line.
pub(super) fn check(text: &[u8]) -> Result<(), String> {
    if is_utf16(text) {
        return Err("line 1 is UTF-16; save the file as UTF-8".into());
    }
    let lines: Vec<&[u8]> =
        text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    let instructions = instructions(text);
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

pub(super) fn too_large(n_bytes: u64, part: &str) -> String {
    let limit = bounds::DOCKERFILE;
    format!("{n_bytes} bytes{part}; at most {limit} are allowed. Put long text into a file and COPY it")
}

fn check_instruction(instruction: &Instruction) -> Result<(), String> {
    let Instruction { line, keyword, .. } = instruction;
    if std::str::from_utf8(keyword).is_err() {
        return Err(format!("line {line} is not UTF-8; save the file as UTF-8"));
    }
    match command_bytes(instruction) {
        Some(n_bytes) if n_bytes > MAX_COMMAND => {
            let message = format!("the command of line {line} has {n_bytes} bytes; Linux takes at most {MAX_COMMAND}");
            Err(format!("{message}. Put it into a script and COPY that"))
        }
        _ => Ok(()),
    }
}

/// Whether it begins with the mark of UTF-16, or with a character of two bytes, one of them NUL.
fn is_utf16(text: &[u8]) -> bool {
    matches!(text, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 1..=255, ..] | [1..=255, 0, ..])
}

/// The size of a RUN's command in the shell's form, without flags: a shell gets it as one argument.
fn command_bytes(instruction: &Instruction) -> Option<usize> {
    if !instruction.is("RUN") || !instruction.heredocs.is_empty() {
        return None;
    }
    let mut rest = instruction.arguments();
    while rest.starts_with(b"--") {
        let end = rest.iter().position(u8::is_ascii_whitespace)?;
        rest = rest[end..].trim_ascii();
    }
    (!rest.starts_with(b"[")).then_some(rest.len())
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

//! The documents match the program: every command, flag, setting, variable and link in them exists.

mod settings;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use sidebake::cli::Cli;
use sidebake::configuration;

use crate::layers::rust_files;
use settings::Section;

/// The start of `docs/configuration.md`.
const HEADER: &str = "\
# Configuration

<!-- Made from the comments in src/settings by `SIDEBAKE_WRITE_DOCS=1 cargo test --test it docs::`. Edit those. -->

sidebake reads its settings in this order. A later one overrides an earlier one.

1. The defaults below.
2. `REDIS_URL` and `RAILS_MAX_THREADS`, as Sidekiq reads them; then a `sidekiq.yml`, if you pass one with `--config`.
3. TOML files that you pass with `--config`. [`config/sidebake.toml`](../config/sidebake.toml) shows every setting.
4. Environment variables: `SIDEBAKE__`, then the path in upper case with two underscores between its parts. \
`SIDEBAKE__GITHUB__APP_ID` sets `github.app_id`. Write a list as `a,b` or `[\"a\",\"b\"]`.
5. Flags of the command line.

Unknown keys are refused. Durations are text, such as `\"30s\"`, `\"15m\"` or `\"2h\"`. Sizes are bytes. In the paths below, `NAME` is \
a name that you choose. A setting without a default is not set.
";

#[test]
fn the_page_of_the_settings_is_made_from_their_comments() {
    let path = root().join("docs/configuration.md");
    let page = page();
    if std::env::var_os("SIDEBAKE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == page, "generate it again: SIDEBAKE_WRITE_DOCS=1 cargo test --workspace --test it docs::");
}

fn page() -> String {
    let defaults = settings::defaults();
    let mut page = HEADER.to_owned();
    for section in settings::sections() {
        let title = if section.path.is_empty() { "Without a section".into() } else { format!("`{}`", section.path) };
        let _ = write!(page, "\n## {title}\n\n{}\n\n| setting | default | meaning |\n|---|---|---|\n", section.doc);
        for setting in &section.settings {
            let path = section.path_of(setting);
            let default =
                defaults.get::<config::Value>(&path).ok().map(|value| format!("`{}`", settings::toml(&value)));
            let values = setting.values.iter().map(|(name, doc)| format!("<br>`{name}`: {doc}")).collect::<String>();
            let meaning = format!("{}{values}", setting.doc).replace('|', "\\|");
            let _ = writeln!(page, "| `{}` | {} | {meaning} |", setting.key, default.unwrap_or_default());
        }
    }
    page
}

#[test]
fn every_link_leads_somewhere() {
    let (mut broken, mut n_links) = (Vec::new(), 0);
    for (document, text) in documents() {
        for target in links(&text) {
            n_links += 1;
            let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
            let file = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let is_there = match anchor {
                None => file.exists(),
                Some(anchor) => std::fs::read_to_string(&file).is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !is_there {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(n_links > 50, "only {n_links} links were found: the reading is broken");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_command_and_flag_exists() {
    let mut unknown = Vec::new();
    let mut n_commands = 0;
    for (document, text) in documents() {
        for line in spans(&text).into_iter().chain(fenced(&text, &["sh", "console", "bash"])) {
            let Some(arguments) = line.trim_start_matches("$ ").strip_prefix("sidebake ") else { continue };
            n_commands += 1;
            if let Err(word) = follow(&Cli::command(), arguments) {
                unknown.push(format!("{}: {line}: {word}", document.display()));
            }
        }
    }
    let known = flags(&Cli::command());
    for (document, text) in documents().iter().filter(|(document, _)| document.ends_with("docs/commands.md")) {
        let named = spans(text).into_iter().filter_map(|span| span.strip_prefix("--")?.split([' ', '=']).next());
        unknown.extend(
            named.filter(|flag| !known.contains(*flag)).map(|flag| format!("{}: --{flag}", document.display())),
        );
    }
    assert!(n_commands > 20, "only {n_commands} commands were found: the reading is broken");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The long flags of a command and its subcommands.
fn flags(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|argument| argument.get_long().map(str::to_owned));
    let builtin = ["help", "version"].map(str::to_owned);
    own.chain(builtin).chain(command.get_subcommands().flat_map(flags)).collect()
}

/// Follows subcommands and flags as far as the program defines them. The rest are values.
pub fn follow(command: &Command, arguments: &str) -> Result<(), String> {
    let (mut command, mut has_positional) = (command.clone(), false);
    command.build();
    for word in arguments.split_whitespace().take_while(|word| !["#", "|", "&&", ">", "<", "\\"].contains(word)) {
        let word = word.trim_matches(['[', ']', '`', ',', '.', '…']);
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap_or_default();
            let is_known = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
            if !is_known && !["help", "version", ""].contains(&flag) {
                return Err(word.to_owned());
            }
        } else if let Some(subcommand) = command.find_subcommand(word).filter(|_| !has_positional) {
            command = subcommand.clone();
        } else if command.has_subcommands() && !word.starts_with('-') && !has_positional {
            return Err(word.to_owned());
        } else {
            has_positional = true;
        }
    }
    Ok(())
}

#[test]
fn every_setting_and_variable_exists() {
    let sections = settings::sections();
    let mut unknown = Vec::new();
    let mut n_settings = 0;
    for (document, text) in documents() {
        for span in spans(&text) {
            let path = span.split([' ', '=']).next().unwrap_or_default();
            let (path, is_variable) = match path.strip_prefix("SIDEBAKE__") {
                Some(name) => (name.to_lowercase().replace("__", "."), true),
                None => (path.to_owned(), false),
            };
            let is_assigned = span.contains(" = ") && path.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if !is_variable && !is_assigned && !is_path_of_a_section(&sections, &path) {
                continue;
            }
            n_settings += 1;
            // Only a text about a section may leave the section out.
            let is_known = is_setting(&sections, &path)
                || is_assigned && is_key(&sections, &path)
                || NOT_SETTINGS.contains(&path.as_str());
            if !is_known {
                unknown.push(format!("{}: {span}", document.display()));
            }
        }
    }
    assert!(n_settings > 20, "only {n_settings} settings were found: the reading is broken");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// Names of BuildKit and of Sidekiq Pro that look like settings of a section.
const NOT_SETTINGS: [&str; 6] =
    ["network.host", "jobs.count", "jobs.success", "jobs.failure", "jobs.perform", "jobs.perform_dist"];

/// Names of Sidekiq, Active Job and Prometheus' clients.
const OF_OTHERS: [&str; 7] = [
    "process_resident_memory_bytes",
    "around_perform",
    "discard_on",
    "retry_on",
    "sidekiq_options",
    "sidekiq_retries_exhausted",
    "sidekiq_retry_in",
];

/// A setting, field, reason or event can be named alone, without a section.
#[test]
fn every_name_in_snake_case_is_one_of_the_program() {
    let texts = rust_files(&root().join("src")).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    let code: String = texts.collect::<Vec<_>>().join("\n");
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let known: BTreeSet<&str> = lines.flat_map(|line| line.split(|c| !is_of_a_name(c))).chain(OF_OTHERS).collect();
    let (mut unknown, mut n_names) = (Vec::new(), 0);
    for (document, text) in documents() {
        for span in spans(&text) {
            let name = span.split([' ', '=']).next().unwrap_or_default();
            let is_lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !name.contains('_') || name.starts_with('_') || !name.chars().all(is_lower) {
                continue;
            }
            n_names += 1;
            if !known.contains(name) {
                unknown.push(format!("{}: {span}", document.display()));
            }
        }
    }
    assert!(n_names > 200, "only {n_names} names were found: the reading is broken");
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_piece_of_configuration_can_be_used() {
    let mut n_pieces = 0;
    for (document, text) in documents() {
        let lines: Vec<&str> = text.lines().collect();
        for block in
            lines.split(|line| line.starts_with("```")).skip(1).step_by(2).filter(|block| is_toml(&text, block))
        {
            n_pieces += 1;
            let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
            std::fs::write(file.path(), block.join("\n")).unwrap();
            let read = configuration::load(&[file.path().to_owned()], None);
            assert!(read.is_ok(), "{}: {}\n{}", document.display(), read.unwrap_err(), block.join("\n"));
        }
    }
    assert!(n_pieces > 5, "only {n_pieces} pieces were found: the reading is broken");
}

/// Whether this block is fenced as TOML.
fn is_toml(text: &str, block: &[&str]) -> bool {
    text.contains(&format!("```toml\n{}\n```", block.join("\n")))
}

#[test]
fn the_table_of_log_events_is_that_of_the_code() {
    let text = std::fs::read_to_string(root().join("docs/operating.md")).unwrap();
    let rows =
        text.lines().skip_while(|line| *line != "## Log events").take_while(|line| *line != "## Dashboard and alerts");
    let cells = rows.filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let documented: BTreeSet<String> =
        cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let source: String =
        rust_files(&root().join("src")).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let named = ["event = \"", "Complaint::new(\""].into_iter().flat_map(|begin| source.split(begin).skip(1));
    let named: BTreeSet<String> = named.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
    assert_eq!(documented, named, "docs/operating.md, \"Log events\"");
}

/// Endings of files, which are not keys of a section.
const FILES: [&str; 5] = ["rs", "md", "lua", "toml", "rb"];

/// A path such as `redis.url` or `builders.default.driver`: it begins with a section, and is not a file or a method.
fn is_path_of_a_section(sections: &[Section], path: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-*\"{}".contains(c);
    let Some((first, _)) = path.split_once('.').filter(|(first, _)| !first.is_empty()) else { return false };
    let is_file = path.rsplit('.').next().is_some_and(|ending| FILES.contains(&ending));
    let is_section = sections.iter().any(|section| section.path.split('.').next() == Some(first));
    is_section && path.chars().all(is_word) && !is_file
}

fn is_setting(sections: &[Section], path: &str) -> bool {
    let matches = |known: &str| {
        let (known, given): (Vec<_>, Vec<_>) = (known.split('.').collect(), path.split('.').collect());
        known.len() == given.len() && known.iter().zip(&given).all(|(known, given)| *known == "NAME" || known == given)
    };
    sections.iter().any(|section| {
        let settings = section.settings.iter().map(|setting| section.path_of(setting));
        matches(&section.path) || settings.into_iter().any(|setting| matches(&setting)) || is_map(section, path)
    })
}

fn is_key(sections: &[Section], key: &str) -> bool {
    sections.iter().flat_map(|section| &section.settings).any(|setting| setting.key == key)
}

/// The map itself, such as `jobs.classes`.
fn is_map(section: &Section, path: &str) -> bool {
    section.path.strip_suffix(".NAME") == Some(path)
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Each document with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let paths = ["README.md", "ARCHITECTURE.md"].iter().map(|name| root().join(name)).chain(docs);
    paths.map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// Targets of links and images that are files of the repository.
fn links(text: &str) -> Vec<&str> {
    let marked = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let attributes = ["src=\"", "srcset=\"", "href=\""].into_iter().flat_map(|name| text.split(name).skip(1));
    let attributes = attributes.filter_map(|rest| rest.split('"').next());
    marked.chain(attributes).filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// Ids of headings, as GitHub creates them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings =
        text.lines().filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()));
    let id = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    headings.map(id).collect()
}

/// Code spans in the text.
fn spans(text: &str) -> Vec<&str> {
    let prose = text.split("\n```").step_by(2);
    prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

/// The lines of all blocks in one of these languages.
fn fenced<'a>(text: &'a str, languages: &[&str]) -> Vec<&'a str> {
    let blocks = text.split("\n```").skip(1).step_by(2);
    let blocks =
        blocks.filter(|block| block.lines().next().is_some_and(|language| languages.contains(&language.trim())));
    blocks.flat_map(|block| block.lines().skip(1)).collect()
}

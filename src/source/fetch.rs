//! Fetches exactly one commit. Knows what is asked of a git host and what its answers mean.
//!
//! One request does it: which commit is wanted, at which depth, and which commits are there already. libgit2 takes the pack in.

use std::io::Write;

use git2::{Oid, Reference, Repository};

use super::remote::{Answer, Command, Packet, Remote, said};
use super::request::{Failed, Fault};

/// The most commits that the request names as present: the remote compares the wanted commit with each of them.
const MAX_KNOWN: usize = 20;

/// The bands of a pack's section.
const PACK: u8 = 1;
const PROGRESS: u8 = 2;
const FAILURE: u8 = 3;

/// The most lines of a remote's tags that are read.
const MAX_TAG_LINES: usize = 200_000;

/// The most tags of one commit that are kept.
const MAX_TAGS: usize = 20;

/// A tag of the remote.
pub(super) struct Tag {
    /// Its full name.
    pub(super) name: String,
    /// The commit, or an annotated tag.
    pub(super) oid: Oid,
}

/// Fetches objects, a commit with its tree and files and without its history. `known`: commits that were fetched before, the latest
/// last.
pub(super) fn fetch(
    repository: &Repository,
    remote: &Remote<'_>,
    objects: &[Oid],
    known: &[Oid],
) -> Result<(), Failed> {
    // A remote ends at an id that is not a commit's, and a taken-over child could have written one.
    let known = known.iter().copied().filter(|known| repository.find_commit(*known).is_ok());
    let mut answer = remote.ask(wanted(objects, known.rev()))?;
    find_pack(&mut answer)?;
    let odb = repository.odb().map_err(Failed::worker)?;
    let mut pack = odb.packwriter().map_err(|error| Failed::of_objects(&error))?;
    while let Some(part) = part(&mut answer)? {
        pack.write_all(&part).map_err(|_| Failed::of_objects(&git2::Error::last_error(-1)))?;
        answer.report();
    }
    pack.commit().map(drop).map_err(|error| Failed::of_objects(&error))
}

/// Passes over what comes before the pack: the commits at which the history is cut.
fn find_pack(answer: &mut Answer<'_>) -> Result<(), Failed> {
    loop {
        match answer.packet()? {
            Packet::Content(line) if line.trim_ascii_end() == b"packfile" => return Ok(()),
            Packet::Content(_) | Packet::Delimiter => {}
            Packet::Flush => return Err(Failed::new(Fault::Unavailable, "the git host sent no pack")),
        }
    }
}

/// `known`: the latest first.
fn wanted(objects: &[Oid], known: impl Iterator<Item = Oid>) -> Command {
    let mut command = Command::new("fetch");
    ["thin-pack", "ofs-delta", "no-progress", "deepen 1"].iter().for_each(|line| command.argument(line));
    objects.iter().for_each(|object| command.argument(&format!("want {object}")));
    for known in known.filter(|known| !objects.contains(known)).take(MAX_KNOWN) {
        // The mirror has each of them without its history.
        command.argument(&format!("shallow {known}"));
        command.argument(&format!("have {known}"));
    }
    command.argument("done");
    command
}

/// The next part of the pack; `None` at its end.
fn part(answer: &mut Answer<'_>) -> Result<Option<bytes::Bytes>, Failed> {
    loop {
        let Packet::Content(mut content) = answer.packet()? else { return Ok(None) };
        let words = content.split_off(1);
        match content[0] {
            PACK => return Ok(Some(words)),
            PROGRESS => {}
            FAILURE => return Err(said(Fault::Unavailable, &words)),
            _ => return Err(Failed::new(Fault::Unavailable, "the git host sent an invalid part of a pack")),
        }
    }
}

/// A line of `ls-refs`.
struct Listed<'l> {
    oid: &'l str,
    name: &'l str,
    /// The object to which an annotated tag leads; else the same as `oid`.
    peeled: &'l str,
}

impl<'l> Listed<'l> {
    fn read(line: &'l str) -> Option<Self> {
        let mut words = line.split(' ');
        let (oid, name) = (words.next()?, words.next()?);
        let peeled = words.find_map(|word| word.strip_prefix("peeled:")).unwrap_or(oid);
        Some(Self { oid, name, peeled })
    }
}

/// The commit of the remote's branch, tag or `HEAD` of this name.
pub(super) fn resolve(remote: &Remote<'_>, name: &str) -> Result<Oid, Failed> {
    let names = [name.to_owned(), format!("refs/heads/{name}"), format!("refs/tags/{name}")];
    let mut command = Command::new("ls-refs");
    command.argument("peel");
    names.iter().for_each(|name| command.argument(&format!("ref-prefix {name}")));
    let mut answer = remote.ask(command)?;
    let mut found = names.each_ref().map(|_| None);
    while let Some(line) = answer.line()? {
        let Some(Listed { name, peeled, .. }) = Listed::read(&line) else { continue };
        let Some(n) = names.iter().position(|wanted| wanted == name) else { continue };
        // An annotated tag is not its commit.
        found[n] = Oid::from_str(peeled).ok();
    }
    let found = found.into_iter().flatten().next();
    found.ok_or_else(|| Failed::new(Fault::CommitNotFound, format!("no branch or tag {name:?}")))
}

/// The remote's tags of a commit, `first` before the others, at most [`MAX_TAGS`].
pub(super) fn tags_of(remote: &Remote<'_>, commit: Oid, first: Option<&str>) -> Result<Vec<Tag>, Failed> {
    let mut command = Command::new("ls-refs");
    ["peel", "ref-prefix refs/tags/"].iter().for_each(|line| command.argument(line));
    let mut answer = remote.ask(command)?;
    let mut tags = Vec::new();
    let (commit, mut n_lines) = (commit.to_string(), 0);
    while let Some(line) = answer.line()?.filter(|_| n_lines < MAX_TAG_LINES) {
        n_lines += 1;
        let Some(Listed { oid, name, peeled }) = Listed::read(&line) else { continue };
        let is_name = name.starts_with("refs/tags/") && Reference::is_valid_name(name);
        if let (true, Ok(oid)) = (is_name && peeled == commit, Oid::from_str(oid)) {
            tags.push(Tag { name: name.to_owned(), oid });
        }
    }
    tags.sort_by_key(|tag| first != Some(tag.name.as_str()));
    tags.truncate(MAX_TAGS);
    Ok(tags)
}

//! Files whose `working-tree-encoding` git would convert. libgit2 does not: they keep the UTF-8 of the repository.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use git2::{AttrCheckFlags, AttrValue, Index, Repository};

use super::attributes;
use super::checkout::is_plain_file;
use super::request::Failed;
use crate::text;

/// The most files that are named, and one more that says that there are others.
pub const MAX_NAMED: usize = 5;

/// Characters of a path that are shown.
const MAX_PATH: usize = 200;

const ATTRIBUTE: &str = "working-tree-encoding";

/// The first of these files, at most one more than [`MAX_NAMED`].
pub(super) fn ignored(repository: &Repository, index: &Index) -> Result<Vec<String>, Failed> {
    if !attributes::mention(repository, index, &[ATTRIBUTE]).map_err(Failed::worker)? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in index.iter().filter(is_plain_file) {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        let value = repository.get_attr_bytes(path, ATTRIBUTE, AttrCheckFlags::INDEX_ONLY);
        if changes(AttrValue::from_bytes(value.map_err(Failed::worker)?)) {
            found.push(text::shown(&path.to_string_lossy(), MAX_PATH));
        }
        if found.len() > MAX_NAMED {
            break;
        }
    }
    Ok(found)
}

/// Whether git would write the file with this value in another way than it is stored.
fn changes(value: AttrValue<'_>) -> bool {
    let encoding = match value {
        AttrValue::String(encoding) => encoding.as_bytes(),
        AttrValue::Bytes(encoding) => encoding,
        _ => return false,
    };
    ![&b"utf-8"[..], b"utf8", b""].iter().any(|stored| encoding.eq_ignore_ascii_case(stored))
}

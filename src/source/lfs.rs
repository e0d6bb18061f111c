//! Git LFS pointers: files of a commit whose content is kept elsewhere, and is not fetched.
//!
//! Only finds them; whether one matters is known when the build's contexts are. Follows the specification of Git LFS,
//! version 1 (`docs/spec.md` of its repository).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use git2::{AttrCheckFlags, Index, Odb, Oid, Repository};

use super::attributes;
use super::request::{Failed, Fault};

const VERSION: &str = "version https://git-lfs.github.com/spec/v1";
/// A pointer is smaller than this.
const MAX_POINTER: usize = 1024;
/// Bytes of all paths together: they go to the worker in one line.
const MAX_PATHS: usize = 512 << 10;
/// What a path counts beside its own bytes: the worker reads no more than `bounds::VALUES` of them.
const PER_PATH: usize = 12;

/// The paths of the pointers in the commit that `index` was filled from; its attributes are read from there as well.
///
/// A pointer is what git would have replaced if it had Git LFS: a file with the attribute `filter=lfs` that holds a
/// pointer's text. Any other file with such a text is just that.
///
/// # Errors
///
/// `Refused` when there are more than can be told, some ten thousand: better than to leave one out.
pub(super) fn pointers(repository: &Repository, index: &Index) -> Result<Vec<String>, Failed> {
    let mut pointers = Vec::new();
    // Without the word no file is a pointer, and none needs to be read.
    if !attributes::mention(repository, index, &["lfs"]).map_err(Failed::worker)? {
        return Ok(pointers);
    }
    let (odb, mut n_bytes) = (repository.odb().map_err(Failed::worker)?, 0);
    for entry in index.iter() {
        let path = Path::new(OsStr::from_bytes(&entry.path));
        if is_file(entry.mode) && is_pointer(repository, &odb, path, entry.id).map_err(Failed::worker)? {
            let path = path.to_string_lossy().into_owned();
            n_bytes += path.len() + PER_PATH;
            if n_bytes > MAX_PATHS {
                let n = pointers.len();
                return Err(Failed::new(Fault::Refused, format!("the commit has more than {n} Git LFS pointers")));
            }
            pointers.push(path);
        }
    }
    Ok(pointers)
}

fn is_pointer(repository: &Repository, odb: &Odb<'_>, path: &Path, blob: Oid) -> Result<bool, git2::Error> {
    let (size, _) = odb.read_header(blob)?;
    if size >= MAX_POINTER || !is_pointers_text(repository.find_blob(blob)?.content()) {
        return Ok(false);
    }
    let filter = repository.get_attr_bytes(path, "filter", AttrCheckFlags::INDEX_ONLY)?;
    Ok(filter == Some(b"lfs"))
}

/// The lines `version`, `oid` and `size`, the first one first; there may be lines of extensions between them.
fn is_pointers_text(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    let is_oid = |oid: &str| oid.len() == 64 && oid.bytes().all(|digit| digit.is_ascii_hexdigit());
    text.lines().next() == Some(VERSION)
        && value("oid sha256:").is_some_and(is_oid)
        && value("size ").is_some_and(|size| size.parse::<u64>().is_ok())
}

fn is_file(mode: u32) -> bool {
    mode & 0o170000 == 0o100000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_has_a_version_an_oid_and_a_size() {
        let oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
        let table = [
            (format!("{VERSION}\noid sha256:{oid}\nsize 12345\n"), true),
            (format!("{VERSION}\next-0-case sha256:{oid}\noid sha256:{oid}\nsize 0\n"), true),
            (format!("{VERSION}\r\noid sha256:{oid}\r\nsize 12345\r\n"), true),
            (format!("{VERSION}\noid sha256:{oid}\n"), false),
            (format!("{VERSION}\nsize 12345\n"), false),
            (format!("{VERSION}\noid sha256:{}\nsize 12345\n", &oid[1..]), false),
            (format!("{VERSION}\noid sha256:{oid}\nsize much\n"), false),
            (format!("oid sha256:{oid}\nsize 12345\n{VERSION}\n"), false),
            (format!("{VERSION}/\noid sha256:{oid}\nsize 12345\n"), false),
            (String::new(), false),
        ];
        for (text, expected) in table {
            assert_eq!(is_pointers_text(text.as_bytes()), expected, "{text}");
        }
        assert!(!is_pointers_text(b"\xff\xfe"));
    }
}

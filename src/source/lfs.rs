//! Git LFS pointers: files of a commit whose content is stored elsewhere and is not fetched.
//!
//! Only finds them. Whether one matters depends on the build's contexts. Follows git-lfs 3, which accepts more than its
//! specification (`lfs/pointer.go`: `decodeKV`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use git2::{AttrCheckFlags, Index, Odb, Oid, Repository};

use super::attributes;
use super::request::{Failed, Fault};

/// The versions, all of the same format: the current one and two older names.
const VERSIONS: [&str; 3] =
    ["https://git-lfs.github.com/spec/v1", "https://hawser.github.com/spec/v1", "http://git-media.io/v/2"];
/// The lines of a pointer, in this order.
const KEYS: [&str; 3] = ["version", "oid", "size"];
/// A pointer is smaller than this.
const MAX_POINTER: usize = 1024;
/// Bytes of all paths together: they go to the worker in one line.
pub(super) const MAX_PATHS: usize = 512 << 10;
/// What a path counts in addition: the worker reads at most `bounds::VALUES` values, and the changes between commits are some too.
pub(super) const PER_PATH: usize = 20;

/// The paths of the pointers in the commit of `index`, which also provides the attributes.
///
/// A pointer is a file that git with LFS would have replaced: it has the attribute `filter=lfs` and a pointer's text. Any other
/// file with such a text is an ordinary file.
///
/// # Errors
///
/// `Refused` when there are too many to report, about ten thousand.
pub(super) fn pointers(repository: &Repository, index: &Index) -> Result<Vec<String>, Failed> {
    let mut pointers = Vec::new();
    // Without this word in any `.gitattributes`, no file is a pointer.
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

/// Whether a text has the lines `version`, `oid` and `size` in this order, with nothing after them and optional lines of extensions
/// before each. Empty lines and surrounding white space are ignored.
fn is_pointers_text(text: &[u8]) -> bool {
    // The name of an extension may contain any bytes.
    let text = String::from_utf8_lossy(text);
    let (mut values, mut extensions) = (Vec::new(), BTreeMap::new());
    for line in text.trim().split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
        if line.is_empty() {
            continue;
        }
        match (line.split_once(' '), KEYS.get(values.len())) {
            (Some((key, value)), Some(expected)) if key == *expected => values.push(value),
            (Some((key, value)), Some(_)) if is_extension(key) => drop(extensions.insert(key, value)),
            _ => return false,
        }
    }
    let priorities: BTreeSet<&str> = extensions.keys().map(|key| &key[..5]).collect();
    let [version, oid, size] = values[..] else { return false };
    VERSIONS.contains(&version)
        && is_oid(oid)
        && size.parse::<i64>().is_ok_and(|size| size >= 0)
        && extensions.values().all(|oid| is_oid(oid))
        && priorities.len() == extensions.len()
}

/// Whether a key is like `ext-0-name`: a priority of one digit.
fn is_extension(key: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    matches!(key.as_bytes(), [b'e', b'x', b't', b'-', digit, b'-', first, ..] if digit.is_ascii_digit() && is_word(first))
}

fn is_oid(value: &str) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    value.strip_prefix("sha256:").is_some_and(|oid| oid.len() == 64 && oid.bytes().all(is_digit))
}

fn is_file(mode: u32) -> bool {
    mode & 0o170000 == 0o100000
}

#[cfg(test)]
mod tests {
    use super::*;

    const OID: &str = "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";

    /// Each as `git lfs pointer --check` of git-lfs 3.3 judges it, but the first of the others: an empty file stands for itself.
    #[test]
    fn a_pointer_is_what_git_lfs_takes_for_one() {
        let version = "version https://git-lfs.github.com/spec/v1";
        let rest = format!("oid {OID}\nsize 12345\n");
        let (zero, one) = (format!("ext-0-case {OID}\n"), format!("ext-1-sign {OID}\n"));
        let pointers = [
            format!("{version}\n{rest}"),
            format!("version https://hawser.github.com/spec/v1\n{rest}"),
            format!("version http://git-media.io/v/2\n{rest}"),
            format!("{version}\r\noid {OID}\r\nsize 12345\r\n"),
            format!("\n\n{version}\n{rest}"),
            format!("\u{a0} \t{version}\n\r\n\n{rest}\n \n"),
            format!("{version}\noid {OID}\nsize 12345"),
            format!("{version}\noid {OID}\nsize +0"),
            format!("{version}\n{zero}{rest}"),
            format!("{one}{version}\n{zero}{rest}"),
            format!("{version}\noid {OID}\n{zero}size 1\n"),
            format!("{version}\next-0-a/b {OID}\n{rest}"),
            format!("{version}\next-0-a 7\next-0-a {OID}\n{rest}"),
        ];
        let others = [
            String::new(),
            "\n".into(),
            format!("{version}\noid {OID}\n"),
            format!("{version}\nsize 12345\n"),
            format!("{version}/\n{rest}"),
            format!("version  https://git-lfs.github.com/spec/v1\n{rest}"),
            format!("version https://git-lfs.github.com/spec/v2\n{rest}"),
            format!("Version https://git-lfs.github.com/spec/v1\n{rest}"),
            format!("{rest}{version}\n"),
            format!("{version}\nsize 12345\noid {OID}\n"),
            format!("{version} \n{rest}"),
            format!("{version}\n \n{rest}"),
            format!("{version}\n{rest}more\n"),
            format!("{version}\n{rest}more and more\n"),
            format!("{version}\n{rest}{zero}"),
            format!("{version}\noid {}\nsize 12345\n", &OID[..70]),
            format!("{version}\noid {}\nsize 12345\n", OID.replace("4d7a", "4D7A")),
            format!("{version}\noid {}\nsize 12345\n", OID.replace("sha256", "sha512")),
            format!("{version}\noid {OID}\nsize much\n"),
            format!("{version}\noid {OID}\nsize -1\n"),
            format!("{version}\noid {OID}\nsize 9223372036854775808\n"),
            format!("{version}\next-0-case 7\n{rest}"),
            format!("{version}\next-0- {OID}\n{rest}"),
            format!("{version}\next-10-case {OID}\n{rest}"),
            format!("{version}\n{zero}ext-0-other {OID}\n{rest}"),
        ];
        for (texts, expected) in [(&pointers[..], true), (&others[..], false)] {
            for text in texts {
                assert_eq!(is_pointers_text(text.as_bytes()), expected, "{text:?}");
            }
        }
        let odd = [version.as_bytes(), b"\next-0-a\xff ", OID.as_bytes(), b"\n", rest.as_bytes()].concat();
        assert!(is_pointers_text(&odd));
        assert!(!is_pointers_text(b"\xff\xfe"));
    }
}

//! What BuildKit writes into errors and no customer can use: the ids of its snapshots, and the directories where it mounts them.
//!
//! Only for showing. The diagnosis reads the whole text.

use std::borrow::Cow;

/// How BuildKit begins an error of a file that a step copies. The id of a snapshot follows, and then the error itself.
const CHECKSUM: &str = "failed to calculate checksum of ref ";

/// What stands before [`CHECKSUM`].
const CACHE_KEY: &str = "failed to compute cache key: ";

/// How BuildKit names the directories of its mounts; digits follow. A snapshot without a layer below is used in place.
const MOUNTS: [&str; 4] = ["/buildkit-mount", "/buildkit", "/snapshots/snapshots/", "overlayfs/snapshots/"];

/// The directory of a snapshot that has its files.
const FILES: &str = "/fs";

/// The error without ids and mount directories: `"/x": not found`, `lstat /x: no such file or directory`.
pub(super) fn without(error: &str) -> Cow<'_, str> {
    let start = error.find(CHECKSUM).filter(|at| is_begin(&error[..*at]));
    let Some(start) = start else { return without_mount(error) };
    let Some((id, cause)) = error[start + CHECKSUM.len()..].split_once(": ") else { return error.into() };
    if !is_id(id) {
        return error.into();
    }
    let begin = error[..start].strip_suffix(CACHE_KEY).unwrap_or(&error[..start]);
    Cow::Owned(format!("{begin}{}", without_mount(cause)))
}

/// The error of a file that a step copies, without the id: `"/x": not found`.
pub(super) fn of_checksum(error: &str) -> Option<&str> {
    let (id, cause) = error.strip_prefix(CHECKSUM)?.split_once(": ")?;
    is_id(id).then_some(cause)
}

/// Whether nothing of a customer's can stand in the beginning of an error.
fn is_begin(begin: &str) -> bool {
    begin.chars().all(|c| c.is_ascii_alphanumeric() || " :._-".contains(c))
}

/// Such as `vn7i1lynnsd2nhnidwui1ounj::qmxnj65om5cyznzywwfp2q9ap`.
fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':')
}

/// The error without the mount directory at the beginning of its first path.
fn without_mount(error: &str) -> Cow<'_, str> {
    let Some(path) = error.find(" /").map(|space| space + 1) else { return error.into() };
    let end = MOUNTS.iter().find_map(|name| mount(&error[path..], name));
    match end {
        // Another path of the error may begin with the same directory.
        Some(end) if is_begin(&error[..path]) => error.replace(&format!("{}/", &error[path..path + end]), "/").into(),
        _ => error.into(),
    }
}

/// The length of a mount directory at the beginning of a path.
fn mount(path: &str, name: &str) -> Option<usize> {
    path.match_indices(name).find_map(|(at, _)| {
        let after = &path[at + name.len()..];
        let n_digits = after.bytes().take_while(u8::is_ascii_digit).count();
        let is_directory = n_digits > 0 && after[n_digits..].starts_with('/') && !path[..at].contains([' ', ':']);
        let is_snapshot = name.ends_with('/') && after[n_digits..].starts_with("/fs/");
        is_directory.then_some(at + name.len() + n_digits + if is_snapshot { FILES.len() } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_mounts_are_left_out_and_everything_else_stays() {
        for (error, shown) in [
            (
                "failed to solve: failed to compute cache key: failed to calculate checksum of ref vn7i::qmx: \"/dist\": not found",
                "failed to solve: \"/dist\": not found",
            ),
            ("failed to calculate checksum of ref vn7i::qmx: too many symlinks: /a", "too many symlinks: /a"),
            (
                "failed to calculate checksum of ref vn7i::qmx: failed to walk /tmp/buildkit-mount52/x: lstat /y",
                "failed to walk /x: lstat /y",
            ),
            (
                "lstat /root/tmp/buildkit-mount3884998240/missing: no such file or directory",
                "lstat /missing: no such file or directory",
            ),
            ("mkdir /var/lib/buildkit/cachemounts/buildkit552713892/f: not a directory", "mkdir /f: not a directory"),
            (
                "failed to solve: cannot copy to non-directory: /buildkit/buildkit4198201488/x",
                "failed to solve: cannot copy to non-directory: /x",
            ),
            (
                "failed to walk /r/tmp/buildkit-mount22/etc: lstat /r/tmp/buildkit-mount22/etc: no such file or directory",
                "failed to walk /etc: lstat /etc: no such file or directory",
            ),
            (
                "cannot copy to non-directory: /var/lib/buildkit/runc-native/snapshots/snapshots/9/fs",
                "cannot copy to non-directory: /fs",
            ),
            (
                "cannot copy to non-directory: /var/lib/buildkit/runc-overlayfs/snapshots/snapshots/12/fs/file",
                "cannot copy to non-directory: /file",
            ),
            (
                "target web: failed to solve: lstat /tmp/buildkit-mount38/x: no such file or directory",
                "target web: failed to solve: lstat /x: no such file or directory",
            ),
        ] {
            assert_eq!(without(error), shown);
        }
        for error in [
            "process \"/bin/sh -c failed to calculate checksum of ref a::b: x\" did not complete successfully: exit code: 1",
            "process \"/bin/sh -c cat /tmp/buildkit-mount1/x\" did not complete successfully: exit code: 1",
            "lstat /app/buildkit/x: not a directory",
            "lstat /app/snapshots/1/x: not a directory",
            "failed to calculate checksum of ref /not an id: x",
            "lstat /x: is /tmp/buildkit-mount1/y",
        ] {
            assert_eq!(without(error), error);
        }
    }
}

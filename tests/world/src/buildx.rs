//! The real docker-buildx of this machine, for tests that need more than the scripted one.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// A real docker-buildx.
pub struct Buildx {
    /// Its absolute path.
    pub path: PathBuf,
    /// Major and minor version, for expectations that differ between versions.
    pub version: (u32, u32),
}

/// The docker-buildx that `docker/install` finds. `SIDEBAKE_BUILDX` names another one.
///
/// # Panics
/// When there is none, with the sentence of `docker/install`.
pub fn buildx() -> &'static Buildx {
    static BUILDX: OnceLock<Buildx> = OnceLock::new();
    BUILDX.get_or_init(|| {
        let mut install = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker/install"));
        let path = PathBuf::from(said(install.arg("--find-buildx")));
        let version = said(Command::new(&path).arg("version"));
        let version = parse(&version).unwrap_or_else(|| panic!("no version in {version:?}"));
        Buildx { path, version }
    })
}

/// The line that a command prints.
fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr).trim());
    String::from_utf8(stdout).unwrap().trim().to_owned()
}

/// The version in a line such as `github.com/docker/buildx v0.36.1 1d8dde8`.
fn parse(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split(' ').nth(1)?.trim_start_matches('v').split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_version_of_every_build_is_read() {
        assert_eq!(parse("github.com/docker/buildx 0.29.1+ds1 0.29.1+ds1-4"), Some((0, 29)));
        assert_eq!(parse("github.com/docker/buildx v0.36.1 1d8dde89b8ab"), Some((0, 36)));
        assert_eq!(parse("github.com/docker/buildx v0.36.0-54-g461836ba0 461836ba0"), Some((0, 36)));
        assert_eq!(parse("github.com/docker/buildx"), None);
    }
}

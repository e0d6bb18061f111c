//! The real docker-buildx of this machine, for tests that need more than the scripted one.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

const INSTALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docker/install");

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
        let path = PathBuf::from(said(Command::new(INSTALL).arg("--find-buildx")));
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_version_of_every_build_is_read() {
        assert_eq!(parse("github.com/docker/buildx 0.29.1+ds1 0.29.1+ds1-4"), Some((0, 29)));
        assert_eq!(parse("github.com/docker/buildx v0.36.1 1d8dde89b8ab"), Some((0, 36)));
        assert_eq!(parse("github.com/docker/buildx v0.36.0-54-g461836ba0 461836ba0"), Some((0, 36)));
        assert_eq!(parse("github.com/docker/buildx"), None);
    }

    #[test]
    fn another_docker_buildx_is_used_or_refused_in_one_sentence() {
        let home = tempfile::tempdir().unwrap();
        let program = |name: &str, version: &str, mode: u32| {
            let path = home.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\necho github.com/docker/buildx {version} 0\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path.display().to_string()
        };
        let find = |given: &str| {
            let mut install = Command::new(INSTALL);
            let output = install.arg("--find-buildx").env("SIDEBAKE_BUILDX", given).output().unwrap();
            let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
            (output.status.code(), out, err)
        };

        let new = program("new", "v0.36.1", 0o755);
        assert_eq!(find(&new), (Some(0), format!("{new}\n"), String::new()));
        let missing = home.path().join("missing").display().to_string();
        let directory = home.path().display().to_string();
        let old = program("old", "0.18.0", 0o755);
        let locked = program("locked", "v0.36.1", 0o644);
        for wrong in ["docker-buildx", &missing, &directory, &old, &locked, "/bin/true"] {
            let sentence = format!(
                "docker/install: SIDEBAKE_BUILDX must be the absolute path of a docker-buildx 0.19 or newer, not '{wrong}'\n"
            );
            assert_eq!(find(wrong), (Some(2), String::new(), sentence));
        }
    }
}

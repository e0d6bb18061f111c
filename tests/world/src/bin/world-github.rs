//! GitHub for the quick start: one process that serves the API and git over a directory of bare repositories, until
//! TERM.

#![forbid(unsafe_code)]
// Its interface is stderr, and invalid arguments should end it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use world::{App, GitHost, GitHub, Reach};

const USAGE: &str =
    "usage: world-github --root DIR --app-id N --installation-id N --private-key FILE --ports-file FILE \
[--api-port N] [--git-port N]

Serves GitHub's API for one App, and git over HTTP, over the bare repositories DIR/OWNER/NAME.git.
Writes a fresh private key, then GITHUB_API and GIT_HOST as shell assignments into the ports file.";

struct Args {
    root: PathBuf,
    app_id: u64,
    installation_id: u64,
    private_key: PathBuf,
    ports_file: PathBuf,
    api_port: u16,
    git_port: u16,
}

fn main() -> Result<()> {
    let args = parse(std::env::args().skip(1).collect())?;
    // Catches TERM from the start, so that a TERM during the start is not lost.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    fs::create_dir_all(&args.root).context("the root")?;
    let root = args.root.canonicalize()?;

    let app = App::generate(args.app_id);
    write_private(&args.private_key, &app.private_key_pkcs1_pem()).context("the private key")?;
    let github = GitHub::start_with(app, args.api_port);
    github.log_to_stderr();
    github.install_as(args.installation_id, "everyone", Reach::Under(root.clone()));
    github.serve_commits_from(&root);
    let host = GitHost::serve(&root, Some(github.tokens()), args.git_port);

    let ports = format!("GITHUB_API={}\nGIT_HOST={}\n", github.url(), host.url());
    write_whole(&args.ports_file, &ports).context("the ports file")?;
    eprintln!("github: App {} on {}, git on {}", args.app_id, github.url(), host.url());
    signals.forever().next();
    let _ = fs::remove_file(&args.ports_file);
    Ok(())
}

fn parse(args: Vec<String>) -> Result<Args> {
    if !args.len().is_multiple_of(2) || args.iter().any(|arg| arg == "--help") {
        bail!("{USAGE}");
    }
    let value = |name: &str| args.chunks(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone());
    let needed = |name: &str| value(name).with_context(|| format!("{name} is missing\n{USAGE}"));
    let port = |name: &str| value(name).map_or(Ok(0), |port| port.parse()).context(name.to_owned());
    Ok(Args {
        root: needed("--root")?.into(),
        app_id: needed("--app-id")?.parse().context("--app-id")?,
        installation_id: needed("--installation-id")?.parse().context("--installation-id")?,
        private_key: needed("--private-key")?.into(),
        ports_file: needed("--ports-file")?.into(),
        api_port: port("--api-port")?,
        git_port: port("--git-port")?,
    })
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    // Removes an old file first, because it would keep its old mode.
    let _ = fs::remove_file(path);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

/// Renames the file into place, so that a script that waits for it finds it complete.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    fs::write(&unfinished, text)?;
    fs::rename(unfinished, path)
}

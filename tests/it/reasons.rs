//! `docs/reasons.md` is made from the list of reasons: each has its name, class, sentence and remedy there.

use std::fmt::Write as _;
use std::path::PathBuf;

use sidebake::reason::{Class, Reason};

/// The start of `docs/reasons.md`.
const HEADER: &str = "\
# Reasons

<!-- Made from src/reason.rs by `SIDEBAKE_WRITE_DOCS=1 cargo test --workspace --test it -- reasons::`. Edit that. -->

A build that does not succeed has exactly one reason. Its name is in the callback's `reason`. Sidekiq's error class is the \
same name in Ruby's form: `Sidebake::StepFailed`. The names are public, so you can alert on them.

The class decides what happens to the job. [callbacks.md](callbacks.md#reasons) tells the rest.

- *user*: the customer changes something. The job is finished and not retried.
- *infrastructure*: the platform or another service failed. The job is retried.
- *control*: the build was ended on purpose.

A failed step of a Dockerfile is the customer's, unless its cause is known to be infrastructure. Words that a customer writes into \
a command, a path or the step's output never decide. So a command that prints `No space left on device` gives `step_failed`, \
with that line in the message. It may have filled a small mount, or the builder's disk. When several accounts report that line, \
check the builder's disk. The same holds for a command that cannot reach the platform's proxy.

A base image is the customer's choice. A registry is the platform's own when the platform pushes to it, or when the \
account's credentials name it. Another registry that refuses a base image, or whose host does not exist, gives a reason of class \
*user*. A proxy is the platform's. Every registry that does not answer gives `registry_unavailable`. So does a well-known public registry whose host is not found.
";

#[test]
fn the_page_of_the_reasons_is_made_from_their_list() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/reasons.md");
    let page = page();
    if std::env::var_os("SIDEBAKE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "generate it again: SIDEBAKE_WRITE_DOCS=1 cargo test --workspace --test it -- reasons::");
}

fn page() -> String {
    let mut page = HEADER.to_owned();
    for class in [Class::User, Class::Infrastructure, Class::Control] {
        let name = class.name();
        let _ = write!(
            page,
            "\n## Class *{name}*\n\n| reason | sentence for the customer | when | what to do |\n|---|---|---|---|\n"
        );
        for reason in Reason::ALL.iter().filter(|reason| reason.class() == class) {
            let cells = [reason.sentence(), reason.meaning(), reason.remedy()].join(" | ");
            let _ = writeln!(page, "| `{reason}` | {cells} |");
        }
    }
    page
}

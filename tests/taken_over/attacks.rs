//! The attacks: the child that each takes over, its target, and the harm that shows it.

/// One attack. `scripts.rs` performs it; `careless.rs` and `product.rs` check the harm to a worker.
pub struct Attack {
    pub name: &'static str,
    pub child: Child,
    pub aim: &'static str,
    pub harm: &'static str,
    /// Whether the product has no wall against it. `walls.md` explains why.
    pub is_open: bool,
}

/// The child that the attack takes over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Child {
    Source,
    Print,
    Solve,
}

impl Child {
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Print => "print",
            Self::Solve => "solve",
        }
    }
}

pub fn attacks() -> Vec<Attack> {
    let attack = |child, name, aim, harm| Attack { name, child, aim, harm, is_open: false };
    let source = |name, aim, harm| attack(Child::Source, name, aim, harm);
    let solve = |name, aim, harm| attack(Child::Solve, name, aim, harm);
    let open = |attack: Attack| Attack { is_open: true, ..attack };
    vec![
        source("tree_link", "a link to a directory of the host as the worktree", "leaked"),
        source("parent_link", "the job's directory replaced by a link", "wrote"),
        source("submodule_link", "a link in the path of a submodule", "wrote"),
        source("ignore_link", "a `.dockerignore` that is a link to a file of the host", "leaked"),
        source("ignore_fifo", "a `.dockerignore` that is a FIFO", "hung"),
        source("ignore_sparse", "a `.dockerignore` of 1 GiB", "exhausted"),
        source("definition_link", "a compose file that is a link to a file of the host", "leaked"),
        source("definition_fifo", "a compose file that is a FIFO", "hung"),
        source("mirror_config", "the mirror's configuration, with attributes for every file", "changed"),
        source("mirror_attributes", "the mirror's own attributes", "changed"),
        source("mirror_commondir", "another directory for the mirror's configuration", "changed"),
        source("mirror_alternates", "objects of another repository as the mirror's", "leaked"),
        source("mirror_objects_fork", "a pack that lies, for the next build of a fork", "changed"),
        source("mirror_objects_trust", "the same from a fork, for a build of a branch", "changed"),
        open(source("mirror_objects_same", "the same from a branch, for the next build of a branch", "changed")),
        source("mirror_lock", "the lock of the mirror, held as long as the child lives", "hung"),
        source("mirror_odd", "directories in place of the mirror's files", "stuck"),
        source("claims_commit", "another commit than the requested one", "claimed"),
        source("endless_output", "output without end", "exhausted"),
        source("nest", "nested directories, deeper than the limit of descriptors", "left"),
        source("locked", "directories without permission to enter", "left"),
        source("odd_names", "names with unusual bytes", "left"),
        source("setuid", "a program that runs as the worker's user for every user", "ran"),
        source("outlive", "a process that continues after the child ends", "ran"),
        attack(Child::Print, "print_leftover", "a configuration for the next definition", "changed"),
        solve("metadata_zero", "a metadata file that is a link to /dev/zero", "exhausted"),
        solve("metadata_sparse", "a metadata file of 1 GiB less a byte", "exhausted"),
        solve("metadata_fifo", "a metadata file that is a FIFO", "hung"),
        solve("metadata_link", "a metadata file that is a link to a file of the host", "leaked"),
        solve("metadata_text", "an invalid digest", "claimed"),
        open(solve("metadata_digest", "a digest that it chose", "claimed")),
        solve("kubeconfig_plugin", "a program, as the kubeconfig's plugin, run by the worker's docker-buildx", "ran"),
        solve("kubeconfig_server", "another API server for the worker's docker-buildx", "connected"),
        solve("instance_endpoint", "another builder for the worker's docker-buildx", "connected"),
        solve("credential_helper", "a program, as credential helper of the next bake", "ran"),
        solve("solve_leftover", "a configuration for the next bake", "changed"),
    ]
}

//! `[sandbox]`: what child processes may do.

use serde::Deserialize;

/// What child processes may do.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// What happens on a kernel that cannot enforce all of the sandbox. Without it, a definition can make buildx write files of
    /// this machine while it is resolved, before the policy validates it.
    pub mode: SandboxMode,
    /// TCP ports of registries and of their token servers, to which `docker-buildx` may connect.
    pub registry_ports: Vec<u16>,
    /// Bytes of memory of one child, the stacks of its threads included. `bake --print` gets 512 MiB at most. A worker with a
    /// memory limit needs less here: see docs/limits.md, "Memory of a worker".
    pub max_data_bytes: u64,
}

/// What happens on a kernel that cannot enforce all of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SandboxMode {
    /// The worker does not start. Requires Linux 6.7 with Landlock.
    #[serde(rename = "required")]
    Required,
    /// The worker uses what the kernel has, and logs what it lacks.
    #[serde(rename = "best effort")]
    BestEffort,
    /// No sandbox.
    #[serde(rename = "off")]
    Off,
}

impl Default for Sandbox {
    fn default() -> Self {
        Self { mode: SandboxMode::Required, registry_ports: vec![443], max_data_bytes: 4 << 30 }
    }
}

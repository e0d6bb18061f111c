//! `[sandbox]`: what child processes may do.

use serde::Deserialize;

/// What child processes may do.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    /// What happens on a kernel that cannot restrict files. Without that, a definition can make buildx write files of this machine
    /// while it is resolved, before the policy validates it.
    pub mode: SandboxMode,
    /// Whether the worker starts only where TCP ports can be restricted too: on Linux 6.7, or by a broker on an older kernel. Elsewhere,
    /// a NetworkPolicy must keep the worker's children from what they need not reach. See docs/security.md, "Older kernels".
    pub require_ports: bool,
    /// TCP ports of registries and of their token servers, to which `docker-buildx` may connect.
    pub registry_ports: Vec<u16>,
    /// Bytes of memory of one child, the stacks of its threads included. `bake --print` gets 512 MiB at most. A worker with a
    /// memory limit needs less here: see docs/limits.md, "Memory of a worker".
    pub max_data_bytes: u64,
}

/// What happens on a kernel that cannot restrict files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SandboxMode {
    /// The worker does not start. Requires Linux 5.13 with Landlock.
    #[serde(rename = "required")]
    Required,
    /// The worker uses what the kernel has, and logs what it lacks.
    #[serde(rename = "best effort")]
    BestEffort,
    /// No sandbox.
    #[serde(rename = "off")]
    Off,
}

impl SandboxMode {
    /// Its name in a file of settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best effort",
            Self::Off => "off",
        }
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self { mode: SandboxMode::Required, require_ports: false, registry_ports: vec![443], max_data_bytes: 4 << 30 }
    }
}

//! What the versions of docker-buildx and BuildKit can: the one table of it.

use std::fmt;

/// Something that only newer versions can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// buildx writes a progress stream that can be read. A worker needs it.
    Progress,
    /// buildx evaluates a `Dockerfile.rego` beside each Dockerfile, unless a definition forbids it.
    Policies,
    /// buildx finds a builder that is a StatefulSet.
    StatefulSets,
    /// buildx limits the memory and processor of a step (`resources` in a definition).
    StepLimits,
    /// buildx ends when its pod goes.
    EndsWithPod,
    /// BuildKit warns of a base image for another platform than the build's.
    BasePlatforms,
    /// BuildKit keeps the limits of a shard's disk.
    DiskLimits,
}

/// A program of which versions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// docker-buildx.
    Buildx,
    /// BuildKit.
    BuildKit,
}

/// Each ability with its first version, and what an older one does.
const TABLE: &[(Program, Ability, (u32, u32), &str)] = &[
    (Program::Buildx, Ability::Progress, (0, 19), "its progress cannot be read"),
    (Program::Buildx, Ability::Policies, (0, 31), "a Dockerfile.rego is not read"),
    (Program::Buildx, Ability::StatefulSets, (0, 34), "it does not find a builder that is a StatefulSet"),
    (Program::Buildx, Ability::StepLimits, (0, 35), "it ignores the limits of steps (`resources`)"),
    (Program::Buildx, Ability::EndsWithPod, (0, 36), "it hangs when its pod goes, until a time limit ends it"),
    (Program::BuildKit, Ability::BasePlatforms, (0, 14), "it does not warn of base images for another platform"),
    (Program::BuildKit, Ability::DiskLimits, (0, 17), "it ignores the limits of a shard's disk"),
];

/// A version of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    program: Program,
    /// As the program says it.
    text: String,
    /// `None` for a development build, which may be newer than any release.
    release: Option<(u32, u32)>,
}

impl Version {
    /// Reads a version, such as `0.29.1` or `v0.12.5`.
    pub fn of(program: Program, text: &str) -> Self {
        let mut numbers = text.trim_start_matches('v').split('.').map(str::parse);
        let release = match (numbers.next(), numbers.next()) {
            (Some(Ok(0)), Some(Ok(0))) => None,
            (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
            _ => None,
        };
        Self { program, text: text.to_owned(), release }
    }

    /// Whether it can do something.
    pub fn can(&self, ability: Ability) -> bool {
        !self.lacking().any(|(lacks, ..)| lacks == ability)
    }

    /// What it cannot do: the ability, its first version, and what this one does.
    pub fn lacking(&self) -> impl Iterator<Item = (Ability, String, &'static str)> {
        let (program, release) = (self.program, self.release);
        let of_program = TABLE
            .iter()
            .filter(move |(own, _, first, _)| *own == program && release.is_some_and(|release| release < *first));
        of_program.map(|(_, ability, (major, minor), instead)| (*ability, format!("{major}.{minor}"), *instead))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_can_what_the_table_says_and_a_development_build_everything() {
        let buildx = |text| Version::of(Program::Buildx, text);
        let lacking = |version: Version| version.lacking().map(|(_, first, _)| first).collect::<Vec<_>>();
        assert_eq!(lacking(buildx("0.18.0")), ["0.19", "0.31", "0.34", "0.35", "0.36"]);
        assert_eq!(lacking(buildx("0.29.1")), ["0.31", "0.34", "0.35", "0.36"]);
        assert!(buildx("0.31.0-rc1").can(Ability::Policies) && !buildx("0.30.9").can(Ability::Policies));
        assert!(!buildx("0.29.1+unknown").can(Ability::EndsWithPod));
        for newest in ["0.36.0", "1.0.0", "v0.36.0-54-g1d2c3b4", "0.0.0+unknown", "dev", ""] {
            assert_eq!(lacking(buildx(newest)), [""; 0], "{newest}");
        }
        assert!(!Version::of(Program::BuildKit, "v0.12.5").can(Ability::DiskLimits));
        assert!(Version::of(Program::BuildKit, "v0.17.0").can(Ability::DiskLimits));
        assert_eq!(buildx("v0.29.1").to_string(), "v0.29.1");
    }
}

//! Platforms of images and machines: `os/architecture[/variant]`.
//!
//! Reads and writes them as `containerd/platforms` does, which buildx and BuildKit use. Names are those of Go (`GOOS`, `GOARCH`).

use std::fmt;

/// A platform, normalized: `x86_64` is `amd64`, and `arm64/v8` is `arm64`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Such as `v7`; empty for the usual one of the architecture.
    variant: String,
}

/// The platforms of a machine, as its BuildKit lists them: its own comes first, and emulated ones are among the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine(Vec<Platform>);

/// A platform that a definition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPlatform {
    /// The first target that names it.
    pub target: String,
    /// Its text in the definition.
    pub name: String,
    /// What it means.
    pub platform: Platform,
}

impl Platform {
    /// A platform of these parts, of which `variant` may be empty.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, variant) = normalized(&architecture.to_ascii_lowercase(), &variant.to_ascii_lowercase());
        Self { os: normalized_os(&os.to_ascii_lowercase()).into(), architecture, variant }
    }

    /// Reads a platform of a definition; `None` for what buildx does not read either. `local` and a missing architecture mean the
    /// worker's own, on which buildx runs. A missing system is Linux.
    pub fn parse(text: &str) -> Option<Self> {
        let is_part = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        let mut parts = text.split('/');
        let os = parts.next()?;
        // A version of the system may follow it: `windows(10.0.17763)`.
        let os = os.split_once('(').filter(|(_, rest)| rest.ends_with(')')).map_or(os, |(os, _)| os);
        let parts: Vec<&str> = [os].into_iter().chain(parts).collect();
        if !parts.iter().all(|part| is_part(part)) {
            return None;
        }
        match parts[..] {
            [local] if local.eq_ignore_ascii_case("local") => Some(Self::new("linux", worker_architecture(), "")),
            [os] if is_os(os) => Some(Self::new(os, worker_architecture(), "")),
            [architecture] => Some(Self::new("linux", architecture, "")),
            [os, architecture] => Some(Self::new(os, architecture, "")),
            [os, architecture, variant] => Some(Self::new(os, architecture, variant)),
            _ => None,
        }
    }

    /// Whether images of both are for the same system and processor. Variants may differ.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
    }

    /// The variant as a number: a higher one runs images for lower ones.
    fn level(&self) -> Option<(u32, u32)> {
        let usual = match &*self.architecture {
            "amd64" => "1",
            "arm" => "7",
            "arm64" => "8",
            _ => "0",
        };
        let text = if self.variant.is_empty() { usual } else { self.variant.strip_prefix('v')? };
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    /// Whether this machine runs images for `other` in its own processor.
    fn runs(&self, other: &Self) -> bool {
        let is_higher = || self.level().zip(other.level()).is_some_and(|(own, wanted)| own >= wanted);
        self.is_like(other) && (self.variant == other.variant || is_higher())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl Machine {
    /// From BuildKit's list.
    pub fn new(platforms: Vec<Platform>) -> Self {
        Self(platforms)
    }

    /// Its own platform; `None` when BuildKit lists none.
    pub fn own(&self) -> Option<&Platform> {
        self.0.first()
    }

    /// Whether its processor runs images for this platform. BuildKit lists the 32-bit mode of a 64-bit processor as a platform
    /// that it supports, and emulated platforms as well.
    pub fn is_native(&self, wanted: &Platform) -> bool {
        let own = self.own().map_or("", |own| &*own.architecture);
        let is_own = |architecture: &str| {
            architecture == own || matches!((own, architecture), ("amd64", "386") | ("arm64", "arm"))
        };
        self.0.iter().filter(|listed| is_own(&listed.architecture)).any(|listed| listed.runs(wanted))
    }
}

/// The architecture of the worker, on which buildx runs.
fn worker_architecture() -> &'static str {
    std::env::consts::ARCH
}

fn is_os(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris", "wasip1", "js"]
        .contains(&name.as_str())
}

fn normalized_os(os: &str) -> &str {
    if os == "macos" { "darwin" } else { os }
}

fn normalized(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", if variant == "v1" { "" } else { variant }),
        ("aarch64" | "arm64", variant) => match variant {
            "8" | "v8" | "v8.0" => ("arm64", ""),
            "9" | "v9.0" => ("arm64", "v9"),
            variant => ("arm64", variant),
        },
        ("armhf", _) | ("arm", "7" | "v7") => ("arm", ""),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        Platform::parse(text).map(|platform| platform.to_string())
    }

    #[test]
    fn a_platform_is_read_as_buildx_reads_it() {
        let own = read("local").expect("a platform");
        assert!(own.starts_with("linux/") && !own.contains("x86_64"), "{own}");
        assert_eq!(read("linux").as_deref(), Some(&*own));
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm"),
            ("linux/arm/v7", "linux/arm"),
            ("armhf", "linux/arm"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows/amd64"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "/", "linux/", "linux/a/b/c", "linux/am d64", "${x}/amd64"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_machine_runs_its_own_platforms_and_emulates_the_others_that_it_lists() {
        let machine = |listed: &[&str]| Machine::new(listed.iter().filter_map(|text| Platform::parse(text)).collect());
        let amd64 =
            machine(&["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/arm64", "linux/386", "linux/arm"]);
        let graviton = machine(&["linux/arm64", "linux/amd64", "linux/386", "linux/arm", "linux/arm/v6"]);
        let only_64_bit = machine(&["linux/arm64"]);
        let raspberry = machine(&["linux/arm/v6"]);
        for (wanted, on) in [
            ("linux/amd64", [true, false, false, false]),
            ("linux/amd64/v2", [true, false, false, false]),
            ("linux/amd64/v4", [false; 4]),
            ("linux/386", [true, false, false, false]),
            ("linux/arm64", [false, true, true, false]),
            ("linux/arm64/v9", [false; 4]),
            ("linux/arm/v7", [false, true, false, false]),
            ("linux/arm/v6", [false, true, false, true]),
            ("linux/arm/v5", [false, true, false, true]),
            ("windows/amd64", [false; 4]),
            ("linux/riscv64", [false; 4]),
            ("linux/amd64/odd", [false; 4]),
        ] {
            let platform = Platform::parse(wanted).expect("a platform");
            let found = [&amd64, &graviton, &only_64_bit, &raspberry].map(|machine| machine.is_native(&platform));
            assert_eq!(found, on, "{wanted}");
        }
        assert_eq!(Machine::default().own(), None);
    }
}

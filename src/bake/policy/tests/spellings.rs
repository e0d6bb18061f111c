//! Whatever means the same gets the same verdict, in whichever spelling.
//!
//! Each meaning has a generator of spellings, as buildx prints them. The sources that `arguments.rs` names say that buildx
//! and BuildKit read them as the same. `tests/e2e/spelling.rs` starts from what people write, and asks buildx itself.

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;

use super::*;

/// Spellings of one meaning: fields of a target called `a`, or several targets.
struct Meaning {
    name: &'static str,
    spellings: BoxedStrategy<Value>,
}

fn meaning(name: &'static str, spellings: impl Strategy<Value = Value> + 'static) -> Meaning {
    Meaning { name, spellings: spellings.boxed() }
}

/// Fields of a target with this context.
fn target(fields: Value) -> Value {
    let mut target = json!({"context": "app"});
    target.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    json!({"a": target})
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(texts).prop_map(str::to_owned)
}

/// The text in any mixture of upper and lower case.
fn cased(text: &'static str) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<bool>(), text.len()).prop_map(move |upper| {
        let letters = text.chars().zip(upper);
        letters.map(|(c, is_upper)| if is_upper { c.to_ascii_uppercase() } else { c }).collect()
    })
}

const TRUE: &[&str] = &["1", "t", "T", "true", "TRUE", "True"];
const FALSE: &[&str] = &["0", "f", "F", "false", "FALSE", "False"];

/// An attestation of this kind with these options (`name=value`), as entry or as argument.
fn attestation(kind: &'static str, options: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let quoted =
        move |option: &str, is_quoted: bool| if is_quoted { format!("\"{option}\"") } else { option.to_owned() };
    let line = move |options: Vec<(String, bool)>| {
        options.iter().map(|(option, is_quoted)| quoted(option, *is_quoted)).collect::<Vec<_>>().join(",")
    };
    let all: Vec<&'static str> = options.to_vec();
    let order = || {
        let quotes = prop::collection::vec(any::<bool>(), all.len() + 1);
        (Just(all.clone()).prop_shuffle(), quotes)
    };
    let entry = (cased(kind), order(), one_of(FALSE), any::<bool>());
    let as_text = entry.prop_map(move |(kind, (options, quotes), off, is_said)| {
        let mut all: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        all.insert(quotes.len() % (all.len() + 1), format!("type={kind}"));
        if is_said {
            all.push(format!("disabled={off}"));
        }
        let quotes = quotes.into_iter().chain([false, false]);
        target(json!({"attest": [line(all.into_iter().zip(quotes).collect())]}))
    });
    let as_object = cased(kind).prop_map(move |kind| {
        let mut entry = json!({"type": kind});
        for (name, value) in options.iter().filter_map(|option| option.split_once('=')) {
            entry[name] = json!(value);
        }
        target(json!({"attest": [{"type": kind, "disabled": true}, entry]}))
    });
    let as_argument = (cased(kind), order()).prop_map(move |(kind, (options, quotes))| {
        let options = options.iter().map(|option| (*option).to_owned()).zip(quotes).collect();
        target(json!({"args": {format!("BUILDKIT_ATTEST_{kind}"): line(options)}}))
    });
    prop_oneof![as_text, as_object, as_argument]
}

/// References of `acme/x` on Docker Hub, tagged `latest`.
fn hub_reference() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        Just(String::new()),
        cased("docker.io/"),
        cased("index.docker.io/"),
        cased("docker.io:443/"),
        Just("registry-1.docker.io/".to_owned()),
    ];
    (host, one_of(&["acme/x", "acme/x:latest"])).prop_map(|(host, rest)| host + &rest)
}

/// References of `acme/x:1` in a registry.
fn reference() -> impl Strategy<Value = String> {
    let host = (cased("r.example"), one_of(&["", ":443"])).prop_map(|(host, port)| host + &port);
    host.prop_map(|host| format!("{host}/acme/x:1"))
}

const INSIDE: &[&str] = &["app", "./app", "app/", "app/.", ".//app", "app/../app", "cwd://app", "cwd://./app//"];
const OUTSIDE: &[&str] =
    &["..", "../", "./..", "app/../..", "cwd://..", "/etc", "//etc/", "/etc/.", "cwd:///etc", "out", "./out/", "out/."];

fn of_arguments() -> Vec<Meaning> {
    let argument = |value: String| target(json!({"args": {"BUILDKIT_INLINE_CACHE": value}}));
    let field = Just(target(json!({"cache-to": [{"type": "inline"}]})));
    let no_cache = one_of(&["0", "f", "false", "False", "no", "", "yes", "tRue", " true"]);
    let shadowed =
        one_of(&["BUILDKIT_SYNTAX=x", "BUILDKIT_CACHE_MOUNT_NS=x", "=", "A=B", "BUILDKIT_ATTEST_SBOM=generator"]);
    vec![
        meaning("a cache in the image", prop_oneof![one_of(TRUE).prop_map(argument), field]),
        meaning("no cache in the image", prop_oneof![no_cache.prop_map(argument), Just(target(json!({})))]),
        meaning("an argument in the name of another", shadowed.prop_map(|name| target(json!({"args": {name: "x"}})))),
    ]
}

fn of_attestations() -> Vec<Meaning> {
    let off = (cased("sbom"), one_of(TRUE)).prop_map(|(kind, on)| json!([{"type": kind, "disabled": on}]));
    let off_by_text =
        (cased("sbom"), one_of(TRUE)).prop_map(|(kind, on)| json!([format!("type={kind},disabled={on}")]));
    let off_with_options = Just(json!([{"type": "sbom", "disabled": true, "generator": "evil/image"}]));
    let off = prop_oneof![off, off_by_text, off_with_options, Just(json!([])), Just(Value::Null)];
    vec![
        meaning("an SBOM", attestation("sbom", &[])),
        meaning("an SBOM by a foreign image", attestation("sbom", &["generator=evil/image"])),
        meaning("an SBOM with an unknown option", attestation("sbom", &["A=b", "generator=evil/image"])),
        meaning("all provenance", attestation("provenance", &["mode=max", "version=v1"])),
        meaning("provenance by somebody else", attestation("provenance", &["mode=max", "builder-id=https://evil"])),
        meaning("an unknown attestation", attestation("future", &[])),
        meaning("no SBOM", off.prop_map(|attest| target(json!({"attest": attest})))),
    ]
}

fn of_references() -> Vec<Meaning> {
    let two_images = |(one, other): (String, String)| json!({"a": {"context": "app", "tags": [one]}, "b": {"context": "app", "cache-to": [{"type": "registry", "ref": other}]}});
    let two_caches = |(one, other): (String, String)| {
        let cache = |place| json!({"context": "app", "cache-to": [{"type": "registry", "ref": place}]});
        json!({"a": cache(one), "b": cache(other)})
    };
    let stand_in =
        one_of(&["docker/dockerfile:1", "docker.io/docker/dockerfile:1", "index.docker.io/docker/dockerfile:1"]);
    let stand_in = (stand_in, one_of(&["", "::linux/amd64", "::linux/arm64/v8"]));
    vec![
        meaning("a cache over an image", (hub_reference(), hub_reference()).prop_map(two_images)),
        meaning("two caches in one place", (reference(), reference()).prop_map(two_caches)),
        meaning(
            "a context in place of the frontend",
            stand_in.prop_map(|(name, platform)| {
                target(json!({"contexts": {format!("{name}{platform}"): "docker-image://evil/frontend"}}))
            }),
        ),
    ]
}

fn of_paths() -> Vec<Meaning> {
    let context = |path: String| json!({"a": {"context": path}});
    let named = |path: String| target(json!({"contexts": {"x": path}}));
    let dockerfile = |path: String| target(json!({"dockerfile": path}));
    let of_host =
        one_of(&["../../Dockerfile", "/etc/passwd", "./../../x", "../out/passwd", "cwd://../x", "cwd:///etc/passwd"]);
    let network = prop_oneof![
        Just(json!({"network": "host"})),
        Just(json!({"entitlements": ["network.host"]})),
        Just(json!({"network": "host", "entitlements": ["network.host", "network.host"]})),
        cased("host").prop_map(|name| json!({"network": name})),
        one_of(&[" host", "host ", "hоst", "container:x"]).prop_map(|name| json!({"network": name})),
    ];
    let default = prop_oneof![Just(json!({})), Just(json!({"network": null})), Just(json!({"entitlements": null}))];
    vec![
        meaning("a context inside", one_of(INSIDE).prop_map(context)),
        meaning("a context outside", one_of(OUTSIDE).prop_map(context)),
        meaning("a named context inside", one_of(INSIDE).prop_map(named)),
        meaning("a named context outside", one_of(OUTSIDE).prop_map(named)),
        meaning("a Dockerfile outside", of_host.prop_map(dockerfile)),
        meaning("the builder's network", network.prop_map(target)),
        meaning("the default network", default.prop_map(target)),
    ]
}

#[test]
fn what_means_the_same_gets_the_same_verdict() {
    let pinned = settings::Policy { frontend: Some("docker/dockerfile:1".into()), ..settings::Policy::default() };
    let accounts = settings::Accounts { policy: pinned, ..settings::Accounts::default() };
    let worktree = worktree();
    let verdict = |targets: &Value, build: &Build| {
        let validated = validate_in(worktree.path(), &accounts, build, targets.clone());
        // Texts that are kept as they were written are left out.
        let meant = |validated: Validated| {
            validated.targets.into_values().map(|mut target| {
                target.remove("tags");
                target
            })
        };
        validated.map(|validated| meant(validated).collect::<Vec<_>>()).map_err(|_| "refused")
    };
    for meaning in [of_arguments(), of_attestations(), of_references(), of_paths()].into_iter().flatten() {
        let trust = select(&[Trust::Protected, Trust::Branch, Trust::Fork][..]);
        let two = (meaning.spellings.clone(), meaning.spellings, trust, any::<bool>());
        // A runner counts its cases, and is done after those of one meaning.
        let agree = TestRunner::deterministic().run(&two, |(one, other, trust, is_repositorys)| {
            let build = build(trust, is_repositorys);
            prop_assert_eq!(verdict(&one, &build), verdict(&other, &build), "{} {} {:?}", one, other, trust);
            Ok(())
        });
        agree.unwrap_or_else(|error| panic!("{}: {error}", meaning.name));
    }
}

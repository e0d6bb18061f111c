//! Layers, and the messages of settings that cannot be used.

use super::*;

fn read(toml: &str, variables: &[(&str, &str)]) -> Result<Settings, ConfigurationError> {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a temporary file");
    std::fs::write(file.path(), toml).expect("written");
    let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    super::read(&[file.path().to_owned()], None, variables)
}

fn names(settings: &Settings) -> Vec<&str> {
    settings.queues.iter().map(|queue| queue.name.as_str()).collect()
}

fn message(toml: &str) -> String {
    read(toml, &[]).expect_err("refused").to_string()
}

#[test]
fn the_example_file_holds_the_defaults() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sidebake.toml");
    let read = super::read(&[example], None, BTreeMap::new()).expect("the example is valid");
    assert_eq!(format!("{read:#?}"), format!("{:#?}", Settings::default()));
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_defaults() {
    let file = "concurrency = 3\nqueues = [\"a\"]\n[redis]\nurl = \"redis://file\"\n";
    let settings = read(file, &[("SIDEBAKE__QUEUES", "b,c"), ("REDIS_URL", "redis://env")]).expect("valid");
    assert_eq!((settings.concurrency, settings.clones), (3, 4));
    assert_eq!(names(&settings), ["b", "c"]);
    assert_eq!(settings.redis.url.expose(), "redis://file", "REDIS_URL is a default, as for Sidekiq");
    let settings = read("", &[("SIDEBAKE__REDIS__URL", "redis://x"), ("REDIS_URL", "redis://env")]).expect("valid");
    assert_eq!(settings.redis.url.expose(), "redis://x");
    let settings = read("", &[("SIDEBAKE__QUEUES", "b,3,c")]).expect("valid");
    assert_eq!((names(&settings), settings.queues[0].weight), (vec!["b", "c"], 3));
}

#[test]
fn sidekiqs_own_file_and_variables_are_defaults() {
    let file = |name: &str, text: &str| {
        let file = tempfile::NamedTempFile::with_suffix(name).expect("a temporary file");
        std::fs::write(file.path(), text).expect("written");
        file
    };
    let yml = file(".yml", ":concurrency: 5\n:timeout: 8\nstaging:\n  concurrency: 6\n:pidfile: x\n");
    let toml = file(".toml", "shutdown.timeout = \"9s\"\n");
    let read = |environment, variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let files = [toml.path().to_owned(), yml.path().to_owned()];
        super::read(&files, environment, variables).expect("valid")
    };
    let settings = read(None, &[("RAILS_MAX_THREADS", "7"), ("RAILS_ENV", "staging")]);
    assert_eq!((settings.concurrency, settings.shutdown.timeout.as_secs()), (6, 9));
    assert!(settings.notes[0].ends_with("pidfile is not read"), "{:?}", settings.notes);
    assert_eq!(read(Some("test"), &[("RACK_ENV", "staging")]).concurrency, 5);
    let threads = super::read(&[], None, BTreeMap::from([("RAILS_MAX_THREADS".into(), "7".into())]));
    assert_eq!(threads.expect("valid").concurrency, 7);
}

#[test]
fn a_typo_is_refused_with_its_path() {
    assert!(message("concurency = 3").contains("concurency"));
    let nested = message("[github]\nappid = \"1\"");
    assert!(nested.contains("github") && nested.contains("appid"), "{nested}");
    let wrong = message("[jobs]\nmax_age = \"soon\"");
    assert!(wrong.contains("jobs.max_age"), "{wrong}");
}

#[test]
fn what_cannot_work_is_refused_before_the_start() {
    assert_eq!(message("concurrency = 0"), "concurrency: must be from 1 to 1000");
    assert!(message("queues = [\"a,often\"]").contains("expected NAME or NAME,WEIGHT, found \"a,often\""));
    let empty = message("[capsules.slow]\nconcurrency = 1\nqueues = []");
    assert_eq!(empty, "capsules.slow.queues: must name at least one queue");
    let double = message("[capsules.default]\nconcurrency = 1\nqueues = [\"a\"]");
    assert_eq!(double, "capsules.default: set concurrency and queues instead: they are the capsule called default");
    let crowd = message("concurrency = 999\n[capsules.slow]\nconcurrency = 2\nqueues = [\"a\"]");
    assert_eq!(crowd, "concurrency: must be from 1 to 1000, with all capsules");
    assert!(message("queues = [\"a\\nb\"]").contains("is not a valid name of a queue"));
    assert_eq!(message("bake.prints = 0"), "bake.prints: must be at least 1");
    assert_eq!(message("jobs.dead_max_jobs = 1"), "jobs.dead_max_jobs: must be at least 2");
    assert_eq!(message("queues = []"), "queues: must name at least one queue");
    let keys = message("[github]\nprivate_key = \"x\"\nprivate_key_file = \"/x\"");
    assert_eq!(keys, "github: set either private_key or private_key_file, not both");
    let attested = message("bake.provenance = \"mode=huge\"");
    assert_eq!(attested, "bake.provenance: unknown value \"huge\" of the option mode");
    let resolved = message("[jobs.classes.B]\narguments = \"resolved\"");
    assert_eq!(resolved, "jobs.classes.B.resolve: required for resolved arguments");
    let keyless = message("source.mtimes_for = { \"acme/app\" = \"content\" }");
    assert_eq!(keyless, "source.mtimes_key_file: required for times that come from content");
    let short = message("source.mtimes_key = \"hunter2\"");
    assert_eq!(short, "source.mtimes_key: must have at least 32 characters");
    let remote = message("[builders.default]\ndriver = \"remote\"");
    assert_eq!(remote, "builders.default.endpoint: required for the remote driver: tcp://host:port");
}

#[test]
fn a_cache_belongs_to_one_target_of_one_repository() {
    let named = |name: &str| read(&format!("accounts.cache = \"{name}\""), &[]).map(|settings| settings.accounts.cache);
    let cache = named("r.example/{account}/{repository}/cache:{target}").expect("valid");
    assert_eq!(
        cache.reference.map(|name| name.to_string()).as_deref(),
        Some("r.example/{account}/{repository}/cache:{target}")
    );
    for (name, expected) in [
        ("r.example/{account}/{repository}:cache", "must contain {target}"),
        ("r.example/{repository}:{target}", "must contain {target}, {repository}, and {account} or {owner}"),
        ("r.example/{owner}-{repository}:{target}", "must have a / or : between two placeholders"),
        ("r.example/{account}/{repository}/{branch}:{target}", "unknown placeholder {branch}"),
        ("R.example/Caches/{account}/{repository}:{target}", "upper-case letters"),
    ] {
        let refused = named(name).expect_err("refused").to_string();
        assert!(refused.starts_with("accounts.cache.reference: ") && refused.contains(expected), "{name}: {refused}");
    }
    let both =
        message("[accounts.cache]\nreference = \"r/{account}/{repository}:{target}\"\nonly_default_branch = true");
    assert!(both.contains("cannot be combined with from, to or only_default_branch"), "{both}");
    assert!(message("accounts.cache = 7").contains("a registry reference"), "{}", message("accounts.cache = 7"));
}

#[test]
fn a_variable_may_be_a_list_in_json() {
    let ports = |text: &str| read("", &[("SIDEBAKE__SANDBOX__REGISTRY_PORTS", text)]);
    for text in ["443,5000", "[443,5000]", " [443, 5000]", "[\"443\",\"5000\"]"] {
        assert_eq!(ports(text).expect("valid").sandbox.registry_ports, [443, 5000], "{text}");
    }
    let queues = |file: &str, variables: &[(&str, &str)]| -> Vec<(String, u32)> {
        let queues = read(file, variables).expect("valid").queues;
        queues.into_iter().map(|queue| (queue.name, queue.weight)).collect()
    };
    let numbered = [("1".to_owned(), 0), ("2".to_owned(), 0), ("3".to_owned(), 0)];
    assert_eq!(queues(r#"queues = ["1", "2", "3"]"#, &[]), numbered, "names of queues may be numbers");
    assert_eq!(queues("", &[("SIDEBAKE__QUEUES", r#"["1","2","3"]"#)]), numbered);
    let weighted = queues("", &[("SIDEBAKE__QUEUES", "high,6,low, 1,other")]);
    assert_eq!(weighted, [("high".to_owned(), 6), ("low".to_owned(), 1), ("other".to_owned(), 0)]);
    let slow = [("SIDEBAKE__CAPSULES__SLOW__CONCURRENCY", "1"), ("SIDEBAKE__CAPSULES__SLOW__QUEUES", "a,b")];
    assert_eq!(read("", &slow).expect("valid").capsules["slow"].queues.len(), 2);
    let queues = read("", &[("SIDEBAKE__QUEUES", r#"["high,6","low"]"#)]).expect("valid").queues;
    let queues: Vec<_> = queues.iter().map(|queue| (&*queue.name, queue.weight)).collect();
    assert_eq!(queues[0], ("high", 6));
    let accounts = read("", &[("SIDEBAKE__SOURCE__SUBMODULES", r#"["acme/*"]"#)]).expect("valid");
    assert_eq!(accounts.source.submodules.len(), 1);
    let expected = "SIDEBAKE__SANDBOX__REGISTRY_PORTS: not a list of texts or numbers; write a,b or [\"a\",\"b\"]";
    for text in ["[443", "[[443]]", "[null]"] {
        assert_eq!(ports(text).expect_err("refused").to_string(), expected, "{text}");
    }
}

#[test]
fn a_level_of_the_log_that_is_none_is_refused() {
    let refused = "log.level: unknown level \"loud\"; known: off, error, warn, info, debug, trace, TARGET=LEVEL";
    for level in ["loud", "info,loud", "sidebake=loud"] {
        assert_eq!(message(&format!("log.level = \"{level}\"")), refused);
    }
    for level in ["info", "WARN", "sidebake=debug,info", "sidebake=trace, warn"] {
        assert!(read(&format!("log.level = \"{level}\""), &[]).is_ok(), "{level}");
    }
}

#[test]
fn secrets_do_not_show_in_the_logged_settings() {
    let settings = read("[redis]\nurl = \"redis://:hunter2@host\"", &[]).expect("valid");
    assert!(!format!("{settings:?}").contains("hunter2"));
    let broken = message("[redis]\nurl = \"redis://:hunter2@host\" x");
    assert!(broken.contains("line 2") && !broken.contains("hunter2"), "{broken}");
}

//! The tenant of a job, read from its text before the job is taken.
//!
//! Reads what a job says of itself, without Rails. A text whose account cannot be read belongs to the tenant `unknown`, so that it is
//! neither lost nor in anybody's way.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::newest::{self, Edition};
use super::payload::Payload;
use super::{twins, watch};
use crate::bounds;
use crate::clock::Epoch;
use crate::hex;
use crate::job::arguments::{self, Arguments, RequestFrom};
use crate::job::{self, BuildJob};
use crate::settings::{JobClass, Jobs, PROBE, Supersede, Tenants};

/// The tenant of texts whose account cannot be read.
pub const UNKNOWN: &str = "unknown";

/// The longest name that is kept whole. A longer one ends in a hash.
const LONGEST: usize = 128;

/// A waiting job, as the choice sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its text, by which it is taken.
    pub text: Arc<[u8]>,
    /// What it counts for while it runs.
    pub claim: Claim,
    /// Orders the jobs of one tenant, the highest first.
    pub priority: i64,
    /// Set when a newer job may end this one, or this one an older one.
    pub edition: Option<Edition>,
    /// Names its inputs, where jobs with the same ones are built once.
    pub twin: Option<String>,
    /// When it was enqueued, in microseconds.
    pub queued_us: Option<u64>,
    /// The builder that it names.
    pub builder: Option<String>,
    /// When it expires.
    pub expiry: Option<Epoch>,
    /// Whether the worker knows all inputs before it takes the job. Those of an id are in Rails.
    pub has_inputs: bool,
}

/// What a job counts for while it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The tenant.
    pub tenant: String,
    /// The share of the tenant, relative to 1.
    pub weight: f64,
    /// The counters of running jobs that it is in.
    pub counters: Vec<Counter>,
}

/// A number of running jobs in the whole fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its field in `sidebake:running`.
    pub name: String,
    /// How high it may become.
    pub limit: Option<u32>,
}

/// The counter of a tenant's running jobs.
pub fn counter(tenant: &str) -> String {
    format!("tenant {tenant}")
}

/// The tenant of such a counter.
pub fn of_counter(counter: &str) -> Option<&str> {
    counter.strip_prefix("tenant ")
}

/// Reads a waiting job. A text of more than [`bounds::WINDOW`] is not read: it would take long, and custody waits for it.
pub fn read(text: &Arc<[u8]>, jobs: &Jobs, tenants: &Tenants) -> Candidate {
    let is_read = text.len() <= bounds::WINDOW;
    let payload = is_read.then(|| Payload::parse_shared(text).ok()).flatten();
    let owned = payload.as_ref().map(|payload| Owned::of(payload, jobs)).unwrap_or_default();
    let tenant = named(owned.tenant.as_deref().unwrap_or(UNKNOWN));
    // Nothing waits for a job that cannot be built, nor ends for it.
    let inputs = payload.as_ref().filter(|_| watch::is_on(jobs, tenants)).and_then(|payload| inputs(payload, jobs));
    let built = payload.as_ref().zip(inputs);
    let edition = built.as_ref().and_then(|(payload, _)| owned.edition(payload, &tenant, jobs, tenants));
    let twin = built.filter(|_| tenants.coalesce).map(|(_, inputs)| twins::key(&tenant, inputs));
    let edition = edition.map(|edition| Edition { twin: twin.clone(), ..edition });
    let queued_us = payload.as_ref().and_then(Payload::enqueued_at).map(microseconds);
    let mut counters = vec![Counter { name: counter(&tenant), limit: tenants.limit_of(&tenant) }];
    if let (Some(repository), Some(limit)) = (&owned.repository, tenants.limit_per_repository_of(&tenant)) {
        counters.push(Counter { name: format!("repository {}", named(repository)), limit: Some(limit) });
    }
    if let Some(builder) = tenants.builder_of(&tenant, owned.builder.as_deref())
        && let Some(limit) = tenants.limit_per_builder_of(builder)
    {
        counters.push(Counter { name: format!("builder {}", named(builder)), limit: Some(limit) });
    }
    counters.extend(edition.as_ref().map(Edition::counter));
    counters.extend(twin.as_deref().map(twins::counter));
    let weight = tenants.weight_of(&tenant);
    let expiry = payload.as_ref().and_then(Payload::expiry);
    let class = payload.as_ref().and_then(|payload| jobs.classes.get(&payload.class));
    let has_inputs = class.is_none_or(|class| !class.is_resolved());
    Candidate {
        text: Arc::clone(text),
        claim: Claim { tenant, weight, counters },
        priority: owned.priority,
        edition,
        twin,
        queued_us,
        has_inputs,
        builder: owned.builder,
        expiry,
    }
}

/// The fields of a request that are read before the job is taken.
const FIELDS: [&str; 8] =
    ["account", "repository", "ref", "builder", "priority", "supersede", "supersede_key", "build_id"];

/// What a job says of whom it is for, and of what it builds.
#[derive(Default)]
struct Owned {
    tenant: Option<String>,
    repository: Option<String>,
    git_ref: Option<String>,
    builder: Option<String>,
    priority: i64,
    supersede: Option<Supersede>,
    supersede_key: Option<String>,
    build_id: Option<Value>,
}

impl Owned {
    fn of(payload: &Payload, jobs: &Jobs) -> Self {
        let class = jobs.classes.get(&payload.class).filter(|_| payload.class != PROBE);
        let args = payload.arguments().unwrap_or_default();
        match class {
            Some(class) if class.is_resolved() => {
                let at = |pointer: &Option<String>| pointer.as_ref().and_then(|pointer| text_at(&args, pointer));
                let tenant = at(&class.tenant).or_else(|| Some(payload.class.clone()));
                Self { tenant, supersede_key: at(&class.supersede_key), ..Self::default() }
            }
            // A probe has the fields of a native request.
            Some(class) => Self::of_request(class, &args),
            None if payload.class == PROBE => Self::of_request(&JobClass::default(), &args),
            None => Self { tenant: Some(payload.class.clone()), ..Self::default() },
        }
    }

    fn of_request(class: &JobClass, args: &Arguments) -> Self {
        let fields = arguments::fields(class, args, &FIELDS);
        let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let repository = text("repository").filter(|repository| repository.contains('/'));
        let owner = repository.and_then(|repository| repository.split('/').next());
        Self {
            tenant: text("account").or(owner).map(str::to_owned),
            repository: repository.map(str::to_owned),
            git_ref: text("ref").map(str::to_owned),
            builder: text("builder").map(str::to_owned),
            priority: fields.get("priority").and_then(Value::as_i64).unwrap_or(0),
            supersede: fields.get("supersede").and_then(|value| Supersede::deserialize(value).ok()),
            supersede_key: text("supersede_key").map(str::to_owned),
            build_id: fields.get("build_id").filter(|id| job::is_build_id(id)).cloned(),
        }
    }

    /// The job among those that build the same. `None` when it does not say what it builds, or takes no part.
    fn edition(&self, payload: &Payload, tenant: &str, jobs: &Jobs, tenants: &Tenants) -> Option<Edition> {
        let class = jobs.classes.get(&payload.class);
        let supersede =
            self.supersede.or(class.and_then(|class| class.supersede)).unwrap_or_else(|| tenants.supersede_of(tenant));
        let key = match (&self.supersede_key, &self.repository, &self.git_ref) {
            (Some(name), _, _) => key(tenant, &[name]),
            // GitHub's names have no case, refs have.
            (None, Some(repository), Some(git_ref)) => key(tenant, &[&repository.to_lowercase(), git_ref]),
            _ => return None,
        };
        let jid = payload.jid.clone();
        let takes_part = supersede != Supersede::Off && newest::is_on(jobs, tenants);
        // The jid is a line of a record.
        if !takes_part || jid.is_empty() || jid.contains('\n') {
            return None;
        }
        let (created_us, ends_running) = (microseconds(payload.created_at()?), supersede == Supersede::Running);
        Some(Edition { key, created_us, jid, build_id: self.build_id.clone(), ends_running, twin: None })
    }
}

/// What a job that can be built is built from: its build request; for one that carries only an id, what Rails is asked for.
fn inputs(payload: &Payload, jobs: &Jobs) -> Option<Value> {
    let has_expired = payload.expiry().is_some_and(|expiry| expiry < Epoch::now());
    if has_expired || payload.flaw().is_some() {
        return None;
    }
    let args = payload.arguments().ok()?;
    if payload.class == PROBE {
        return args.value(0).ok();
    }
    match arguments::read(jobs.classes.get(&payload.class)?, &args).ok()? {
        RequestFrom::Arguments(request) => BuildJob::parse(&request).is_ok().then_some(request),
        RequestFrom::Rails { url, .. } => Some(Value::String(url)),
    }
}

fn microseconds(at: Epoch) -> u64 {
    (at.as_secs_f64() * 1e6).round() as u64
}

/// Names something of a tenant in keys and counters: a hash of what tells it from others. The names may be long.
pub(super) fn key(tenant: &str, what: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in [tenant].iter().chain(what) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(&digest.finalize()[..12])
}

fn text_at(args: &Arguments, pointer: &str) -> Option<String> {
    match args.find(pointer).ok()?? {
        Value::String(text) if !text.is_empty() => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The name as it is in Redis: in lower case, since GitHub's names have no case, in one line, and not too long.
fn named(name: &str) -> String {
    let lower: String = name.trim().to_lowercase();
    let is_plain = !lower.is_empty() && lower.len() <= LONGEST && !lower.contains(|c: char| c.is_control());
    if is_plain {
        return lower;
    }
    let start: String = lower.chars().filter(|c| !c.is_control()).take(LONGEST / 8).collect();
    let digest = sha1_smol::Sha1::from(lower.as_bytes()).digest().bytes();
    format!("{start}~{}", hex::encode(&digest[..8]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::settings::NamePattern;

    fn tenant_of(job: &Value, jobs: &Jobs) -> Candidate {
        let one = |name: &str, limit| BTreeMap::from([(NamePattern::new(name), limit)]);
        let tenants = Tenants { limits: one("*", 5), limits_per_repository: one("acme", 2), ..Tenants::default() };
        read(&Arc::from(job.to_string().as_bytes()), jobs, &tenants)
    }

    fn build(request: Value) -> Value {
        json!({"class": "BuildJob", "jid": "j", "args": [request]})
    }

    #[test]
    fn the_tenant_is_the_account_else_the_owner() {
        let jobs = Jobs::default();
        for (request, tenant) in [
            (json!({"account": "Acme", "repository": "o/r"}), "acme"),
            (json!({"repository": "Owner/r"}), "owner"),
            (json!({"account": "", "repository": "o/r"}), "o"),
            (json!({"account": 7, "repository": "o/r"}), "o"),
            (json!({"repository": "r"}), UNKNOWN),
            (json!({}), UNKNOWN),
            (json!("text"), UNKNOWN),
        ] {
            assert_eq!(tenant_of(&build(request.clone()), &jobs).claim.tenant, tenant, "{request}");
        }
        let active = json!({"class": "Sidekiq::ActiveJob::Wrapper", "wrapped": "BuildJob", "jid": "j",
            "args": [{"job_class": "BuildJob", "arguments": [{"account": "acme", "repository": "o/r"}]}]});
        assert_eq!(tenant_of(&active, &jobs).claim.tenant, "acme");
        assert_eq!(tenant_of(&json!({"class": "Other", "args": []}), &jobs).claim.tenant, "other");
        assert_eq!(read(&Arc::from(&b"{not json"[..]), &jobs, &Tenants::default()).claim.tenant, UNKNOWN);
        let long = build(json!({"account": "acme", "variables": {"X": "x".repeat(bounds::WINDOW)}}));
        assert_eq!(tenant_of(&long, &jobs).claim.tenant, UNKNOWN);
    }

    #[test]
    fn a_job_counts_for_the_builder_that_it_names_else_for_that_of_its_account() {
        let of = |account: &str| vec![NamePattern::new(account)];
        let tenants = Tenants {
            limits_per_builder: [("default", 9), ("own-*", 1)]
                .map(|(name, limit)| (NamePattern::new(name), limit))
                .into(),
            builders: [("default".to_owned(), of("*")), ("own-acme".to_owned(), of("acme"))].into(),
            ..Tenants::default()
        };
        let counted = |request: Value| {
            let job = build(request);
            let claim = read(&Arc::from(job.to_string().as_bytes()), &Jobs::default(), &tenants).claim;
            claim.counters[1..].iter().map(|c| (c.name.clone(), c.limit)).collect::<Vec<_>>()
        };
        let one = |name: &str, limit| vec![(format!("builder {name}"), Some(limit))];
        assert_eq!(counted(json!({"account": "other"})), one("default", 9));
        assert_eq!(counted(json!({"account": "Acme"})), one("own-acme", 1));
        assert_eq!(counted(json!({"account": "acme", "builder": "default"})), one("default", 9));
        assert_eq!(counted(json!({"account": "acme", "builder": "unlimited"})), []);
    }

    #[test]
    fn a_mapped_class_and_a_class_with_an_id_have_their_own_way() {
        let classes = json!({
            "Mapped": {"arguments": "mapped", "map": {"repository": "/0", "account": "/1/owner", "priority": "/2"}},
            "ById": {"arguments": "resolved", "resolve": {"url": "x"}},
            "ByPair": {"arguments": "resolved", "resolve": {"url": "x"}, "tenant": "/1"},
        });
        let jobs = Jobs { classes: serde_json::from_value(classes).expect("classes"), ..Jobs::default() };
        let mapped = tenant_of(&json!({"class": "Mapped", "args": ["o/r", {"owner": "acme"}, 7]}), &jobs);
        assert_eq!((mapped.claim.tenant.as_str(), mapped.priority), ("acme", 7));
        let counters: Vec<_> = mapped.claim.counters.iter().map(|c| (c.name.as_str(), c.limit)).collect();
        assert_eq!(counters, [("tenant acme", Some(5)), ("repository o/r", Some(2))]);
        for (args, tenant) in [(json!([4, "acme"]), "acme"), (json!([4, 17]), "17"), (json!([4]), "bypair")] {
            assert_eq!(tenant_of(&json!({"class": "ByPair", "args": args}), &jobs).claim.tenant, tenant);
        }
        assert_eq!(tenant_of(&json!({"class": "ById", "args": [4]}), &jobs).claim.tenant, "byid");
    }

    #[test]
    fn the_job_counts_first_then_its_class_then_its_account() {
        let classes = json!({
            "Off": {"supersede": "off"}, "Queued": {"supersede": "queued"}, "Unset": {},
            "ById": {"arguments": "resolved", "resolve": {"url": "x"}, "tenant": "/1", "supersede_key": "/2"},
        });
        let jobs = Jobs { classes: serde_json::from_value(classes).expect("classes"), ..Jobs::default() };
        let tenants =
            Tenants { supersede: [(NamePattern::new("acme"), Supersede::Running)].into(), ..Tenants::default() };
        let edition = |class: &str, args: Value| {
            let job = json!({"class": class, "jid": "j", "args": args, "created_at": 1_795_491_695_123_u64});
            read(&Arc::from(job.to_string().as_bytes()), &jobs, &tenants).edition
        };
        let request = |account: &str, supersede: Value| {
            let images = json!([{"name": "web", "context": ".", "tags": ["r.example/web:1"]}]);
            json!([{"account": account, "repository": "Acme/App", "sha": "0123456789abcdef0123456789abcdef01234567",
                "ref": "refs/heads/main", "application": {"images": images}, "supersede": supersede}])
        };
        let ends_running = |class, account, own| edition(class, request(account, own)).map(|its| its.ends_running);
        assert_eq!(ends_running("Unset", "acme", Value::Null), Some(true));
        assert_eq!(ends_running("Unset", "other", Value::Null), None);
        assert_eq!(ends_running("Queued", "acme", Value::Null), Some(false));
        assert_eq!(ends_running("Off", "acme", Value::Null), None);
        assert_eq!(ends_running("Off", "acme", json!("running")), Some(true));
        assert_eq!(ends_running("Queued", "acme", json!("off")), None);

        let of_branch = edition("Queued", request("acme", Value::Null)).expect("an edition");
        assert_eq!((of_branch.created_us, of_branch.jid.as_str()), (1_795_491_695_123_000, "j"));
        assert_eq!(of_branch.key, key("acme", &["acme/app", "refs/heads/main"]));
        assert_eq!(edition("Queued", json!([{"repository": "acme/app", "sha": "x"}])), None);
        let invalid = json!([{"repository": "acme/app", "ref": "refs/heads/main", "sha": "not one"}]);
        assert_eq!(edition("Queued", invalid), None, "a job that cannot be built ends no other");
        let by_id = edition("ById", json!([4, "acme", 17])).expect("an edition");
        assert_eq!(by_id.key, key("acme", &["17"]));
        assert_eq!(edition("ById", json!([4, "acme"])), None);
        // Nothing in the settings says that jobs end others.
        assert_eq!(tenant_of(&build(request("acme", json!("running"))[0].clone()), &Jobs::default()).edition, None);
    }

    #[test]
    fn a_name_is_one_short_line() {
        let (long, other) = ("x".repeat(10_000), "x".repeat(9_999));
        let names = [long.as_str(), &other, "a\nb", "a b", " padded "].map(named);
        assert!(names.iter().all(|name| name.len() <= LONGEST && !name.contains('\n') && !name.starts_with(' ')));
        assert_ne!(names[0], names[1]);
        assert_eq!(&names[3..], ["a b", "padded"]);
    }

    #[test]
    fn names_that_run_together_have_different_keys() {
        let keys = [key("a", &["b", "c"]), key("ab", &["c"]), key("a", &["bc"]), key("a", &["b", "", "c"])];
        let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), 4);
    }
}

//! A missing right in the ACL never loses a job: the tests run each script without each command that it calls. `doctor`
//! names what is missing.

use std::collections::BTreeSet;
use std::path::Path;

use redis::Script;
use serde_json::Value;
use sidebake::clock::Epoch;
use sidebake::sidekiq::inflight::Token;
use sidebake::sidekiq::rights;
use sidebake::sidekiq::settlement::Effect;

use crate::harness::Harness;
use crate::turn::{Hand, TEXT, end};

/// The commands that a script calls.
fn commands(script: &str) -> BTreeSet<&str> {
    let calls = script.split("call('").skip(1);
    calls.map(|rest| rest.split('\'').next().unwrap()).collect()
}

fn script(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sidekiq");
    let read = |name: &str| std::fs::read_to_string(folder.join(format!("{name}.lua"))).unwrap();
    match name {
        "recover" | "turn" => read("claims") + &read(name),
        _ => read(name),
    }
}

/// The act on the job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Fetch,
    Begin,
    End,
    Requeue,
    Interrupt,
    Retry,
    Dead,
    MoveDue,
    Recover,
    Announce,
    Show,
    Leave,
}

impl Act {
    const ALL: [Self; 12] = [
        Self::Fetch,
        Self::Begin,
        Self::End,
        Self::Requeue,
        Self::Interrupt,
        Self::Retry,
        Self::Dead,
        Self::MoveDue,
        Self::Recover,
        Self::Announce,
        Self::Show,
        Self::Leave,
    ];

    fn script(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::MoveDue => "due",
            Self::Recover => "recover",
            Self::Announce => "fence",
            Self::Show => "iteration",
            Self::Leave => "leave",
            _ => "turn",
        }
    }

    /// Puts the job where the act finds it.
    async fn prepare(self, hand: &Hand) {
        let (entry, token) = (format!("default\n{TEXT}"), "000000000001");
        let identity = hand.identity.to_string();
        match self {
            Self::Fetch => hand.push().await,
            Self::MoveDue => hand.run(&["ZADD", "retry", "1", TEXT]).await,
            Self::Begin => hand.run(&["HSET", &hand.inflight(), &format!("{token}:idle"), &entry]).await,
            Self::Recover => {
                hand.run(&["DEL", &format!("sidebake:lease:{identity}")]).await;
                hand.run(&["HSET", "sidebake:suspects", &identity, "1"]).await;
                hand.run(&["HSET", &hand.inflight(), token, &entry]).await;
            }
            _ => hand.run(&["HSET", &hand.inflight(), token, &entry]).await,
        }
        hand.run(&["SADD", "sidebake:owners", &identity]).await;
    }

    /// Tries the act once, and ignores a refusal.
    async fn perform(self, hand: &Hand, number: u64) {
        let push = Effect::Push { queue: "callbacks".into(), text: "{}".into() };
        let gone = Effect::Unlink { key: "it-j".into() };
        let requeue = |is_interrupted| Effect::Requeue { queue: "default".into(), is_interrupted };
        let effects = match self {
            Self::End => vec![push, gone],
            Self::Requeue => vec![requeue(false)],
            Self::Interrupt => vec![requeue(true)],
            Self::Retry => vec![Effect::Retry { at: Epoch::now(), text: TEXT.into() }, push],
            Self::Dead => vec![Effect::Dead { text: TEXT.into() }, push, gone],
            Self::Fetch => {
                let _ = hand.turn(number, &[], &[Token::nth(1, 0)]).await;
                return;
            }
            _ => return self.call(hand).await,
        };
        let _ = hand.turn(number, &[end(1, effects)], &[]).await;
    }

    async fn call(self, hand: &Hand) {
        let (source, identity) = (Script::new(&script(self.script())), hand.identity.to_string());
        let (inflight, lease) = (hand.inflight(), format!("sidebake:lease:{identity}"));
        let claims = format!("sidebake:claims:{identity}");
        let token = "000000000001";
        let (keys, arguments): (Vec<&str>, Vec<&str>) = match self {
            Self::Begin => (vec![&inflight], vec![token, TEXT]),
            Self::MoveDue => (vec!["retry", "queues", "queue:default"], vec![TEXT, TEXT, "nothing"]),
            Self::Recover => {
                let owners = ["sidebake:owners", "sidebake:suspects", &lease, &inflight];
                let rest = ["sidebake:recoveries", "queues", "sidebake:apart", &claims, "queue:default"];
                ([owners.as_slice(), &rest].concat(), vec![&identity, "0", "1000", token, "9"])
            }
            Self::Announce => (vec![&inflight, "queues", "queue:callbacks"], vec![token, TEXT, "{}"]),
            Self::Show => (vec![&inflight, "it-j"], vec!["9", token, "j", "1", "\"bake\"", "1"]),
            _ => {
                let owners = ["sidebake:owners", "sidebake:suspects", &inflight, "sidebake:apart"];
                ([&[&*lease], owners.as_slice(), &[&*claims]].concat(), vec![&identity])
            }
        };
        let mut call = source.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for argument in arguments {
            call.arg(argument);
        }
        let _ = hand.redis.script::<redis::Value>(&call).await;
    }
}

/// The location of the job, and the pushed callbacks.
#[derive(Debug, PartialEq)]
struct State {
    n_queued: u32,
    n_held: u32,
    n_due: u32,
    n_dead: u32,
    n_callbacks: u32,
}

impl State {
    async fn of(hand: &Hand) -> Self {
        let inflight = hand.inflight();
        let mut look = redis::pipe();
        look.cmd("LLEN").arg("queue:default").cmd("HLEN").arg(&inflight).cmd("ZCARD").arg("retry");
        look.cmd("ZCARD").arg("dead").cmd("LLEN").arg("queue:callbacks");
        look.ignore_errors();
        let counts: Vec<redis::RedisResult<u32>> = look.query_async(&mut hand.server.connection().await).await.unwrap();
        // A key of another type cannot hold a job.
        let counts: Vec<u32> = counts.into_iter().map(Result::unwrap_or_default).collect();
        let [n_queued, n_held, n_due, n_dead, n_callbacks] = counts[..] else { panic!("{counts:?}") };
        Self { n_queued, n_held, n_due, n_dead, n_callbacks }
    }
}

impl Act {
    /// The result of the act on an empty server when Redis refuses nothing.
    async fn outcome(self, hand: &Hand) -> (State, State) {
        self.start_over(hand).await;
        let before = State::of(hand).await;
        self.perform(hand, 1).await;
        (before, State::of(hand).await)
    }

    async fn start_over(self, hand: &Hand) {
        hand.run(&["FLUSHALL"]).await;
        hand.run(&["SET", &format!("sidebake:lease:{}", hand.identity), "1ea5e 0"]).await;
        self.prepare(hand).await;
    }

    /// Tries the act while Redis refuses something, and once more afterwards.
    async fn survives(self, hand: &Hand, what: &str, refuse: &[&str], allow: &[&str]) {
        let (before, after) = self.outcome(hand).await;
        self.start_over(hand).await;
        hand.run(refuse).await;
        self.perform(hand, 1).await;
        let then = State::of(hand).await;
        assert!(then == before || then == after, "{self:?} {what}: {before:?} became {then:?}");
        hand.run(allow).await;
        // The worker does not repeat an announcement.
        if self != Self::Announce || then == before {
            self.perform(hand, 2).await;
        }
        assert_eq!(State::of(hand).await, after, "{self:?} once more, {what}");
    }
}

/// A server with a user `narrow` that may do everything.
async fn with_user() -> Hand {
    let hand = Hand::with("narrow:secret@").await;
    hand.run(&["ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all"]).await;
    hand
}

#[tokio::test]
async fn no_missing_command_loses_or_doubles_a_job_and_its_right_is_enough_to_go_on() {
    let hand = with_user().await;
    for act in Act::ALL {
        for missing in commands(&script(act.script())) {
            let refuse = ["ACL", "SETUSER", "narrow", &format!("-{}", missing.to_lowercase())];
            let allow = ["ACL", "SETUSER", "narrow", "+@all"];
            act.survives(&hand, &format!("without {missing}"), &refuse, &allow).await;
        }
    }
}

#[tokio::test]
async fn no_key_of_another_type_loses_or_doubles_a_job() {
    let hand = with_user().await;
    let keys = [
        "dead",
        "it-j",
        "paused",
        "queue:callbacks",
        "queue:default",
        "queues",
        "retry",
        "sidebake:interruptions",
        "sidebake:recoveries",
        "sidebake:running",
        "sidebake:shares",
        "stat:processed",
    ];
    for act in Act::ALL {
        for key in keys {
            act.start_over(&hand).await;
            let is_used: bool =
                redis::cmd("EXISTS").arg(key).query_async(&mut hand.server.connection().await).await.unwrap();
            if !is_used {
                act.survives(&hand, &format!("and {key} is a stream"), &["XADD", key, "*", "f", "v"], &["DEL", key])
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn a_full_memory_loses_and_doubles_no_job() {
    let hand = with_user().await;
    let limit = |bytes| ["CONFIG", "SET", "maxmemory", bytes];
    for act in Act::ALL {
        act.survives(&hand, "and Redis is full", &limit("1"), &limit("0")).await;
    }
}

#[tokio::test]
async fn no_missing_command_makes_a_lease_without_an_owner() {
    let hand = with_user().await;
    let (source, identity) = (script("renew"), hand.identity.to_string());
    let lease = format!("sidebake:lease:{identity}");
    for missing in commands(&source) {
        hand.run(&["FLUSHALL"]).await;
        for right in [format!("-{}", missing.to_lowercase()), "+@all".to_owned()] {
            hand.run(&["ACL", "SETUSER", "narrow", &right]).await;
            let script = Script::new(&source);
            let mut call = script.key(&lease);
            call.key("sidebake:owners").key("sidebake:suspects").arg(&identity).arg(30_000).arg("abc").arg(1);
            let _ = hand.redis.script::<redis::Value>(&call).await;
            let (has_lease, owners) =
                (hand.server.get(&lease).await.is_some(), hand.server.smembers("sidebake:owners").await);
            assert!(!has_lease || owners == [identity.clone()], "without {missing}");
            assert!(has_lease || right != "+@all", "with every right again");
        }
    }
}

#[tokio::test]
async fn no_missing_command_leaves_a_hash_of_progress_that_never_expires() {
    let hand = with_user().await;
    for missing in commands(&script("iteration")).into_iter().chain(["EXPIRE"]) {
        Act::Show.start_over(&hand).await;
        hand.run(&["ACL", "SETUSER", "narrow", &format!("-{}", missing.to_lowercase())]).await;
        Act::Show.perform(&hand, 1).await;
        hand.run(&["ACL", "SETUSER", "narrow", "+@all"]).await;
        let mut connection = hand.server.connection().await;
        let ttl_s: i64 = redis::cmd("TTL").arg("it-j").query_async(&mut connection).await.unwrap();
        assert_ne!(ttl_s, -1, "without {missing}");
    }
    Act::Show.perform(&hand, 1).await;
    assert_eq!(hand.server.hgetall("it-j").await["c"], "\"bake\"", "with every right again");
}

#[test]
fn the_list_of_commands_is_complete() {
    let listed: BTreeSet<&str> = rights::COMMANDS.iter().map(|form| form.split(' ').next().unwrap()).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sidekiq");
    let mut used = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        used.extend(commands(&text).into_iter().map(str::to_owned));
        let sent = text.split("cmd(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
        used.extend(sent);
    }
    let unlisted: Vec<&String> = used.iter().filter(|name| !listed.contains(name.as_str())).collect();
    assert!(unlisted.is_empty(), "{unlisted:?}");
    assert!(used.len() > 30, "the parser is broken: {used:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_commands_that_the_acl_lacks_and_writes_nothing() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let url = harness.redis.url().replace("redis://", "redis://narrow:secret@");
    for (lacking, expected) in [
        ("-hset -zadd -rpop", "lacks HSET, RPOP, ZADD;"),
        ("-multi", "lacks MULTI;"),
        ("-exec", "lacks EXEC;"),
        ("+ping", "all commands that a worker needs"),
    ] {
        let rights = format!("SETUSER narrow reset on >secret ~* +@all {lacking}");
        let rights: Vec<&str> = rights.split(' ').collect();
        redis::cmd("ACL").arg(&rights).exec_async(&mut connection).await.unwrap();
        let found = doctor(&harness, &url);
        let found =
            found.as_array().unwrap().iter().find(|finding| finding["name"] == "redis commands").unwrap().clone();
        assert!(found["detail"].as_str().unwrap().contains(expected), "{lacking}: {found:#}");
        assert_eq!(found["health"] == "green", lacking == "+ping");
        assert!(harness.redis.keys("*").await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_warns_when_the_acl_lacks_a_command_of_the_live_log() {
    let harness = Harness::start();
    let mut connection = harness.redis.connection().await;
    let url = harness.redis.url().replace("redis://", "redis://narrow:secret@");
    for (lacking, health, expected) in
        [("-xadd -xtrim", "yellow", "lacks XADD, XTRIM:"), ("+ping", "green", "may write live logs")]
    {
        let rights = format!("SETUSER narrow reset on >secret ~* +@all {lacking}");
        let rights: Vec<&str> = rights.split(' ').collect();
        redis::cmd("ACL").arg(&rights).exec_async(&mut connection).await.unwrap();
        let findings = doctor(&harness, &url);
        let of = |name: &str| findings.as_array().unwrap().iter().find(|finding| finding["name"] == name).unwrap();
        let (log, worker) = (of("live log"), of("redis commands"));
        assert!(log["health"] == health && log["detail"].as_str().unwrap().contains(expected), "{log:#}");
        assert_eq!(worker["health"], "green");
        assert!(harness.redis.keys("*").await.is_empty());
    }
}

fn doctor(harness: &Harness, url: &str) -> Value {
    let config = harness.config("");
    let mut command = crate::harness::sidebake();
    command.args(["doctor", "--json", "--config"]).arg(config).env("SIDEBAKE__REDIS__URL", url);
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

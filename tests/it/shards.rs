//! What workers share of a builder's pods: the script that chooses a shard, against the same rule in Rust, and which base images
//! pods have built.

use std::collections::BTreeMap;

use sidebake::builder::choose;
use sidebake::shard::{Bound, ShardAnswer, ShardQuestion};
use sidebake::sidekiq::{Identity, shard, warm};
use sidebake::warmth::{Warmth, WarmthQuestion, WarmthStep};

use crate::turn::{Hand, TEXT, unit};

const NAMES: [&str; 4] = ["d-0", "d-1", "d-2", "d-3"];

/// Jobs of one process on a builder of four shards.
struct Fleet {
    hand: Hand,
    bound: Bound,
}

impl Fleet {
    async fn with(bound: Bound) -> Self {
        Self { hand: Hand::with("").await, bound }
    }

    /// Begins a job. The script looks only at its token.
    async fn begin(&self, number: u64) {
        let token = unit(number).token;
        self.hand.run(&["HSET", &self.hand.inflight(), token.as_str(), TEXT]).await;
    }

    async fn end(&self, number: u64) {
        let token = unit(number).token;
        self.hand.run(&["HDEL", &self.hand.inflight(), token.as_str()]).await;
    }

    /// Chooses for a job, among all shards or some.
    async fn choose(&self, number: u64, application: &str, shards: &[&str], n_able: usize) -> Option<ShardAnswer> {
        self.choose_by(&self.hand.identity, number, application, shards, n_able).await
    }

    /// The same for a job of another process.
    async fn choose_by(
        &self,
        identity: &Identity,
        number: u64,
        application: &str,
        shards: &[&str],
        n_able: usize,
    ) -> Option<ShardAnswer> {
        let question = ShardQuestion {
            builder: "d".into(),
            application: application.into(),
            shards: shards.iter().map(|shard| (*shard).to_owned()).collect(),
            n_able,
            bound: self.bound,
        };
        shard::choose(&self.hand.redis, identity, &unit(number), &question).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_chooses_as_the_rule_in_rust() {
    let bound = Bound { least: 2, percent: 150 };
    let fleet = Fleet::with(bound).await;
    // What the script should remember.
    let (mut running, mut known) = (BTreeMap::<u64, usize>::new(), BTreeMap::<u64, Vec<usize>>::new());
    let (mut n_at_home, mut n_away) = (0, 0);
    for number in 0..400_u64 {
        let application = number * number % 7;
        // Some shards take no builds now and then.
        let able: Vec<usize> = (0..4).filter(|shard| !(number / 50 % 2 == 1 && *shard == 1)).collect();
        let others = (0..4).filter(|shard| !able.contains(shard));
        let order: Vec<usize> = able.iter().copied().chain(others).collect();
        let n_on = |shard: usize| u32::try_from(running.values().filter(|on| **on == shard).count()).unwrap();
        let counts: Vec<u32> = able.iter().map(|shard| n_on(*shard)).collect();
        let places: Vec<usize> = {
            let place = |shard: &usize| order.iter().position(|one| one == shard).unwrap();
            known.get(&application).into_iter().flatten().map(place).collect()
        };
        let expected = choose(&counts, &places, bound);

        fleet.begin(number).await;
        let names: Vec<&str> = order.iter().map(|shard| NAMES[*shard]).collect();
        let answer = fleet.choose(number, &application.to_string(), &names, able.len()).await.expect("an answer");
        let home = places.first().copied();
        assert_eq!((answer.place, answer.home), (expected, home), "{number}: {counts:?} {places:?}");
        let n_on_home = n_on(order[home.unwrap_or(expected)]);
        assert_eq!(answer.n_on_home, n_on_home, "{number}");
        assert_eq!(
            fleet.choose(number, &application.to_string(), &names, able.len()).await.unwrap().place,
            expected,
            "again"
        );
        *(if home == Some(expected) { &mut n_at_home } else { &mut n_away }) += 1;

        running.insert(number, order[expected]);
        let mine = known.entry(application).or_default();
        if !mine.contains(&order[expected]) {
            mine.push(order[expected]);
        }
        // Jobs end in another order than they began in.
        if number >= 12 {
            let ended = *running.keys().nth(usize::try_from(number % 5).unwrap()).unwrap();
            running.remove(&ended);
            fleet.end(ended).await;
        }
    }
    assert!(n_at_home > 100 && n_away > 50, "{n_at_home} {n_away}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_died_holds_no_place_and_a_lost_job_gets_none() {
    let fleet = Fleet::with(Bound { least: 1, percent: 100 }).await;
    fleet.begin(1).await;
    assert_eq!(fleet.choose(1, "shop", &NAMES, 4).await.unwrap().place, 0);
    let dead = Identity::new("dead".into());
    fleet.hand.run(&["HSET", "sidebake:shards:d", &format!("0000000001 {dead}"), "d-0"]).await;
    fleet.hand.run(&["HSET", "sidebake:shards:d", "?", "d-0"]).await;
    fleet.end(1).await;
    fleet.begin(2).await;
    let answer = fleet.choose(2, "shop", &NAMES, 4).await.unwrap();
    assert_eq!(answer, ShardAnswer { place: 0, home: Some(0), n_on_home: 0, most: 1 });
    let counted = fleet.hand.server.hgetall("sidebake:shards:d").await;
    assert_eq!(counted.len(), 1, "{counted:?}");
    // Recovery gave the job to another worker.
    assert_eq!(fleet.choose(1, "shop", &NAMES, 4).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_outlives_an_outage_and_not_its_removal() {
    let fleet = Fleet::with(Bound { least: 4, percent: 100 }).await;
    for number in 1..=4 {
        fleet.begin(number).await;
    }
    assert_eq!(fleet.choose(1, "shop", &NAMES, 4).await.unwrap().home, None, "its first build");
    let without = fleet.choose(2, "shop", &["d-1", "d-2", "d-3", "d-0"], 3).await.unwrap();
    assert_eq!((without.place, without.home), (0, Some(3)), "its home takes no builds now");
    let back = fleet.choose(3, "shop", &NAMES, 4).await.unwrap();
    assert_eq!((back.place, back.home), (0, Some(0)));
    // Of those that wait for the only shard that is back, none gets its home there.
    let alone = fleet.choose(4, "blog", &["d-3", "d-0", "d-1", "d-2"], 1).await.unwrap();
    assert_eq!((alone.place, alone.home), (0, None));
    assert_eq!(fleet.choose(4, "blog", &NAMES, 4).await.unwrap().home, None);
    let removed = fleet.choose(4, "shop", &NAMES[1..], 3).await.unwrap();
    assert_eq!((removed.place, removed.home), (0, Some(0)), "d-1 had its builds during the outage");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_with_equal_tokens_count_together() {
    let fleet = Fleet::with(Bound { least: 1, percent: 100 }).await;
    let mut shards = BTreeMap::new();
    for name in ["a", "b", "c", "d"] {
        let identity = Identity::new(name.into());
        let key = format!("sidebake:inflight:{identity}");
        fleet.hand.run(&["HSET", &key, unit(1).token.as_str(), TEXT]).await;
        let answer = fleet.choose_by(&identity, 1, "shop", &NAMES, 4).await.expect("an answer");
        shards.insert(answer.place, name);
    }
    assert_eq!(shards.len(), 4, "each has a shard of its own: {shards:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_base_image_is_built_once_on_a_pod_and_again_when_that_fails() {
    let hand = Hand::with("").await;
    let ask = async |claim: &str, pod: &str, base: &str, step| {
        let question = WarmthQuestion { pod: pod.into(), base: base.into(), step, claim: claim.into() };
        warm::ask(&hand.redis, &question).await.unwrap()
    };
    let claim = async |claim: &str, pod: &str, base: &str| ask(claim, pod, base, WarmthStep::Claim).await;
    for _ in 0..2 {
        assert_eq!(claim("1", "p", "a").await, Warmth::Cold, "its answer may be lost");
    }
    assert_eq!(claim("2", "p", "a").await, Warmth::Warming);
    assert_eq!(claim("2", "q", "a").await, Warmth::Cold, "another pod");
    assert_eq!(claim("2", "p", "b").await, Warmth::Cold, "another image");
    ask("1", "p", "b", WarmthStep::GiveUp).await;
    assert_eq!(claim("3", "p", "b").await, Warmth::Warming, "it is the claim of another build");
    ask("2", "p", "b", WarmthStep::GiveUp).await;
    assert_eq!(claim("3", "p", "b").await, Warmth::Cold);
    ask("1", "p", "a", WarmthStep::Done).await;
    ask("1", "p", "a", WarmthStep::GiveUp).await;
    assert_eq!(claim("4", "p", "a").await, Warmth::Warm);
    let mut connection = hand.server.connection().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("sidebake:warm:*").query_async(&mut connection).await.unwrap();
    assert_eq!(keys.len(), 3);
    for key in keys {
        let ttl_ms: i64 = redis::cmd("PTTL").arg(key).query_async(&mut connection).await.unwrap();
        assert!(ttl_ms > 0, "a claim ends by itself");
    }
}

//! Which turns ask for windows, what they choose, and when custody pauses.

use super::*;
use crate::settings::NamePattern;

/// Jobs of a queue in Redis, and how tenants stand there.
struct World {
    contention: Contention,
    waiting: Vec<Arc<[u8]>>,
    n_begun: u64,
    /// Stands still, however long a turn of the test takes.
    now: Instant,
}

impl World {
    fn new(limits: &[(&str, u32)], waiting: &[&str]) -> Self {
        let limits = limits.iter().map(|(tenant, limit)| (NamePattern::new(*tenant), *limit)).collect();
        let jobs = Jobs { probe: true, ..Jobs::default() };
        let contention = Contention::new(jobs, Tenants { limits, ..Tenants::default() });
        let waiting = waiting.iter().enumerate().map(|(n, tenant)| text(n, tenant)).collect();
        Self { contention, waiting, n_begun: 0, now: Instant::now() }
    }

    /// A turn for so many slots, which takes the first `n_taken` candidates.
    fn turn(&mut self, n_slots: usize, n_taken: usize, known: impl Fn(&str) -> u32) -> (Sharing, Option<Duration>) {
        let sharing = self.contention.sharing(n_slots, self.now);
        let candidates = sharing.decided.iter().flat_map(|decision| &decision.candidates);
        let taken: Vec<Arc<[u8]>> = candidates.take(n_taken).map(|candidate| Arc::clone(&candidate.text)).collect();
        self.waiting.retain(|text| !taken.contains(text));
        let units: Vec<UnitOfWork> = taken
            .iter()
            .map(|text| {
                self.n_begun += 1;
                UnitOfWork { queue: "q".into(), ..UnitOfWork::fetched(self.n_begun, text) }
            })
            .collect();
        let window = sharing.asks_all_windows().then(|| Window {
            queue: "q".into(),
            n_waiting: self.waiting.len(),
            near: self.waiting.iter().take(sharing.window).cloned().collect(),
            far: Vec::new(),
        });
        let known = window.is_some().then(|| Known {
            clock: 0.0,
            times: vec![0.0; sharing.tenants.len()],
            counts: sharing.counters.iter().map(|counter| known(counter)).collect(),
        });
        self.contention.begin(&sharing, &units, self.now);
        let has_window = window.is_some();
        let pause = self.contention.take_in(&sharing, window.into_iter().collect(), known, &units, n_slots);
        for head in self.contention.heads.values_mut().filter(|_| has_window) {
            head.read_at = self.now;
        }
        (sharing, pause)
    }
}

fn text(n: usize, account: &str) -> Arc<[u8]> {
    let args = serde_json::json!([{ "outcome": "succeed", "account": account }]);
    let job = serde_json::json!({ "class": "Sidebake::Probe", "args": args, "jid": format!("{n:024}"), "queue": "q" });
    Arc::from(job.to_string().as_bytes())
}

fn tenants(sharing: &Sharing) -> String {
    let candidates = sharing.decided.iter().flat_map(|decision| &decision.candidates);
    candidates.map(|candidate| &*candidate.claim.tenant).collect()
}

fn asks(sharing: &Sharing) -> Vec<bool> {
    sharing.decided.iter().map(|decision| decision.asks_window).collect()
}

#[test]
fn a_window_serves_several_turns_and_what_they_took_counts() {
    let mut world = World::new(&[], &["a", "a", "a", "b"].repeat(30));
    let (first, pause) = world.turn(2, 0, |_| 0);
    assert_eq!((tenants(&first), pause), (String::new(), Some(Duration::ZERO)), "the first turn brings the window");
    let (second, _) = world.turn(2, 2, |_| 0);
    assert_eq!((tenants(&second), asks(&second)), ("ababab".into(), vec![true]), "the tenants were unknown");
    assert_eq!(second.tenants, ["a", "b"]);
    let (third, pause) = world.turn(1, 1, |_| 0);
    assert_eq!((&*tenants(&third), asks(&third), pause), ("ababa", vec![false], None));
    let (fourth, _) = world.turn(1, 1, |_| 0);
    assert_eq!((&*tenants(&fourth), asks(&fourth)), ("babab", vec![false]), "`a` is a job ahead");
    let texts = |sharing: &Sharing| sharing.decided[0].candidates[0].text.clone();
    assert_ne!(texts(&third), texts(&fourth));
}

#[test]
fn a_window_is_read_again_when_it_is_old_or_used_up_or_a_turn_took_too_few() {
    let mut world = World::new(&[], &["a"; 400]);
    world.turn(1, 0, |_| 0);
    world.turn(1, 1, |_| 0);
    let (short, pause) = world.turn(4, 3, |_| 0);
    assert_eq!((asks(&short), pause), (vec![false], Some(Duration::ZERO)), "another turn looks again at once");
    assert_eq!(asks(&world.turn(1, 1, |_| 0).0), [true]);
    assert_eq!(asks(&world.turn(1, 1, |_| 0).0), [false]);
    let old = world.now + FRESH / 2;
    assert!(world.contention.sharing(1, old).decided[0].asks_window);
    assert_eq!(world.contention.sharing(1, old + FRESH).decided, [], "and not used when it is older");
    world.turn(1, 0, |_| 0);
    world.turn(1, 1, |_| 0);
    let asked = (0..130).take_while(|_| asks(&world.turn(1, 1, |_| 0).0) == [false]).count();
    assert!(asked < 128, "{asked} jobs of a window of 128");
}

#[test]
fn turns_that_take_nothing_pause_for_longer_and_longer() {
    let mut world = World::new(&[], &["a"; 9]);
    let pauses: Vec<_> = (0..14).map(|_| world.turn(1, 0, |_| 0).1.expect("jobs wait")).collect();
    assert!(pauses[..=PATIENCE as usize - 1].iter().all(Duration::is_zero), "{pauses:?}");
    let last = pauses[pauses.len() - 1];
    assert!(pauses[5] > Duration::ZERO && last >= LONGEST_PAUSE / 2 && last <= LONGEST_PAUSE, "{pauses:?}");
    let (_, pause) = world.turn(1, 1, |_| 0);
    assert_eq!(pause, Some(Duration::ZERO), "a job was taken");
}

#[test]
fn a_window_grows_while_none_of_its_jobs_may_run_and_shrinks_when_some_may() {
    let mut world = World::new(&[("a", 1)], &[&["a"; 300][..], &["b"; 300]].concat());
    let full = |counter: &str| u32::from(counter == "tenant a");
    let sizes: Vec<usize> = (0..6).map(|_| world.turn(1, 0, full).0.window).collect();
    assert_eq!(sizes, [128, 128, 256, 512, 512, 512], "the third is the first that knows the tenants");
    let (sharing, _) = world.turn(1, 1, full);
    assert_eq!(tenants(&sharing), "bbbbb");
    assert_eq!(world.turn(1, 1, full).0.window, 256);
}

#[test]
fn how_tenants_stand_is_known_when_a_slot_is_free_after_a_while() {
    let names: Vec<String> = (0..10).map(|n| format!("t{n}")).collect();
    let waiting: Vec<&str> = names.iter().map(String::as_str).collect::<Vec<_>>().repeat(9);
    let mut world = World::new(&[("t0", 1), ("t1", 1)], &waiting);
    let running = |counter: &str| u32::from(["tenant t0", "tenant t1"].contains(&counter));
    (0..3).for_each(|_| drop(world.turn(1, 1, running)));
    world.contention.heads.clear();
    world.waiting.push(text(999, "new"));
    let (first, pause) = world.turn(1, 0, running);
    assert_eq!((first.tenants.len(), pause), (10, Some(Duration::ZERO)));
    let (second, _) = world.turn(1, 1, running);
    assert!(!tenants(&second).contains("t0") && !tenants(&second).contains("t1"), "they are at their limits");
    assert!(second.decided[0].candidates.len() > SPARE);
}

#[test]
fn a_job_that_ends_makes_room_before_redis_says_so() {
    let mut world = World::new(&[("a", 1)], &["a"; 3]);
    world.turn(2, 0, |_| 0);
    let (sharing, _) = world.turn(2, 1, |_| 1);
    assert_eq!(tenants(&sharing), "a", "one may run");
    assert_eq!(tenants(&world.turn(2, 0, |_| 1).0), "");
    world.contention.end(&Token::nth(1, 0), None);
    assert_eq!(tenants(&world.turn(2, 0, |_| 1).0), "a");
}

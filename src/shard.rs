//! The question which shard of a builder a build gets, and its answer.

/// The shards of a builder, for one build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardQuestion {
    /// The builder's name in the configuration.
    pub builder: String,
    /// Names the application, whose builds share their cache.
    pub application: String,
    /// The names of all shards; those that take the build come first.
    pub shards: Vec<String>,
    /// How many of them take it; at least one.
    pub n_able: usize,
    /// How many builds each may run.
    pub bound: Bound,
}

/// The shard that a build got. Places are those in the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardAnswer {
    /// Its place; one of those that take the build.
    pub place: usize,
    /// The place of the application's home; `None` if it had none.
    pub home: Option<usize>,
    /// How many other builds the home runs; without a home, those of the shard.
    pub n_on_home: u32,
    /// How many builds each shard may run.
    pub most: u32,
}

/// How many builds a shard may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// So many in any case.
    pub least: u32,
    /// In percent of the mean of the shards that take builds.
    pub percent: u32,
}

impl Bound {
    /// The number of builds that one of `n_shards` may run when they run `n_running`, and one more begins.
    pub fn of(self, n_running: u32, n_shards: usize) -> u32 {
        let share = (u64::from(n_running) + 1) * u64::from(self.percent);
        let share = share.div_ceil(100 * n_shards.max(1) as u64);
        self.least.max(u32::try_from(share).unwrap_or(u32::MAX))
    }
}

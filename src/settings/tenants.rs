//! `[tenants]`: how accounts share the workers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NamePattern, Supersede};
use crate::field_error::{FieldError, refuse};

/// The largest window. Each turn under contention reads one from Redis.
const MAX_WINDOW: usize = 1000;

/// How accounts share the workers. The tenant of a job is its account; of a job that carries only an id, what `tenant` of its class
/// points to, else the class.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tenants {
    /// Whether tenants share the slots of the fleet when more jobs wait than slots are free. Without it, and
    /// without limits, `supersede` and `coalesce`, jobs begin in the order of their queue.
    pub fair: bool,
    /// Number of jobs at the head of a queue among which a worker chooses. Of the jobs behind them, one worker at a time looks for
    /// tenants that have none in front.
    pub window: usize,
    /// Shares, by tenant: a tenant of weight 4 gets four times the slots of a tenant of weight 1, the default. The most specific
    /// pattern counts.
    pub weights: BTreeMap<NamePattern, f64>,
    /// Builds of a tenant at once, in the whole fleet. The most specific pattern counts.
    pub limits: BTreeMap<NamePattern, u32>,
    /// Builds of one repository at once, in the whole fleet, by tenant.
    pub limits_per_repository: BTreeMap<NamePattern, u32>,
    /// What a newer job does to older ones of the same repository and `ref`, by tenant: `off`, `queued` or `running`. Counts for job
    /// classes that do not say it themselves.
    pub supersede: BTreeMap<NamePattern, Supersede>,
    /// Whether jobs with the same inputs that wait or run at once are built once.
    pub coalesce: bool,
    /// The limits of other workers of the fleet.
    #[serde(skip)]
    pub others: Vec<Limits>,
}

/// How many builds may run at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Limits {
    /// Of a tenant.
    by_tenant: BTreeMap<NamePattern, u32>,
    /// Of one repository of a tenant.
    by_repository: BTreeMap<NamePattern, u32>,
}

impl Limits {
    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        self.by_tenant.is_empty() && self.by_repository.is_empty()
    }
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            fair: true,
            window: 128,
            weights: BTreeMap::new(),
            limits: BTreeMap::new(),
            limits_per_repository: BTreeMap::new(),
            supersede: BTreeMap::new(),
            coalesce: false,
            others: Vec::new(),
        }
    }
}

impl Tenants {
    /// The share of a tenant, relative to 1.
    pub fn weight_of(&self, tenant: &str) -> f64 {
        NamePattern::most_specific(&self.weights, tenant).map_or(1.0, |(_, weight)| *weight)
    }

    /// How many builds of a tenant may run at once: the strictest limit of any worker.
    pub fn limit_of(&self, tenant: &str) -> Option<u32> {
        let others = self.others.iter().map(|limits| &limits.by_tenant);
        strictest(others.chain([&self.limits]), tenant)
    }

    /// How many builds of one repository of a tenant may run at once.
    pub fn limit_per_repository_of(&self, tenant: &str) -> Option<u32> {
        let others = self.others.iter().map(|limits| &limits.by_repository);
        strictest(others.chain([&self.limits_per_repository]), tenant)
    }

    /// The limits of these settings alone.
    pub fn own_limits(&self) -> Limits {
        Limits { by_tenant: self.limits.clone(), by_repository: self.limits_per_repository.clone() }
    }

    /// What a newer job of a tenant does to older ones.
    pub fn supersede_of(&self, tenant: &str) -> Supersede {
        NamePattern::most_specific(&self.supersede, tenant).map_or(Supersede::Off, |(_, supersede)| *supersede)
    }

    /// Whether there is any limit.
    pub fn has_limits(&self) -> bool {
        let has_own = !self.limits.is_empty() || !self.limits_per_repository.is_empty();
        has_own || self.others.iter().any(|limits| !limits.is_empty())
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if !(1..=MAX_WINDOW).contains(&self.window) {
            return refuse("tenants.window", format!("must be from 1 to {MAX_WINDOW}"));
        }
        for (pattern, weight) in &self.weights {
            if !(0.001..=1000.0).contains(weight) {
                return refuse(format!("tenants.weights.{pattern}"), "must be from 0.001 to 1000");
            }
        }
        for (name, limits) in [("limits", &self.limits), ("limits_per_repository", &self.limits_per_repository)] {
            if let Some((pattern, _)) = limits.iter().find(|(_, limit)| **limit == 0) {
                let message = "must be at least 1: with 0, the builds of these tenants would wait forever";
                return refuse(format!("tenants.{name}.{pattern}"), message);
            }
        }
        Ok(())
    }
}

fn strictest<'a>(all: impl Iterator<Item = &'a BTreeMap<NamePattern, u32>>, tenant: &str) -> Option<u32> {
    all.filter_map(|limits| NamePattern::most_specific(limits, tenant)).map(|(_, limit)| *limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_pattern_counts() {
        let named = |entries: &[(&str, u32)]| entries.iter().map(|(name, n)| (NamePattern::new(*name), *n)).collect();
        let tenants = Tenants { limits: named(&[("*", 5), ("free-*", 1), ("free-acme", 9)]), ..Tenants::default() };
        for (tenant, limit) in [("acme", 5), ("free-x", 1), ("free-acme", 9), ("FREE-X", 1)] {
            assert_eq!(tenants.limit_of(tenant), Some(limit), "{tenant}");
        }
        assert_eq!(Tenants::default().limit_of("acme"), None);
        let other = Tenants { limits: named(&[("acme", 2), ("free-acme", 20)]), ..Tenants::default() }.own_limits();
        let both = Tenants { others: vec![other], ..tenants };
        assert_eq!(["acme", "free-acme", "free-x"].map(|tenant| both.limit_of(tenant)), [Some(2), Some(9), Some(1)]);
    }

    #[test]
    fn a_limit_that_no_build_can_meet_and_a_useless_weight_are_refused() {
        let one = |value| BTreeMap::from([(NamePattern::new("free-*"), value)]);
        let refused = |tenants: Tenants| tenants.check().expect_err("refused").to_string();
        assert!(refused(Tenants { limits: one(0), ..Tenants::default() }).contains("tenants.limits.free-*"));
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let weights = BTreeMap::from([(NamePattern::new("a"), weight)]);
            assert!(refused(Tenants { weights, ..Tenants::default() }).contains("tenants.weights.a"), "{weight}");
        }
        assert!(refused(Tenants { window: 0, ..Tenants::default() }).contains("tenants.window"));
        assert!(Tenants { limits: one(1), ..Tenants::default() }.check().is_ok());
    }
}

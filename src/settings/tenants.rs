//! `[tenants]`: how accounts share the workers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::builder::for_account;
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
    /// Builds on one builder at once, in the whole fleet, by name of the builder. A job that carries only an id counts for the builder
    /// of its tenant.
    pub limits_per_builder: BTreeMap<NamePattern, u32>,
    /// What a newer job does to older ones of the same repository and `ref`, by tenant: `off`, `queued` or `running`. Counts for job
    /// classes that do not say it themselves.
    pub supersede: BTreeMap<NamePattern, Supersede>,
    /// Whether jobs with the same inputs that wait or run at once are built once.
    pub coalesce: bool,
    /// The limits of other workers of the fleet.
    #[serde(skip)]
    pub others: Vec<Limits>,
    /// The accounts that each builder takes.
    #[serde(skip)]
    pub builders: BTreeMap<String, Vec<NamePattern>>,
}

/// How many builds may run at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Limits {
    /// Of a tenant.
    by_tenant: BTreeMap<NamePattern, u32>,
    /// Of one repository of a tenant.
    by_repository: BTreeMap<NamePattern, u32>,
    /// Of a builder. Earlier versions do not say it.
    #[serde(default)]
    by_builder: BTreeMap<NamePattern, u32>,
}

impl Limits {
    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        self.by_tenant.is_empty() && self.by_repository.is_empty() && self.by_builder.is_empty()
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
            limits_per_builder: BTreeMap::new(),
            supersede: BTreeMap::new(),
            coalesce: false,
            others: Vec::new(),
            builders: BTreeMap::new(),
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

    /// How many builds may run on a builder at once.
    pub fn limit_per_builder_of(&self, builder: &str) -> Option<u32> {
        let others = self.others.iter().map(|limits| &limits.by_builder);
        strictest(others.chain([&self.limits_per_builder]), builder)
    }

    /// The builder of a job that may name it.
    pub fn builder_of<'a>(&'a self, account: &str, named: Option<&'a str>) -> Option<&'a str> {
        let all = self.builders.iter().map(|(name, accounts)| (name.as_str(), &**accounts));
        named.or_else(|| for_account(all, account).map(|(name, _)| name))
    }

    /// The limits of these settings alone.
    pub fn own_limits(&self) -> Limits {
        Limits {
            by_tenant: self.limits.clone(),
            by_repository: self.limits_per_repository.clone(),
            by_builder: self.limits_per_builder.clone(),
        }
    }

    /// What a newer job of a tenant does to older ones.
    pub fn supersede_of(&self, tenant: &str) -> Supersede {
        NamePattern::most_specific(&self.supersede, tenant).map_or(Supersede::Off, |(_, supersede)| *supersede)
    }

    /// Whether there is any limit.
    pub fn has_limits(&self) -> bool {
        !self.own_limits().is_empty() || self.others.iter().any(|limits| !limits.is_empty())
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
        let all = [
            ("limits", &self.limits),
            ("limits_per_repository", &self.limits_per_repository),
            ("limits_per_builder", &self.limits_per_builder),
        ];
        for (name, limits) in all {
            if let Some((pattern, _)) = limits.iter().find(|(_, limit)| **limit == 0) {
                let message = "must be at least 1: with 0, these builds would wait forever";
                return refuse(format!("tenants.{name}.{pattern}"), message);
            }
        }
        let has_builder =
            |pattern: &NamePattern| self.builders.is_empty() || self.builders.keys().any(|name| pattern.matches(name));
        if let Some(pattern) = self.limits_per_builder.keys().find(|pattern| !has_builder(pattern)) {
            let names: Vec<&str> = self.builders.keys().map(String::as_str).collect();
            let message = format!("matches no builder; there are {}", names.join(", "));
            return refuse(format!("tenants.limits_per_builder.{pattern}"), message);
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
        let builders = BTreeMap::from([("default".to_owned(), vec![NamePattern::new("*")])]);
        let tenants = Tenants { limits_per_builder: one(1), builders, ..Tenants::default() };
        assert!(refused(tenants).contains("tenants.limits_per_builder.free-*: matches no builder; there are default"));
        assert!(Tenants { limits: one(1), ..Tenants::default() }.check().is_ok());
    }
}

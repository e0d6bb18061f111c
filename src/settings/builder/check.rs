//! Which settings of a builder go together.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Affinity;

use super::kubernetes::{
    is_deployment_name, is_dns_label, is_dns_name, is_label_value, is_qualified_name, is_variable, quantity,
};
use super::{Builder, SHARD_OF};
use crate::field_error::{FieldError, refuse};
use crate::json;
use crate::name::is_name;
use crate::settings::accounts::check_names;
use crate::settings::driver::TolerationOperator;
use crate::settings::{Balance, Driver, Toleration};

/// The most shards of a builder.
const MAX_SHARDS: u32 = 100;

/// Checks every builder, and that no two of them are the same Deployment: their accounts would only seem to be apart. `longest`:
/// how long a build may take.
pub(in crate::settings) fn check_all(
    builders: &BTreeMap<String, Builder>,
    longest: Duration,
) -> Result<(), FieldError> {
    let mut deployments = BTreeMap::new();
    for (name, builder) in builders {
        builder.check(name)?;
        builder.check_shards(longest, |key, message| refuse(format!("builders.{name}.{key}"), message))?;
        for node in builder.nodes(name) {
            let deployment = (&builder.kubeconfig, &builder.context, &builder.namespace, node.node_name(name));
            if builder.driver == Driver::Kubernetes
                && let Some(other) = deployments.insert(deployment, name)
            {
                return refuse(format!("builders.{name}"), format!("same Deployment as builders.{other}"));
            }
        }
    }
    Ok(())
}

/// A setting, its texts, which texts are valid, and what they are.
type Check<'a> = (&'static str, Vec<&'a str>, fn(&str) -> bool, &'static str);

impl Builder {
    fn check(&self, name: &str) -> Result<(), FieldError> {
        let refuse_key = |key: &str, message: &str| refuse(format!("builders.{name}.{key}"), message);
        if !is_name(name) {
            let message = "a builder's name consists of letters, digits, -, _ and .";
            return refuse(format!("builders.{name}"), message);
        }
        let sticky_path = format!("builders.{name}.sticky_path");
        self.sticky_path.iter().try_for_each(|pattern| check_names(&sticky_path, pattern, &[]))?;
        if self.driver != Driver::Kubernetes
            && let Some(key) = self.only_for_kubernetes()
        {
            return refuse_key(key, "applies only to the kubernetes driver");
        }
        match (self.driver, self.endpoint.as_deref()) {
            (Driver::Kubernetes, Some(_)) => {
                refuse_key("endpoint", "does not apply to the kubernetes driver; set kubeconfig")
            }
            (Driver::Kubernetes, None) => {
                self.check_kubernetes(&refuse_key)?;
                self.check_deployment_name(name)?;
                self.check_kubernetes_names(&refuse_key)
            }
            (Driver::Remote, Some(url)) if url.starts_with("tcp://") => Ok(()),
            (Driver::Remote, _) => refuse_key("endpoint", "required for the remote driver: tcp://host:port"),
            (_, Some(url)) if !(url.starts_with("tcp://") || url.starts_with("unix:///")) => {
                refuse_key("endpoint", "must be unix:///path or tcp://host:port")
            }
            _ => Ok(()),
        }
    }

    fn check_kubernetes(&self, refuse_key: &impl Fn(&str, &str) -> Result<(), FieldError>) -> Result<(), FieldError> {
        if !self.options.is_empty() {
            return refuse_key(
                "options",
                "does not apply to the kubernetes driver, whose options are settings of their own",
            );
        }
        if self.replicas == Some(0) {
            return refuse_key("replicas", "must be at least 1");
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            return refuse_key("context", "requires kubeconfig");
        }
        // docker-buildx and Kubernetes exchange a keepalive every 5 s.
        if self.stall_timeout < Duration::from_secs(10) {
            return refuse_key("stall_timeout", "must be at least 10s");
        }
        Ok(())
    }

    fn check_shards(
        &self,
        longest: Duration,
        refuse_key: impl Fn(&str, String) -> Result<(), FieldError>,
    ) -> Result<(), FieldError> {
        let set = [("volume", self.volume.is_some()), ("storage_class", self.storage_class.is_some())];
        let Some(n_shards) = self.shards else {
            let only = set.into_iter().find_map(|(key, is_set)| is_set.then_some(key));
            return only.map_or(Ok(()), |key| refuse_key(key, "requires shards".into()));
        };
        if !(1..=MAX_SHARDS).contains(&n_shards) {
            return refuse_key("shards", format!("must be from 1 to {MAX_SHARDS}"));
        }
        if self.shard_builds == 0 {
            return refuse_key("shard_builds", "must be at least 1".into());
        }
        let Some(volume) = &self.volume else {
            return refuse_key("volume", "required with shards: the size of the disk of each".into());
        };
        if quantity(volume).is_none_or(|bytes| bytes < 1.0) {
            return refuse_key("volume", format!("{volume:?} is not a valid quantity, such as \"200Gi\""));
        }
        if let Some(class) = self.storage_class.as_deref().filter(|class| !is_dns_name(class)) {
            return refuse_key("storage_class", format!("{class:?} is not a valid name of a storage class"));
        }
        if self.replicas.is_some() {
            return refuse_key("replicas", "does not go together with shards, which have one pod each".into());
        }
        if self.balance != Balance::Sticky {
            return refuse_key("balance", "does not apply to shards, among which the worker chooses".into());
        }
        if self.grace_period() < longest {
            let longest = humantime_serde::re::humantime::format_duration(longest);
            return refuse_key(
                "grace_period",
                format!("must be at least bake.timeout, {longest}, so that no shard ends a build"),
            );
        }
        Ok(())
    }

    /// buildx writes `-` for `_`, and would look for another Deployment.
    fn check_deployment_name(&self, name: &str) -> Result<(), FieldError> {
        // The last shard has the longest name.
        let node = match self.shards {
            Some(n_shards) => self.shard_name(name, n_shards.saturating_sub(1)),
            None => self.node_name(name),
        };
        // The part before the number is the value of a label.
        if is_deployment_name(&node) && (self.shards.is_none() || is_deployment_name(self.shard_group(name))) {
            return Ok(());
        }
        let field = format!("builders.{name}{}", if self.node.is_some() { ".node" } else { "" });
        let rule = "it has up to 63 lowercase letters, digits, - and ., with a letter or digit at both ends";
        let remedy = if self.node.is_some() { "" } else { "; choose another name, or set node" };
        refuse(field, format!("{node:?} cannot name a Deployment: {rule}{remedy}"))
    }

    /// What Kubernetes would refuse only when the Deployment or its pods are made.
    fn check_kubernetes_names<'a>(
        &'a self,
        refuse_key: &impl Fn(&str, &str) -> Result<(), FieldError>,
    ) -> Result<(), FieldError> {
        let keys = |map: &'a BTreeMap<String, String>| map.keys().map(String::as_str).collect();
        let values = |map: &'a BTreeMap<String, String>| map.values().map(String::as_str).collect();
        let secrets = self.image_pull_secrets.iter().map(String::as_str).collect();
        let spread = self.topology_spread.iter().flatten().map(|spread| spread.topology_key.as_str()).collect();
        let taint = |part: fn(&'a Toleration) -> Option<&'a str>| self.tolerations.iter().filter_map(part).collect();
        let one = |text: &'a Option<String>| text.as_deref().into_iter().collect();
        let checks: [Check<'a>; 17] = [
            ("namespace", one(&self.namespace), is_dns_label, "namespace"),
            ("priority_class", one(&self.priority_class), is_dns_name, "name of a priority class"),
            ("service_account", one(&self.service_account), is_dns_name, "name of a service account"),
            ("image_pull_secrets", secrets, is_dns_name, "name of a Secret"),
            ("labels", keys(&self.labels), is_qualified_name, "key of a label"),
            ("labels", values(&self.labels), is_label_value, "value of a label"),
            ("annotations", keys(&self.annotations), is_qualified_name, "key of an annotation"),
            ("node_selector", keys(&self.node_selector), is_qualified_name, "key of a label"),
            ("node_selector", values(&self.node_selector), is_label_value, "value of a label"),
            ("tolerations", taint(|one| one.key.as_deref()), is_qualified_name, "key of a taint"),
            ("tolerations", taint(|one| one.value.as_deref()), is_label_value, "value of a taint"),
            ("topology_spread", spread, is_qualified_name, "key of a label"),
            ("environment", keys(&self.environment), is_variable, "name of a variable"),
            ("requests", keys(&self.requests), is_qualified_name, "name of a resource"),
            ("requests", values(&self.requests), is_quantity, "quantity, such as \"500m\" or \"8Gi\""),
            ("limits", keys(&self.limits), is_qualified_name, "name of a resource"),
            ("limits", values(&self.limits), is_quantity, "quantity, such as \"500m\" or \"8Gi\""),
        ];
        for (key, texts, is_valid, what) in checks {
            if let Some(text) = texts.iter().find(|text| !is_valid(text)) {
                return refuse_key(key, &format!("{text:?} is not a valid {what}"));
            }
        }
        if self.labels.contains_key("app") {
            return refuse_key("labels", "app is the Deployment's name, by which buildx finds the pods");
        }
        if self.labels.contains_key(SHARD_OF) {
            return refuse_key("labels", &format!("{SHARD_OF} is the label by which the worker finds shards"));
        }
        let is_any = |one: &Toleration| one.key.is_none() && one.operator != Some(TolerationOperator::Exists);
        if self.tolerations.iter().any(is_any) {
            return refuse_key("tolerations", "without a key, the operator must be Exists");
        }
        if self.topology_spread.iter().flatten().any(|spread| spread.max_skew == 0) {
            return refuse_key("topology_spread", "max_skew must be at least 1");
        }
        self.affinity.iter().try_for_each(|affinity| check_affinity(affinity, refuse_key))
    }

    fn only_for_kubernetes(&self) -> Option<&'static str> {
        let set = [
            ("kubeconfig", self.kubeconfig.is_some()),
            ("context", self.context.is_some()),
            ("namespace", self.namespace.is_some()),
            ("replicas", self.replicas.is_some()),
            ("shards", self.shards.is_some()),
            ("volume", self.volume.is_some()),
            ("storage_class", self.storage_class.is_some()),
            ("rootless", self.rootless),
            ("requests", !self.requests.is_empty()),
            ("limits", !self.limits.is_empty()),
            ("node_selector", !self.node_selector.is_empty()),
            ("tolerations", !self.tolerations.is_empty()),
            ("topology_spread", self.topology_spread.is_some()),
            ("affinity", self.affinity.is_some()),
            ("priority_class", self.priority_class.is_some()),
            ("service_account", self.service_account.is_some()),
            ("image_pull_secrets", !self.image_pull_secrets.is_empty()),
            ("labels", !self.labels.is_empty()),
            ("annotations", !self.annotations.is_empty()),
            ("pre_stop", !self.pre_stop.is_empty()),
            ("environment", !self.environment.is_empty()),
        ];
        set.into_iter().find_map(|(key, is_set)| is_set.then_some(key))
    }
}

fn is_quantity(text: &str) -> bool {
    quantity(text).is_some()
}

/// Refuses a field that Kubernetes does not know: it would be dropped without a word.
fn check_affinity(
    affinity: &serde_json::Value,
    refuse_key: &impl Fn(&str, &str) -> Result<(), FieldError>,
) -> Result<(), FieldError> {
    let known: Affinity = match json::read(affinity.to_string().as_bytes()) {
        Ok(known) => known,
        Err(error) => return refuse_key("affinity", &format!("is not an affinity of Kubernetes: {error}")),
    };
    match serde_json::to_value(known).is_ok_and(|known| known == *affinity) {
        true => Ok(()),
        false => refuse_key("affinity", "has a field that Kubernetes does not know"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Why a builder of this name is refused.
    fn refusal(name: &str, change: impl Fn(&mut Builder)) -> Option<String> {
        let mut builder = Builder::new(Driver::Kubernetes, None);
        change(&mut builder);
        check_all(&[(name.to_owned(), builder)].into(), Duration::from_secs(60)).err().map(|error| error.to_string())
    }

    fn toleration(text: &str) -> Toleration {
        serde_json::from_str(text).expect("a toleration")
    }

    #[test]
    fn what_kubernetes_would_refuse_is_refused_with_its_field() {
        let refused = |name: &str, change: fn(&mut Builder)| refusal(name, change).expect("refused");
        assert!(refused("Dev_1", |_| ()).starts_with("builders.Dev_1: \"Dev_10\" cannot name a Deployment"));
        assert!(refused("dev", |b| b.node = Some("b_0".into())).starts_with("builders.dev.node: \"b_0\""));
        assert!(refused("dev", |b| b.namespace = Some("Builds".into())).contains("dev.namespace: \"Builds\""));
        assert!(refused("dev", |b| b.labels = [("app".into(), "x".into())].into()).contains("dev.labels: app"));
        assert!(refused("dev", |b| b.labels = [("team".into(), "a b".into())].into()).contains("value of a label"));
        assert!(refused("dev", |b| b.environment = [("A=B".into(), "x".into())].into()).contains("\"A=B\""));
        assert!(refused("dev", |b| b.requests = [("cpu".into(), "4 cores".into())].into()).contains("\"4 cores\""));
        assert!(refused("dev", |b| b.image_pull_secrets = vec!["Reg".into()]).contains("name of a Secret"));
        assert!(refused("dev", |b| b.priority_class = Some("High!".into())).contains("priority_class"));
        assert!(refused("dev", |b| b.affinity = Some(json!({"podAffinty": {}}))).contains("does not know"));
        assert!(refused("dev", |b| b.affinity = Some(json!({"podAffinity": 1}))).contains("not an affinity"));
        assert!(refused("dev", |b| b.tolerations = vec![toleration(r#"{"key": "a b"}"#)]).contains("key of a taint"));
        assert!(refused("dev", |b| b.tolerations = vec![toleration("{}")]).contains("must be Exists"));
        assert!(serde_json::from_str::<Toleration>(r#"{"operator": "exists"}"#).is_err());
        assert_eq!(refusal("dev", |b| b.tolerations = vec![toleration(r#"{"operator": "Exists"}"#)]), None);
        let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "dev0"}}, "topologyKey": "kubernetes.io/hostname"}]}});
        assert_eq!(refusal("dev", |builder| builder.affinity = Some(affinity.clone())), None);
        assert_eq!(refusal("Dev_1", |builder| builder.node = Some("dev-1".into())), None);
    }

    #[test]
    fn what_shards_need_is_asked_for_and_what_they_cannot_have_is_refused() {
        let sharded = |change: fn(&mut Builder)| {
            refusal("dev", |builder| {
                (builder.shards, builder.volume) = (Some(3), Some("20Gi".into()));
                change(builder);
            })
        };
        assert_eq!(sharded(|_| ()), None);
        let refused = |change| sharded(change).expect("refused");
        assert!(refused(|b| b.shards = Some(0)).starts_with("builders.dev.shards: must be from 1 to 100"));
        assert!(refused(|b| b.shards = Some(101)).starts_with("builders.dev.shards"));
        assert!(refused(|b| b.volume = None).contains("dev.volume: required with shards"));
        assert!(refused(|b| b.volume = Some("lots".into())).contains("\"lots\""));
        assert!(refused(|b| b.storage_class = Some("Fast!".into())).contains("dev.storage_class"));
        assert!(refused(|b| b.shard_builds = 0).contains("dev.shard_builds"));
        assert!(refused(|b| b.replicas = Some(3)).contains("dev.replicas"));
        assert!(refused(|b| b.balance = Balance::Random).contains("dev.balance"));
        assert!(refused(|b| b.labels = [(SHARD_OF.into(), "x".into())].into()).contains("dev.labels"));
        assert!(refused(|b| b.grace_period = Some(Duration::from_secs(59))).contains("at least bake.timeout, 1m"));
        assert!(refusal("dev", |b| b.volume = Some("20Gi".into())).expect("refused").contains("requires shards"));
        let long = |n: usize| refusal(&"a".repeat(n), |b| (b.shards, b.volume) = (Some(100), Some("1Gi".into())));
        assert_eq!(long(60), None, "its last shard is a…-99");
        assert!(long(61).expect("refused").contains("cannot name a Deployment"));
        assert!(refused(|b| b.node = Some("dev-".into())).contains("dev.node"));
        let same = [("a", Some(3)), ("b", None)].map(|(name, shards)| {
            let mut builder = Builder::new(Driver::Kubernetes, None);
            builder.node = Some(if shards.is_some() { "x".into() } else { "x-2".into() });
            (builder.shards, builder.volume) = (shards, shards.map(|_| "1Gi".into()));
            (name.to_owned(), builder)
        });
        let error = check_all(&same.into(), Duration::ZERO).expect_err("refused").to_string();
        assert!(error.contains("same Deployment as builders.a"), "{error}");
    }
}

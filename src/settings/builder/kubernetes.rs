//! What Kubernetes accepts as a name, a label or a quantity, so that a mistake is found when the configuration is read.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation` and `pkg/api/resource`.

/// Characters of a DNS label, and of a label's name or value.
const MAX_LABEL: usize = 63;

/// Characters of a DNS name.
const MAX_NAME: usize = 253;

/// A namespace: a DNS label.
pub(super) fn is_dns_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && is_framed(text, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(), b"-")
}

/// Most names: DNS labels with dots between them.
pub(super) fn is_dns_name(text: &str) -> bool {
    let is_part = |part| is_framed(part, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(), b"-");
    text.len() <= MAX_NAME && text.split('.').all(is_part)
}

/// The name of a builder's Deployment. It is also the value of a label.
pub(super) fn is_deployment_name(text: &str) -> bool {
    is_dns_name(text) && text.len() <= MAX_LABEL
}

/// The key of a label or annotation, and the name of a resource: `name` or `example.com/name`.
pub(super) fn is_qualified_name(text: &str) -> bool {
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_dns_name) && !name.is_empty() && is_label_value(name)
}

/// The value of a label.
pub(super) fn is_label_value(text: &str) -> bool {
    text.is_empty() || text.len() <= MAX_LABEL && is_framed(text, |byte| byte.is_ascii_alphanumeric(), b"-_.")
}

/// The name of an environment variable.
pub(super) fn is_variable(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && text.bytes().all(is_allowed) && !text.starts_with(|c: char| c.is_ascii_digit())
}

/// Whether a text begins and ends with one kind of characters and has only those and `inner` between.
fn is_framed(text: &str, is_outer: impl Fn(&u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    is_outer(first) && is_outer(last) && bytes.iter().all(|byte| is_outer(byte) || inner.contains(byte))
}

/// A quantity such as `500m`, `2`, `4Gi` or `1e3`, as a number.
pub fn quantity(text: &str) -> Option<f64> {
    const UNITS: &[(&str, f64)] = &[
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1.0));
    // Rust also reads `inf` and `nan`.
    let is_number = number.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = number.parse().ok().filter(|_| is_number)?;
    Some(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_accepts() {
        let long = "a".repeat(64);
        for (text, is_deployment, is_label, is_key) in [
            ("default0", true, true, true),
            ("a.b-c", true, false, true),
            ("dev_10", false, false, true),
            ("Dev0", false, false, true),
            ("0dev", true, true, true),
            ("dev-", false, false, false),
            ("a..b", false, false, true),
            ("", false, false, false),
            (&long, false, false, false),
            ("example.com/name", false, false, true),
            ("Example.com/name", false, false, false),
            ("a/b/c", false, false, false),
            ("/name", false, false, false),
            ("ä", false, false, false),
        ] {
            let found = (is_deployment_name(text), is_dns_label(text), is_qualified_name(text));
            assert_eq!(found, (is_deployment, is_label, is_key), "{text}");
        }
        assert!(is_variable("HTTPS_PROXY") && is_variable("a.b-c") && !is_variable("1A") && !is_variable("A=B"));
        assert!(is_label_value("") && is_label_value("Team_1.x") && !is_label_value("a b"));
    }

    #[test]
    fn quantities_are_read_by_what_they_mean() {
        for (one, other) in [("1000m", "1"), ("1Gi", "1024Mi"), ("1e3", "1k"), ("0.5", "500m"), ("1Ei", "1024Pi")] {
            assert!(quantity(one).is_some(), "{one}");
            assert_eq!(quantity(one), quantity(other), "{one} {other}");
        }
        for wrong in ["lots", "", "4GB", "4 Gi", "inf", "nan", "-1", "1i"] {
            assert_eq!(quantity(wrong), None, "{wrong}");
        }
    }
}

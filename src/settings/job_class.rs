//! `[jobs.classes.NAME]`: how the arguments of one job class become a build.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::SecretSource;
use crate::field_error::{FieldError, refuse};
use crate::report::Report;
use crate::secret::Secret;

/// The setting of the tenant, in errors.
const TENANT: &str = "tenant";

/// The setting of the supersede key, in errors.
const SUPERSEDE_KEY: &str = "supersede_key";

/// How the arguments of one job class become a build.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "JobClassTable")]
pub struct JobClass {
    /// The shape of `args`.
    pub arguments: Shape,
    /// For [`Shape::Mapped`]: a field of the build request to a JSON Pointer into `args`.
    pub map: BTreeMap<String, String>,
    /// Fields with a fixed value.
    pub constants: BTreeMap<String, Value>,
    /// Values of fields whose pointer finds nothing.
    pub defaults: BTreeMap<String, Value>,
    /// A field of the callback to a JSON Pointer into `args`.
    pub echo: BTreeMap<String, String>,
    /// For [`Shape::Resolved`]: a JSON Pointer into `args` to the tenant.
    pub tenant: Option<String>,
    /// What a newer job does to older ones; `None` when the class does not say it.
    pub supersede: Option<Supersede>,
    /// For [`Shape::Resolved`]: a JSON Pointer into `args` to what such jobs build, such as a branch.
    pub supersede_key: Option<String>,
}

/// How the arguments of one job class become a build.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct JobClassTable {
    /// The shape of `args`. Default: `native`.
    arguments: ShapeName,
    /// For `mapped`: a field of the build request (dots for nested fields) to a JSON Pointer (RFC 6901) into `args`.
    map: BTreeMap<String, String>,
    /// For `mapped`: fields with a fixed value.
    constants: BTreeMap<String, Value>,
    /// For `mapped`: values of fields whose pointer finds nothing.
    defaults: BTreeMap<String, Value>,
    /// A field of the callback to a JSON Pointer into `args`. The worker returns the value unread, an integer of more than 64 bits
    /// as text.
    echo: BTreeMap<String, String>,
    /// For `resolved`: where the worker asks for the build request.
    resolve: Option<Resolve>,
    /// For `resolved`: a JSON Pointer into `args` to the account, by which tenants share the workers. Default: all jobs of the class are
    /// of one tenant.
    tenant: Option<String>,
    /// What a newer job does to older ones of the same account, repository and `ref`: `off`, `queued` or `running`. A job may say
    /// otherwise. Default: what `tenants.supersede` says.
    supersede: Option<Supersede>,
    /// For `resolved`: a JSON Pointer into `args` to a text or number that stands for repository and `ref`.
    supersede_key: Option<String>,
}

/// What a newer job does to older ones that build the same, such as earlier commits of a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supersede {
    /// Nothing.
    #[default]
    Off,
    /// It ends those that wait, and itself waits for one that runs.
    Queued,
    /// It ends those that wait, and the one that runs.
    Running,
}

/// The shape of a job's `args`.
#[derive(Clone, Debug, Default)]
pub enum Shape {
    /// `args[0]` is the build request.
    #[default]
    Native,
    /// Any arguments, read through `map`.
    Mapped,
    /// An id, for which Rails returns the build request.
    Resolved(Resolve),
}

/// The name of a shape in the settings.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShapeName {
    /// `args[0]` is the build request.
    #[default]
    Native,
    /// Any arguments, read through `map`.
    Mapped,
    /// An id, for which Rails returns the build request.
    Resolved,
}

/// Where the worker asks Rails for a build request, with a signed GET.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// URL in which `{0}` stands for the first argument, `{1}` for the second.
    pub url: String,
    /// Shared secret of the signature.
    pub secret: Option<Secret>,
    /// File that contains it. The worker reads it for each job, so that you can rotate it.
    pub secret_file: Option<PathBuf>,
}

impl From<JobClassTable> for JobClass {
    fn from(table: JobClassTable) -> Self {
        let JobClassTable { arguments, map, constants, defaults, echo, resolve, tenant, supersede, supersede_key } =
            table;
        let arguments = match arguments {
            ShapeName::Native => Shape::Native,
            ShapeName::Mapped => Shape::Mapped,
            // Without a URL, the check refuses it, and names the setting.
            ShapeName::Resolved => Shape::Resolved(resolve.unwrap_or_default()),
        };
        Self { arguments, map, constants, defaults, echo, tenant, supersede, supersede_key }
    }
}

impl JobClass {
    /// Whether Rails has the build request of such a job.
    pub fn is_resolved(&self) -> bool {
        self.resolver().is_some()
    }

    /// Where the worker asks for the build request of such a job, if it asks.
    pub(super) fn resolver(&self) -> Option<&Resolve> {
        match &self.arguments {
            Shape::Resolved(resolve) => Some(resolve),
            Shape::Native | Shape::Mapped => None,
        }
    }

    /// `path` is that of the class, such as `jobs.classes.BuildJob`.
    pub(super) fn check(&self, path: &str) -> Result<(), FieldError> {
        let own = [(TENANT, &self.tenant), (SUPERSEDE_KEY, &self.supersede_key)];
        let own = own.into_iter().filter_map(|(field, pointer)| Some((field, pointer.as_ref()?)));
        if let Some((field, _)) = own.clone().next().filter(|_| self.resolver().is_none()) {
            let message = format!("only allowed with resolved arguments: other jobs carry what {field} stands for");
            return refuse(format!("{path}.{field}"), message);
        }
        let named = self.map.iter().chain(&self.echo).map(|(field, pointer)| (field.as_str(), pointer));
        for (field, pointer) in named.chain(own) {
            if !pointer.starts_with('/') {
                let message = format!("the JSON Pointer of {field} must begin with /, found {pointer:?}");
                return refuse(path, message);
            }
        }
        let report = serde_json::to_value(Report::default()).unwrap_or_default();
        if let Some(field) = self.echo.keys().find(|field| report.get(field.as_str()).is_some()) {
            return refuse(format!("{path}.echo"), format!("the callback already has a field {field}"));
        }
        match &self.arguments {
            Shape::Mapped if self.map.is_empty() => refuse(format!("{path}.map"), "required for mapped arguments"),
            Shape::Resolved(resolve) => resolve.check(&format!("{path}.resolve")),
            Shape::Native | Shape::Mapped => Ok(()),
        }
    }
}

impl Resolve {
    /// Where the shared secret is.
    pub fn secret(&self) -> Option<SecretSource> {
        SecretSource::of(self.secret.as_ref(), self.secret_file.as_ref())
    }

    fn check(&self, path: &str) -> Result<(), FieldError> {
        if self.url.is_empty() {
            return refuse(path, "required for resolved arguments");
        }
        SecretSource::check(path, "secret", self.secret.as_ref(), self.secret_file.as_ref())?;
        if self.secret().is_none() {
            return refuse(path, "set either secret or secret_file");
        }
        Ok(())
    }
}

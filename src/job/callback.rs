//! The Sidekiq job that notifies Rails of a build.

use serde::Deserialize;
use serde_json::Value;

use crate::bounds;
use crate::event::Moment;
use crate::field_error::FieldError;
use crate::settings::Queue;

/// The Sidekiq job that notifies Rails.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callback {
    /// Ruby class.
    pub class: String,
    /// Queue without prefix.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// The moments to notify of.
    #[serde(default = "finished_only")]
    pub on: Vec<Moment>,
    /// Whether the class is an Active Job, which needs an envelope.
    #[serde(default)]
    pub active_job: bool,
}

impl Callback {
    /// The callback of a build request that may be invalid otherwise: its sender is notified of that, too.
    pub fn find(request: &Value) -> Option<Self> {
        Self::deserialize(request.get("callback")?).ok().filter(|callback| callback.check().is_ok())
    }

    /// Whether Sidekiq can run the class and show the queue.
    pub(super) fn check(&self) -> Result<(), FieldError> {
        let is_class = self.class.starts_with(char::is_uppercase)
            && self.class.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
            && self.class.len() <= bounds::NAME
            // Such a job takes a mailer's name, a method's and the mail's arguments.
            && !self.class.starts_with("ActionMailer::");
        if !is_class {
            let message = format!("expected the name of a job class, found {:?}", self.class);
            return Err(FieldError::new("callback.class", message));
        }
        if !Queue::is_name(&self.queue) {
            return Err(FieldError::new(
                "callback.queue",
                format!("expected the name of a queue, found {:?}", self.queue),
            ));
        }
        Ok(())
    }

    /// Whether Rails is notified of this moment.
    pub fn wants(&self, moment: Moment) -> bool {
        self.on.contains(&moment)
    }
}

fn default_queue() -> String {
    "default".into()
}

fn finished_only() -> Vec<Moment> {
    vec![Moment::Finished]
}

//! The platforms that a build names, and those of the machine that would build them.
//!
//! BuildKit says nothing when it has another processor than the one that was asked for: it emulates, or builds an image that claims
//! one processor and holds programs for the other.

use tokio::time::{Instant, sleep};

use super::pod::Refusal;
use super::session::Session;
use super::{AGAIN, BuilderError};
use crate::platform::{Machine, NamedPlatform};

impl Session<'_> {
    /// Checks that the builder's processor runs each platform, or may emulate it. Asks BuildKit once for each pod.
    pub(super) async fn check_platforms(
        &mut self,
        wanted: &[NamedPlatform],
        deadline: Instant,
    ) -> Result<(), BuilderError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let machine = self.machine(deadline).await?;
        // Without a list there is nothing to compare.
        let Some(own) = machine.own() else { return Ok(()) };
        let builder = &self.node.builder;
        for NamedPlatform { target, name, .. } in wanted.iter().filter(|wanted| !machine.is_native(&wanted.platform)) {
            if !self.node.settings.emulation {
                let (target, platform) = (target.clone(), name.clone());
                return Err(BuilderError::Platform {
                    target,
                    platform,
                    builder: builder.clone(),
                    own: own.to_string(),
                });
            }
            self.emulated
                .push(format!("target.{target}.platforms: {name} is emulated: the builder {builder} runs on {own}"));
        }
        Ok(())
    }

    async fn machine(&self, deadline: Instant) -> Result<Machine, BuilderError> {
        let known = |pod: &str| self.node.machine(pod);
        // Without pods there is one machine.
        let pod = if self.has_pods() { self.pod.get().map(String::as_str) } else { Some("") };
        if let Some(machine) = pod.and_then(known) {
            return Ok(machine);
        }
        loop {
            let error = match self.dial().await {
                Ok(worker) => {
                    let pod = if self.has_pods() { worker.hostname } else { String::new() };
                    self.node.learn_machine(pod, worker.machine.clone());
                    return Ok(worker.machine);
                }
                Err(error) => error,
            };
            if error.refusal() == Some(Refusal::Forbidden) {
                return Err(self.node.forbidden(&error));
            }
            if Instant::now() >= deadline {
                return Err(BuilderError::NoPlatforms { name: self.node.builder.clone(), error });
            }
            sleep(AGAIN).await;
        }
    }
}

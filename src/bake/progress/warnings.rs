//! BuildKit's warnings about Dockerfiles.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::stream::WarningReport;
use super::{BakeProgress, Emit};
use crate::bounds;
use crate::event::{Event, Warning};

/// How BuildKit's warning of a base image for another platform begins.
const FOREIGN_BASE: &str = "InvalidBaseImagePlatform: ";

impl BakeProgress {
    pub(super) fn warning(&mut self, report: &WarningReport<'_>, emit: Emit<'_>) {
        let Some(number) = self.find(&report.vertex) else { return };
        let target = self.target_of(&self.vertices[number as usize]).map(str::to_owned);
        let message = BASE64_STANDARD.decode(&*report.short).unwrap_or_default();
        let url = self.shown.notice(&report.url);
        let warning = Warning {
            message: self.shown.notice(&String::from_utf8_lossy(&message)),
            dockerfile: target.as_ref().and_then(|target| self.dockerfiles.get(target)).cloned(),
            target,
            line: report.line(),
            url: (!url.is_empty()).then_some(url),
        };
        if let Some(target) = &warning.target
            && warning.message.starts_with(FOREIGN_BASE)
            && self.platforms.get(target).is_some_and(|platforms| !platforms.is_empty())
        {
            self.foreign_base.get_or_insert_with(|| (target.clone(), warning.clone()));
        }
        if self.warnings.contains(&warning) {
            return;
        }
        if self.warnings.len() == bounds::WARNINGS {
            self.left.n_warnings_left_out += 1;
            return;
        }
        self.warnings.push(warning.clone());
        emit(Event::Warning(warning));
    }

    /// BuildKit's warning that a base image is for another platform than its target names, as a message for the customer.
    pub(in crate::bake) fn foreign_base(&self) -> Option<(&str, String)> {
        let (target, warning) = self.foreign_base.as_ref()?;
        let said = warning.message.strip_prefix(FOREIGN_BASE)?;
        let said = said.rsplit_once(" (line ").map_or(said, |(said, _)| said);
        let line = warning.line.map(|line| format!(":{line}")).unwrap_or_default();
        let place = warning.dockerfile.as_ref().map(|path| format!(" ({path}{line})")).unwrap_or_default();
        Some((target, format!("target.{target}.platforms{place}: {said}")))
    }
}

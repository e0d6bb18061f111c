//! Which targets a failure is blamed on.

use super::*;

fn statuses(reason: Reason, named: Option<&str>, targets: &[(&str, Option<Status>)]) -> Vec<Option<Status>> {
    let target = |(name, status): &(&str, Option<Status>)| TargetReport {
        name: (*name).to_owned(),
        status: *status,
        ..TargetReport::default()
    };
    let mut targets: Vec<TargetReport> = targets.iter().map(target).collect();
    blame(&mut targets, &Failure::new(reason, "x"), named);
    targets.into_iter().map(|target| target.status).collect()
}

#[test]
fn a_failure_is_blamed_on_the_target_that_it_is_about() {
    let (failed, reached) = (Some(Status::Failed), Some(Status::Succeeded));
    let two = [("api", reached), ("web", None)];
    assert_eq!(statuses(Reason::DockerfileInvalid, Some("web"), &two), [reached, failed]);
    assert_eq!(statuses(Reason::DockerfileInvalid, None, &two), [reached, None]);
    assert_eq!(statuses(Reason::DockerfileInvalid, None, &[("web", None)]), [failed]);
    assert_eq!(statuses(Reason::StepFailed, Some("web"), &[("api", failed), ("web", None)]), [failed, None]);
    assert_eq!(statuses(Reason::BuilderUnavailable, None, &[("web", failed)]), [None]);
    assert_eq!(statuses(Reason::RegistryUnavailable, None, &[("web", None)]), [None]);
}

#[test]
fn the_target_whose_dockerfile_does_not_parse_has_failed_and_the_others_have_no_result() {
    let report = |name: &str| TargetReport { name: name.to_owned(), ..TargetReport::default() };
    let blamed = |names: &[&str], line: &str| {
        let mut progress = progress(names, "Dockerfile");
        progress.line(line.as_bytes(), &mut |_| {});
        let mut targets: Vec<TargetReport> = names.iter().map(|name| report(name)).collect();
        blame(&mut targets, &exited(&progress, &NO_LINE), progress.blamed());
        let failed = targets.into_iter().filter(|target| target.status == Some(Status::Failed));
        failed.map(|target| (target.name, target.error)).collect::<Vec<_>>()
    };
    let line = "target b: failed to solve: dockerfile parse error on line 2: unknown instruction: RUNN";
    let failed = vec![("b".to_owned(), Some(line.replace("failed to solve: ", "")))];
    assert_eq!(blamed(&["a", "b", "c"], &format!("ERROR: {line}")), failed);
    let (_, unnamed) = evidence::split_target(line);
    assert_eq!(blamed(&["a", "b", "c"], &format!("ERROR: {unnamed}")), []);
    assert_eq!(
        blamed(&["a"], &format!("ERROR: {unnamed}")),
        [("a".to_owned(), Some(unnamed.replace("failed to solve: ", "")))]
    );
    for lost in ["target b: failed to solve: rpc error: code = Unavailable", "context deadline exceeded"] {
        assert_eq!(blamed(&["b"], &format!("ERROR: {lost}")), [], "{lost}");
    }
}

#[test]
fn a_builder_that_is_away_fails_no_target() {
    let line = serde_json::json!({"vertexes": [{
        "digest": "a", "name": "[internal] waiting for connection", "started": "2026-11-24T04:05:36Z",
        "completed": "2026-11-24T04:05:56Z", "error": "context deadline exceeded"}]});
    let mut progress = progress(&["web"], "Dockerfile");
    progress.line(line.to_string().as_bytes(), &mut |_| {});
    progress.line(b"ERROR: context deadline exceeded", &mut |_| {});
    assert_eq!(exited(&progress, &NO_LINE).reason, Reason::BuilderUnavailable);
    assert_eq!(progress.reports(false)[0].status, None);
}

#[test]
fn a_connection_that_ended_with_another_targets_failure_is_no_failure_of_its_own() {
    let report = |name: &str, error: Option<&str>| TargetReport {
        name: name.into(),
        status: error.map(|_| Status::Failed),
        error: error.map(str::to_owned),
        ..TargetReport::default()
    };
    let cut_off = "rpc error: code = Unavailable desc = error reading from server: EOF";
    let mut targets = [report("api", None), report("jobs", Some(cut_off)), report("web", None)];
    blame(&mut targets, &Failure::new(Reason::DockerfileInvalid, "unknown instruction: RUNN"), Some("api"));
    let ends = targets.each_ref().map(|target| (target.status, target.error.as_deref()));
    assert_eq!(ends, [(Some(Status::Failed), Some("unknown instruction: RUNN")), (None, None), (None, None)]);
}

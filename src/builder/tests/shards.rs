//! Shards: how they are made and changed, and which one a build gets.

use super::*;
use crate::shard::ShardAnswer;

/// A builder with three shards of which the pods are ready.
fn sharded() -> Setup {
    let setup = Setup::with(LONG, json!({"token": "s3cret"}), |builder| {
        (builder.shards, builder.volume) = (Some(3), Some("20Gi".into()));
    });
    let mut objects = setup.kubernetes.objects();
    (objects.deployments, objects.pods) = Default::default();
    for number in 0..3 {
        let shard = format!("d-{number}");
        let mut pod = Kubernetes::pod(&format!("{shard}-a"));
        pod["metadata"]["labels"] = json!({"app": shard, "sidebake/builder": "d"});
        objects.pods.push(pod);
    }
    drop(objects);
    setup
}

#[tokio::test]
async fn each_shard_is_made_with_a_disk_and_apply_changes_one_after_the_other() {
    let setup = sharded();
    assert_eq!(setup.builders.ensure("d").await.expect("made"), [true; 3]);
    {
        let objects = setup.kubernetes.objects();
        assert_eq!(objects.deployments.keys().collect::<Vec<_>>(), ["d-0", "d-1", "d-2"]);
        let deployment = &objects.deployments["d-1"];
        assert_eq!(deployment["spec"]["strategy"]["type"], "Recreate");
        let pod = &deployment["spec"]["template"]["spec"];
        let disk = &pod["volumes"].as_array().expect("volumes")[1];
        assert_eq!(disk["persistentVolumeClaim"]["claimName"], "d-1");
        let spread = &pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"];
        assert_eq!(*spread, json!({"sidebake/builder": "d"}), "all shards are spread together");
        let claim = &objects.others["persistentvolumeclaims/d-1"]["spec"];
        assert_eq!(claim["resources"]["requests"]["storage"], "20Gi");
        let config = objects.others["configmaps/d-1-config"]["data"]["buildkitd.toml"].as_str().expect("a text");
        assert!(config.contains("maxUsedSpace = \"80%\""), "{config}");
        let budget = &objects.others["poddisruptionbudgets/d-shards"]["spec"];
        assert_eq!((&budget["maxUnavailable"], &budget["selector"]["matchLabels"]), (&json!(1), spread));
    }
    assert_eq!(setup.builders.ensure("d").await.expect("there"), [false; 3]);
    assert!(setup.builders.status("d").await.expect("a status").iter().all(|status| status.drift.is_empty()));

    let larger = setup.changed(|builder| {
        (builder.volume, builder.image) = (Some("30Gi".into()), Some("buildkit:2".into()));
    });
    let statuses = larger.status("d").await.expect("a status");
    let drift: Vec<_> = statuses.iter().map(|status| (status.shard.as_deref(), status.drift.len())).collect();
    assert_eq!(drift, [(Some("d-0"), 1), (Some("d-1"), 1), (Some("d-2"), 1)]);
    larger.apply("d").await.expect("applied");
    let objects = setup.kubernetes.objects();
    let claim = &objects.others["persistentvolumeclaims/d-2"]["spec"];
    assert_eq!(
        (&claim["resources"]["requests"]["storage"], &claim["accessModes"][0]),
        (&json!("30Gi"), &json!("ReadWriteOnce"))
    );
    assert_eq!(objects.deployments["d-2"]["spec"]["template"]["spec"]["containers"][0]["image"], "buildkit:2");
}

#[tokio::test]
async fn a_build_gets_a_shard_that_takes_builds() {
    let setup = sharded();
    setup.builders.ensure("d").await.expect("made");
    let job = Job::new(setup.home.path());
    let placed = async || {
        let session = job.place(&setup.builders).await.expect("placed");
        (session.placement().shard.expect("a shard"), session.placement().pod)
    };
    let (home, pod) = placed().await;
    assert_eq!(pod, Some(format!("{home}-a")), "known without asking it");
    let (_, placement) = setup.builders.plan(&job.build, &job.state).expect("a plan");
    assert_eq!(placement.shard.as_deref(), Some(&*home), "where it goes when nothing runs");

    // A build that runs counts.
    let session = job.place(&setup.builders).await.expect("placed");
    assert_ne!(placed().await.0, home);
    drop(session);
    assert_eq!(placed().await.0, home);

    let lost = job.place(&setup.builders).await.expect("placed");
    let loss = lost.post_mortem(&Failure::new(Reason::BuilderLost, "EOF")).await.expect("a loss");
    drop(lost);
    let after = job.place_after(&setup.builders, Some(&loss), None).await.expect("placed");
    let second = after.placement().shard.expect("a shard");
    assert_ne!(second, home);
    let loss = after.post_mortem(&Failure::new(Reason::BuilderLost, "EOF")).await.expect("a loss").after(Some(loss));
    drop(after);
    let third = job.place_after(&setup.builders, Some(&loss), None).await.expect("placed");
    let third = third.placement().shard.expect("a shard");
    assert!(third != home && third != second, "{third}");

    let number: usize = home[2..].parse().expect("a number");
    setup.kubernetes.objects().pods[number]["status"]["conditions"][0]["status"] = json!("False");
    assert_ne!(placed().await.0, home, "it is not ready");
    setup.kubernetes.objects().pods[number]["status"]["conditions"][0]["status"] = json!("True");
    setup.builders.builders["d"].nodes[number].shun(&format!("{home}-a"));
    assert_ne!(placed().await.0, home, "it did not answer a while ago");
}

#[tokio::test]
async fn a_build_says_why_it_is_not_on_its_home() {
    let setup = sharded();
    setup.builders.ensure("d").await.expect("made");
    let job = Job::new(setup.home.path());
    let offered = Arc::new(std::sync::Mutex::new(None));
    let why = async |taken: Option<ShardAnswer>| {
        let offered = Arc::clone(&offered);
        let fleet: Box<Fleet> = Box::new(move |offer| {
            *offered.lock().expect("no panic") = Some(offer);
            Box::pin(std::future::ready(taken))
        });
        let session = job.place_after(&setup.builders, None, Some(&*fleet)).await.expect("placed");
        let placement = session.placement();
        (placement.shard.expect("a shard"), placement.why)
    };
    let taken = ShardAnswer { place: 1, home: Some(0), n_on_home: 6, most: 6 };
    let (shard, text) = why(Some(taken)).await;
    let offer = offered.lock().expect("no panic").take().expect("an offer");
    assert_eq!((offer.n_able, &*offer.builder, &*offer.application, offer.bound.least), (3, "d", "acme/acme/shop", 4));
    assert_eq!(shard, offer.shards[1]);
    assert_eq!(text, format!("takes every account; its home {} runs 6 builds and may run 6", offer.shards[0]));
    let (_, text) = why(Some(ShardAnswer { place: 0, ..taken })).await;
    assert!(text.ends_with("; the home of this repository"), "{text}");
    let (_, text) = why(Some(ShardAnswer { place: 2, home: None, ..taken })).await;
    assert!(text.ends_with("; it had the fewest builds"), "{text}");
    let (shard, text) = why(None).await;
    assert_eq!(
        (shard, text.ends_with("; the running builds of the fleet are not known")),
        (offer.shards[0].clone(), true)
    );

    let number: usize = offer.shards[0][2..].parse().expect("a number");
    setup.kubernetes.objects().pods[number]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let (shard, text) = why(Some(ShardAnswer { place: 0, home: Some(2), ..taken })).await;
    let offer = offered.lock().expect("no panic").take().expect("an offer");
    assert_eq!((offer.n_able, &offer.shards[0]), (2, &shard));
    assert!(text.ends_with(&format!("; its home {} takes no builds now", offer.shards[2])), "{text}");

    setup.kubernetes.objects().pods.clear();
    let impatient = setup.changed(|builder| builder.timeout = Duration::ZERO);
    let error = job.place(&impatient).await.expect_err("no pods").to_string();
    assert_eq!(
        error,
        "the builder d: 0 of 3 pods of the shards d-… in builds are ready after 0 s: there are no pods; `sidebake builder ensure` creates missing shards"
    );
}
